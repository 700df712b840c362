package pgstore_test

import (
	"slices"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator"
)

// What is queued for clients of an orchestrator that is gone is ended, and nothing else is.
func TestReapEndsWhatNobodyWaitsFor(t *testing.T) {
	s := open(t, 1)
	// Of one name only the newest is there: the other went with a restart.
	for _, id := range []string{"restarted", "live"} {
		if _, err := s.AnnounceReplica(t.Context(), orchestrator.Replica{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	waiters := map[string]string{"live": "queued", "restarted": "cancelled", "unknown": "cancelled", "self": "queued", "": "queued"}
	ids := map[string]string{}
	for waiter := range waiters {
		n := wish("a")
		n.Waiter = waiter
		mustCreate(t, s, n)
		ids[waiter] = n.ID
	}
	for _, on := range []bool{false, true} {
		ended, err := s.Reap(t.Context(), "self", on)
		if err != nil || on != (len(ended) == 2) {
			t.Fatalf("with waiters %v: %v, %v", on, ended, err)
		}
	}
	for waiter, want := range waiters {
		v, err := s.Get(t.Context(), ids[waiter])
		if got := string(v.State) + v.Reason; err != nil || got != want && got != "ended"+want || v.StartedAt != nil {
			t.Errorf("of %q: %s, want %s: %v", waiter, got, want, err)
		}
	}
	s.AgeReplica(t, "live", 16*time.Second)
	if ended, err := s.Reap(t.Context(), "self", true); err != nil || len(ended) != 1 || ended[0] != orchestrator.Cancelled {
		t.Errorf("silent for 16 s: %v, %v", ended, err)
	}
	if wrong := s.Counts(t); len(wrong) > 0 {
		t.Error(wrong)
	}
}

func TestConfirmIsForOneTerm(t *testing.T) {
	s := open(t, 1)
	if _, err := s.AnnounceReplica(t.Context(), orchestrator.Replica{ID: "a1", Name: "a"}); err != nil {
		t.Fatal(err)
	}
	n := wish("a")
	n.Waiter = "a1"
	mustCreate(t, s, n)
	state := func(term int64) [2]bool {
		t.Helper()
		confirmed, gone, err := s.Confirmed(t.Context(), n.ID, term)
		if err != nil {
			t.Fatal(err)
		}
		return [2]bool{confirmed, gone}
	}
	confirm := func(term int64) {
		t.Helper()
		if err := s.Confirm(t.Context(), n.ID, term); err != nil {
			t.Fatal(err)
		}
	}
	confirm(1) // too early
	s.AgeCreated(t, n.ID, time.Second)
	c := mustClaim(t, s)
	if c.Waiter != "a1" || state(c.Term) != [2]bool{false, false} {
		t.Errorf("claimed: %+v, %v", c, state(c.Term))
	}
	confirm(c.Term - 1)
	if state(c.Term) != [2]bool{false, false} {
		t.Error("another term's confirmation counts")
	}
	confirm(c.Term)
	if state(c.Term) != [2]bool{true, false} || state(c.Term + 1)[0] {
		t.Errorf("confirmed: %v", state(c.Term))
	}
	s.AgeReplica(t, "a1", time.Minute)
	if !state(c.Term)[1] {
		t.Error("one that is silent is not gone")
	}
}

// A session that a client waits for is for its own orchestrator first, and for anybody after a moment.
func TestWaiterClaimsFirst(t *testing.T) {
	s := open(t, 3)
	n, free := wish("a"), wish("a")
	n.Waiter = "here"
	mustCreate(t, s, n)
	mustCreate(t, s, free)
	claimed := func(by string) (ids []string) {
		t.Helper()
		got, _, err := s.Claim(t.Context(), by, []string{"mac-1"}, time.Minute, 10, 0)
		must(t, err)
		for _, c := range got {
			ids = append(ids, c.Session)
		}
		return ids
	}
	s.AgeCreated(t, n.ID, -time.Hour) // however long this takes
	if got := claimed("there"); !slices.Equal(got, []string{free.ID}) {
		t.Errorf("another orchestrator claimed %v, not what nobody waits for", got)
	}
	if got := claimed("here"); !slices.Equal(got, []string{n.ID}) {
		t.Errorf("its own claimed %v", got)
	}
	late := wish("a")
	late.Waiter = "here"
	mustCreate(t, s, late)
	s.AgeCreated(t, late.ID, 100*time.Millisecond)
	if got := claimed("there"); !slices.Equal(got, []string{late.ID}) {
		t.Errorf("after 100 ms another claimed %v", got)
	}
	if wrong := s.Counts(t); len(wrong) > 0 {
		t.Error(wrong)
	}
}
