//go:build soak

package tunnel

import (
	"testing"
	"time"

	"github.com/driftstack/fleet/tunnel/tunneltest"
)

// TestSoakPartition is TestPartition at its full length.
func TestSoakPartition(t *testing.T) { partition(t, 30*time.Second) }

// TestSoakAgentAfterPartition is TestAgentAfterPartition for longer.
func TestSoakAgentAfterPartition(t *testing.T) {
	for _, d := range []time.Duration{30 * time.Second, time.Minute} {
		t.Run(d.String(), func(t *testing.T) { partitionAgent(t, d) })
	}
}

// TestSoakRecoveries repeats what a tunnel has to live through, many times over one link.
func TestSoakRecoveries(t *testing.T) {
	x := openRelayed(t, tunneltest.RelayConfig{Delay: ocean}, LinkConfig{})
	h := startHeartbeats(t, x)
	for range 20 {
		within(t, "gateway restart", 3*time.Second, func() time.Duration {
			before := h.next(t)
			x.restart(t)
			return h.heal(t, before)
		})
		if err := x.relay.Rebind(); err != nil {
			t.Fatal(err)
		}
		h.next(t)
	}
}
