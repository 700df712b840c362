package recorder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"
)

// scanAgain takes over what others leave, until ctx ends.
func (r *Recorder) scanAgain(ctx context.Context) {
	t := time.NewTicker(r.cfg.ScanEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := r.scan(ctx); err != nil && ctx.Err() == nil {
			r.cfg.Log.Warn("the spool cannot be looked through", zap.Error(err))
		}
	}
}

// scan starts on every spool in the folder that nobody works on and that nobody will go on with.
func (r *Recorder) scan(ctx context.Context) error {
	entries, err := os.ReadDir(r.cfg.Dir)
	if err != nil {
		return fmt.Errorf("recorder: spool folder: %w", err)
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case strings.HasPrefix(e.Name(), rubbishPrefix), strings.HasPrefix(e.Name(), newPrefix) && stale(e):
			_ = os.RemoveAll(filepath.Join(r.cfg.Dir, e.Name())) // tried again at the next scan
		case e.IsDir() && nameForm.MatchString(e.Name()) && !r.has(e.Name()): // others are not ours
			r.look(ctx, e.Name())
		}
	}
	return nil
}

// stale says that nobody is making a new spool any more.
func stale(e fs.DirEntry) bool {
	info, err := e.Info()
	return err == nil && time.Since(info.ModTime()) > time.Hour
}

func (r *Recorder) has(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.active[id] != nil
}

// look takes one spool over, if it is to be.
func (r *Recorder) look(ctx context.Context, id string) {
	log := r.cfg.Log.With(zap.String("recording", id))
	sp, err := openSpool(filepath.Join(r.cfg.Dir, id))
	switch {
	case errors.Is(err, errBusy):
		log.Debug("recording is worked on by another process")
		return
	case errors.Is(err, errUnborn):
		if err := sp.remove(r.cfg.Dir); err != nil {
			log.Warn("cannot delete a spool with nothing in it", zap.Error(err))
		}
		return
	case err != nil && sp == nil && errors.Is(err, fs.ErrNotExist):
		return // another process has finished it meanwhile
	case err != nil && sp == nil:
		// It may be whole, so it is not moved; and it must not keep the others from their storage.
		log.Error("spool cannot be opened and is tried again: see to it", zap.Error(err))
		return
	}
	if err == nil && !r.mayEnd(ctx, sp, log) {
		sp.close()
		return
	}
	rec, planErr := r.inherit(id, sp)
	if planErr != nil {
		// Configuration that is missing is not a broken spool: it waits for a start with the right one.
		log.Error("recording cannot go on", zap.Error(planErr))
		sp.close()
		return
	}
	rec.damage = err
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.active[id] != nil {
		sp.close()
		return
	}
	r.active[id] = rec
	r.spawn(rec)
}

// mayEnd says whether the recording is to be brought to its end here. One that another goes on with is deleted, one whose session runs is left
// for whoever adopts that. What a Journal that is away would say is not guessed.
func (r *Recorder) mayEnd(ctx context.Context, sp *spool, log *zap.Logger) bool {
	var at progress
	sp.look(func(p *progress) { at = *p })
	if len(at.stored()) > 0 {
		return true // the object is there, whatever came of the session
	}
	ctx, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	spec := at.spec.Spec
	outlook, err := r.cfg.Journal.Outlook(ctx, spec.ID, spec.Session, spec.Term)
	switch {
	case err != nil:
		log.Warn("whether a recording is over cannot be found out; it is tried again", zap.Error(err))
		return false
	case outlook == Superseded:
		if err := sp.remove(r.cfg.Dir); err != nil {
			log.Warn("cannot delete a spool that another goes on with", zap.Error(err))
		}
		return false
	}
	return outlook == Over || at.sealed != nil
}

// stored names the regions whose copy is verified.
func (p *progress) stored() (all []string) {
	for region, u := range p.uploads {
		if u.stored != nil {
			all = append(all, string(region))
		}
	}
	return all
}
