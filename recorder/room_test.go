package recorder

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

// newTank is a bench whose volume has as much free as the test says, looked at when the test does.
func newTank(t *testing.T) (b *bench, fill func(free int64)) {
	t.Helper()
	b = newBench(t)
	b.close()
	var free atomic.Int64
	free.Store(1000)
	b.cfg.Free = func(string) (int64, error) { return free.Load(), nil }
	b.cfg.BeginAbove, b.cfg.TakeAbove, b.cfg.RoomEvery = 100, 10, time.Hour
	b.open()
	return b, func(n int64) { free.Store(n); b.rec.volume.look() }
}

func TestNoRecordingIsBegunWithoutRoom(t *testing.T) {
	b, fill := newTank(t)
	stream := film(t, 3, 1)
	before := b.begin("before", place.EUOnly)
	fill(99)
	spec := Spec{ID: "late", Session: "s", Account: "acme", Term: 1, Placement: place.EUOnly, Started: time.Now()}
	if _, err := b.rec.Begin(t.Context(), spec); !errors.Is(err, ErrNoRoom) {
		t.Fatalf("Begin: %v", err)
	}
	if u, _ := b.ledger.last("late"); u.State != StateEmpty || u.Cause != CauseSpoolFull || u.Session != "s" {
		t.Errorf("journaled %+v", u)
	}
	b.wantNoSpool("late")
	if err := before.Ingest(t.Context(), play(stream)); err != nil { // what was begun goes on
		t.Fatalf("Ingest: %v", err)
	}
	if s := b.seal(before); s.Partial {
		t.Errorf("sealed %+v", s)
	}
	fill(109) // above the mark, and not yet by a tenth
	if free, room := b.rec.Room(); free != 109 || room != RoomLow {
		t.Errorf("room %v with %d free", room, free)
	}
	fill(110)
	if err := b.begin("again", place.EUOnly).Leave(t.Context()); err != nil {
		t.Error(err)
	}
}

// brim is a Source that calls full before the piece it hands out at a byte, and says when a later one is asked for.
type brim struct {
	*script
	at    int64
	full  func()
	acks  chan int64
	asked atomic.Bool
	was   bool
}

func (s *brim) Receive(ctx context.Context) (any, error) {
	if s.was {
		s.asked.Store(true)
	} else if s.pos >= s.at {
		s.was = true
		s.full()
	}
	return s.script.Receive(ctx)
}

func (s *brim) Ack(_ context.Context, offset int64) error {
	s.acks <- offset
	return nil
}

// awaitAck waits until all that was handed out is acknowledged.
func (s *brim) awaitAck(t *testing.T, offset int64) {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		select {
		case n := <-s.acks:
			if n == offset {
				return
			}
		case <-late:
			t.Fatal("what was taken is not acknowledged")
		}
	}
}

// held has a recording whose volume is full from its middle on, once all that came until then is acknowledged.
func heldUp(t *testing.T) (b *bench, fill func(int64), r *Recording, src *brim, ingested chan error) {
	t.Helper()
	b, fill = newTank(t)
	stream := film(t, 6, 2)
	r = b.begin("held", place.EUOnly)
	src = &brim{script: play(stream), at: int64(len(stream) / 2), full: func() { fill(9) }, acks: make(chan int64, 10_000)}
	src.piece = 16 << 10
	ingested = make(chan error, 1)
	go func() { ingested <- r.Ingest(t.Context(), src) }()
	pieces := (int64(len(stream)/2) + int64(src.piece) - 1) / int64(src.piece)
	src.awaitAck(t, (pieces+1)*int64(src.piece))
	return b, fill, r, src, ingested
}

func TestNothingIsTakenWithoutRoom(t *testing.T) {
	b, fill, r, src, ingested := heldUp(t)
	fill(10) // the mark itself: released a tenth above
	if src.asked.Load() {
		t.Error("more is taken from the host")
	}
	if _, room := b.rec.Room(); room != RoomNone {
		t.Errorf("room %v", room)
	}
	fill(11)
	select {
	case err := <-ingested:
		if err != nil {
			t.Fatalf("Ingest: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not go on")
	}
	s := b.seal(r)
	if s.Partial || s.Cause != CauseNone {
		t.Errorf("sealed %+v", s)
	}
	b.drain()
	b.wantObject(place.EU, r.Key(), s, 60)
}

// TestSealedWithoutRoom: all that was acknowledged is in the object, and it says why there is no more.
func TestSealedWithoutRoom(t *testing.T) {
	b, _, r, src, ingested := heldUp(t)
	want := index(t, src.stream[:src.pos])
	s := b.seal(r)
	if err := <-ingested; !errors.Is(err, ErrNoRoom) {
		t.Errorf("Ingest: %v", err)
	}
	if !s.Partial || s.Cause != CauseSpoolFull || s.Duration < want.Duration {
		t.Errorf("sealed %+v, acknowledged %v", s, want.Duration)
	}
	b.drain()
	b.wantObject(place.EU, r.Key(), s, -1)
}

func TestRealVolumeSaysWhatIsFree(t *testing.T) {
	free, err := freeBytes(t.TempDir())
	if err != nil || free <= 0 {
		t.Errorf("%d bytes, %v", free, err)
	}
	if _, err := freeBytes("/nowhere/at/all"); err == nil {
		t.Error("a folder that is not there has room")
	}
}
