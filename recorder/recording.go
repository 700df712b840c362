package recorder

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/driftstack/fleet/orchestrator/place"
)

const journalTimeout = 10 * time.Second

// Recording is one recording, from Begin to where all of its copies are verified.
//
// Ingest and Seal are the caller's; run, started by the Recorder, owns everything in the background.
type Recording struct {
	owner     *Recorder
	id        string
	spec      Spec
	partSize  int64
	plan      plan
	spool     *spool
	recovered bool  // of an earlier process: run seals it
	damage    error // why its log cannot be read

	gate chan struct{} // holds a token while Ingest or Seal works
	in   intake

	done chan struct{} // closed when run has ended

	mu        sync.Mutex // guards what follows
	ready     int64      // size of the body that may be sent while recording
	newest    int64      // byte of the body where the clusters begin that came last
	changed   chan struct{}
	wantSeal  bool                    // Seal was called: watch sees to it
	left      bool                    // Leave was called
	told      State                   // what the journal took last
	endIngest context.CancelCauseFunc // of the newest Ingest
	uploading bool                    // the final object is being put together
	shelves   map[place.Region]*shelf // by region of a copy
	condemned error                   // why it is quarantined
	aside     bool                    // it is
	last      RecordingUpdate
	queue     []RecordingUpdate // for the journal, oldest first
}

func newRecording(owner *Recorder, id string, sp *spool) *Recording {
	return &Recording{owner: owner, id: id, spool: sp, gate: make(chan struct{}, 1), done: make(chan struct{}), changed: make(chan struct{}),
		shelves: map[place.Region]*shelf{}}
}

// Key is the name of the object, in every region.
func (r *Recording) Key() string { return r.spec.Key() }

// Done is closed when the recorder has nothing more to do with it: every copy is verified, or it is empty, quarantined, or the
// Recorder was closed.
func (r *Recording) Done() <-chan struct{} { return r.done }

func (r *Recording) log() *zap.Logger {
	return r.owner.cfg.Log.With(zap.String("recording", r.id), zap.String("session", r.spec.Session))
}

func (r *Recording) enter(ctx context.Context) error {
	select {
	case r.gate <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("recorder: recording %s is in use: %w", r.id, context.Cause(ctx))
	}
}

func (r *Recording) leave() { <-r.gate }

// advance lets the uploads have the body up to size.
func (r *Recording) advance(size int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if size > r.ready {
		r.newest, r.ready = r.ready, size
		r.wakeLocked()
	}
}

func (r *Recording) wakeLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// note queues an update for the journal if the picture has changed, and wakes who waits for that.
func (r *Recording) note() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.noteLocked()
}

func (r *Recording) noteLocked() {
	u := r.pictureLocked()
	if !sameState(u, r.last) {
		r.last = u
		r.queue = append(r.queue, u)
	}
	r.wakeLocked()
}

func sameState(a, b RecordingUpdate) bool {
	if a.State != b.State || len(a.Copies) != len(b.Copies) {
		return false
	}
	for i := range a.Copies {
		if a.Copies[i].State != b.Copies[i].State {
			return false
		}
	}
	return true
}

func (r *Recording) markUploading() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.uploading {
		r.uploading = true
		r.noteLocked()
	}
}

// condemn has the spool moved aside.
func (r *Recording) condemn(why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.condemned == nil {
		r.condemned = why
		r.wakeLocked()
	}
}

func (r *Recording) picture() RecordingUpdate {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = r.pictureLocked()
	return r.last
}

func (r *Recording) pictureLocked() RecordingUpdate {
	u := RecordingUpdate{ID: r.id, State: StateRecording, At: r.owner.cfg.Now().UTC()}
	if r.aside {
		u.State, u.Cause = StateQuarantined, CauseCorrupt
		if errors.Is(r.condemned, errConflict) {
			u.Cause = CauseConflict
		}
	}
	r.spool.look(func(p *progress) {
		if p.spec == nil || r.plan == nil {
			return
		}
		u.Session, u.Account, u.Term, u.Placement = r.spec.Session, r.spec.Account, r.spec.Term, r.spec.Placement
		u.Key, u.Started = r.spec.Key(), r.spec.Started
		stored := map[place.Region]bool{}
		for _, st := range r.plan.stores() {
			c := Copy{Region: st.region, Bucket: st.bucket, State: CopyPending}
			up := p.upload(st.region)
			switch {
			case up.stored != nil:
				c.State, c.ETag, c.Verified = CopyVerified, up.stored.ETag, up.stored.At
				stored[st.region] = true
			case r.uploading || up.id != "":
				c.State = CopyUploading
			}
			u.Copies = append(u.Copies, c)
		}
		if r.aside || p.sealed == nil {
			return
		}
		u.Cause, u.Partial = p.sealed.Cause, p.sealed.Cause != CauseNone
		u.Bytes, u.Duration, u.SHA256 = p.sealed.Size, p.sealed.Duration, p.sealed.SHA256
		switch {
		case p.sealed.Empty:
			u.State, u.Partial = StateEmpty, false
		case stored[place.EU] && len(stored) == len(u.Copies) && r.spec.Placement == place.Replicated:
			u.State = StateReplicated
		case stored[place.EU]:
			u.State = StateAvailable
		case r.uploading:
			u.State = StateUploading
		default:
			u.State = StateSealed
		}
	})
	return u
}

