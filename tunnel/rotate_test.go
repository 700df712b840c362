package tunnel

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// board is an Announcer and Beats over a registry: what the orchestrators' database does.
type board struct {
	*registry

	mu     sync.Mutex
	rows   map[netip.Addr]*boardRow
	order  map[netip.Addr]time.Duration // gateways that are to rotate, and their lead
	rotate bool                         // hosts are to
	lost   error                        // what Announce fails with
}

type boardRow struct {
	info GatewayInfo
	at   time.Time
}

func newBoard() *board {
	return &board{registry: &registry{}, rows: map[netip.Addr]*boardRow{}, order: map[netip.Addr]time.Duration{}}
}

func (b *board) Announce(_ context.Context, a Announcement) (Orders, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lost != nil {
		return Orders{}, b.lost
	}
	r := b.rows[a.Gateway.Addr]
	if r == nil {
		r = &boardRow{}
		b.rows[a.Gateway.Addr] = r
	}
	lead, due := b.order[a.Gateway.Addr]
	if next := a.Gateway.NextPublicKey; next != (Key{}) && r.info.NextPublicKey != next {
		r.at = time.Now().Add(lead)
		delete(b.order, a.Gateway.Addr)
	}
	r.info = a.Gateway
	o := Orders{Rotate: due && r.info.NextPublicKey == Key{}}
	if r.info.NextPublicKey != (Key{}) {
		o.NextIn = max(time.Until(r.at), 0)
	}
	return o, nil
}

func (b *board) Beat(context.Context, netip.Addr) (wire.Beat, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := wire.Beat{Orchestrator: "test", Epoch: "1", Rotate: b.rotate}
	for _, r := range b.rows {
		g := wire.Gateway{Endpoint: r.info.Endpoint, PublicKey: r.info.PublicKey.String(), Address: r.info.Addr.String(), FleetPort: r.info.FleetPort}
		if r.info.NextPublicKey != (Key{}) {
			g.NextPublicKey, g.NextIn = r.info.NextPublicKey.String(), max(time.Until(r.at), 1)
		}
		out.Gateways = append(out.Gateways, g)
	}
	return out, nil
}

func (b *board) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

// keep announces w as an orchestrator does; the returned function asks for it now.
func (b *board) keep(t *testing.T, w *world) (now func()) {
	t.Helper()
	wake := make(chan struct{}, 1)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		w.Keep(ctx, KeeperConfig{Announcer: b, Endpoint: w.info.Endpoint, FleetPort: w.info.FleetPort, RotateAge: time.Hour, Wake: wake})
	})
	t.Cleanup(func() { stop(); wg.Wait() })
	return func() { wake <- struct{}{} }
}

// eventually waits until what it watches is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !so() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// pingPong goes to and fro over one connection until it is stopped; longest is the longest that an answer took.
type pingPong struct {
	longest atomic.Int64
	count   atomic.Int64
	stop    func() error
}

func startPingPong(t *testing.T, l *Link, w *world) *pingPong {
	t.Helper()
	ln, err := w.Listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, c)
	})
	c, err := l.DialContext(t.Context(), "tcp", netip.AddrPortFrom(w.Addr(), uint16(ln.Addr().(*net.TCPAddr).Port)).String())
	if err != nil {
		t.Fatal(err)
	}
	p := &pingPong{}
	var stopping atomic.Bool
	var broke error
	wg.Go(func() {
		defer c.Close()
		in := bufio.NewReader(c)
		for !stopping.Load() {
			began := time.Now()
			if err := c.SetDeadline(began.Add(20 * time.Second)); err != nil {
				broke = err
				return
			}
			if _, err := io.WriteString(c, "a heartbeat of about this size, sixty-four bytes with its end..\n"); err != nil {
				broke = err
				return
			}
			if _, err := in.ReadString('\n'); err != nil {
				broke = err
				return
			}
			p.longest.Store(max(p.longest.Load(), int64(time.Since(began))))
			p.count.Add(1)
		}
	})
	p.stop = sync.OnceValue(func() error {
		stopping.Store(true)
		_ = ln.Close()
		wg.Wait()
		return broke
	})
	t.Cleanup(func() { _ = p.stop() })
	return p
}

// measured forgets the longest answer so far, waits for some more, and returns the longest since.
func (p *pingPong) measured(t *testing.T, change func()) time.Duration {
	t.Helper()
	p.longest.Store(0)
	change()
	n := p.count.Load()
	eventually(t, "the connection goes on", func() bool { return p.count.Load() > n+200 })
	return time.Duration(p.longest.Load())
}

