package tunnel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func TestAutoBackend(t *testing.T) {
	works := func(context.Context, deviceConfig) (wgDevice, error) { return &tripDevice{}, nil }
	lacks := func(context.Context, deviceConfig) (wgDevice, error) {
		return nil, fmt.Errorf("%w: not here", ErrBackend)
	}
	breaks := func(context.Context, deviceConfig) (wgDevice, error) { return nil, errors.New("UDP port 1 is in use") }
	cfg := deviceConfig{Log: zap.NewNop()}
	for _, c := range []struct {
		name   string
		among  []backend
		chosen string
		text   string
	}{
		{"auto", []backend{{"kernel", works}, {"tun", works}}, "kernel", ""},
		{"", []backend{{"kernel", lacks}, {"tun", works}}, "tun", ""},
		{"auto", []backend{{"kernel", lacks}, {"tun", lacks}, {"netstack", works}}, "netstack", ""},
		{"netstack", []backend{{"kernel", works}, {"netstack", works}}, "netstack", ""},
		{"kernel", []backend{{"kernel", lacks}, {"netstack", works}}, "", "backend kernel: this WireGuard backend is not available"},
		// A port in use is not a reason to go on with something slower.
		{"auto", []backend{{"kernel", lacks}, {"tun", breaks}, {"netstack", works}}, "", "UDP port 1 is in use"},
		{"auto", []backend{{"kernel", lacks}}, "", "backend kernel"},
	} {
		d, chosen, err := openAmong(t.Context(), c.among, c.name, cfg)
		if chosen != c.chosen || (d == nil) != (c.chosen == "") {
			t.Errorf("%+v: chose %q", c, chosen)
		}
		if c.text != "" {
			wantText(t, err, c.text)
		}
	}
	if err := checkBackend("wireguard"); err == nil {
		t.Error("an unknown backend is accepted")
	}
}

// TestCallsAreBounded: a hung device is an error with a name after the limit, at once while it stays hung, and it does
// not pile up goroutines.
func TestCallsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := make(chan struct{})
		c := newCaller("wg0", gone)
		release := make(chan struct{})
		hang := func() (int, error) { <-release; return 1, nil }
		began := time.Now()
		for range 3 {
			if _, err := call(t.Context(), c, "read", hang); !errors.Is(err, ErrDeviceHung) {
				t.Errorf("a call that hangs: %v", err)
			} else {
				wantText(t, err, "read wg0")
			}
		}
		if took := time.Since(began); took != 3*callLimit {
			t.Errorf("three calls took %s", took)
		}
		if err := c.settle(); !errors.Is(err, ErrDeviceHung) {
			t.Errorf("settle: %v", err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("because")
		cancel(why)
		if _, err := call(ctx, c, "read", hang); !errors.Is(err, why) {
			t.Errorf("a cancelled call: %v", err)
		}
		close(release)
		if err := c.settle(); err != nil {
			t.Error(err)
		}
		if v, err := call(t.Context(), c, "read", func() (int, error) { return 2, nil }); v != 2 || err != nil {
			t.Errorf("after it came back: %d %v", v, err)
		}
		close(gone)
		if _, err := call(t.Context(), c, "read", func() (int, error) { return 3, nil }); !errors.Is(err, ErrDeviceGone) {
			t.Errorf("a device that is gone: %v", err)
		}
	})
}

// tripDevice is a real device with one fault, or none at all, and remembers what it was sent.
type tripDevice struct {
	wgDevice
	mu    sync.Mutex
	sent  []wgtypes.Config
	fault func(call int, cfg wgtypes.Config) (wgtypes.Config, error)
}

func (d *tripDevice) name() string { return "trip" }

func (d *tripDevice) apply(ctx context.Context, cfg wgtypes.Config) error {
	d.mu.Lock()
	d.sent = append(d.sent, cfg)
	n := len(d.sent)
	d.mu.Unlock()
	var fault error
	if d.fault != nil {
		cfg, fault = d.fault(n, cfg)
	}
	return errors.Join(d.wgDevice.apply(ctx, cfg), fault)
}

type peerList []Peer

func (p *peerList) Peers(context.Context) ([]Peer, error) { return slices.Clone(*p), nil }

func (p *peerList) PeersOf(_ context.Context, host string) ([]Peer, error) {
	return slices.DeleteFunc(slices.Clone(*p), func(q Peer) bool { return q.Host != host }), nil
}

func (p *peerList) Promote(context.Context, Key) error { return nil }

