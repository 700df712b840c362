package recorder

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/recorder/webm"
)

// Finding is what was seen of a copy. Stored, so append-only.
type Finding string

// Findings.
const (
	FindingSound    Finding = "sound"    // size and ETag are those that the journal has
	FindingMissing  Finding = "missing"  // there is no object
	FindingAltered  Finding = "altered"  // there is another one
	FindingRepaired Finding = "repaired" // it was put back, and read back
)

// CheckedCopy is a copy to be looked at.
type CheckedCopy struct {
	Of        RecordingUpdate // as it is stored, without copies
	Region    place.Region
	Bucket    string
	ETag      string // "": it never was verified
	Healthy   string // ETag of the verified copy in the other region, which may be about to be removed; "": there is none
	Elsewhere bool   // another region has a copy, or was to have one

	// Abandoned is since when it is known that no region has a copy, that its session has ended, and that nobody has said anything of it for a
	// long time; zero: it is not so.
	Abandoned time.Time
	Noticed   bool // that it is Abandoned: only now
}

// Sweeps are what the sweeps ask of the journal, and tell it. Several recorders may ask at once.
type Sweeps interface {
	// Useless says whether nothing can become of an upload of a recording to a region: another recording goes on with what it had, its copy is
	// verified, or nothing was captured. What nothing is known of is not useless.
	Useless(ctx context.Context, region place.Region, session, id string) (bool, error)
	// CopiesToCheck are some of the copies in a bucket that are due: verified ones, those that are being repaired, and those that nobody brought there
	// for so long (abandoned) after the other region had one, or after the last word of a recording whose session has ended. They are the caller's
	// for that long (again).
	CopiesToCheck(ctx context.Context, region place.Region, bucket string, abandoned, again time.Duration, limit int) ([]CheckedCopy, error)
	// StillAbandoned says whether nobody has said anything of a recording since c was given.
	StillAbandoned(ctx context.Context, c CheckedCopy) (bool, error)
	// Salvaged stores what became of an abandoned recording, as a Journal does; taken is false, and nothing stored, when it is not StillAbandoned.
	Salvaged(ctx context.Context, c CheckedCopy, u RecordingUpdate) (taken bool, err error)
	// CopyFound stores what was seen of a copy, which is due again after next. With missing and altered it is being repaired from then on. wanted is
	// false for one that is to be removed, or was, and for one that is another by now, by its ETag or its recording's SHA-256; of that nothing is stored.
	CopyFound(ctx context.Context, c CheckedCopy, f Finding, etag string, at time.Time, next time.Duration) (wanted bool, err error)
}

const (
	checkBatch = 20
	checkAgain = time.Hour // whoever has a batch is done by then, or the copy can be looked at twice
)

// Counters are what happened to one storage since the recorder was opened.
type Counters struct {
	Proven                     bool
	Checked, Damaged, Repaired int64 // copies
	Aborted, Completed         int64 // abandoned uploads
	Lost                       int64 // recordings of which nothing is left
}

type counters struct{ checked, damaged, repaired, aborted, completed, lost atomic.Int64 }

// Counters are by region.
func (r *Recorder) Counters() map[place.Region]Counters {
	all := map[place.Region]Counters{}
	for _, st := range r.stores() {
		c := Counters{Checked: st.counts.checked.Load(), Damaged: st.counts.damaged.Load(), Repaired: st.counts.repaired.Load(),
			Aborted: st.counts.aborted.Load(), Completed: st.counts.completed.Load(), Lost: st.counts.lost.Load()}
		select {
		case <-st.proved:
			c.Proven = true
		default:
		}
		all[st.region] = c
	}
	return all
}

