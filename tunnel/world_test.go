package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"go.uber.org/zap"
)

// registry is the smallest real Enroller and PeerSource: what the orchestrator's database does, in memory.
type registry struct {
	mu      sync.Mutex
	hosts   []*registered
	expired bool
	changed func()
}

type registered struct {
	name    string
	number  int
	joinKey Key
	psk     PresharedKey
	hostKey Key
}

// invite makes a token and keeps what the orchestrator may keep of it.
func (r *registry) invite(t testing.TB, n int, name string, gs ...GatewayInfo) string {
	t.Helper()
	tok, err := NewToken(n, gs)
	if err != nil {
		t.Fatal(err)
	}
	joinKey, psk, err := tok.Credentials()
	if err != nil {
		t.Fatal(err)
	}
	s, err := tok.Encode()
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hosts = append(r.hosts, &registered{name: name, number: n, joinKey: joinKey, psk: psk})
	return s
}

func (r *registry) Peers(context.Context) ([]Peer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Peer
	for _, h := range r.hosts {
		join, err1 := JoinAddr(h.number)
		own, err2 := HostAddr(h.number)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		out = append(out, Peer{Name: h.name + " (join)", PublicKey: h.joinKey, PresharedKey: h.psk, Addr: join})
		if h.hostKey != (Key{}) {
			out = append(out, Peer{Name: h.name, PublicKey: h.hostKey, PresharedKey: h.psk, Addr: own})
		}
	}
	return out, nil
}

func (r *registry) Redeem(_ context.Context, joinAddr netip.Addr, key Key) (wire.Joined, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, _ := Number(joinAddr)
	i := slices.IndexFunc(r.hosts, func(h *registered) bool { return h.number == n })
	if i < 0 {
		return wire.Joined{}, ErrTokenUnknown
	}
	h := r.hosts[i]
	switch {
	case h.hostKey != (Key{}) && h.hostKey != key:
		return wire.Joined{}, ErrTokenUsed
	case r.expired:
		return wire.Joined{}, ErrTokenExpired
	}
	h.hostKey = key
	r.changed()
	own, err := HostAddr(n)
	return wire.Joined{Host: h.name, Address: own.String()}, err
}

func (r *registry) expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expired = true
}

// world is a gateway with its fleet listener, which answers every path with the caller's address.
type world struct {
	*Gateway
	info GatewayInfo
	stop func()
}

type worldConfig struct {
	number, udp, fleet int
	dir                string
	backend, iface     string
	endpoint           string // host part, default 127.0.0.1
}

func startWorld(t testing.TB, r *registry, c worldConfig) *world {
	t.Helper()
	g, err := OpenGateway(t.Context(), GatewayConfig{
		KeyFile: filepath.Join(c.dir, "gateway.key"), Number: c.number, ListenPort: c.udp,
		Backend: orDefault(c.backend, BackendNetstack), Interface: c.iface, Peers: r, Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := g.Listen(t.Context(), c.fleet)
	if err != nil {
		t.Fatal(errors.Join(err, g.Close()))
	}
	r.mu.Lock()
	r.changed = g.Nudge
	r.mu.Unlock()
	whoami := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) })
	srv := &http.Server{Handler: Guard(JoinHandler(r, nil), whoami)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	wg.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Errorf("gateway ended: %v", err)
		}
	})
	w := &world{Gateway: g, info: GatewayInfo{
		Endpoint:  net.JoinHostPort(orDefault(c.endpoint, "127.0.0.1"), strconv.Itoa(g.Port())),
		PublicKey: g.PublicKey(), Addr: g.Addr(), FleetPort: uint16(l.Addr().(*net.TCPAddr).Port),
	}}
	w.stop = sync.OnceFunc(func() {
		cancel()
		_ = srv.Close()
		wg.Wait()
		if err := g.Close(); err != nil {
			t.Errorf("close gateway: %v", err)
		}
	})
	t.Cleanup(w.stop)
	return w
}

func openTestLink(t testing.TB, cfg LinkConfig) *Link {
	t.Helper()
	l, err := tryLink(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func tryLink(t testing.TB, cfg LinkConfig) (*Link, error) {
	t.Helper()
	cfg.Backend = orDefault(cfg.Backend, BackendNetstack)
	cfg.Log = testLog(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	l, err := OpenLink(ctx, cfg)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close link: %v", err)
		}
	})
	return l, nil
}

// whoami asks the fleet listener of g over the link.
func whoami(ctx context.Context, l *Link, g GatewayInfo) (string, error) {
	return get(ctx, l, g, wire.PathControl, http.StatusOK)
}

func get(ctx context.Context, l *Link, g GatewayInfo, path string, status int) (string, error) {
	tr := &http.Transport{DialContext: l.DialContext, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.Fleet()+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != status {
		err = errors.New(resp.Status + ": " + string(b))
	}
	return string(b), err
}

func checkWhoami(t testing.TB, l *Link, g GatewayInfo) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	from, err := whoami(ctx, l, g)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := netip.ParseAddrPort(from); err != nil || a.Addr() != l.Addr() {
		t.Fatalf("the gateway saw %q, not %s", from, l.Addr())
	}
}

func testLog(t testing.TB) *zap.Logger {
	if !testing.Verbose() {
		return zap.NewNop()
	}
	log, err := zap.NewDevelopment()
	if err != nil {
		t.Fatal(err)
	}
	return log.Named(t.Name())
}
