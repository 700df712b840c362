package tunnel

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// TestLadder: whatever happens, every climb begins at the bottom, goes on for ever, comes by each rung that is allowed,
// and by a new device at most once a minute, and never takes from another gateway what works there.
func TestLadder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var now, device, socket time.Duration
		began := time.Duration(rapid.Int64Range(0, int64(30*time.Second)).Draw(t, "began"))
		now = began
		var last rung
		var since []rung // since the situation last changed
		var at []time.Duration
		shared := false
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now += time.Duration(rapid.Int64Range(0, int64(2*time.Second)).Draw(t, "pause"))
			if rapid.IntRange(0, 20).Draw(t, "change") == 0 {
				shared, since, at = !shared, nil, nil
			}
			s := situation{shared: shared, deviceAge: now - device, socketAge: now - socket, silence: now - began}
			r := last.next(s)
			switch {
			case r < rungHandshake || r > rungDevice:
				t.Fatalf("rung %d", r)
			case shared && (r == rungSocket || r == rungDevice):
				t.Fatalf("rung %s breaks what works", r)
			case last == 0 && r != rungHandshake:
				t.Fatalf("begins with %s", r)
			case r == rungDevice && now-device < deviceEvery:
				t.Fatalf("a new device after %s", now-device)
			case r == rungSocket && s.socketAge < socketEvery && socket > began:
				t.Fatalf("a second socket after %s", s.socketAge)
			case r == rungSocket && s.socketAge < socketSettle:
				t.Fatalf("a new socket after %s", s.socketAge)
			case r == last:
				t.Fatalf("%s twice in a row", r)
			}
			if r == rungDevice {
				device, socket = now, now
			}
			if r == rungSocket {
				socket = now
			}
			last, since, at = r, append(since, r), append(at, now)
			if n := len(since); n >= 4 {
				must := []rung{rungHandshake, rungResolve}
				if !shared && at[n-4]-socket >= socketEvery {
					must = append(must, rungSocket)
				}
				for _, m := range must {
					if !slices.Contains(since[n-4:], m) {
						t.Fatalf("%s is not among %v", m, since[n-4:])
					}
				}
			}
		}
	})
}

func TestLadderInOrder(t *testing.T) {
	old := situation{deviceAge: time.Hour, socketAge: time.Hour}
	var got []string
	for r, i := rung(0).next(old), 0; i < 5; r, i = r.next(old), i+1 {
		got = append(got, r.String())
	}
	if want := []string{"handshake", "socket", "resolve", "device", "handshake"}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if r := rungHandshake.next(old); r != rungSocket {
		t.Errorf("after a sleep: %s", r)
	}
}

// TestNap: sleep is what the clocks have drifted apart, or what a wait took too long; work between two looks is neither.
func TestNap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ahead time.Duration
		c := newClocks(func() time.Time { return time.Now().Add(ahead) })
		look := func(what string, planned, waits, work, drift, want time.Duration) {
			t.Helper()
			time.Sleep(waits + work) // of the bubble
			ahead += drift
			if got := c.nap(planned, waits); got != want {
				t.Errorf("%s: %s, not %s", what, got, want)
			}
		}
		look("nothing", time.Second, time.Second, 0, 0, 0)
		look("asleep", time.Second, time.Second, 0, 10*time.Minute, 10*time.Minute)
		look("seen once", time.Second, time.Second, 0, 0, 0)
		look("stopped", time.Second, 6*time.Second, 0, 0, 5*time.Second)
		look("stopped, as both clocks see", time.Second, 6*time.Second, 0, time.Minute, time.Minute)
		look("busy repairing", time.Second, time.Second, 20*time.Second, 0, 0)
		look("asleep while repairing", time.Second, time.Second, 20*time.Second, time.Minute, time.Minute)
		look("set back", time.Second, time.Second, 0, -time.Hour, 0)
	})
}