// sweepAgain looks after what lies in a storage, until ctx ends. What fails is tried again at a later look.
func (r *Recorder) sweepAgain(ctx context.Context, st *store) {
	if st.ready(ctx) != nil {
		return
	}
	log := r.cfg.Log.With(zap.String("region", string(st.region)))
	t := time.NewTicker(r.cfg.SweepEvery)
	defer t.Stop()
	for {
		if err := r.sweepUploads(ctx, st); err != nil && ctx.Err() == nil {
			log.Warn("abandoned uploads could not be looked for, they are at the next sweep", zap.Error(err))
		}
		if err := r.sweepCopies(ctx, st); err != nil && ctx.Err() == nil {
			log.Warn("copies of recordings could not be checked, they are at the next sweep", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// sweepUploads aborts the uploads that nothing can become of.
func (r *Recorder) sweepUploads(ctx context.Context, st *store) error {
	all, err := st.uploads(ctx, keyPrefix)
	if err != nil {
		return err
	}
	for _, u := range all {
		if err := r.sweepUpload(ctx, st, u); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.cfg.Log.Warn("an abandoned upload is left for the next sweep", zap.String("region", string(st.region)), zap.String("key", u.key), zap.Error(err))
		}
	}
	return nil
}

func (r *Recorder) sweepUpload(ctx context.Context, st *store, u foundUpload) error {
	session, id, ok := parseKey(u.key)
	if !ok {
		return nil // not ours
	}
	r.mu.Lock()
	rec := r.active[id]
	r.mu.Unlock()
	if rec != nil {
		// What it does not hold it began and never logged, or gave up.
		if rec.holds(st, u.id) || rec.Key() != u.key {
			return nil
		}
		return r.dropUpload(ctx, st, u)
	}
	call, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	useless, err := r.cfg.Sweeps.Useless(call, st.region, session, id)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if useless {
		return r.dropUpload(ctx, st, u)
	}
	return nil
}

func (r *Recorder) dropUpload(ctx context.Context, st *store, u foundUpload) error {
	if err := st.abort(ctx, u.key, u.id); err != nil {
		return fmt.Errorf("abort: %w", err)
	}
	st.counts.aborted.Add(1)
	r.cfg.Log.Info("an abandoned upload is aborted", zap.String("region", string(st.region)), zap.String("key", u.key))
	return nil
}

// errSpoken says that somebody has the spool of a recording that seemed abandoned.
var errSpoken = errors.New("recorder: somebody has its spool after all")

// salvage makes a recording of the parts that arrived, where they are all there is: the storage is about to drop them. Whoever has the spool after all
// has from the look that noticed it to the next one to say so: a fleet that was down for days has said nothing of any. If he does so later, he begins
// anew, and stores the whole over it.
func (r *Recorder) salvage(ctx context.Context, st, other *store, c CheckedCopy) error {
	log := r.cfg.Log.With(zap.String("recording", c.Of.ID))
	if c.Noticed {
		log.Warn("nobody brings a recording to storage: unless somebody says that he has its spool, what had been uploaded is made a partial one of", zap.Duration("in", checkAgain))
		return nil
	}
	places := []*store{st}
	if other != nil && c.Elsewhere {
		places = append(places, other)
	}
	if err := r.mostFirst(ctx, places, c.Of.Key); err != nil {
		return err
	}
	for _, from := range places {
		kept, err := r.keep(ctx, from, c)
		if errors.Is(err, errSpoken) {
			log.Info("somebody has the spool of a recording that seemed abandoned")
			return nil
		}
		if err != nil || kept {
			return err
		}
	}
	u := c.Of
	u.State, u.Cause, u.At, u.Copies = StateLost, CauseSpoolLost, r.cfg.Now().UTC(), nil
	u.Partial, u.Bytes, u.Duration, u.SHA256 = false, 0, 0, ""
	if err := r.salvaged(ctx, c, u); err != nil {
		return err
	}
	st.counts.lost.Add(1)
	log.Error("a recording is lost: its spool is gone, and nothing of it had been uploaded. Look for its folder on the volumes of all orchestrators", zap.String("session", u.Session))
	return nil
}

// mostFirst puts the storage first that has most of an object: the others are made equal to it.
func (r *Recorder) mostFirst(ctx context.Context, places []*store, key string) error {
	has := map[*store]int64{}
	for _, st := range places {
		size, _, there, err := st.head(ctx, key)
		if err == nil && !there {
			size, err = st.arrived(ctx, key)
		}
		if err != nil {
			return err
		}
		has[st] = size
	}
	slices.SortStableFunc(places, func(a, b *store) int { return cmp.Compare(has[b], has[a]) })
	return nil
}

// arrived is how much an object would have that were made of the newest upload under the key.
func (s *store) arrived(ctx context.Context, key string) (size int64, err error) {
	u, err := s.newestUpload(ctx, key)
	if err != nil || u.id == "" {
		return 0, err
	}
	found, err := s.parts(ctx, u.key, u.id)
	_, size = wholeParts(found)
	return size, err
}

// keep makes a recording of what lies in one storage; false: nothing does.
func (r *Recorder) keep(ctx context.Context, st *store, c CheckedCopy) (bool, error) {
	size, etag, there, err := st.head(ctx, c.Of.Key)
	if err == nil && !there {
		size, etag, err = r.completeWhatIsThere(ctx, st, c)
	}
	if err != nil || size == 0 {
		return false, err
	}
	whole, film := sha256.New(), &webm.Scanner{}
	if err := st.read(ctx, c.Of.Key, etag, size, 1<<20, func(piece []byte) error {
		_, _ = whole.Write(piece)
		_, _ = film.Write(piece) // what it makes no sense of any more it leaves out
		return nil
	}); err != nil {
		return false, err
	}
	u := c.Of
	u.State, u.At = StateUploading, r.cfg.Now().UTC()
	if st.region == place.EU {
		u.State = StateAvailable
	}
	if sha := hex.EncodeToString(whole.Sum(nil)); sha != u.SHA256 { // else it was stored whole, and nobody told
		ix, _ := film.Index()
		u.Partial, u.Cause, u.Bytes, u.Duration, u.SHA256 = true, CauseSpoolLost, size, ix.Duration, sha
	}
	u.Copies = []Copy{{Region: st.region, Bucket: st.bucket, State: CopyVerified, ETag: etag, Verified: u.At}}
	if err := r.salvaged(ctx, c, u); err != nil {
		return false, err
	}
	st.counts.completed.Add(1)
	r.cfg.Log.Warn("the spool of a recording is lost: what had been uploaded is kept", zap.String("recording", u.ID), zap.String("region", string(st.region)),
		zap.Bool("partial", u.Partial), zap.Int64("bytes", u.Bytes))
	return true, nil
}

// salvaged is errSpoken when the journal does not take it.
func (r *Recorder) salvaged(ctx context.Context, c CheckedCopy, u RecordingUpdate) error {
	ctx, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	taken, err := r.cfg.Sweeps.Salvaged(ctx, c, u)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if !taken {
		return errSpoken
	}
	return nil
}

// completeWhatIsThere gives size and ETag of an object made of an upload; 0: there is none to make one of.
func (r *Recorder) completeWhatIsThere(ctx context.Context, st *store, c CheckedCopy) (size int64, etag string, err error) {
	u, err := st.newestUpload(ctx, c.Of.Key)
	if err != nil || u.id == "" {
		return 0, "", err
	}
	found, err := st.parts(ctx, u.key, u.id)
	if err != nil {
		return 0, "", err
	}
	// Last, since it is the upload that whoever has the spool would go on with.
	call, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	if still, err := r.cfg.Sweeps.StillAbandoned(call, c); err != nil {
		return 0, "", fmt.Errorf("journal: %w", err)
	} else if !still {
		return 0, "", errSpoken
	}
	etags, size := wholeParts(found)
	if len(etags) == 0 {
		return 0, "", r.dropUpload(ctx, st, u)
	}
	if etag, err = joinedETag(etags); err != nil {
		return 0, "", err
	}
	return size, etag, r.completeAndSee(ctx, st, u, etags, size, etag)
}

// completeAndSee puts an object together; what is there decides whether it worked.
func (r *Recorder) completeAndSee(ctx context.Context, st *store, u foundUpload, etags []string, size int64, want string) error {
	err := st.complete(ctx, u.key, u.id, etags)
	gotSize, gotETag, there, headErr := st.head(ctx, u.key)
	if headErr != nil {
		return errors.Join(fmt.Errorf("see what became of an upload: %w", headErr), err)
	}
	if !there || gotSize != size || gotETag != want {
		return errors.Join(errors.New("what is stored is not what was sent"), err)
	}
	return nil
}

// wholeParts are those from the first on that an object can be made of: equal ones, and a shorter last one.
func wholeParts(found map[int32]foundPart) (etags []string, size int64) {
	first := found[1].size
	for n := int32(1); ; n++ {
		p, ok := found[n]
		if !ok || p.size > first {
			return etags, size
		}
		etags, size = append(etags, p.etag), size+p.size
		if p.size < first {
			return etags, size
		}
	}
}

// joinedETag is the ETag of an object made of parts: the hash of their hashes.
func joinedETag(etags []string) (string, error) {
	h := md5.New()
	for _, e := range etags {
		b, err := hex.DecodeString(e)
		if err != nil || len(b) != md5.Size {
			return "", fmt.Errorf("%q is not the ETag of a part", e)
		}
		_, _ = h.Write(b)
	}
	return fmt.Sprintf("%x-%d", h.Sum(nil), len(etags)), nil
}

// parseKey is Spec.Of.Key the other way round.
func parseKey(key string) (session, id string, ok bool) {
	parts := strings.Split(strings.TrimSuffix(strings.TrimPrefix(key, keyPrefix), ".webm"), "/")
	if len(parts) != 3 {
		return "", "", false
	}
	s := Spec{Account: parts[0], Session: parts[1], ID: parts[2], Placement: place.EUOnly}
	return s.Session, s.ID, s.validate() == nil && s.Key() == key
}

// sweepCopies compares copies with what the journal says of them, and repairs what differs.
func (r *Recorder) sweepCopies(ctx context.Context, st *store) error {
	for {
		call, cancel := context.WithTimeout(ctx, journalTimeout)
		list, err := r.cfg.Sweeps.CopiesToCheck(call, st.region, st.bucket, r.cfg.AbandonedAfter, checkAgain, checkBatch)
		cancel()
		if err != nil {
			return fmt.Errorf("journal: %w", err)
		}
		for _, c := range list {
			if err := r.checkCopy(ctx, st, c); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				r.cfg.Log.Error("a copy of a recording is not known to be sound, it is tried again", zap.String("recording", c.Of.ID),
					zap.String("region", string(st.region)), zap.Duration("in", checkAgain), zap.Error(err))
			}
		}
		if len(list) < checkBatch {
			return nil
		}
	}
}

func (r *Recorder) checkCopy(ctx context.Context, st *store, c CheckedCopy) error {
	// The plan of the recording decides where a copy may be: an EU-only one has no US store to be repaired into. It may be repaired out of it, with
	// what lies there until it is removed.
	p, err := r.plan(c.Of.Placement)
	if err != nil {
		return err
	}
	if !slices.Contains(p.stores(), st) {
		return fmt.Errorf("its placement is %s: it has nothing to do with the region %s", c.Of.Placement, st.region)
	}
	var other *store
	for _, s := range r.stores() {
		if s != st {
			other = s
		}
	}
	r.mu.Lock()
	rec := r.active[c.Of.ID]
	r.mu.Unlock()
	if rec != nil && !rec.view(st).stored {
		return nil // it is on its way
	}
	if !c.Abandoned.IsZero() {
		return r.salvage(ctx, st, other, c)
	}
	size, etag, there, err := st.head(ctx, c.Of.Key)
	if err != nil {
		return fmt.Errorf("look at the object: %w", err)
	}
	st.counts.checked.Add(1)
	expected := c.ETag
	if expected == "" {
		expected = c.Healthy
	}
	found := FindingAltered
	switch {
	case !there:
		found = FindingMissing
	case size == c.Of.Bytes && etag == expected:
		_, err := r.found(ctx, c, FindingSound, etag)
		return err
	}
	st.counts.damaged.Add(1)
	wanted, err := r.found(ctx, c, found, "")
	if err != nil || !wanted {
		return err
	}
	r.cfg.Log.Warn("a copy of a recording is repaired", zap.String("recording", c.Of.ID), zap.String("region", string(st.region)), zap.String("it is", string(found)))
	read := r.healthy(c, rec, other)
	if read == nil {
		return errors.New("nothing is left to repair it from: neither its spool nor a verified copy in another region is here")
	}
	return r.repair(ctx, st, c, found, read)
}

func (r *Recorder) found(ctx context.Context, c CheckedCopy, f Finding, etag string) (wanted bool, err error) {
	next := r.cfg.CheckEvery - rand.N(r.cfg.CheckEvery/8+1) // those that are looked at together do not stay so
	if f == FindingMissing || f == FindingAltered {
		next = checkAgain
	}
	ctx, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	if wanted, err = r.cfg.Sweeps.CopyFound(ctx, c, f, etag, r.cfg.Now().UTC(), next); err != nil {
		return false, fmt.Errorf("journal: %w", err)
	}
	return wanted, nil
}

// source gives a recording to f in pieces of step bytes, as store.read does.
type source func(ctx context.Context, step int64, f func(piece []byte) error) error

// healthy is what a copy can be repaired from: the spool, else the copy in the other region; nil: neither is there.
func (r *Recorder) healthy(c CheckedCopy, rec *Recording, other *store) source {
	if rec != nil && rec.isSealed() {
		return func(ctx context.Context, step int64, f func([]byte) error) error {
			buf := make([]byte, min(step, c.Of.Bytes))
			for at := int64(0); at < c.Of.Bytes; at += step {
				piece := buf[:min(step, c.Of.Bytes-at)]
				if _, err := rec.spool.body.ReadAt(piece, at); err != nil {
					return fmt.Errorf("read the spool: %w", err)
				}
				if err := f(piece); err != nil {
					return err
				}
			}
			return nil
		}
	}
	if other == nil || c.Healthy == "" {
		return nil
	}
	return func(ctx context.Context, step int64, f func([]byte) error) error {
		return other.read(ctx, c.Of.Key, c.Healthy, c.Of.Bytes, step, f)
	}
}

// repair puts an object back, a part in memory at a time.
//
// It is always an upload of parts, and the journal is asked between its beginning and its end: whoever removes a copy says so in the journal first, and
// then aborts the uploads that are there. So either the upload is seen by him, or the removal by us, and no copy comes back that was removed.
func (r *Recorder) repair(ctx context.Context, st *store, c CheckedCopy, was Finding, read source) error {
	id, err := st.create(ctx, c.Of.Key)
	if err != nil {
		return fmt.Errorf("begin the repair: %w", err)
	}
	up := foundUpload{key: c.Of.Key, id: id}
	etag, err := r.refill(ctx, st, c, was, up, read)
	if err != nil || etag == "" {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), journalTimeout)
		defer cancel()
		return errors.Join(err, st.abort(clean, c.Of.Key, id)) // what stays is swept up
	}
	if wanted, err := r.found(ctx, c, FindingRepaired, etag); err != nil || !wanted {
		return err // what is there now is looked at anew
	}
	st.counts.repaired.Add(1)
	r.cfg.Log.Info("a copy of a recording is repaired", zap.String("recording", c.Of.ID), zap.String("region", string(st.region)))
	return nil
}

