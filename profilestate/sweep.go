package profilestate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const sealedSuffix = ".sealed"

// Swept says what a Sweep did.
type Swept struct {
	Forgotten int // generations, of which there were more than are kept
	Removed   int // files
	Bytes     int64
	Kept      int // files left alone: of a generation, young, in use, or not understood
}

// Sweep forgets generations of which there are more than are kept, and removes sealed files that no generation refers to: those, and
// leftovers of writers that died. It leaves files younger than age alone, and, however old they look, files that a
// writer holds: a writer keeps its file locked from creation until it is published, so one that was paused in between
// does not publish a name that is gone. A folder whose owner cannot be told, or whose profile the index does not know, is left as it is.
// Errors of single profiles are joined; the others are still swept.
func (s *Store) Sweep(ctx context.Context, age time.Duration) (Swept, error) {
	var sum Swept
	errs := []error{s.keys.Reconcile(ctx)}
	n, err := s.index.Prune(ctx, s.keep, s.now().Add(-age))
	if err != nil {
		errs = append(errs, fmt.Errorf("prune generations: %w", err))
	}
	sum.Forgotten = n
	accounts, err := s.disk.ReadDir(s.dir)
	errs = append(errs, err)
	for _, account := range accounts {
		if !account.IsDir() {
			continue
		}
		profiles, err := s.disk.ReadDir(filepath.Join(s.dir, account.Name()))
		errs = append(errs, err)
		for _, profile := range profiles {
			if ctx.Err() != nil {
				return sum, errors.Join(append(errs, ctx.Err())...)
			}
			errs = append(errs, s.sweepFolder(ctx, path.Join(account.Name(), profile.Name()), age, &sum))
		}
	}
	return sum, errors.Join(errs...)
}

func (s *Store) sweepFolder(ctx context.Context, folder string, age time.Duration, sum *Swept) error {
	entries, err := s.disk.ReadDir(s.path(folder))
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), sealedSuffix) {
			names = append(names, path.Join(folder, e.Name()))
		}
		if isReport(e.Name()) {
			if err := s.sweepReport(path.Join(folder, e.Name()), age, sum); err != nil {
				return err
			}
		}
	}
	if len(names) == 0 {
		return nil
	}
	ref, ok := s.owner(folder, names)
	if !ok {
		sum.Kept += len(names)
		return nil
	}
	locked := make(map[string]diskFile)
	defer func() {
		for _, f := range locked {
			_ = f.Close()
		}
	}()
	limit := s.now().Add(-age)
	for _, name := range names {
		f, err := s.lockOld(name, limit)
		if err != nil {
			return err
		}
		if f == nil {
			sum.Kept++
			continue
		}
		locked[name] = f
	}
	// Only now, with every candidate locked, is the answer final: none of them can be published any more.
	used, err := s.index.Files(ctx, ref)
	if err != nil {
		return fmt.Errorf("sweep profile %s: %w", ref.Profile, err)
	}
	for name, f := range locked {
		if slices.Contains(used, name) {
			sum.Kept++
			continue
		}
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if err := s.disk.Remove(s.path(name)); err != nil {
			return err
		}
		sum.Removed++
		sum.Bytes += info.Size()
	}
	return nil
}

// lockOld opens and locks a file last written before limit; nil when it is younger, in use or gone.
func (s *Store) lockOld(name string, limit time.Time) (diskFile, error) {
	f, err := s.disk.Open(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.ModTime().After(limit) {
		return nil, errors.Join(err, f.Close())
	}
	locked, err := f.TryLock()
	if err != nil || !locked {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// owner reads whose folder this is from the headers in it, and believes only one that hashes to the folder's name.
func (s *Store) owner(folder string, names []string) (Ref, bool) {
	for _, name := range names {
		if h, err := s.readHeader(name); err == nil && h.ref.folder() == folder {
			return h.ref, true
		}
	}
	return Ref{}, false
}

func (s *Store) readHeader(name string) (header, error) {
	f, err := s.disk.Open(s.path(name))
	if err != nil {
		return header{}, err
	}
	defer f.Close()
	b := make([]byte, headerSize)
	if _, err := io.ReadFull(f, b); err != nil {
		return header{}, err
	}
	return parseHeader(b)
}
