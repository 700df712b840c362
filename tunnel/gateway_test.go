package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// source is a PeerSource that counts and can fail.
type source struct {
	mu       sync.Mutex
	peers    []Peer
	err      error
	promoted chan Key // closed never; holds what was promoted
	whole    int      // calls of Peers
}

func newSource(peers []Peer) *source { return &source{peers: peers, promoted: make(chan Key, 10)} }

func (s *source) Peers(context.Context) ([]Peer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.whole++
	return slices.Clone(s.peers), s.err
}

func (s *source) PeersOf(_ context.Context, host string) ([]Peer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.peers), func(p Peer) bool { return p.Host != host }), s.err
}

func (s *source) Promote(_ context.Context, next Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	i := slices.IndexFunc(s.peers, func(p Peer) bool { return p.PublicKey == next && p.Next })
	if i < 0 {
		return nil
	}
	p := s.peers[i]
	p.Next = false
	s.peers = append(slices.DeleteFunc(s.peers, func(q Peer) bool { return q.Addr == p.Addr }), p)
	s.promoted <- next
	return nil
}

func (s *source) set(f func(*source)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

// runGateway runs a netstack gateway, whose devices edit may give faults, until the test ends.
func runGateway(t *testing.T, s *source, every time.Duration, log *zap.Logger, edit func(n int, d wgDevice) wgDevice) *Gateway {
	t.Helper()
	opened := 0
	g, err := openGateway(t.Context(), GatewayConfig{
		KeyFile: t.TempDir() + "/key", Number: 1, Backend: BackendNetstack, Peers: s, Every: every, Log: log,
	}, func(ctx context.Context, name string, cfg deviceConfig) (wgDevice, string, error) {
		opened++
		d, backend, err := openDevice(ctx, name, cfg)
		if err == nil && edit != nil {
			d = edit(opened, d)
		}
		if d == nil {
			return nil, "", errors.Join(err, errors.New("the test keeps this device"))
		}
		return d, backend, err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { g.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		run.Wait()
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// end is a host's device, without the Link that would repair it.
type end struct {
	wgDevice
	t  *testing.T
	gw *Gateway
}

func openEnd(t *testing.T, gw *Gateway, key PrivateKey, p Peer) *end {
	t.Helper()
	d, err := openNetstack(t.Context(), deviceConfig{Addr: p.Addr, MTU: 1280, Key: key, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.close() })
	e := &end{d, t, gw}
	e.shake(nil, p.PresharedKey)
	return e
}

// shake sets the gateway's peer anew, with another key of the host when that is given.
func (e *end) shake(key *PrivateKey, psk PresharedKey) {
	e.t.Helper()
	cfg, shared, keepalive := wgtypes.Config{}, wgtypes.Key(psk), time.Second
	if key != nil {
		cfg = keyConfig(*key)
	}
	cfg.Peers = []wgtypes.PeerConfig{{PublicKey: wgtypes.Key(e.gw.PublicKey()), Remove: true}, {
		PublicKey: wgtypes.Key(e.gw.PublicKey()), PresharedKey: &shared, PersistentKeepaliveInterval: &keepalive,
		Endpoint: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: e.gw.Port()}, AllowedIPs: []net.IPNet{ipNet(single(e.gw.Addr()))},
	}}
	if err := e.apply(e.t.Context(), cfg); err != nil {
		e.t.Fatal(err)
	}
}

// greets dials until the listener answers.
func (e *end) greets(to net.Addr, between func()) {
	e.t.Helper()
	deadline, cancel := context.WithTimeout(e.t.Context(), 30*time.Second)
	defer cancel()
	for {
		ctx, cancel := context.WithTimeout(deadline, time.Second)
		c, err := e.dial(ctx, netip.MustParseAddrPort(to.String()))
		cancel()
		if err == nil {
			_ = c.SetReadDeadline(time.Now().Add(time.Second)) // its other end may go down with a device, without a word
			b, err := io.ReadAll(c)
			if _ = c.Close(); err == nil && string(b) == "hello" {
				return
			}
		}
		if deadline.Err() != nil {
			e.t.Fatalf("the gateway does not answer: %v", err)
		}
		between()
	}
}

// greet answers everyone who comes until l is closed, and says what ended it.
func greet(t *testing.T, l net.Listener) {
	var done sync.WaitGroup
	done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("accept: %v", err)
				}
				return
			}
			_, _ = c.Write([]byte("hello"))
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = l.Close(); done.Wait() })
}