// refill gives the ETag of the object; "": the copy is not wanted any more.
func (r *Recorder) refill(ctx context.Context, st *store, c CheckedCopy, was Finding, up foundUpload, read source) (etag string, err error) {
	if wanted, err := r.found(ctx, c, was, ""); err != nil || !wanted {
		return "", err
	}
	var etags []string
	whole := sha256.New()
	err = read(ctx, max(r.cfg.PartSize, (c.Of.Bytes+maxParts-1)/maxParts), func(piece []byte) error {
		select {
		case st.slots <- struct{}{}:
			defer func() { <-st.slots }()
		case <-ctx.Done():
			return ctx.Err()
		}
		_, _ = whole.Write(piece)
		sum := sha256.Sum256(piece)
		e, err := st.part(ctx, up.key, up.id, int32(len(etags)+1), bytes.NewReader(piece), int64(len(piece)), sum[:])
		etags = append(etags, e)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("repair: %w", err)
	}
	if got := hex.EncodeToString(whole.Sum(nil)); got != c.Of.SHA256 {
		return "", fmt.Errorf("what it would be repaired from is not the recording: its SHA-256 is %s, not %s", got, c.Of.SHA256)
	}
	want, err := joinedETag(etags)
	if err != nil {
		return "", err
	}
	return want, r.completeAndSee(ctx, st, up, etags, c.Of.Bytes, want)
}