// tripGateway is a gateway on a tripDevice.
func tripGateway(t *testing.T, peers *peerList) (*Gateway, *tripDevice) {
	t.Helper()
	var d *tripDevice
	g, err := openGateway(t.Context(), GatewayConfig{
		KeyFile: t.TempDir() + "/key", Number: 1, Backend: BackendNetstack, Peers: peers, Log: testLog(t),
	}, func(ctx context.Context, name string, cfg deviceConfig) (wgDevice, string, error) {
		dev, backend, err := openDevice(ctx, name, cfg)
		d = &tripDevice{wgDevice: dev}
		return d, backend, err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g, d
}

func testPeers(n int) peerList {
	var out peerList
	for i := range n {
		out = append(out, Peer{
			Host: fmt.Sprint("host", i), Name: fmt.Sprint("host", i), PublicKey: clamp([32]byte{1: byte(i), 2: byte(i >> 8), 3: 1}).Public(),
			PresharedKey: PresharedKey{1}, Addr: addr(ownRange, FirstHost+i),
		})
	}
	return out
}

func wantPeers(t *testing.T, g *Gateway, want []Peer) {
	t.Helper()
	st, err := g.device().read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c := diff(want, tableOf(st)); c.size() != 0 {
		t.Errorf("the device differs from what is wanted: %+v", c)
	}
}

func TestReconcile(t *testing.T) {
	peers := testPeers(5)
	g, d := tripGateway(t, &peers)
	step := func(calls int, want []Peer) {
		t.Helper()
		d.sent = nil
		if err := g.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(d.sent) != calls {
			t.Errorf("%d calls, not %d", len(d.sent), calls)
		}
		wantPeers(t, g, want)
	}
	step(1, peers)
	step(0, peers) // nothing to do, nothing sent
	// Two hosts exchange addresses, one goes, one gets a new preshared key, one stays.
	peers[0].Addr, peers[1].Addr = peers[1].Addr, peers[0].Addr
	peers[2].PresharedKey = PresharedKey{2}
	peers = peers[:4]
	step(1, peers)
	for _, p := range d.sent[0].Peers {
		if Key(p.PublicKey) == peers[3].PublicKey {
			t.Error("the peer that did not change was sent")
		}
	}
	// A new host gets the address of one that goes.
	next := testPeers(6)[5]
	next.Addr = peers[3].Addr
	peers = append(peers[:3], next)
	step(1, peers)
}

func TestReconcileTraps(t *testing.T) {
	t.Run("half applied", func(t *testing.T) {
		peers := testPeers(4)
		g, d := tripGateway(t, &peers)
		d.fault = func(n int, cfg wgtypes.Config) (wgtypes.Config, error) {
			if n == 1 {
				cfg.Peers = cfg.Peers[:2]
				return cfg, errors.New("a bad peer")
			}
			return cfg, nil
		}
		if err := g.Reconcile(t.Context()); err != nil {
			t.Error(err)
		}
		wantPeers(t, g, peers)
	})
	t.Run("silently ignored", func(t *testing.T) {
		peers := testPeers(2)
		g, d := tripGateway(t, &peers)
		d.fault = func(_ int, cfg wgtypes.Config) (wgtypes.Config, error) { return wgtypes.Config{}, nil }
		if err := g.Reconcile(t.Context()); !errors.Is(err, ErrNotVerified) {
			t.Errorf("a device that does nothing: %v", err)
		}
	})
	t.Run("update of an absent peer", func(t *testing.T) {
		peers := testPeers(2)
		g, d := tripGateway(t, &peers)
		if err := g.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		first := len(d.sent) + 1
		d.fault = func(n int, cfg wgtypes.Config) (wgtypes.Config, error) {
			if n == first { // someone removes the peer between our look and our update
				gone := wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: wgtypes.Key(peers[0].PublicKey), Remove: true}}}
				if err := d.wgDevice.apply(t.Context(), gone); err != nil {
					return cfg, err
				}
			}
			return cfg, nil
		}
		peers[0].Addr = addr(ownRange, 999)
		if err := g.Reconcile(t.Context()); err != nil {
			t.Error(err)
		}
		wantPeers(t, g, peers)
	})
	t.Run("duplicate address", func(t *testing.T) {
		peers := testPeers(2)
		g, _ := tripGateway(t, &peers)
		if err := g.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		right := slices.Clone(peers)
		thief := testPeers(3)[2]
		thief.Name, thief.Addr = "thief", peers[0].Addr
		innocent := testPeers(4)[3]
		peers = append(peers, thief, innocent)
		var dup *DuplicatePeerError
		if err := g.Reconcile(t.Context()); !errors.As(err, &dup) || dup.Second != "thief" {
			t.Errorf("duplicate: %v", err)
		}
		wantPeers(t, g, append(right, innocent))
	})
	t.Run("changed behind our back", func(t *testing.T) {
		peers := testPeers(3)
		g, d := tripGateway(t, &peers)
		if err := g.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		stranger := testPeers(9)[8]
		all := stranger.config()
		all.AllowedIPs = append(all.AllowedIPs, ipNet(Network()))
		if err := d.wgDevice.apply(t.Context(), wgtypes.Config{Peers: []wgtypes.PeerConfig{all, {PublicKey: wgtypes.Key(peers[1].PublicKey), Remove: true}}}); err != nil {
			t.Fatal(err)
		}
		if err := g.Reconcile(t.Context()); err != nil {
			t.Error(err)
		}
		wantPeers(t, g, peers)
	})
}

// TestPeerSourceThatHangs: the database may be a black hole; hosts must still be able to join once it is not.
func TestPeerSourceThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Gateway{cfg: GatewayConfig{Peers: deafSource{}, Every: time.Minute, Now: time.Now, Log: zap.NewNop()}, book: newBook(Key{1})}
		began := time.Now()
		err := g.Reconcile(t.Context())
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > listLimit {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

type deafSource struct{ PeerSource }

func (deafSource) Peers(ctx context.Context) ([]Peer, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(time.Hour):
		return nil, errors.New("an hour went by")
	}
}
