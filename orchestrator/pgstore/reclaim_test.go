package pgstore_test

import (
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/pgstore"
)

func reclaim(t *testing.T, s *pgstore.Store, known ...string) []orchestrator.Claim {
	t.Helper()
	got, err := s.Reclaim(t.Context(), "test", known, time.Minute, 64)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b orchestrator.Claim) int { return int(a.LastEvent - b.LastEvent) })
	return got
}

// TestReclaim gives what the claim gave, under a term of its own, and nothing else.
func TestReclaim(t *testing.T) {
	s := open(t, 6)
	lost := wish("a")
	lost.Waiter, lost.Capabilities = "eu-9", []byte(`{"browserName": "safari"}`)
	var claims []orchestrator.Claim
	for _, n := range []orchestrator.NewSession{lost, wish("a"), wish("a"), wish("a")} {
		mustCreate(t, s, n)
		s.AgeCreated(t, n.ID, time.Second) // or it is its waiter's
		claims = append(claims, mustClaim(t, s))
	}
	was, known, runs, late := claims[0], claims[1], claims[2], claims[3]
	must(t, s.Running(t.Context(), runs.Session, runs.Term, nil))
	s.SetLease(t, late.Session, -time.Second)
	mustCreate(t, s, wish("a"))
	if _, ok, err := claim(t.Context(), s, "eu-2", []string{"mac-1"}, time.Minute); err != nil || !ok {
		t.Fatal(ok, err)
	}
	mustCreate(t, s, wish("a")) // stays queued
	s.SetLease(t, was.Session, 5*time.Second)

	got := reclaim(t, s, known.Session)
	if len(got) != 1 {
		t.Fatalf("%+v", got)
	}
	want := was
	want.Term, want.Waited = 2, got[0].Waited
	if !reflect.DeepEqual(got[0], want) || got[0].Waited <= 0 {
		t.Errorf("reclaimed %+v, was claimed as %+v", got[0], was)
	}
	if err := s.Running(t.Context(), was.Session, was.Term, nil); !errors.Is(err, orchestrator.ErrLeaseLost) {
		t.Errorf("the claim that nobody heard of: %v", err)
	}
	if l := s.Leases(t)[was.Session]; l.Term != 2 || l.Left == nil || *l.Left < 50*time.Second {
		t.Errorf("%+v", l)
	}
	if again := reclaim(t, s, known.Session, was.Session); len(again) != 0 {
		t.Errorf("again: %+v", again)
	}
	must(t, s.Running(t.Context(), was.Session, 2, nil))
	must(t, finish(s, got[0], orchestrator.Completed))
	if wrong := s.Counts(t); len(wrong) > 0 {
		t.Error(wrong)
	}
}
