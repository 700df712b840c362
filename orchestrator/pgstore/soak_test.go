//go:build soak

package pgstore_test

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestSoakPlacesAndProspectsOfALargeFleet: with 100,000 queued sessions and 10,000 devices, to say where one waits, and what would become of
// another, stays cheap.
func TestSoakPlacesAndProspectsOfALargeFleet(t *testing.T) {
	s := open(t, 1)
	a, b := wish("a"), wish("a")
	b.Want.Model = "iPhone 15"
	mustCreate(t, s, a)
	mustCreate(t, s, b)
	s.ManyQueued(t, 100, 1000, 10_000, s.WantOf(t, a.ID), s.WantOf(t, b.ID))
	t.Log(s.ExplainPlace(t, "m7-500"))
	for what, c := range map[string]struct {
		f    func(i int)
		most time.Duration
	}{
		"place":    {func(i int) { placeOf(t, s, fmt.Sprintf("m%d-%d", 1+i%100, 1+i*37%1000), 0) }, 60 * time.Millisecond},
		"prospect": {func(int) { n := wish("b"); n.QueueLimit = 1 << 30; prospect(t, s, n) }, 600 * time.Millisecond},
	} {
		var took []time.Duration
		for i := range 60 {
			began := time.Now()
			c.f(i)
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		t.Logf("%s: p50 %s, p95 %s", what, took[30], took[56])
		if took[30] > c.most {
			t.Errorf("%s takes %s, should take %s at most", what, took[30], c.most)
		}
	}
}
