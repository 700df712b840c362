package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/profilestate"
)

// race creates so many sessions at once, and says how many were let in; the others must have been refused as refused says.
func race(t *testing.T, s *pgstore.Store, n int, make func() orchestrator.NewSession, refused func(error) bool) int {
	t.Helper()
	var in atomic.Int32
	var group sync.WaitGroup
	for range n {
		group.Go(func() {
			_, err := s.Create(context.Background(), make())
			switch {
			case err == nil:
				in.Add(1)
			case !refused(err):
				t.Errorf("refused as %v", err)
			}
		})
	}
	group.Wait()
	return int(in.Load())
}

func TestRacingCreatesGoOverNoLimit(t *testing.T) {
	s := open(t, 1)
	const most = 7
	quota := func(which string) func(error) bool {
		return func(err error) bool {
			var q *orchestrator.QuotaError
			return errors.As(err, &q) && q.Quota == which && q.Limit == most && q.RetryAfter > 0
		}
	}
	for _, c := range []struct {
		name, account string
		change        func(*orchestrator.NewSession)
		refused       func(error) bool
	}{
		{"queued", "a", func(n *orchestrator.NewSession) { n.Limits.Queued = most }, quota(orchestrator.QuotaQueued)},
		{"creates", "b", func(n *orchestrator.NewSession) { n.Limits.CreatesPerMinute = most }, quota(orchestrator.QuotaCreates)},
		{"queue", "c", func(*orchestrator.NewSession) {}, func(err error) bool {
			var full *orchestrator.QueueFullError
			return errors.As(err, &full) && full.Limit == 3*most
		}},
	} {
		if _, err := s.PutAccount(t.Context(), c.account, api.PutAccount{Recordings: "eu"}, orchestrator.Act{By: "test"}); err != nil {
			t.Fatal(err)
		}
		got := race(t, s, 4*most, func() orchestrator.NewSession {
			n := wish(c.account)
			n.QueueLimit = 3 * most
			c.change(&n)
			return n
		}, c.refused)
		if got != most { // the last has what the others have left of the queue
			t.Errorf("%s: %d were let in, the limit is %d", c.name, got, most)
		}
	}
	if wrong := s.Counts(t); len(wrong) > 0 {
		t.Error(wrong)
	}
}

func TestIdempotencyKey(t *testing.T) {
	s := open(t, 1)
	wish := func(request byte) orchestrator.NewSession {
		n := wish("a")
		n.Limits.Queued = 1
		n.Key = orchestrator.Idempotency{Key: "k", Request: [32]byte{request}}
		return n
	}
	var repeated *orchestrator.RepeatedError
	same := func(err error) bool { return errors.As(err, &repeated) }
	// Also those that come at once, and find the quota used up by the one of them that is let in.
	if got := race(t, s, 12, func() orchestrator.NewSession { return wish(1) }, func(err error) bool {
		var r *orchestrator.RepeatedError
		return errors.As(err, &r)
	}); got != 1 {
		t.Errorf("%d sessions of one key", got)
	}
	if _, err := s.Create(t.Context(), wish(1)); !same(err) {
		t.Fatalf("the same request again: %v", err)
	}
	if l, err := s.List(t.Context(), pgstore.SessionFilter{Limit: 10}); err != nil || len(l.Sessions) != 1 || l.Sessions[0].ID != repeated.Session {
		t.Errorf("sessions %+v, %v; told of %s", l.Sessions, err, repeated.Session)
	}
	var conflict *orchestrator.ConflictError
	if _, err := s.Create(t.Context(), wish(2)); !errors.As(err, &conflict) {
		t.Errorf("another request: %v", err)
	}
	n := wish(2)
	n.Account = "b"
	mustCreate(t, s, n) // another account's key is another key
	s.AgeKeys(t, 25*time.Hour)
	n = wish(2)
	n.Limits.Queued = 0
	mustCreate(t, s, n)
}

