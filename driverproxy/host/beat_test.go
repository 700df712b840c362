package host

import (
	"testing"
	"time"
)

func TestHeartbeatsTellTheirRoundTrip(t *testing.T) {
	l, start := &link{}, time.Unix(1e9, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	said := func(ms int, seq uint64, round time.Duration) {
		t.Helper()
		if m := l.beat(at(ms)).Heartbeat; m.Seq != seq || m.RoundTrip != round {
			t.Errorf("at %d ms: heartbeat %d says %s, want %d and %s", ms, m.Seq, m.RoundTrip, seq, round)
		}
	}
	said(0, 1, 0)
	l.beaten(1, at(130))
	said(1000, 2, 130*time.Millisecond)
	said(2000, 3, time.Second) // 2 has no answer yet
	said(3000, 4, 2*time.Second)
	l.beaten(7, at(3100)) // out of nowhere
	said(4000, 5, 3*time.Second)
	l.beaten(2, at(4500))
	l.beaten(3, at(4501)) // was not timed
	said(5000, 6, 3500*time.Millisecond)
	l.beaten(6, at(5010))
	said(6000, 7, 10*time.Millisecond)
}
