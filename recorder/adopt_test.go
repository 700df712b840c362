package recorder

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

// A recording goes on at another holder where the first one stopped acknowledging: every byte is there, at whatever byte that was, and the
// former holder, whether it left, is gone or wakes up later, changes nothing.
func TestAdopt(t *testing.T) {
	stream := film(t, 6, 8)
	for _, c := range []struct {
		name string
		at   float64 // of the stream
		wake bool    // the former holder still works on it, and then seals
	}{
		{name: "left at the start", at: 0.000001},
		{name: "left in the middle", at: 0.5},
		{name: "left at the end", at: 1},
		{name: "asleep", at: 0.5, wake: true},
		{name: "asleep with a part uploaded", at: 0.99, wake: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			b.ledger.running = map[string]bool{"session-one": true}
			one := b.begin("one", place.EUOnly)
			first := play(stream[:int64(c.at*float64(len(stream)))])
			first.lost = errLost
			first.hold = make(chan struct{})
			ingested := make(chan error, 1)
			go func() { ingested <- one.Ingest(context.Background(), first) }()
			if len(first.stream) > headSize {
				waitFor(t, func() bool { return first.ackedTo() == int64(len(first.stream)) })
			}
			if !c.wake {
				if err := one.Leave(t.Context()); err != nil {
					t.Fatal(err)
				}
				<-ingested
			}
			other, err := Open(t.Context(), b.cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = other.Close(context.Background()) })
			two, from, err := other.Adopt(t.Context(), Spec{ID: "two", Session: "session-one", Term: 2})
			if err != nil {
				t.Fatal(err)
			}
			if acked := first.ackedTo(); from < acked || from > int64(len(first.stream)) {
				t.Fatalf("goes on at byte %d, %d of %d were acknowledged", from, acked, len(first.stream))
			}
			rest := play(stream)
			rest.pos = from
			if err := two.Ingest(t.Context(), rest); err != nil {
				t.Fatal(err)
			}
			if c.wake {
				away := 4 // so many times its journal is not there, while it could store an object
				b.ledger.mu.Lock()
				b.ledger.fail = func(u RecordingUpdate) error {
					if away > 0 && u.ID == "one" && u.State != StateRecording {
						away--
						return errors.New("the journal is away")
					}
					return nil
				}
				b.ledger.mu.Unlock()
				close(first.hold)
				<-ingested
				if _, err := one.Seal(t.Context()); err != nil {
					t.Fatal(err)
				}
				<-one.Done() // it is told that it is not its any more
			}
			s, err := two.Seal(t.Context())
			if err != nil || s.Partial {
				t.Fatalf("%+v, %v", s, err)
			}
			if err := other.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			u := b.ledger.awaitState("two", StateAvailable)
			ix := index(t, stream)
			got := b.object(place.EU, u.Key)
			if body := stream[ix.Start:ix.End]; len(got) < headSize+len(body) || !bytes.Equal(got[headSize:headSize+len(body)], body) {
				t.Errorf("the object of %d bytes has not the %d that were recorded", len(got), len(body))
			}
			b.wantObject(place.EU, u.Key, s, int(ix.Frames))
			if b.object(place.EU, one.Key()) != nil {
				t.Error("the former holder stored an object too")
			}
			if err := other.scan(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(b.cfg.Dir, "one")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the former holder's spool: %v", err)
			}
		})
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("not in time")
		}
	}
}

// A spool that is left is nobody's while its session goes on, and is sealed by whoever is there once that has ended.
func TestLeftSpoolIsSealedOnceItsSessionHasEnded(t *testing.T) {
	b := newBench(t)
	b.ledger.running = map[string]bool{"session-one": true}
	one := b.begin("one", place.EUOnly)
	src := play(film(t, 3, 1))
	src.lost = errLost
	if err := one.Ingest(t.Context(), src); err == nil {
		t.Fatal("it ended")
	}
	if err := one.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.rec.scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b.rec.has("one") {
		t.Fatal("it was taken for over")
	}
	b.ledger.mu.Lock()
	b.ledger.running = nil
	b.ledger.mu.Unlock()
	if err := b.rec.scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.drain()
	if u := b.ledger.awaitState("one", StateAvailable); !u.Partial || u.Bytes == 0 {
		t.Errorf("%+v", u)
	}
	b.wantNoSpool("one")
	if _, _, err := b.rec.Adopt(t.Context(), Spec{ID: "two", Session: "session-one", Term: 2}); !errors.Is(err, ErrNoSpool) {
		t.Errorf("it is adopted: %v", err)
	}
}
