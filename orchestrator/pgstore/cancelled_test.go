package pgstore_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator"
)

// TestCancelledIsWhatItsHolderIsToEnd, and is found without reading a session.
func TestCancelledIsWhatItsHolderIsToEnd(t *testing.T) {
	s := open(t, 4)
	is := func(what, holder string, want ...string) {
		t.Helper()
		slices.Sort(want)
		got, err := s.Cancelled(t.Context(), holder)
		if slices.Sort(got); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v, want %q", what, got, err, want)
		}
	}
	starting, running, others, alone := wish("a"), wish("a"), wish("a"), wish("b")
	for _, n := range []orchestrator.NewSession{starting, running} {
		mustCreate(t, s, n)
		mustClaim(t, s)
	}
	must(t, s.Running(t.Context(), running.ID, 1, nil))
	mustCreate(t, s, others)
	if _, ok, err := claim(t.Context(), s, "eu-2", []string{"mac-1"}, time.Minute); err != nil || !ok {
		t.Fatal(ok, err)
	}
	mustCreate(t, s, alone)
	c := mustClaim(t, s)
	queued := wish("a")
	mustCreate(t, s, queued)
	is("before", "test")
	for _, n := range []orchestrator.NewSession{starting, running, others, queued} {
		must(t, s.Cancel(t.Context(), n.ID))
	}
	is("those that are not queued", "test", starting.ID, running.ID)
	is("the other's", "eu-2", others.ID)
	must(t, second(s.ForceRelease(t.Context(), c.Host, c.Device, orchestrator.Act{By: "test", Reason: "stuck"})))
	is("one that an operator wants ended", "test", starting.ID, running.ID, alone.ID)
	must(t, s.Finish(t.Context(), orchestrator.Event{Session: starting.ID, Term: 1, Seq: 9, At: time.Now(), Reason: orchestrator.Cancelled}, "", 0))
	is("those that have not ended", "test", running.ID, alone.ID)

	s.ManyRunning(t, 2000)
	if plan := s.ExplainCancelled(t); !strings.Contains(plan, "Index Only Scan using sessions_cancelled") {
		t.Error(plan)
	}
}
