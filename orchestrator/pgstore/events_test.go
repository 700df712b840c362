package pgstore_test

import (
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator"
)

// The log has no foreign key: what one would hold is held here.
func TestEventsBelongToSessions(t *testing.T) {
	s := open(t, 2)
	at := time.Now()
	event := func(c orchestrator.Claim, seq int64) orchestrator.Event {
		return orchestrator.Event{Session: c.Session, Term: c.Term, Seq: seq, At: at, Kind: orchestrator.EventRunning}
	}
	claim := func() orchestrator.Claim {
		mustCreate(t, s, wish("a"))
		return mustClaim(t, s)
	}
	stored := func(c orchestrator.Claim) (seqs []int64) {
		list, err := s.Events(t.Context(), c.Session, -1, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if e.Kind == string(orchestrator.EventRunning) {
				seqs = append(seqs, e.Seq)
			}
		}
		return seqs
	}
	one, other := claim(), claim()
	stranger, fenced := one, one
	stranger.Session, fenced.Term = "nobody's", one.Term-1
	if err := s.AppendEvents(t.Context(), []orchestrator.Event{event(one, 100), event(stranger, 100), event(other, 100), event(fenced, 101), event(one, 102)}); err != nil {
		t.Fatal(err)
	}
	if a, b := stored(one), stored(other); len(a) != 2 || len(b) != 1 {
		t.Fatalf("one has %v, the other %v", a, b)
	}
	if n := len(stored(stranger)); n != 0 {
		t.Fatalf("%d events of a session that is not there", n)
	}
	s.DeleteSession(t, one.Session)
	if a, b := stored(one), stored(other); len(a) != 0 || len(b) != 1 {
		t.Fatalf("after the session was deleted it has %v, the other %v", a, b)
	}
	if err := s.AppendEvents(t.Context(), []orchestrator.Event{event(one, 103)}); err != nil {
		t.Fatal(err)
	}
	if n := len(stored(one)); n != 0 {
		t.Fatalf("%d events of a deleted session", n)
	}
}