// An account that comes later waits for one session of each other account, at most, however many these have queued.
func TestQueueIsFair(t *testing.T) {
	s := open(t, 1)
	for range 30 {
		mustCreate(t, s, wish("a"))
	}
	next := func() orchestrator.Claim {
		c := mustClaim(t, s)
		if err := finish(s, c, orchestrator.Completed); err != nil {
			t.Fatal(err)
		}
		return c
	}
	for range 10 {
		next()
	}
	single := wish("b")
	mustCreate(t, s, single)
	first, second := next(), next()
	if first.Account != "b" && second.Account != "b" {
		t.Errorf("the single session waits behind %s and %s", first.Account, second.Account)
	}
	urgent := wish("a")
	urgent.Priority = 1
	mustCreate(t, s, urgent)
	if c := next(); c.Session != urgent.ID {
		t.Errorf("claimed %s before the one with priority", c.Session)
	}
}

// While both wait, an account is given as many devices for each one of another as its weight is of the other's.
func TestQueueIsWeighted(t *testing.T) {
	s := open(t, 1)
	if _, err := s.PutQuota(t.Context(), "b", api.Quota{Weight: 3}, orchestrator.Act{By: "ada"}); err != nil {
		t.Fatal(err)
	}
	for range 16 {
		mustCreate(t, s, wish("a"))
		mustCreate(t, s, wish("b"))
	}
	for round := range 4 {
		given := map[string]int{}
		for range 4 {
			c := mustClaim(t, s)
			given[c.Account]++
			if err := finish(s, c, orchestrator.Completed); err != nil {
				t.Fatal(err)
			}
		}
		if given["b"] != 3 || given["a"] != 1 {
			t.Errorf("round %d: %v", round, given)
		}
	}
}

// Creates count for a minute, and no longer; what was created meanwhile, and has ended, counts.
func TestCreatesAreForgotten(t *testing.T) {
	s := open(t, 1)
	create := func() error {
		n := wish("a")
		n.Limits.CreatesPerMinute = 2
		_, err := s.Create(t.Context(), n)
		return err
	}
	for range 2 {
		if err := create(); err != nil {
			t.Fatal(err)
		}
		if err := finish(s, mustClaim(t, s), orchestrator.Completed); err != nil {
			t.Fatal(err)
		}
	}
	var over *orchestrator.QuotaError
	s.AgeCreates(t, "a", 50*time.Second)
	if err := create(); !errors.As(err, &over) || over.RetryAfter < time.Second || over.RetryAfter > 20*time.Second {
		t.Errorf("after 50 s: %v", err)
	}
	s.AgeCreates(t, "a", 20*time.Second)
	if err := create(); err != nil {
		t.Errorf("after 70 s: %v", err)
	}
	if err := create(); err != nil {
		t.Errorf("and another: %v", err)
	}
	if err := create(); !errors.As(err, &over) {
		t.Errorf("a third one: %v", err)
	}
}

// TestMovesTakeNothingOfAQuota: a session that is adopted, handed over, queued again or reaped is one session of its account's all the while.
func TestMovesTakeNothingOfAQuota(t *testing.T) {
	s := open(t, 3)
	const most = 1
	take := func() []orchestrator.Claim {
		t.Helper()
		got, _, err := s.Claim(t.Context(), "test", []string{"mac-1"}, time.Minute, 10, most)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	none := func(when string) {
		t.Helper()
		if got := take(); len(got) != 0 {
			t.Errorf("%s: %d more are given a device", when, len(got))
		}
	}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		mustCreate(t, s, wish("a"))
	}
	c := take()
	if len(c) != most {
		t.Fatalf("%d are given a device", len(c))
	}
	none("starting")
	ok(s.Running(t.Context(), c[0].Session, c[0].Term, nil))
	none("running")
	other := wish("a")
	other.Want.Host = "mac-1" // another want, and so a lane that nobody has shut
	mustCreate(t, s, other)
	none("for another want")
	ok(s.HandOver(t.Context(), orchestrator.Event{Session: c[0].Session, Term: c[0].Term, Seq: c[0].LastEvent + 1, At: time.Now(), Kind: orchestrator.EventHandedOver}))
	none("handed over")
	a, adopted, err := s.Adopt(t.Context(), "other", []string{"mac-1"}, time.Minute)
	if err != nil || !adopted {
		t.Fatalf("%v, %v", adopted, err)
	}
	none("adopted")
	ok(s.Finishing(t.Context(), a.Session, a.Term))
	none("finishing")
	ok(finish(s, a, orchestrator.Completed))
	if c = take(); len(c) != most {
		t.Fatalf("once it has ended: %d", len(c))
	}
	again, err := s.Requeue(t.Context(), orchestrator.Event{Session: c[0].Session, Term: c[0].Term, Seq: c[0].LastEvent + 1, At: time.Now(), Kind: orchestrator.EventRequeued})
	if err != nil || !again {
		t.Fatalf("%v, %v", again, err)
	}
	if c = take(); len(c) != most {
		t.Fatalf("once it was queued again: %d", len(c))
	}
	none("after that")
	if wrong := s.Counts(t); len(wrong) > 0 {
		t.Error(wrong)
	}
}