// TestRotation replaces every key while a connection is in use to each gateway: none breaks.
func TestRotation(t *testing.T) {
	b := newBoard()
	worlds := []*world{
		startWorld(t, b.registry, worldConfig{number: 1, dir: t.TempDir(), beats: b}),
		startWorld(t, b.registry, worldConfig{number: 2, dir: t.TempDir(), beats: b}),
	}
	b.onChange(func() { worlds[0].Nudge(""); worlds[1].Nudge("") })
	token := b.mustInvite(t, 256, "mac", worlds[0].info, worlds[1].info)
	var wakes []func()
	for _, w := range worlds {
		w.settle(t)
		wakes = append(wakes, b.keep(t, w))
	}
	eventually(t, "both are announced", func() bool { beat, _ := b.Beat(t.Context(), netip.Addr{}); return len(beat.Gateways) == 2 })
	dir := t.TempDir()
	l := openTestLink(t, LinkConfig{StateDir: dir, Token: token})
	pings := []*pingPong{startPingPong(t, l, worlds[0]), startPingPong(t, l, worlds[1])}
	pulse := func() {
		for _, g := range l.all() {
			g.nudge()
		}
	}

	before, err := loadState(dir)
	if err != nil {
		t.Fatal(err)
	}
	gap := pings[1].measured(t, func() {
		b.set(func() { b.rotate = true })
		pings[0].longest.Store(0)
		pulse()
		eventually(t, "the host has another key", func() bool { return l.held().key != before.PrivateKey })
		b.set(func() { b.rotate = false })
		eventually(t, "the registry knows it as the host's", func() bool { return b.keyOf("mac") == l.held().key.Public() })
	})
	after, err := loadState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if after.PrivateKey == before.PrivateKey || after.PresharedKey == before.PresharedKey || after.PrivateKey != l.held().key || after.Next != nil {
		t.Errorf("stored: another key %t, another preshared key %t, a next key %t", after.PrivateKey != before.PrivateKey,
			after.PresharedKey != before.PresharedKey, after.Next != nil)
	}
	t.Logf("MEASURED rotation of a host's key and preshared key: longest answer on an open connection %s and %s",
		time.Duration(pings[0].longest.Load()).Round(time.Millisecond), gap.Round(time.Millisecond))

	old := worlds[0].PublicKey()
	gap = pings[0].measured(t, func() {
		b.set(func() { b.order[worlds[0].Addr()] = time.Second })
		wakes[0]()
		eventually(t, "the next key is announced", func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.rows[worlds[0].Addr()].info.NextPublicKey != Key{}
		})
		pulse()
		eventually(t, "the host has stored the next key", func() bool {
			s, err := loadState(dir)
			return err == nil && slices.ContainsFunc(s.Gateways, func(g GatewayInfo) bool { return g.NextPublicKey != Key{} })
		})
		eventually(t, "the gateway has another key", func() bool { return worlds[0].PublicKey() != old })
		eventually(t, "the host uses it", func() bool { return l.gatewayAt(worlds[0].Addr()).PublicKey == worlds[0].PublicKey() })
	})
	t.Logf("MEASURED rotation of a gateway's key: longest answer on an open connection %s", gap.Round(time.Millisecond))
	if _, err := os.Stat(worlds[0].nextFile()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the next key is still there: %v", err)
	}
	if k, err := loadOrCreateKey(worlds[0].cfg.KeyFile); err != nil || k.Public() != worlds[0].PublicKey() {
		t.Errorf("the key that is stored is another: %v", err)
	}
	pulse()
	eventually(t, "the host has forgotten the old key", func() bool {
		s, err := loadState(dir)
		return err == nil && !slices.ContainsFunc(s.Gateways, func(g GatewayInfo) bool { return g.PublicKey == old || g.NextPublicKey != Key{} })
	})
	for i, p := range pings {
		if err := p.stop(); err != nil {
			t.Errorf("connection %d broke: %v", i+1, err)
		}
	}
	if n := l.Repairs(); n != (wire.Repairs{}) {
		t.Logf("repairs meanwhile: %+v", n)
	}
}

func (r *registry) keyOf(host string) Key {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.Hosts {
		if h.Name == host {
			return h.HostKey
		}
	}
	return Key{}
}

func (l *Link) gatewayAt(a netip.Addr) GatewayInfo {
	for _, g := range l.Gateways() {
		if g.Addr == a {
			return g
		}
	}
	return GatewayInfo{}
}

