package recorder

import (
	"bytes"
	"errors"
	"sync"
	"syscall"
	"testing"

	"github.com/driftstack/fleet/orchestrator/place"
)

// faultyFile stands in for a body on a volume that refuses a write.
type faultyFile struct {
	file
	failAt int  // this write, truncate or sync fails; 0: none
	dead   bool // and so does every one after it
	cause  error
	limit  int64 // no write beyond this byte, as on a full volume; 0: none

	mu     sync.Mutex
	steps  int
	fails  int
	top    int64 // end of what was written
	synced int64
}

func (f *faultyFile) step(end int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.steps++
	cause := f.cause
	if cause == nil {
		cause = syscall.EIO
	}
	if f.failAt > 0 && (f.steps == f.failAt || f.dead && f.steps > f.failAt) {
		f.fails++
		return cause
	}
	if f.limit > 0 && end > f.limit {
		f.fails++
		return syscall.ENOSPC
	}
	return nil
}

func (f *faultyFile) failed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fails
}

func (f *faultyFile) syncedTo() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.synced
}

func (f *faultyFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.step(off + int64(len(b))); err != nil {
		n, _ := f.file.WriteAt(b[:len(b)/2], off) // half of it gets there
		return n, err
	}
	n, err := f.file.WriteAt(b, off)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.top = max(f.top, off+int64(n))
	return n, err
}

func (f *faultyFile) Truncate(size int64) error {
	if err := f.step(0); err != nil {
		return err
	}
	return f.file.Truncate(size)
}

func (f *faultyFile) Sync() error {
	f.mu.Lock()
	top := f.top
	f.mu.Unlock()
	if err := f.step(0); err != nil {
		return err
	}
	err := f.file.Sync()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.synced = max(f.synced, top)
	return err
}

func TestVolumeRefusesAWrite(t *testing.T) {
	b := newBench(t)
	stream := film(t, 20, 8)
	r := b.begin("full", place.EUOnly)
	r.spool.body = &faultyFile{file: r.spool.body, limit: 2 << 20}
	src := play(stream)
	if err := r.Ingest(t.Context(), src); !errors.Is(err, ErrSpool) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Ingest: %v", err)
	}
	if err := r.Ingest(t.Context(), play(stream)); !errors.Is(err, ErrSpool) {
		t.Errorf("Ingest again: %v", err)
	}
	sealed := b.seal(r)
	if sealed.Cause != CauseSpool || sealed.Duration == 0 {
		t.Errorf("sealed %+v", sealed)
	}
	b.drain()
	b.wantObject(place.EU, r.Key(), sealed, -1)
	if got := b.object(place.EU, r.Key()); !bytes.Contains(stream, got[headSize:headSize+100_000]) {
		t.Error("the object is not what was sent")
	}
}
