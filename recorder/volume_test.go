package recorder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

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

// TestSyncThatFailedIsNotTriedAgain: the next one may succeed although the bytes are gone, so nothing after it counts.
func TestSyncThatFailedIsNotTriedAgain(t *testing.T) {
	b := newBench(t)
	stream := film(t, 3, 1)
	r := b.begin("sync", place.EUOnly)
	first := play(stream[:len(stream)/2])
	first.lost = errLost
	if err := r.Ingest(t.Context(), first); !errors.Is(err, errLost) {
		t.Fatalf("Ingest: %v", err)
	}
	r.spool.body = &faultyFile{file: r.spool.body, failAt: 2} // one write, then the sync of it
	second := play(stream)
	second.pos, second.piece = int64(len(stream)/2), len(stream)
	if err := r.Ingest(t.Context(), second); !errors.Is(err, ErrSpool) {
		t.Fatalf("Ingest: %v", err)
	}
	third := play(stream)
	third.pos = first.ackedTo()
	if err := r.Ingest(t.Context(), third); !errors.Is(err, ErrSpool) {
		t.Errorf("Ingest after a sync that failed: %v", err)
	}
	sealed := b.seal(r)
	if sealed.Cause != CauseSpool || sealed.Duration == 0 {
		t.Errorf("sealed %+v", sealed)
	}
	b.drain()
	b.wantObject(place.EU, r.Key(), sealed, -1)
}

func TestHalfWrittenRecordIsCutOffTheLog(t *testing.T) {
	dir := t.TempDir()
	s, err := createSpool(dir, specRecord{Spec: Spec{ID: "r", Session: "s", Account: "a", Placement: place.EUOnly}, PartSize: minPartSize})
	if err != nil {
		t.Fatal(err)
	}
	s.log = &faultyFile{file: s.log, failAt: 1, cause: syscall.ENOSPC}
	long := record{Stored: &storedRecord{Region: place.EU, ETag: strings.Repeat("e", 1000)}}
	if err := s.append(long, true); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("append: %v", err)
	}
	if err := s.append(record{Ended: &endedRecord{}}, true); err != nil {
		t.Fatal(err)
	}
	s.close()
	again, err := openSpool(filepath.Join(dir, "r"))
	if again != nil {
		defer again.close()
	}
	if err != nil || again.at.ended == nil {
		t.Errorf("the log does not read back: %v", err)
	}
}

// TestBeginBesideScans: whoever looks through the spool takes no folder that is being made for one that was left.
func TestBeginBesideScans(t *testing.T) {
	b := newBench(t)
	stop, looked := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				looked <- nil
				return
			default:
			}
			if err := b.rec.scan(context.Background()); err != nil {
				looked <- err
				return
			}
		}
	}()
	for n := range 100 {
		sp, err := createSpool(b.cfg.Dir, specRecord{Spec: Spec{ID: fmt.Sprint("n", n), Session: "s", Account: "a", Placement: place.EUOnly}, PartSize: minPartSize})
		if err != nil {
			t.Errorf("%d: %v", n, err)
			break
		}
		if err := sp.remove(b.cfg.Dir); err != nil {
			t.Errorf("%d: %v", n, err)
			break
		}
	}
	close(stop)
	if err := <-looked; err != nil {
		t.Error(err)
	}

	left := filepath.Join(b.cfg.Dir, newPrefix+"left")
	if err := os.Mkdir(left, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, gone := range []bool{false, true} {
		if err := b.rec.scan(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(left); errors.Is(err, os.ErrNotExist) != gone {
			t.Errorf("what somebody who died had begun: %v, gone %v", err, gone)
		}
		_ = os.Chtimes(left, time.Time{}, time.Now().Add(-2*time.Hour))
	}
}
