//go:build soak

package tunnel

import (
	"testing"
	"time"

	"github.com/driftstack/fleet/tunnel/tunneltest"
)

// TestSoakPartition is TestPartition at its full length.
func TestSoakPartition(t *testing.T) { partition(t, 30*time.Second) }

// TestSoakRecoveries repeats what a tunnel has to live through, many times over one link.
func TestSoakRecoveries(t *testing.T) {
	x := openRelayed(t, tunneltest.RelayConfig{Delay: ocean}, LinkConfig{})
	h := startHeartbeats(t, x)
	for range 20 {
		before := h.next(t)
		x.restart(t)
		h.heal(t, "gateway restart", before, true, time.Now(), 3*time.Second)
		if err := x.relay.Rebind(); err != nil {
			t.Fatal(err)
		}
		h.next(t)
	}
}
