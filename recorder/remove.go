package recorder

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/driftstack/fleet/orchestrator/place"
)

// removeBatch is how many copies are set about at once: a few seconds' worth.
const removeBatch = 50

// StoredCopy is an object of a recording.
type StoredCopy struct {
	Recording string
	Region    place.Region
	Bucket    string
	Key       string
	EU        string // ETag of the copy in the EU, which stays; "": there is none, and nothing to keep either
}

// Removals say which copies are not wanted any more. Several recorders may ask at once.
type Removals interface {
	// CopiesToRemove are some of the copies in a region that are to be removed and that nobody has set about within again. They are the
	// caller's for that long. One that may still be on its way there is among them once nobody has said anything of it for so long (abandoned).
	CopiesToRemove(ctx context.Context, region place.Region, abandoned, again time.Duration, limit int) ([]StoredCopy, error)
	// CopyRemoved says that a copy is gone.
	CopyRemoved(ctx context.Context, c StoredCopy, at time.Time) error
}

// removeAgain removes what is not wanted any more, until ctx ends. What fails is tried again at a later look: the list is kept by [Removals].
func (r *Recorder) removeAgain(ctx context.Context, st *store) {
	if st.ready(ctx) != nil {
		return
	}
	t := time.NewTicker(r.cfg.ScanEvery)
	defer t.Stop()
	for {
		for {
			n, err := r.removeSome(ctx, st)
			if err != nil && ctx.Err() == nil {
				r.cfg.Log.Warn("which copies of recordings are to be removed cannot be found out; it is tried again", zap.String("region", string(st.region)), zap.Error(err))
			}
			if n < removeBatch || err != nil {
				break
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// removeSome sets about a batch, and gives its size.
func (r *Recorder) removeSome(ctx context.Context, st *store) (int, error) {
	call, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	again := r.cfg.CallTimeout + r.cfg.RetryMax // whoever has it is done by then
	list, err := r.cfg.Removals.CopiesToRemove(call, st.region, r.cfg.AbandonedAfter, again, removeBatch)
	if err != nil {
		return 0, err
	}
	var g errgroup.Group
	g.SetLimit(draining)
	for _, c := range list {
		g.Go(func() error {
			if err := r.removeCopy(ctx, st, c); err != nil && ctx.Err() == nil {
				r.cfg.Log.Warn("a copy of a recording could not be removed, it is tried again", zap.String("recording", c.Recording),
					zap.String("region", string(c.Region)), zap.Duration("in", again), zap.Error(err))
			}
			return nil
		})
	}
	return len(list), g.Wait()
}

// removeCopy deletes one object, sees that it is gone, and says so.
func (r *Recorder) removeCopy(ctx context.Context, st *store, c StoredCopy) error {
	if c.Bucket != st.bucket {
		return fmt.Errorf("it is in the bucket %s, and this recorder has %s: start one with that bucket, or remove it by hand", c.Bucket, st.bucket)
	}
	// The journal knows of the EU copy what was seen at its last check.
	if c.EU != "" {
		if _, etag, _, err := r.eu.store.head(ctx, c.Key); err != nil || etag != c.EU {
			return errors.Join(errors.New("the copy in the EU is not seen to be there as it should be, and this one is the last"), err)
		}
	}
	// A repair that is under way must not bring it back.
	all, err := st.uploadsOf(ctx, c.Key)
	for _, u := range all {
		err = errors.Join(err, st.abort(ctx, u.key, u.id))
	}
	if err != nil {
		return fmt.Errorf("abort what is on its way: %w", err)
	}
	if err := st.remove(ctx, c.Key); err != nil {
		return fmt.Errorf("delete the object: %w", err)
	}
	if _, _, found, err := st.head(ctx, c.Key); err != nil || found {
		return errors.Join(errors.New("the object is not seen to be gone"), err)
	}
	call, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	if err := r.cfg.Removals.CopyRemoved(call, c, r.cfg.Now().UTC()); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	r.cfg.Log.Info("a copy of a recording is removed", zap.String("recording", c.Recording), zap.String("region", string(c.Region)))
	return nil
}
