package tunnel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/tunnel/tunneltest"
)

// names is a DNS with one name.
type names struct {
	mu    sync.Mutex
	addrs []netip.Addr // guarded by mu; none: it does not answer
	asked int          // guarded by mu
}

func (n *names) lookup(_ context.Context, name string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	if name != gatewayName || len(n.addrs) == 0 {
		return nil, fmt.Errorf("no such host: %s", name)
	}
	return n.addrs, nil
}

func (n *names) set(addrs ...netip.Addr) (asked int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addrs = addrs
	return n.asked
}

// TestGatewayMoves: the gateway's name gets another address, and nothing answers at the one before. The host looks the name up
// again, without being restarted and without a new device, also when names cannot be looked up at first, and so it does when the
// gateway moves back.
func TestGatewayMoves(t *testing.T) {
	t.Parallel()
	here, there := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	dns := &names{addrs: []netip.Addr{here}}
	x := openRelayed(t, tunneltest.RelayConfig{}, LinkConfig{Lookup: dns.lookup})
	_, port, err := net.SplitHostPort(x.relay.Addr())
	if err != nil {
		t.Fatal(err)
	}
	other, err := tunneltest.OpenRelay(tunneltest.RelayConfig{Listen: net.JoinHostPort(there.String(), port), Target: fmt.Sprintf("127.0.0.1:%d", x.Port())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	})
	h := startHeartbeats(t, x)
	for _, move := range []struct {
		from, to *tunneltest.Relay
		at       netip.Addr
	}{{x.relay, other, there}, {other, x.relay, here}} {
		tried, sent := x.link.Repairs().Resolve, move.to.Stats().Forwarded
		asked := dns.set() // nobody can look anything up just now
		move.to.Cut(false)
		move.from.Cut(true)
		eventually(t, "the name is looked up", func() bool { dns.mu.Lock(); defer dns.mu.Unlock(); return dns.asked > asked })
		dns.set(move.at)
		began := time.Now()
		eventually(t, "the new address has traffic", func() bool { return move.to.Stats().Forwarded > sent })
		h.next(t)
		h.next(t) // the first may have been read before
		t.Logf("moved to %s: back %s after that was known", move.at, time.Since(began).Round(time.Millisecond))
		if n := x.link.Repairs(); n.Resolve < tried+2 || n.Device > 0 {
			t.Errorf("repairs %+v", n)
		}
	}
}