// hungDevice stops answering once hung is closed, as long as the test runs.
type hungDevice struct {
	wgDevice
	calls      *caller
	hung, over chan struct{}
}

func (d *hungDevice) name() string { return "hung" }

func (d *hungDevice) read(ctx context.Context) (*wgtypes.Device, error) {
	return call(ctx, d.calls, "read", func() (*wgtypes.Device, error) {
		select {
		case <-d.hung:
			<-d.over
		default:
		}
		return d.wgDevice.read(ctx)
	})
}

func (d *hungDevice) close() error {
	select {
	case <-d.hung:
		<-d.over
	default:
	}
	return d.wgDevice.close()
}

// TestRestore: a device that hangs, ends, or becomes another one is replaced on the same port, with the peers it had,
// although the source is away; the listener goes on, and what does not help is said once.
func TestRestore(t *testing.T) {
	t.Parallel()
	key := clamp([32]byte{1: 1})
	host := Peer{Host: "mac", Name: "mac", PublicKey: key.Public(), PresharedKey: PresharedKey{1}, Addr: addr(ownRange, 256)}
	for _, c := range []struct {
		name string
		lose func(t *testing.T, d *hungDevice)
		says string
	}{
		{"hung", func(_ *testing.T, d *hungDevice) { close(d.hung) }, ErrDeviceHung.Error()},
		{"ended", func(t *testing.T, d *hungDevice) {
			if err := d.wgDevice.close(); err != nil {
				t.Error(err)
			}
		}, ErrDeviceGone.Error()},
		{"another key", func(t *testing.T, d *hungDevice) {
			if err := d.apply(t.Context(), keyConfig(clamp([32]byte{5}))); err != nil {
				t.Error(err)
			}
		}, "another key"},
		{"another port", func(t *testing.T, d *hungDevice) {
			if err := d.apply(t.Context(), wgtypes.Config{ListenPort: ptr(0)}); err != nil {
				t.Error(err)
			}
		}, "UDP port"},
	} {
		t.Run(c.name, func(t *testing.T) {
			over := make(chan struct{})
			var first *hungDevice
			core, logs := observer.New(zapcore.InfoLevel)
			s := newSource([]Peer{host})
			g := runGateway(t, s, 10*time.Millisecond, zap.New(core), func(n int, d wgDevice) wgDevice {
				switch n {
				case 1:
					first = &hungDevice{d, newCaller("hung", d.gone()), make(chan struct{}), over}
					if c.name == "hung" {
						first.calls.limit = time.Second
					}
					return first
				case 2, 3: // the first attempts fail
					_ = d.close()
					return nil
				}
				return d
			})
			t.Cleanup(func() { close(over) }) // before the gateway waits for it
			l, err := g.Listen(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			greet(t, l)
			e := openEnd(t, g, key, host)
			e.greets(l.Addr(), func() {})
			port, device := g.Port(), g.device()
			s.set(func(s *source) { s.err = errors.New("the database is away") })
			c.lose(t, first)
			e.shake(nil, host.PresharedKey)
			e.greets(l.Addr(), func() { e.shake(nil, host.PresharedKey) })
			for g.device() == device { // a device that only hung has answered the host all the while
				e.greets(l.Addr(), func() { e.shake(nil, host.PresharedKey) })
			}
			e.shake(nil, host.PresharedKey)
			e.greets(l.Addr(), func() { e.shake(nil, host.PresharedKey) })
			if g.Port() != port {
				t.Errorf("the port is %d, it was %d", g.Port(), port)
			}
			lost := logs.FilterMessageSnippet("device is lost").All()
			if len(lost) != 1 {
				t.Fatalf("%d times lost", len(lost))
			}
			wantText(t, errors.New(fmt.Sprint(lost[0].ContextMap()["error"])), c.says)
			if n := logs.FilterMessageSnippet("cannot be restored yet").Len(); n != 1 {
				t.Errorf("a trouble that lasts is said %d times", n)
			}
		})
	}
}

// TestTickSeesChanges: a change of which no notification came is seen all the same.
func TestTickSeesChanges(t *testing.T) {
	s := newSource(nil)
	g := runGateway(t, s, 50*time.Millisecond, testLog(t), nil)
	p := Peer{Host: "mac", Name: "mac", PublicKey: clamp([32]byte{1: 1}).Public(), PresharedKey: PresharedKey{1}, Addr: addr(ownRange, 256)}
	s.set(func(s *source) { s.peers = []Peer{p} })
	known := func() bool {
		ps, err := g.Status(t.Context())
		return err == nil && len(ps) == 1 && ps[0].Host == "mac"
	}
	eventually(t, "the peer appears", known)
	s.set(func(s *source) { s.peers = nil })
	eventually(t, "the peer disappears", func() bool { return !known() })
}

// TestNextKey: a host's next key gets its address with its first handshake, on the device and then at the source, and
// the connection gap is short.
func TestNextKey(t *testing.T) {
	old, next := clamp([32]byte{1: 1}), clamp([32]byte{1: 2})
	own := Peer{Host: "mac", Name: "mac", PublicKey: old.Public(), PresharedKey: PresharedKey{1}, Addr: addr(ownRange, 256)}
	follows := Peer{Host: "mac", Name: "mac (next)", PublicKey: next.Public(), PresharedKey: PresharedKey{2}, Addr: own.Addr, Next: true}
	s := newSource([]Peer{own})
	g := runGateway(t, s, time.Hour, testLog(t), nil)
	l, err := g.Listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	greet(t, l)
	e := openEnd(t, g, old, own)
	e.greets(l.Addr(), func() {})

	s.set(func(s *source) { s.peers = append(s.peers, follows) })
	if err := g.ReconcileHost(t.Context(), "mac"); err != nil {
		t.Fatal(err)
	}
	wantPeers(t, g, []Peer{own, follows})
	if st, err := g.Status(t.Context()); err != nil || len(st) != 1 || st[0].Host != "mac" || st[0].Handshake.IsZero() {
		t.Errorf("status %+v %v", st, err)
	}
	e.greets(l.Addr(), func() {}) // the old key still holds
	// The source cannot be told at first; the address moves nevertheless, and stays.
	s.set(func(s *source) { s.err = errors.New("the database is away") })
	began := time.Now()
	e.shake(&next, follows.PresharedKey)
	e.greets(l.Addr(), func() {})
	t.Logf("from the switch of the key to the next answer: %s", time.Since(began))
	moved, bare := follows, own
	moved.Next, bare.Next = false, true
	wantPeers(t, g, []Peer{moved, bare})
	if err := g.Reconcile(t.Context()); err == nil {
		t.Error("the source is away, and nobody says so")
	}
	s.set(func(s *source) { s.err = nil })
	if err := g.Reconcile(t.Context()); err != nil { // what the source says now is older than what the device knows
		t.Error(err)
	}
	if k := <-s.promoted; k != next.Public() {
		t.Errorf("promoted %s", k)
	}
	if err := g.ReconcileHost(t.Context(), "mac"); err != nil {
		t.Fatal(err)
	}
	wantPeers(t, g, []Peer{moved})
	e.greets(l.Addr(), func() {})
}

// TestNudge: nudges that come while work is done are kept, what comes twice is done once, and many become all.
func TestNudge(t *testing.T) {
	g := &Gateway{}
	g.nudges.wake = make(chan struct{}, 1)
	g.Nudge("a")
	g.Nudge("a")
	g.Nudge("b")
	<-g.nudges.wake
	if w := g.nudges.take(); w.all || len(w.hosts) != 2 {
		t.Errorf("%+v", w)
	}
	if w := g.nudges.take(); w.all || w.verify || len(w.hosts) != 0 {
		t.Errorf("taken twice: %+v", w)
	}
	for i := range manyHosts + 1 {
		g.Nudge(fmt.Sprint(i))
	}
	if w := g.nudges.take(); !w.all || len(w.hosts) != 0 {
		t.Errorf("%+v", w)
	}
	g.Nudge("")
	if w := g.nudges.take(); !w.all {
		t.Errorf("%+v", w)
	}
}

func TestGatewayConfig(t *testing.T) {
	for text, edit := range map[string]func(*GatewayConfig){
		"positive duration": func(c *GatewayConfig) { c.Every = -1 },
		"fleet port":        func(c *GatewayConfig) { c.FleetPort = 1 << 16 },
		"source of peers":   func(c *GatewayConfig) { c.Peers = nil },
		"UDP port":          func(c *GatewayConfig) { c.ListenPort = -1 },
		"number":            func(c *GatewayConfig) { c.Number = 256 },
	} {
		cfg := GatewayConfig{KeyFile: t.TempDir() + "/key", Number: 1, Backend: BackendNetstack, Peers: newSource(nil)}
		edit(&cfg)
		_, err := OpenGateway(t.Context(), cfg)
		wantText(t, err, text)
	}
}

// TestNetstackIsolates: a netstack gateway has its listeners and nothing else: other ports are closed, and what is sent
// to other addresses, of the gateway's machine or behind it, gets no answer.
func TestNetstackIsolates(t *testing.T) {
	key := clamp([32]byte{1: 1})
	host := Peer{Host: "mac", Name: "mac", PublicKey: key.Public(), PresharedKey: PresharedKey{1}, Addr: addr(ownRange, 256)}
	other := Peer{Host: "two", Name: "two", PublicKey: clamp([32]byte{1: 3}).Public(), PresharedKey: PresharedKey{1}, Addr: addr(ownRange, 257)}
	g := runGateway(t, newSource([]Peer{host, other}), time.Hour, testLog(t), nil)
	l, err := g.Listen(t.Context(), 7443)
	if err != nil {
		t.Fatal(err)
	}
	greet(t, l)
	here, err := net.Listen("tcp4", "127.0.0.1:0") // a service of this machine
	if err != nil {
		t.Fatal(err)
	}
	greet(t, here)
	e := openEnd(t, g, key, host)
	everything, shared := wgtypes.PeerConfig{PublicKey: wgtypes.Key(g.PublicKey()), UpdateOnly: true}, ipNet(netip.MustParsePrefix("0.0.0.0/0"))
	everything.AllowedIPs = []net.IPNet{shared}
	if err := e.apply(t.Context(), wgtypes.Config{Peers: []wgtypes.PeerConfig{everything}}); err != nil {
		t.Fatal(err)
	}
	e.greets(l.Addr(), func() {})
	port := here.Addr().(*net.TCPAddr).AddrPort().Port()
	for what, to := range map[string]netip.AddrPort{
		"another port":               netip.AddrPortFrom(g.Addr(), port),
		"another gateway":            netip.AddrPortFrom(addr(ownRange, 2), 7443),
		"another host":               netip.AddrPortFrom(other.Addr, 7443),
		"the machine's own loopback": netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port),
		"a network behind":           netip.MustParseAddrPort("192.0.2.1:80"),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if c, err := e.dial(ctx, to); err == nil {
			_ = c.Close()
			t.Errorf("a host reaches %s, %s", what, to)
		}
		cancel()
	}
	e.greets(l.Addr(), func() {}) // it was not the tunnel that did not answer
}

// TestLostDeviceIsAskedOnce: with many changes to send, each call to a device that hangs would take its whole limit.
func TestLostDeviceIsAskedOnce(t *testing.T) {
	d := &refusingDevice{err: ErrDeviceHung}
	g := &Gateway{}
	g.cur.dev = d
	for _, c := range []struct {
		err   error
		calls int
	}{{ErrDeviceHung, 1}, {errors.New("a bad peer"), 3}} {
		d.err, d.calls = c.err, 0
		if err := g.apply(t.Context(), make([]wgtypes.Config, 3)); !errors.Is(err, c.err) || d.calls != c.calls {
			t.Errorf("%v: %d calls, %v", c.err, d.calls, err)
		}
	}
}

type refusingDevice struct {
	wgDevice
	err   error
	calls int
}

func (d *refusingDevice) apply(context.Context, wgtypes.Config) error {
	d.calls++
	return d.err
}
