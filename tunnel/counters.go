package tunnel

import (
	"sync"
	"time"
)

// Counters is what a gateway has done since it was opened.
type Counters struct {
	Peers            int                // on the device, when it was last read
	Reconciled       uint64             // times that all peers were compared
	ReconcileTime    time.Duration      // in all
	ReconcileBuckets map[float64]uint64 // how many took at most so many seconds; see ReconcileBounds
	ReconcileErrors  uint64
	Restores         uint64 // the device was lost and is back
	IsolationRepairs uint64 // the rules were not what they should be
}

// ReconcileBounds are the upper bounds of Counters.ReconcileBuckets, in seconds: from a quiet tick to 10,000 new peers.
func ReconcileBounds() []float64 {
	return []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}
}

// tally counts for a gateway. The zero value is ready.
type tally struct {
	mu sync.Mutex
	c  Counters // guarded by mu
}

// Counters is a snapshot.
func (g *Gateway) Counters() Counters { return g.tally.snapshot() }

func (t *tally) snapshot() Counters {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.c
	c.ReconcileBuckets = make(map[float64]uint64, len(t.c.ReconcileBuckets))
	for _, bound := range ReconcileBounds() {
		c.ReconcileBuckets[bound] = t.c.ReconcileBuckets[bound]
	}
	return c
}

// reconciled counts one comparison of all peers, with how many are on the device after it.
func (t *tally) reconciled(took time.Duration, peers int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.c.Reconciled++
	t.c.ReconcileTime += took
	t.c.Peers = peers
	if t.c.ReconcileBuckets == nil {
		t.c.ReconcileBuckets = map[float64]uint64{}
	}
	for _, bound := range ReconcileBounds() {
		if took.Seconds() <= bound {
			t.c.ReconcileBuckets[bound]++
		}
	}
	if err != nil {
		t.c.ReconcileErrors++
	}
}

func (t *tally) restored() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.c.Restores++
}

func (t *tally) isolated() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.c.IsolationRepairs++
}
