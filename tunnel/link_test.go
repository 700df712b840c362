package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// dialDevice is a device whose dials fail as told, and which remembers the peers it was sent.
type dialDevice struct {
	wgDevice
	mu    sync.Mutex
	dials int
	dialf func(ctx context.Context, n int) error
	peers []wgtypes.PeerConfig
	ports int // how often it was told to take another
	d     wgtypes.Device
}

func (d *dialDevice) dial(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
	d.mu.Lock()
	d.dials++
	n := d.dials
	d.mu.Unlock()
	if err := d.dialf(ctx, n); err != nil {
		return nil, err
	}
	c, _ := net.Pipe()
	return c, nil
}

func (d *dialDevice) apply(_ context.Context, cfg wgtypes.Config) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.peers = append(d.peers, cfg.Peers...)
	if cfg.ListenPort != nil && *cfg.ListenPort == 0 {
		d.ports++
	}
	if len(cfg.Peers) == 0 {
		return nil
	}
	last := cfg.Peers[len(cfg.Peers)-1]
	d.d.Peers = []wgtypes.Peer{{PublicKey: last.PublicKey, PresharedKey: *last.PresharedKey, AllowedIPs: last.AllowedIPs}}
	return nil
}

func (d *dialDevice) check(context.Context) error { return nil }

func (d *dialDevice) read(context.Context) (*wgtypes.Device, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &d.d, nil
}

func dialLink(t *testing.T, f func(ctx context.Context, n int) error) (*Link, *dialDevice) {
	t.Helper()
	cfg, err := LinkConfig{StateDir: t.TempDir()}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	d := &dialDevice{dialf: f}
	g := GatewayInfo{Endpoint: "127.0.0.1:9", PublicKey: Key{1}, Addr: addr(ownRange, 1), FleetPort: 1}
	l := newLink(cfg, &state{PresharedKey: PresharedKey{1}, Gateways: []GatewayInfo{g}}, PrivateKey{}, netip.Addr{})
	l.dev = d
	return l, d
}

// TestDialRepairs: silence, in each form it has, makes a new handshake by removing and adding the peer; an answer of
// any kind does not.
func TestDialRepairs(t *testing.T) {
	// As the net package reports it: the dial's timer has fired, the context's not yet.
	netTimeout := &net.OpError{Op: "dial", Net: "tcp4", Err: os.ErrDeadlineExceeded}
	for _, c := range []struct {
		err     error
		fails   int // dials that fail
		repairs int
		ok      bool
	}{
		{netTimeout, 0, 0, true},
		{netTimeout, 1, 1, true},
		{netTimeout, 2, 2, true},
		{netTimeout, 3, 2, false},
		{context.DeadlineExceeded, 1, 1, true},
		{&net.OpError{Op: "dial", Err: syscall.ETIMEDOUT}, 1, 1, true},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, 1, 0, false},
	} {
		l, d := dialLink(t, func(_ context.Context, n int) error {
			if n <= c.fails {
				return c.err
			}
			return nil
		})
		_, err := l.DialContext(t.Context(), "tcp", "10.77.0.1:1")
		if (err == nil) != c.ok || !c.ok && !errors.Is(err, c.err) {
			t.Errorf("%v, %d times: %v", c.err, c.fails, err)
		}
		if len(d.peers) != 2*c.repairs {
			t.Errorf("%v, %d times: %d repairs, not %d", c.err, c.fails, len(d.peers)/2, c.repairs)
		}
		for i, p := range d.peers {
			if p.Remove != (i%2 == 0) || !p.Remove && (*p.PersistentKeepaliveInterval != l.cfg.Keepalive || p.Endpoint.Port != 9) {
				t.Errorf("call %d: %+v", i, p)
			}
		}
	}
}

// TestDialsShareRepair: dials that fail together need one handshake; a second would break the first.
func TestDialsShareRepair(t *testing.T) {
	const n = 8
	var began sync.WaitGroup
	began.Add(n)
	l, d := dialLink(t, func(_ context.Context, i int) error {
		if i > n {
			return nil
		}
		began.Done()
		began.Wait()
		return context.DeadlineExceeded
	})
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if _, err := l.DialContext(t.Context(), "tcp", "10.77.0.1:1"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(d.peers) != 2 {
		t.Errorf("%d repairs", len(d.peers)/2)
	}
}

func TestDialRefusals(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l, d := dialLink(t, func(ctx context.Context, _ int) error { cancel(); <-ctx.Done(); return ctx.Err() })
	if _, err := l.DialContext(ctx, "tcp", "10.77.0.1:1"); !errors.Is(err, context.Canceled) || d.dials != 1 || len(d.peers) != 0 {
		t.Errorf("cancelled: %v after %d dials", err, d.dials)
	}
	for _, c := range [][2]string{{"udp", "10.77.0.1:1"}, {"tcp", "gateway:1"}, {"tcp", "10.77.0.1"}, {"tcp", "10.77.0.2:1"}, {"tcp", "127.0.0.1:1"}, {"tcp6", "[::1]:1"}} {
		if _, err := l.DialContext(t.Context(), c[0], c[1]); err == nil || d.dials != 1 {
			t.Errorf("%s %s: %v", c[0], c[1], err)
		}
	}
}

// TestNextAddress: a gateway with several addresses is tried at each, in turn.
func TestNextAddress(t *testing.T) {
	a, b, c := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:1"), netip.MustParseAddrPort("192.0.2.3:1")
	for _, tc := range []struct {
		found      []netip.AddrPort
		last, want netip.AddrPort
	}{
		{[]netip.AddrPort{a, b}, netip.AddrPort{}, a},
		{[]netip.AddrPort{a, b}, a, b},
		{[]netip.AddrPort{a, b}, b, a},
		{[]netip.AddrPort{a}, a, a},
		{[]netip.AddrPort{a, b}, c, a}, // it has moved
	} {
		if got := nextOf(tc.found, tc.last); got != tc.want {
			t.Errorf("of %v after %s: %s", tc.found, tc.last, got)
		}
	}
}

func TestResolve(t *testing.T) {
	for endpoint, want := range map[string]string{"127.0.0.1:51820": "127.0.0.1:51820", "[::1]:1": "[::1]:1", "localhost:7": "127.0.0.1:7"} {
		if a, err := resolve(t.Context(), systemLookup, endpoint); err != nil || a[0].String() != want {
			t.Errorf("%s: %v %v", endpoint, a, err)
		}
	}
	for _, bad := range []string{"", "x", "name.invalid:1"} {
		_, err := resolve(t.Context(), systemLookup, bad)
		wantText(t, err, fmt.Sprintf("endpoint %s", bad))
	}
}
