package pgstore_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/pgstore"
)

// labelled brings up a host whose devices have a label each, so that there can be as many wants. The first is busy.
func labelled(t *testing.T, s *pgstore.Store, devices int) {
	t.Helper()
	up(t, s, "mac-1", devices)
	for i := range devices {
		d := wire.Device{Name: fmt.Sprintf("phone-%d", i), Kind: "fake", Model: "iPhone 15", PlatformName: "iOS", State: wire.DeviceReady,
			Labels: map[string]string{"n": fmt.Sprint(i)}}
		if i == 0 {
			d.State = wire.DeviceBusy
		}
		must(t, s.DevicesChanged(t.Context(), "mac-1", []wire.Device{d}))
	}
}

func wishN(account string, n int) orchestrator.NewSession {
	w := wish(account)
	w.Want.Labels = map[string]string{"n": fmt.Sprint(n)}
	return w
}

// tidies says what Tidy is to delete now.
func tidies(t *testing.T, s *pgstore.Store, when string, want orchestrator.Tidied) {
	t.Helper()
	got, err := s.Tidy(t.Context())
	must(t, err)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", when, d)
	}
}

// TestTidy: of each table go those rows that nothing needs, when their time has come, and no others.
func TestTidy(t *testing.T) {
	s := open(t, 0)
	labelled(t, s, 4)
	ctx := t.Context()
	waits, starts, left, over := wishN("a", 0), wishN("a", 1), wishN("b", 2), wishN("b", 3)
	for i, n := range []*orchestrator.NewSession{&waits, &starts, &left, &over} {
		n.Key = orchestrator.Idempotency{Key: fmt.Sprint(i)}
		mustCreate(t, s, *n)
	}
	claims, _, err := s.Claim(ctx, "test", []string{"mac-1"}, time.Minute, 10, 0)
	must(t, err)
	var starting orchestrator.Claim
	for _, c := range claims {
		switch c.Session {
		case starts.ID:
			starting = c
		case over.ID, left.ID:
			must(t, s.Finishing(ctx, c.Session, c.Term))
			must(t, finish(s, c, orchestrator.Completed))
		default:
			t.Fatalf("%s was claimed", c.Session)
		}
	}
	if starting.Session == "" || len(claims) != 3 {
		t.Fatalf("%d were claimed", len(claims))
	}
	gone := wishN("b", 0)
	mustCreate(t, s, gone)
	must(t, s.Cancel(ctx, gone.ID))
	tidies(t, s, "what is young", orchestrator.Tidied{})
	s.AgeKeys(t, 23*time.Hour)
	s.AgeWants(t, 23*time.Hour)
	tidies(t, s, "what is not old enough", orchestrator.Tidied{})
	s.AgeKeys(t, 2*time.Hour)
	s.AgeWants(t, 2*time.Hour)
	fresh := wishN("a", 0)
	fresh.Key = orchestrator.Idempotency{Key: "fresh"}
	mustCreate(t, s, fresh)
	tidies(t, s, "what is old", orchestrator.Tidied{Keys: 4, Wants: 2})
	tidies(t, s, "the same again", orchestrator.Tidied{})

	// What is there still works: a key, a session that is queued again, and a want that was forgotten.
	if _, err := s.Create(ctx, fresh); err == nil {
		t.Error("a key that counts was forgotten")
	}
	again, err := s.Requeue(ctx, orchestrator.Event{Session: starting.Session, Term: starting.Term, Seq: starting.LastEvent + 1, At: time.Now(), Kind: orchestrator.EventRequeued})
	if err != nil || !again {
		t.Errorf("requeued %v, %v", again, err)
	}
	mustCreate(t, s, wishN("b", 2)) // its id is remembered
	if kept := s.Kept(t); kept != (orchestrator.Tidied{Keys: 1, Wants: 3}) || s.Laneless(t) > 0 {
		t.Errorf("%+v are kept", kept)
	}
	if wrong := s.Counts(t); len(wrong) > 0 {
		t.Error(wrong)
	}
}

// TestTidyInBatches: more than a batch of each goes at once.
func TestTidyInBatches(t *testing.T) {
	s := open(t, 1)
	s.Litter(t, 250, 2100)
	tidies(t, s, "litter", orchestrator.Tidied{Keys: 2100, Wants: 250})
}

// TestTidyOfReplicas: two that sweep at once delete everything once between them.
func TestTidyOfReplicas(t *testing.T) {
	s := open(t, 1)
	s.Litter(t, 250, 2100)
	other := s.Beside(t)
	var keys, wants atomic.Int64
	var group sync.WaitGroup
	for _, r := range []*pgstore.Store{s, other, s, other} {
		group.Go(func() {
			n, err := r.Tidy(context.Background())
			if err != nil {
				t.Error(err)
			}
			keys.Add(int64(n.Keys))
			wants.Add(int64(n.Wants))
		})
	}
	group.Wait()
	// Whoever finds another at it leaves the rest to that one, which may be past it.
	n, err := s.Tidy(t.Context())
	must(t, err)
	if k, w := int(keys.Load())+n.Keys, int(wants.Load())+n.Wants; k != 2100 || w != 250 {
		t.Errorf("%d keys and %d wants were deleted", k, w)
	}
	if kept := s.Kept(t); kept != (orchestrator.Tidied{}) {
		t.Errorf("%+v are left", kept)
	}
	// While another is at it, nothing is.
	s.Litter(t, 1, 1)
	done := s.Tidying(t)
	tidies(t, s, "while another sweeps", orchestrator.Tidied{})
	done()
	tidies(t, s, "afterwards", orchestrator.Tidied{Keys: 1, Wants: 1})
}

// TestTidyBesideCreate: sessions come and go while everything that could be swept is, all the time. None is refused or lost.
func TestTidyBesideCreate(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	s := open(t, 0)
	const wants, rounds, each = 3, 40, 6
	labelled(t, s, wants)
	other := s.Beside(t)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for round := range rounds {
		s.AgeWants(t, 25*time.Hour) // once a round, so that none can be old again that was put in it
		var group sync.WaitGroup
		for i := range each {
			n, cancelled, prospect, on := wishN([]string{"a", "b"}[rnd.IntN(2)], rnd.IntN(wants)), rnd.IntN(4) > 0, rnd.IntN(3) == 0, []*pgstore.Store{s, other}[i%2]
			group.Go(func() {
				ctx := context.Background()
				if prospect {
					p := n
					p.ID += "-p"
					if _, err := on.Prospect(ctx, p); err != nil {
						t.Errorf("round %d: prospect: %v", round, err)
					}
				}
				if _, err := on.Create(ctx, n); err != nil {
					t.Errorf("round %d: create: %v", round, err)
				} else if cancelled {
					if err := on.Cancel(ctx, n.ID); err != nil {
						t.Errorf("round %d: cancel: %v", round, err)
					}
				}
			})
		}
		for _, on := range []*pgstore.Store{s, other} {
			group.Go(func() {
				for range 3 {
					if _, err := on.Tidy(context.Background()); err != nil {
						t.Errorf("round %d: %v", round, err)
					}
				}
			})
		}
		group.Wait()
		if missing := s.Laneless(t); missing > 0 {
			t.Fatalf("round %d: %d queued sessions have no lane", round, missing)
		}
		if round%4 == 3 { // all that wait end, so that wants can be forgotten
			for _, l := range s.Leases(t) {
				if l.State == "queued" {
					must(t, s.Cancel(t.Context(), l.ID))
				}
			}
		}
	}
	if wrong := s.Counts(t); len(wrong) > 0 {
		t.Error(wrong)
	}
}
