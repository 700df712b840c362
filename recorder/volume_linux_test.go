package recorder

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

func TestRealFullVolume(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("not root: a full volume is only simulated, by TestVolumeRefusesAWrite")
		return
	}
	b := newBench(t)
	b.close()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Logf("no tmpfs here (%v): a full volume is only simulated, by TestVolumeRefusesAWrite", err)
		b.open()
		return
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
	b.cfg.Dir = dir
	b.open()
	t.Cleanup(b.close) // before the volume goes
	stream := film(t, 20, 8)
	r := b.begin("full", place.EUOnly)
	src := play(stream)
	if err := r.Ingest(t.Context(), src); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Ingest: %v", err)
	}
	if src.ackedTo() < 2<<20 {
		t.Errorf("only %d bytes acknowledged", src.ackedTo())
	}
	if _, err := b.rec.Begin(t.Context(), Spec{ID: "next", Session: "s", Account: "a", Placement: place.EUOnly}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Begin on a full volume: %v", err)
	}
	sealed := b.seal(r)
	b.drain()
	b.wantObject(place.EU, r.Key(), sealed, -1)
	if want := index(t, stream[:src.ackedTo()]); sealed.Duration < want.Duration {
		t.Errorf("%v sealed, %v acknowledged", sealed.Duration, want.Duration)
	}
	b.wantNoSpool("full")
}

// TestRealVolumeFillsUp: its marks come before ENOSPC, and what is held goes on once there is room.
func TestRealVolumeFillsUp(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("not root: a volume that fills up is only simulated, by TestNothingIsTakenWithoutRoom")
		return
	}
	b := newBench(t)
	b.close()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=48m"); err != nil {
		t.Logf("no tmpfs here (%v): a volume that fills up is only simulated, by TestNothingIsTakenWithoutRoom", err)
		b.open()
		return
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
	stream := film(t, 20, 8)
	ballast := filepath.Join(dir, ".ballast")
	if err := os.WriteFile(ballast, make([]byte, 48<<20-len(stream)-6<<20), 0o600); err != nil { // all of it fits, but for the marks
		t.Fatal(err)
	}
	b.cfg.Dir, b.cfg.BeginAbove, b.cfg.TakeAbove, b.cfg.RoomEvery = dir, 12<<20, 10<<20, time.Millisecond
	b.open()
	t.Cleanup(b.close) // before the volume goes
	r := b.begin("held", place.EUOnly)
	src := play(stream)
	ingested := make(chan error, 1)
	go func() { ingested <- r.Ingest(t.Context(), src) }()
	for late := time.After(20 * time.Second); ; {
		_, room, changed := b.rec.volume.now()
		if room == RoomNone {
			break
		}
		select {
		case <-changed:
		case err := <-ingested:
			t.Fatalf("Ingest ended: %v, room %v", err, room)
		case <-late:
			t.Fatal("the volume is not seen to fill up")
		}
	}
	if _, err := b.rec.Begin(t.Context(), Spec{ID: "next", Session: "s", Account: "a", Placement: place.EUOnly}); !errors.Is(err, ErrNoRoom) {
		t.Errorf("Begin: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ingested:
		if err != nil {
			t.Fatalf("Ingest: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not go on")
	}
	sealed := b.seal(r)
	if sealed.Partial || src.ackedTo() != int64(len(stream)) {
		t.Errorf("sealed %+v, %d of %d acknowledged", sealed, src.ackedTo(), len(stream))
	}
	b.drain()
	b.wantObject(place.EU, r.Key(), sealed, -1)
}
