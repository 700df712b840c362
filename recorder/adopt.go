package recorder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator/place"
)

// ErrNoSpool says that what a session's recording has so far is not on this volume, or cannot be gone on with.
var ErrNoSpool = errors.New("recorder: the recording of the session cannot be gone on with here")

// Adopt goes on with the recording of a session that another Recorder on the same volume began, or this one in an earlier life: spec has a new
// ID and a higher term; the rest of it is taken over. The former holder must have lost the session's host already. What it
// acknowledged is copied to a spool of this term, so that whatever it still does with its own, now or when it wakes up, changes nothing here;
// it cannot store an object any more either, since the journal knows of its successor. The caller goes on with Ingest, from
// byte from of the stream on.
func (r *Recorder) Adopt(ctx context.Context, spec Spec) (rec *Recording, from int64, err error) {
	id, ok, err := r.cfg.Journal.Latest(ctx, spec.Session)
	if err != nil {
		return nil, 0, fmt.Errorf("recorder: adopt: journal: %w", err)
	}
	if !ok {
		return nil, 0, fmt.Errorf("%w: none is known", ErrNoSpool)
	}
	former, err := readSpool(filepath.Join(r.cfg.Dir, id))
	if err != nil {
		return nil, 0, err
	}
	defer former.close()
	was := former.at
	switch {
	case was.sealed != nil || was.cut != nil || was.ended != nil:
		return nil, 0, fmt.Errorf("%w: it is sealed, or was about to be", ErrNoSpool)
	case was.spec.Spec.Session != spec.Session || was.spec.Spec.Term >= spec.Term:
		return nil, 0, fmt.Errorf("%w: %s is not of an earlier term of the session", ErrNoSpool, id)
	}
	spec.Account, spec.Placement, spec.Started = was.spec.Spec.Account, was.spec.Spec.Placement, was.spec.Spec.Started
	rec, err = r.begin(ctx, spec, was.spec.PartSize, func(rec *Recording) (err error) {
		from, err = rec.takeOver(ctx, former, was)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	r.wg.Go(func() { r.dropUploads(context.WithoutCancel(ctx), was, rec.plan) })
	return rec, from, nil
}

// readSpool opens a spool for reading only, whoever works on it.
func readSpool(dir string) (*spool, error) {
	s := &spool{dir: dir}
	log, err := os.Open(filepath.Join(dir, logName))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoSpool, err)
	}
	s.log = diskFile{log}
	body, err := os.Open(filepath.Join(dir, bodyName))
	if err == nil {
		s.body = diskFile{body}
		_, err = readLog(whole(s.log), s.at.apply)
	}
	if err == nil && s.at.spec == nil {
		err = errUnborn
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("%w: %w", ErrNoSpool, err)
	}
	return s, nil
}

// takeOver copies what the former holder has on disk, and gives the byte of the stream that is to come next.
func (r *Recording) takeOver(ctx context.Context, former *spool, was progress) (from int64, err error) {
	if was.head == nil || was.framed <= headSize {
		return 0, nil // the host has all of it
	}
	in := &r.in
	if err := r.spool.append(record{Head: was.head}, false); err != nil {
		return 0, err
	}
	if _, err := r.spool.body.WriteAt(was.head.Slot, 0); err != nil {
		return 0, err
	}
	if _, err := in.scanner.Write(was.head.Slot); err != nil {
		return 0, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	at := int64(headSize)
	var frames []frameRecord
	buf := make([]byte, 1<<20)
	copyTo := func(end int64) (frame uint32, err error) {
		for at < end {
			if ctx.Err() != nil {
				return 0, context.Cause(ctx)
			}
			b := buf[:min(int64(len(buf)), end-at)]
			if _, err := former.body.ReadAt(b, at); err != nil {
				return 0, fmt.Errorf("%w: the body ends before byte %d: %w", errCorrupt, end, err)
			}
			if _, err := in.scanner.Write(b); err != nil {
				return 0, fmt.Errorf("%w: %w", errCorrupt, err)
			}
			if _, err := r.spool.body.WriteAt(b, at); err != nil {
				return 0, err
			}
			frame = crcUpdate(frame, b)
			at += int64(len(b))
		}
		return frame, nil
	}
	// What was acknowledged, and nothing else, by the log as it was read.
	_, err = readLog(io.NewSectionReader(former.log, 0, math.MaxInt64), func(rec record) error {
		if rec.Frame == nil || rec.Frame.Size > was.framed {
			return nil
		}
		frame, err := copyTo(rec.Frame.Size)
		if err == nil && frame != rec.Frame.CRC {
			err = fmt.Errorf("%w: the bytes before %d are not the ones that were acknowledged", errCorrupt, rec.Frame.Size)
		}
		frames = append(frames, *rec.Frame)
		return err
	})
	if err == nil {
		err = r.spool.body.Sync()
	}
	for i := 0; err == nil && i < len(frames); i++ { // as they were: a part is checked by the frames that it is made of
		err = r.spool.append(record{Frame: &frames[i]}, false)
	}
	if err == nil {
		err = r.spool.sync()
	}
	if err != nil {
		return 0, err
	}
	from = at - headSize + was.head.Start
	in.received, in.start = from, headSize // the scanner counts as the body does
	in.written, in.framed, in.complete = at, at, in.scanner.Complete()
	r.ready = in.complete
	return from, nil
}

// dropUploads tells storage that nothing follows to what the former holder uploaded. Storage forgets it by itself after a week.
func (r *Recorder) dropUploads(ctx context.Context, was progress, p plan) {
	for _, st := range p.stores() {
		up := was.uploads[place.Region(st.region)]
		if up == nil || up.id == "" {
			continue
		}
		if err := st.abort(ctx, was.spec.Spec.Key(), up.id); err != nil {
			r.cfg.Log.Info("an upload that nothing follows to stays until storage forgets it", zap.String("recording", was.spec.Spec.ID), zap.Error(err))
		}
	}
}

// Leave gives up the recording as it is, for whoever adopts its session: what arrived is on disk, nothing is sealed, and nothing works on it any
// more when Leave returns. It ends an Ingest that still runs.
func (r *Recording) Leave(ctx context.Context) error {
	r.mu.Lock()
	r.wantSeal = false
	r.left = true
	if r.endIngest != nil {
		r.endIngest(errLeft)
	}
	r.wakeLocked()
	r.mu.Unlock()
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("recorder: leave: %w", context.Cause(ctx))
	}
}

var errLeft = errors.New("recorder: the recording is left to whoever adopts its session")
