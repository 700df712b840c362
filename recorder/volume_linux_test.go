package recorder

import (
	"errors"
	"os"
	"syscall"
	"testing"

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