// TestAdmissionAndClaims runs creates, batch claims, requeues, cancels and endings by several at once, and holds what must hold at
// any time: no account over its quota, no device used twice, and counts that are true in the end.
func TestAdmissionAndClaims(t *testing.T) {
	const devices, workers, concurrent = 5, 6, 2
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	s := open(t, devices)
	var mu sync.Mutex
	busy, active := map[string]string{}, map[string]int{}
	var group sync.WaitGroup
	for w := range workers {
		r := rand.New(rand.NewPCG(seed, uint64(w)))
		group.Go(func() {
			for range 25 {
				n := wish([]string{"a", "b"}[r.IntN(2)])
				n.Limits.Queued, n.Priority = 10, r.IntN(3)
				var over *orchestrator.QuotaError
				if _, err := s.Create(context.Background(), n); err == nil && r.IntN(6) == 0 {
					err = s.Cancel(context.Background(), n.ID)
					if err != nil {
						t.Error(err)
					}
				} else if err != nil && !errors.As(err, &over) {
					t.Error(err)
				}
				claims, _, err := s.Claim(context.Background(), fmt.Sprint(w), []string{"mac-1"}, time.Minute, 1+r.IntN(4), concurrent)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				for _, c := range claims {
					if active[c.Account]++; active[c.Account] > concurrent || busy[c.Device] != "" {
						t.Errorf("%s has %d; %s is on %s, which has %q", c.Account, active[c.Account], c.Session, c.Device, busy[c.Device])
					}
					busy[c.Device] = c.Session
				}
				mu.Unlock()
				for _, c := range claims {
					mu.Lock() // before the database knows: it may be claimed at once
					active[c.Account]--
					delete(busy, c.Device)
					mu.Unlock()
					if err := finish(s, c, orchestrator.Completed); err != nil {
						t.Error(err)
					}
				}
				if _, err := s.Reap(context.Background(), "self", true); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if wrong := s.Counts(t); len(wrong) > 0 {
		t.Error(wrong)
	}
}

// TestOverTimeInTheQueue: who waited for its own account's sessions is told so, not that there was no device.
func TestOverTimeInTheQueue(t *testing.T) {
	s := open(t, 1)
	mustCreate(t, s, wish("a"))
	second, other := wish("a"), wish("b")
	second.Queue, other.Queue = time.Nanosecond, time.Nanosecond
	mustCreate(t, s, second)
	mustCreate(t, s, other)
	if claims, _, err := s.Claim(t.Context(), "self", []string{"mac-1"}, time.Minute, 1, 1); err != nil || len(claims) != 1 {
		t.Fatalf("%v, %v", claims, err)
	}
	if _, err := s.Reap(t.Context(), "self", true); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{second.ID: "quota", other.ID: "device_unavailable"} {
		if v, err := s.Get(t.Context(), id); err != nil || string(v.Reason) != want {
			t.Errorf("%s ended as %q %q, %v, want %s", v.Account, v.Reason, v.Detail, err, want)
		}
	}
}

// What nobody here may take, because its profile is with another orchestrator, keeps nothing else of its account from being claimed.
func TestProfileElsewhereHoldsNobodyUp(t *testing.T) {
	s := open(t, 1)
	ref := profile(t, s)
	if err := s.Publish(t.Context(), profilestate.Writer{}, ref, head(t, s, ref), generation(1, 0, "", "one")); err != nil {
		t.Fatal(err)
	}
	has(t, s, "another")
	elsewhere, here := wish(ref.Account), wish(ref.Account)
	elsewhere.Profile = ref.Profile
	mustCreate(t, s, elsewhere)
	here.Want.Host = "mac-1" // another want, and so another lane
	mustCreate(t, s, here)
	if c := mustClaim(t, s); c.Session != here.ID {
		t.Errorf("claimed %s, want %s", c.Session, here.ID)
	}
}