// run sees a recording to its end: seals it when an earlier process left it, carries every copy, keeps the journal, deletes
// or quarantines the spool. It returns with the spool closed.
func (r *Recording) run(ctx context.Context) {
	defer close(r.done) // last: whoever waited for it finds the spool nobody's, here too
	defer r.owner.forget(r)
	defer r.spool.close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	journal := make(chan struct{}) // closed: nothing is queued after what is
	published := make(chan error, 1)
	go func() { // waited for below
		err := r.publish(ctx, journal)
		if err != nil {
			cancel(err)
		}
		published <- err
	}()
	err := r.work(ctx)
	switch {
	case errors.Is(err, errLeft):
		cancel(errLeft) // whoever goes on with it says what becomes of it
		<-published
		r.gate <- struct{}{} // Ingest is over, or about to be: what it has received is on disk then
		return
	case ctx.Err() != nil:
	case err != nil:
		r.putAside(ctx, err)
	}
	r.note()
	close(journal)
	if pubErr := <-published; pubErr != nil {
		if errors.Is(pubErr, ErrFenced) {
			r.log().Info("recording belongs to a newer holder, it is left to it")
		}
		return
	}
	if err == nil && ctx.Err() == nil {
		if err := r.spool.remove(r.owner.cfg.Dir); err != nil {
			r.log().Error("spool of a finished recording stays behind", zap.Error(err))
		}
	}
}

// work returns nil once every copy is verified (or the recording is empty), an error when a person has to look or ctx has ended.
func (r *Recording) work(ctx context.Context) error {
	if r.recovered {
		if err := r.resume(ctx); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, st := range r.plan.stores() {
		g.Go(func() error { return r.carry(gctx, st) })
	}
	g.Go(func() error { return r.watch(gctx) })
	return g.Wait()
}

// watch returns when the recording is sealed, with an error when it is condemned before. Where Seal failed it tries again.
func (r *Recording) watch(ctx context.Context) error {
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = r.owner.cfg.RetryMax
	for {
		r.mu.Lock()
		condemned, changed, wanted, left := r.condemned, r.changed, r.wantSeal, r.left
		r.mu.Unlock()
		if condemned != nil {
			return condemned
		}
		if left {
			return errLeft
		}
		if r.isSealed() {
			return nil
		}
		var again <-chan time.Time
		if wanted {
			again = time.After(pause.NextBackOff())
		}
		select {
		case <-changed:
		case <-again:
			if _, err := r.trySeal(ctx); err != nil && ctx.Err() == nil {
				r.log().Warn("sealing a recording failed, it is tried again", zap.Error(err))
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// resume seals what an earlier process left unsealed.
func (r *Recording) resume(ctx context.Context) error {
	if r.damage != nil {
		return r.damage
	}
	if r.isSealed() {
		r.note()
		return nil
	}
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = r.owner.cfg.RetryMax
	_, err := backoff.Retry(ctx, func() (Sealed, error) {
		s, err := r.sealFromDisk(ctx, CauseCrash)
		if errors.Is(err, errCorrupt) {
			err = backoff.Permanent(err)
		}
		return s, err
	}, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, in time.Duration) {
		r.log().Warn("sealing a recovered recording failed, it is tried again", zap.Error(err), zap.Duration("in", in))
	}))
	return err
}

// putAside quarantines the spool. What still arrives is refused, and storage is told that nothing follows.
func (r *Recording) putAside(ctx context.Context, why error) {
	r.mu.Lock()
	r.condemned = why
	if r.endIngest != nil {
		r.endIngest(why)
	}
	r.mu.Unlock()
	r.gate <- struct{}{} // Ingest is over, or about to be
	defer r.leave()
	to, err := r.spool.quarantine(r.owner.cfg.Dir)
	r.log().Error("recording is quarantined: look at it, then move it back or delete it", zap.String("to", to), zap.NamedError("why", why), zap.Error(err))
	r.mu.Lock()
	r.aside = true
	r.mu.Unlock()
	if r.plan == nil {
		return
	}
	var at progress
	r.spool.look(func(p *progress) { at = *p })
	if at.spec != nil {
		r.owner.wg.Go(func() { r.owner.dropUploads(context.WithoutCancel(ctx), at, r.plan) })
	}
}

// publish sends the queue to the journal, in order, until final is closed and it is empty.
func (r *Recording) publish(ctx context.Context, final <-chan struct{}) error {
	for {
		r.mu.Lock()
		var next *RecordingUpdate
		if len(r.queue) > 0 {
			first := r.queue[0]
			next = &first
		}
		changed := r.changed
		r.mu.Unlock()
		if next == nil {
			select {
			case <-final:
				r.mu.Lock()
				empty := len(r.queue) == 0
				r.mu.Unlock()
				if empty {
					return nil
				}
			case <-changed:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		if err := r.deliverUpdate(ctx, *next); err != nil {
			return err
		}
		r.mu.Lock()
		r.queue = r.queue[1:]
		r.told = next.State
		r.wakeLocked()
		r.mu.Unlock()
	}
}

// confirmed waits until the journal has taken it that the recording is sealed: then it is nobody else's, and its object may be
// stored. A holder that was stopped for longer than its lease finds out here at the latest.
func (r *Recording) confirmed(ctx context.Context) error {
	for {
		r.mu.Lock()
		told, changed := r.told, r.changed
		r.mu.Unlock()
		if told != "" && told != StateRecording {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *Recording) deliverUpdate(ctx context.Context, u RecordingUpdate) error {
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = r.owner.cfg.RetryMax
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		callCtx, cancel := context.WithTimeout(ctx, journalTimeout)
		defer cancel()
		err := r.owner.cfg.Journal.RecordingChanged(callCtx, u)
		if errors.Is(err, ErrFenced) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, in time.Duration) {
		r.log().Warn("the state of a recording could not be stored, it is tried again", zap.Error(err), zap.Duration("in", in))
	}))
	return err
}
