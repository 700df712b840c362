package tunnel

import (
	"errors"
	"testing"
	"time"
)

func TestTally(t *testing.T) {
	var n tally
	n.reconciled(time.Millisecond, 3, nil)
	n.reconciled(20*time.Millisecond, 4, errors.New("x"))
	n.reconciled(time.Minute, 5, nil)
	n.restored()
	n.isolated()
	n.isolated()
	c := n.snapshot()
	if c.Peers != 5 || c.Reconciled != 3 || c.ReconcileTime != time.Minute+21*time.Millisecond || c.ReconcileErrors != 1 || c.Restores != 1 || c.IsolationRepairs != 2 {
		t.Errorf("%+v", c)
	}
	for bound, want := range map[float64]uint64{.001: 1, .01: 1, .025: 2, 5: 2} {
		if c.ReconcileBuckets[bound] != want {
			t.Errorf("%d took at most %g s, want %d", c.ReconcileBuckets[bound], bound, want)
		}
	}
	c.ReconcileBuckets[5] = 99
	if n.snapshot().ReconcileBuckets[5] != 2 {
		t.Error("a snapshot is not one")
	}
}

func TestGatewayCounts(t *testing.T) {
	peers := testPeers(3)
	g, _ := tripGateway(t, &peers)
	if err := g.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := g.Counters(); c.Reconciled != 1 || c.ReconcileErrors != 0 || c.Peers != 3 || c.ReconcileBuckets[5] != 1 {
		t.Errorf("%+v", c)
	}
	peers = append(peers, Peer{Name: "no key"})
	if err := g.Reconcile(t.Context()); !errors.Is(err, ErrPeer) {
		t.Fatal(err)
	}
	if c := g.Counters(); c.Reconciled != 2 || c.ReconcileErrors != 1 || c.Peers != 3 {
		t.Errorf("%+v", c)
	}
}
