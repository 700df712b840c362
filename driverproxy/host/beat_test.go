package host

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestBeatsMeetOnMarks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		every := time.Duration(rapid.Int64Range(int64(10*time.Millisecond), int64(20*time.Second)).Draw(t, "every"))
		offset := beatOffset(rapid.String().Draw(t, "host"), every)
		if offset < 0 || offset >= every || offset%beatMark != 0 {
			t.Fatalf("offset %s of %s", offset, every)
		}
		now := time.Unix(0, rapid.Int64Range(0, 4e18).Draw(t, "now"))
		d := untilBeat(now, every, offset)
		if d <= every/10 || d > every+every/10 {
			t.Fatalf("next heartbeat in %s of %s", d, every)
		}
		// Timers come late, or a little early: one heartbeat a mark all the same.
		at := now.Add(d)
		late := time.Duration(rapid.Int64Range(-int64(every/20), int64(every/2)).Draw(t, "late"))
		next := at.Add(late)
		if gap := next.Add(untilBeat(next, every, offset)).Sub(at); gap != every {
			t.Fatalf("%s between two heartbeats, every %s", gap, every)
		}
	})
}

func TestHostsShareTheMarks(t *testing.T) {
	count := map[time.Duration]int{}
	for i := range 1000 {
		count[beatOffset(fmt.Sprintf("host-%d", i), time.Second)]++
	}
	if len(count) != 5 {
		t.Fatalf("marks: %v", count)
	}
	for offset, n := range count {
		if n < 100 {
			t.Errorf("%d of 1000 hosts have the mark %s", n, offset)
		}
	}
}
