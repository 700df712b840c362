package recorder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

// Errors of the Recorder.
var (
	ErrExists   = errors.New("recorder: a recording of this ID is already here")
	ErrClosed   = errors.New("recorder: closed")
	ErrSealed   = errors.New("recorder: the recording is sealed")
	ErrNoTarget = errors.New("recorder: no US target is configured: replicated recordings need one")
)

// Recorder holds the spools of an orchestrator and carries them to storage. Safe for concurrent use.
type Recorder struct {
	cfg    Config
	eu     euStore
	us     *usStore
	volume *volume
	spawn  func(*Recording)
	cancel context.CancelFunc
	wg     sync.WaitGroup // of Recording.run

	mu     sync.Mutex // guards what follows
	active map[string]*Recording
	closed bool
}

// Open probes the buckets and takes over the spools that other processes left in cfg.Dir, now and every cfg.ScanEvery: sealed ones go on to be uploaded, the others
// are cut to the last complete cluster and sealed as partial first, once their session has ended; all of that happens in the background. It fails for
// a bad cfg, when Dir cannot be used, and with ErrMisplaced when a bucket is not where it has to be: storage that does not answer is waited for
// in the background, a spool that contradicts itself is quarantined, one that cannot be opened is left
// for the next start, and a recording that another process works on is left to that. ctx bounds Open itself; Close ends the background work.
func Open(ctx context.Context, cfg Config) (*Recorder, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	eu, err := newStore(cfg.EU.Target, cfg.EU.site(cfg.US), cfg.stores())
	if err != nil {
		return nil, err
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &Recorder{cfg: cfg, eu: euStore{eu}, volume: newVolume(&cfg), cancel: cancel, active: map[string]*Recording{}}
	if cfg.US != nil {
		us, err := newStore(cfg.US.Target, cfg.US.site(cfg.EU), cfg.stores())
		if err != nil {
			cancel()
			return nil, err
		}
		r.us = &usStore{us}
	}
	r.spawn = func(rec *Recording) { r.wg.Go(func() { rec.run(life) }) }
	if err := r.start(ctx, life); err != nil {
		_ = r.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	return r, nil
}

func (r *Recorder) start(ctx, life context.Context) error {
	if err := os.MkdirAll(r.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("recorder: spool folder: %w", err)
	}
	r.volume.look()
	r.wg.Go(func() { r.volume.lookAgain(life, r.cfg.RoomEvery) })
	if err := r.prove(ctx, life); err != nil {
		return err
	}
	if err := r.scan(ctx); err != nil {
		return err
	}
	r.wg.Go(func() { r.scanAgain(life) })
	if r.cfg.Removals != nil && r.us != nil { // the EU copy is the recording: nothing but its erasure removes it
		r.wg.Go(func() { r.removeAgain(life, r.us.store) })
	}
	if r.cfg.Sweeps != nil {
		for _, st := range r.stores() {
			r.wg.Go(func() { r.sweepAgain(life, st) })
		}
	}
	return nil
}

// stores are all there are, the EU's first.
func (r *Recorder) stores() []*store {
	if r.us == nil {
		return []*store{r.eu.store}
	}
	return []*store{r.eu.store, r.us.store}
}

// inherit makes a Recording of a spool that was left behind.
func (r *Recorder) inherit(id string, sp *spool) (*Recording, error) {
	rec := newRecording(r, id, sp)
	rec.recovered = true
	if sp.at.spec == nil {
		return rec, nil
	}
	rec.spec, rec.partSize = sp.at.spec.Spec, sp.at.spec.PartSize
	p, err := r.plan(rec.spec.Placement)
	rec.plan = p
	return rec, err
}

// Begin makes the spool of a new recording and journals it. The caller goes on with Ingest and ends with Seal, or with Leave.
// ErrNoRoom: it is journaled as empty, with CauseSpoolFull.
func (r *Recorder) Begin(ctx context.Context, spec Spec) (*Recording, error) {
	if _, room := r.Room(); room >= RoomLow {
		if err := spec.validate(); err != nil {
			return nil, err
		}
		return nil, r.decline(ctx, spec)
	}
	return r.begin(ctx, spec, r.cfg.PartSize, func(*Recording) error { return nil })
}

// begin is Begin; fill puts into the spool what is there already.
func (r *Recorder) begin(ctx context.Context, spec Spec, partSize int64, fill func(*Recording) error) (*Recording, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	p, err := r.plan(spec.Placement)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	closed := r.closed
	r.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	// Disk and journal may be slow: no lock is held over them. The folder is what makes an ID unique.
	sp, err := createSpool(r.cfg.Dir, specRecord{Spec: spec, PartSize: partSize})
	if errors.Is(err, fs.ErrExist) {
		return nil, ErrExists
	}
	if err != nil {
		return nil, fmt.Errorf("recorder: begin: %w", err)
	}
	rec := newRecording(r, spec.ID, sp)
	rec.spec, rec.plan, rec.partSize = spec, p, partSize
	if err := fill(rec); err != nil {
		return nil, errors.Join(fmt.Errorf("recorder: begin: %w", err), sp.remove(r.cfg.Dir))
	}
	callCtx, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	if err := r.cfg.Journal.RecordingChanged(callCtx, rec.picture()); err != nil {
		return nil, errors.Join(fmt.Errorf("recorder: begin: journal: %w", err), sp.remove(r.cfg.Dir))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		sp.close() // the journal has it: the next Open brings it to an end
		return nil, ErrClosed
	}
	r.active[rec.id] = rec
	r.spawn(rec)
	return rec, nil
}

// plan is where the copies of one recording go. A plan of placement eu is made from the EU store alone.
type plan interface{ stores() []*store }

type euPlan struct{ eu euStore }

type replicatedPlan struct {
	eu euStore
	us usStore
}

func (p euPlan) stores() []*store         { return []*store{p.eu.store} }
func (p replicatedPlan) stores() []*store { return []*store{p.eu.store, p.us.store} }

func (r *Recorder) plan(p place.Placement) (plan, error) {
	if p == place.EUOnly {
		return euPlan{r.eu}, nil
	}
	if r.us == nil {
		return nil, ErrNoTarget
	}
	return replicatedPlan{r.eu, *r.us}, nil
}

// URL signs a GET of an object for ttl, which is at most MaxURLLifetime. key is a RecordingUpdate's Key. It does not look
// whether the object is there, and it grants what it signs: the caller decides who may read what.
func (r *Recorder) URL(ctx context.Context, region place.Region, key string, ttl time.Duration) (string, error) {
	if ttl < time.Second || ttl > MaxURLLifetime {
		return "", fmt.Errorf("recorder: URL for %v: use 1s to %v", ttl, MaxURLLifetime)
	}
	if !strings.HasPrefix(key, keyPrefix) || strings.Contains(key, "..") {
		return "", fmt.Errorf("recorder: %q is not the key of a recording", key)
	}
	switch region {
	case place.EU:
		return r.eu.url(ctx, key, ttl)
	case place.US:
		if r.us == nil {
			return "", ErrNoTarget
		}
		return r.us.url(ctx, key, ttl)
	}
	return "", fmt.Errorf("recorder: no storage in region %q", region)
}

// Drain waits until every sealed recording is where it has to be, or ctx ends.
func (r *Recorder) Drain(ctx context.Context) error {
	for {
		var wait *Recording
		r.mu.Lock()
		left := 0
		for _, rec := range r.active {
			if rec.recovered || rec.isSealed() {
				wait = rec
				left++
			}
		}
		r.mu.Unlock()
		if wait == nil {
			return nil
		}
		select {
		case <-wait.done:
		case <-ctx.Done():
			return fmt.Errorf("recorder: %d recordings are not uploaded yet: %w", left, context.Cause(ctx))
		}
	}
}

// Close stops all background work and lets go of the spools; the next Open goes on with them. It seals nothing: end
// sessions first. An Ingest that still runs fails.
func (r *Recorder) Close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	done := make(chan struct{})
	go func() {
		r.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("recorder: close: %w", context.Cause(ctx))
	}
	for _, st := range r.stores() {
		st.idle()
	}
	return nil
}

// forget is called by Recording.run when it ends.
func (r *Recorder) forget(rec *Recording) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.active[rec.id] == rec {
		delete(r.active, rec.id)
	}
}
