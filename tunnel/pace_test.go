package tunnel

import (
	"testing"
	"time"
)

// TestPace: a path that is cut is tried often for as long as partitions last, and then more and more seldom; a gateway that
// is slow gets more and more time.
func TestPace(t *testing.T) {
	random := 0.0
	p := &pace{short: 670 * time.Millisecond, random: func() float64 { return random }}
	for _, c := range []struct {
		n       int
		silence time.Duration
		random  float64
		want    time.Duration
	}{
		{1, 0, 1, 670 * time.Millisecond},
		{8, 5 * time.Second, 1, 670 * time.Millisecond},
		{48, 39 * time.Second, 1, 670 * time.Millisecond},
		{48, 40 * time.Second, 1, time.Second},
		{49, 40 * time.Second, 1, 670 * time.Millisecond},
		{70, time.Minute, 0, time.Second},
		{120, 2 * time.Minute, 0, 2 * time.Second},
		{120, 2 * time.Minute, 1, 2500 * time.Millisecond},
		{1000, time.Hour, 0, 5 * time.Second},
		{1000, time.Hour, 1, 6250 * time.Millisecond},
	} {
		random = c.random
		if got := p.try(c.n, c.silence); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
	random = 0
	for i, want := range []time.Duration{1340 * time.Millisecond, 2680 * time.Millisecond, 5360 * time.Millisecond, slowTry, slowTry} {
		if got := p.wait(); got != want {
			t.Errorf("wait %d: %s, not %s", i, got, want)
		}
	}
	random = 1
	if got := p.wait(); got != slowTry+slowTry/4 {
		t.Errorf("%s", got)
	}
}