// TestAwayDuringTurn: a host that slept while the gateway replaced its key finds it with the next key it had learned.
func TestAwayDuringTurn(t *testing.T) {
	t.Parallel()
	b := newBoard()
	dir, gw := t.TempDir(), t.TempDir()
	w := startWorld(t, b.registry, worldConfig{number: 1, dir: gw, beats: b})
	token := b.mustInvite(t, 256, "mac", w.info)
	w.settle(t)
	l := openTestLink(t, LinkConfig{StateDir: dir, Token: token})
	checkWhoami(t, l, w.info)
	c := KeeperConfig{Announcer: b, Endpoint: w.info.Endpoint, FleetPort: w.info.FleetPort, RotateAge: time.Hour}
	b.set(func() { b.order[w.Addr()] = time.Hour })
	if _, err := w.Announce(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	l.all()[0].nudge()
	eventually(t, "the host has stored the next key", func() bool {
		s, err := loadState(dir)
		return err == nil && s.Gateways[0].NextPublicKey != Key{}
	})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	old := w.PublicKey()
	b.set(func() { b.rows[w.Addr()].at = time.Now() })
	if _, err := w.Announce(t.Context(), c); err != nil || w.PublicKey() == old {
		t.Fatalf("the key is the same: %v", err)
	}
	again := openTestLink(t, LinkConfig{StateDir: dir})
	checkWhoami(t, again, w.info)
	if got := again.gatewayAt(w.Addr()).PublicKey; got != w.PublicKey() {
		t.Errorf("it holds key %s", got)
	}
}

// TestGatewayRotationAfterCrash: a gateway that died after any step goes on with the next.
func TestGatewayRotationAfterCrash(t *testing.T) {
	b := newBoard()
	dir := t.TempDir()
	file := filepath.Join(dir, "gateway.key")
	open := func() (*Gateway, KeeperConfig) {
		g, err := OpenGateway(t.Context(), GatewayConfig{KeyFile: file, Number: 1, Backend: BackendNetstack, Peers: b, Log: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = g.Close() })
		return g, KeeperConfig{Announcer: b, Endpoint: "127.0.0.1:1", FleetPort: 1, RotateAge: time.Hour}
	}
	crash := func(g *Gateway) {
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
	}
	g, c := open()
	first := g.PublicKey()
	b.set(func() { b.order[g.Addr()] = time.Hour })
	// The next key is made, and cannot be announced.
	if o, err := b.Announce(t.Context(), Announcement{Gateway: g.Info(c.Endpoint, 1)}); err != nil || !o.Rotate {
		t.Fatal(o, err)
	}
	next, err := loadOrCreateKey(g.nextFile())
	if err != nil {
		t.Fatal(err)
	}
	crash(g)
	g, c = open()
	if in, err := g.Announce(t.Context(), c); err != nil || in <= 0 || g.PublicKey() != first {
		t.Fatalf("announced with %v, %v", in, err)
	}
	if b.rows[g.Addr()].info.NextPublicKey != next.Public() {
		t.Error("another next key was made")
	}
	// The database is away when the time comes: nothing is done without it.
	b.set(func() { b.rows[g.Addr()].at, b.lost = time.Now(), errors.New("away") })
	if _, err := g.Announce(t.Context(), c); err == nil || g.PublicKey() != first {
		t.Errorf("without the registry: %v", err)
	}
	b.set(func() { b.lost = nil })
	// The file is in place, and the device never took it.
	if err := renameSecret(g.nextFile(), file); err != nil {
		t.Fatal(err)
	}
	crash(g)
	g, c = open()
	if _, err := g.Announce(t.Context(), c); err != nil || g.PublicKey() != next.Public() {
		t.Errorf("after the restart: %v", err)
	}
	if got := b.rows[g.Addr()].info; got.PublicKey != next.Public() || got.NextPublicKey != (Key{}) {
		t.Errorf("announced as %+v", got)
	}
}

// TestGatewayKeepsItsPromise: hosts turn to the next key at the time they were told, so the gateway does as well, whether
// its registry can be asked just then or not.
func TestGatewayKeepsItsPromise(t *testing.T) {
	b := newBoard()
	now := time.Now()
	g, err := OpenGateway(t.Context(), GatewayConfig{KeyFile: filepath.Join(t.TempDir(), "gateway.key"), Number: 1, Backend: BackendNetstack,
		Peers: b, Now: func() time.Time { return now }, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	c := KeeperConfig{Announcer: b, Endpoint: "127.0.0.1:1", FleetPort: 1, RotateAge: time.Hour}
	b.set(func() { b.order[g.Addr()] = time.Hour })
	first := g.PublicKey()
	if in, err := g.Announce(t.Context(), c); err != nil || in != 10*time.Second {
		t.Fatal(in, err)
	}
	next := b.rows[g.Addr()].info.NextPublicKey
	b.set(func() { b.lost = errors.New("away") })
	now = now.Add(time.Hour - 3*time.Second)
	if in, err := g.Announce(t.Context(), c); err == nil || in <= 0 || in > 3*time.Second || g.PublicKey() != first {
		t.Errorf("before the time: again in %v, %v, key %s", in, err, g.PublicKey())
	}
	now = now.Add(3 * time.Second)
	if _, err := g.Announce(t.Context(), c); err == nil || g.PublicKey() != next {
		t.Errorf("at the time it has key %s, hosts %s: %v", g.PublicKey(), next, err)
	}
	b.set(func() { b.lost = nil })
	if _, err := g.Announce(t.Context(), c); err != nil {
		t.Error(err)
	}
	if got := b.rows[g.Addr()].info; got.PublicKey != next || got.NextPublicKey != (Key{}) {
		t.Errorf("announced as %+v", got)
	}
}

// TestHostRotationAfterCrash stops a host after every step of a rotation; it comes back and ends with a new key.
func TestHostRotationAfterCrash(t *testing.T) {
	for _, step := range []string{"next key stored", "offered", "stored as the key"} {
		t.Run(step, func(t *testing.T) {
			b := newBoard()
			w := startWorld(t, b.registry, worldConfig{number: 1, dir: t.TempDir(), beats: b})
			token := b.mustInvite(t, 256, "mac", w.info)
			w.settle(t)
			dir := t.TempDir()
			l := openTestLink(t, LinkConfig{StateDir: dir, Token: token})
			checkWhoami(t, l, w.info)
			old := l.held().key
			next, err := l.nextCandidate()
			if err != nil {
				t.Fatal(err)
			}
			if step != "next key stored" {
				offer, err := next.offer(old.Public())
				if err != nil {
					t.Fatal(err)
				}
				answer, err := l.offerAll(t.Context(), offer)
				if err != nil {
					t.Fatal(err)
				}
				if step == "stored as the key" {
					psk, err := next.accept(l.held().psk, answer.Ciphertext, answer.Confirmation)
					if err != nil {
						t.Fatal(err)
					}
					if err := l.update(func(s *state) { s.PrivateKey, s.PresharedKey, s.Next = next.PrivateKey, psk, nil }); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			again := openTestLink(t, LinkConfig{StateDir: dir})
			checkWhoami(t, again, w.info)
			eventually(t, "the host has its next key", func() bool { return again.held().key == next.PrivateKey })
			eventually(t, "the registry has it", func() bool { return b.keyOf("mac") == next.PrivateKey.Public() })
			checkWhoami(t, again, w.info)
			if s, err := loadState(dir); err != nil || s.Next != nil || s.PrivateKey != next.PrivateKey {
				t.Errorf("%v, %v", s, err)
			}
		})
	}
}

// TestStaleOfferIsNotTaken: an answer that does not fit costs the candidate, not the key that works.
func TestStaleOfferIsNotTaken(t *testing.T) {
	b := newBoard()
	w := startWorld(t, b.registry, worldConfig{number: 1, dir: t.TempDir(), beats: b})
	token := b.mustInvite(t, 256, "mac", w.info)
	w.settle(t)
	dir := t.TempDir()
	l := openTestLink(t, LinkConfig{StateDir: dir, Token: token})
	l.rekeying.Store(true) // the keeper's first beat must not do it as well
	old := l.held()
	b.spoil(true)
	if err := l.rekey(t.Context()); !errors.Is(err, ErrConfirmation) {
		t.Fatalf("a spoiled answer: %v", err)
	}
	if s, err := loadState(dir); err != nil || s.Next != nil || s.PrivateKey != old.key || l.held().key != old.key {
		t.Errorf("after a spoiled answer: %v", err)
	}
	checkWhoami(t, l, w.info)
	b.spoil(false)
	if err := l.rekey(t.Context()); err != nil || l.held().key == old.key {
		t.Errorf("the next try: %v", err)
	}
	checkWhoami(t, l, w.info)
	if strings.Contains(ErrConfirmation.Error(), reveal(old.psk)) {
		t.Error("the error tells the key")
	}
}

func TestAhead(t *testing.T) {
	a, n := Key{1}, Key{2}
	for name, c := range map[string]struct {
		have, said, want GatewayInfo
		in               time.Duration
	}{
		"before":                 {GatewayInfo{PublicKey: a}, GatewayInfo{PublicKey: a, NextPublicKey: n}, GatewayInfo{PublicKey: a, NextPublicKey: n}, time.Hour},
		"turned a moment ago":    {GatewayInfo{PublicKey: n, NextPublicKey: a}, GatewayInfo{PublicKey: a, NextPublicKey: n}, GatewayInfo{PublicKey: n, NextPublicKey: a}, 1},
		"turned for no reason":   {GatewayInfo{PublicKey: n, NextPublicKey: a}, GatewayInfo{PublicKey: a, NextPublicKey: n}, GatewayInfo{PublicKey: a, NextPublicKey: n}, time.Hour},
		"done":                   {GatewayInfo{PublicKey: n, NextPublicKey: a}, GatewayInfo{PublicKey: n}, GatewayInfo{PublicKey: n}, 0},
		"an unknown key follows": {GatewayInfo{PublicKey: a}, GatewayInfo{PublicKey: n}, GatewayInfo{PublicKey: n}, 0},
	} {
		if got := ahead(c.have, c.said, c.in); got != c.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
