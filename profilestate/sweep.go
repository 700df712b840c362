package profilestate

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Swept says what a Sweep did.
type Swept struct {
	Removed int
	Bytes   int64
	Kept    int // files left alone: current, previous, young, in use, or not understood
}

// Sweep removes sealed files that no profile refers to: leftovers of writers that died, and superseded generations other
// than the one before the current. It leaves files younger than age alone, and, however old they look, files that a
// writer holds: a writer keeps its file locked from creation until it is published, so one that was paused in between
// does not publish a name that is gone. A folder whose owner cannot be told is left as it is.
// Errors of single profiles are joined; the others are still swept.
func (s *Store) Sweep(ctx context.Context, age time.Duration) (Swept, error) {
	var sum Swept
	var errs []error
	folders, err := filepath.Glob(filepath.Join(s.dir, "*", "*"))
	if err != nil {
		return sum, err
	}
	for _, folder := range folders {
		if ctx.Err() != nil {
			errs = append(errs, ctx.Err())
			break
		}
		if err := s.sweepFolder(ctx, folder, age, &sum); err != nil {
			errs = append(errs, err)
		}
	}
	return sum, errors.Join(errs...)
}

func (s *Store) sweepFolder(ctx context.Context, folder string, age time.Duration, sum *Swept) error {
	names, err := filepath.Glob(filepath.Join(folder, "*.sealed"))
	if err != nil || len(names) == 0 {
		return err
	}
	ref, ok := owner(folder, names)
	if !ok {
		sum.Kept += len(names)
		return nil
	}
	var locked []*os.File
	defer func() {
		for _, f := range locked {
			_ = f.Close()
		}
	}()
	limit := s.now().Add(-age)
	for _, name := range names {
		f, err := lockOld(name, limit)
		if err != nil {
			return err
		}
		if f == nil {
			sum.Kept++
			continue
		}
		locked = append(locked, f)
	}
	// Only now, with every candidate locked, is the answer final: none of them can be published any more.
	current, err := s.index.Current(ctx, ref)
	if err != nil {
		return fmt.Errorf("sweep profile %s: %w", ref.Profile, err)
	}
	before, err := s.predecessor(current)
	if err != nil {
		return fmt.Errorf("sweep profile %s: %w", ref.Profile, err)
	}
	for _, f := range locked {
		name := path.Join(ref.folder(), filepath.Base(f.Name()))
		if name == current.File || isPredecessor(f, before) {
			sum.Kept++
			continue
		}
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if err := os.Remove(f.Name()); err != nil {
			return err
		}
		sum.Removed++
		sum.Bytes += info.Size()
	}
	return nil
}

// lockOld opens and locks a file last written before limit; nil when it is younger, in use or gone.
func lockOld(name string, limit time.Time) (*os.File, error) {
	f, err := os.Open(name)
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
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, fmt.Errorf("lock %s: %w", filepath.Base(name), err)
	}
	return f, nil
}

// owner reads whose folder this is from the headers in it, and believes only one that hashes to the folder's name.
func owner(folder string, names []string) (Ref, bool) {
	i := slices.IndexFunc(names, func(name string) bool { _, ok := ownerOf(folder, name); return ok })
	if i < 0 {
		return Ref{}, false
	}
	return ownerOf(folder, names[i])
}

func ownerOf(folder, name string) (Ref, bool) {
	h, err := readHeader(name)
	if err != nil || !strings.HasSuffix(filepath.ToSlash(folder), "/"+h.ref.folder()) {
		return Ref{}, false
	}
	return h.ref, true
}

func readHeader(name string) (header, error) {
	f, err := os.Open(name)
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

// predecessor is the hash of the generation before the current one, which is kept as the last resort.
func (s *Store) predecessor(current Generation) ([sha256.Size]byte, error) {
	if current.Number <= 1 {
		return [sha256.Size]byte{}, nil
	}
	h, err := readHeader(s.path(current.File))
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("the current generation cannot be read, so nothing is removed: %w", err)
	}
	return h.previous, nil
}

func isPredecessor(f *os.File, want [sha256.Size]byte) bool {
	if want == ([sha256.Size]byte{}) {
		return false
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return true // not understood, so not removed
	}
	return [sha256.Size]byte(sum.Sum(nil)) == want
}
