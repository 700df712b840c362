package tunnel

import (
	"bytes"
	"context"
	"encoding/json"
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

// registry is the smallest real Enroller and PeerSource: what the orchestrator's database does, in memory and, when
// file is set, in a file that outlives a killed process.
type registry struct {
	mu      sync.Mutex
	Hosts   []*registered
	Expired bool
	file    string
	changed func()
	spoiled bool      // the answers of Rekey are damaged
	beat    wire.Beat // what pulses are answered with
}

type registered struct {
	Name             string
	Number           int
	JoinKey          Key
	HostKey          Key `json:",omitzero"`
	JoinPSK          []byte
	HostPSK          []byte
	Offer, NextOffer [32]byte
	Ciphertext       []byte
	NextKey          Key `json:",omitzero"`
	NextPSK, NextCT  []byte
}

// invite makes a token and keeps what the orchestrator may keep of it.
func (r *registry) invite(n int, name string, gs ...GatewayInfo) (string, error) {
	tok, err := NewToken(n, gs)
	if err != nil {
		return "", err
	}
	joinKey, psk, err := tok.Credentials()
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Hosts = append(r.Hosts, &registered{Name: name, Number: n, JoinKey: joinKey, JoinPSK: psk[:]})
	if err := r.save(); err != nil {
		return "", err
	}
	return tok.Encode()
}

func (r *registry) mustInvite(t testing.TB, n int, name string, gs ...GatewayInfo) string {
	t.Helper()
	s, err := r.invite(n, name, gs...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (r *registry) save() error {
	if r.file == "" {
		return nil
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return writeSecret(r.file, b, true)
}

func (r *registry) Peers(context.Context) ([]Peer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Peer
	for _, h := range r.Hosts {
		ps, err := h.peers()
		if err != nil {
			return nil, err
		}
		out = append(out, ps...)
	}
	return out, nil
}

func (h *registered) peers() ([]Peer, error) {
	join, err1 := JoinAddr(h.Number)
	own, err2 := HostAddr(h.Number)
	out := []Peer{{Host: h.Name, Name: h.Name + " (join)", PublicKey: h.JoinKey, PresharedKey: PresharedKey(h.JoinPSK), Addr: join}}
	if h.HostKey != (Key{}) {
		out = append(out, Peer{Host: h.Name, Name: h.Name, PublicKey: h.HostKey, PresharedKey: PresharedKey(h.HostPSK), Addr: own})
	}
	if h.NextKey != (Key{}) {
		out = append(out, Peer{Host: h.Name, Name: h.Name + " (next)", PublicKey: h.NextKey, PresharedKey: PresharedKey(h.NextPSK), Addr: own, Next: true})
	}
	return out, errors.Join(err1, err2)
}

func (r *registry) PeersOf(_ context.Context, host string) ([]Peer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.Hosts {
		if h.Name == host {
			return h.peers()
		}
	}
	return nil, nil
}

func (r *registry) Promote(_ context.Context, next Key) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.Hosts {
		if h.NextKey == next && next != (Key{}) {
			h.promote()
			return r.tell()
		}
	}
	return nil
}

func (h *registered) promote() {
	h.HostKey, h.HostPSK, h.Offer, h.Ciphertext = h.NextKey, h.NextPSK, h.NextOffer, h.NextCT
	h.NextKey, h.NextPSK, h.NextOffer, h.NextCT = Key{}, nil, [32]byte{}, nil
}

// tell stores what has changed and says so.
func (r *registry) tell() error {
	if r.changed != nil {
		r.changed()
	}
	return r.save()
}

func (r *registry) Redeem(_ context.Context, joinAddr netip.Addr, o Offer) (wire.Joined, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, _ := Number(joinAddr)
	i := slices.IndexFunc(r.Hosts, func(h *registered) bool { return h.Number == n })
	if i < 0 {
		return wire.Joined{}, ErrTokenUnknown
	}
	h := r.Hosts[i]
	own, err := HostAddr(n)
	switch {
	case err != nil:
		return wire.Joined{}, err
	case h.HostKey != (Key{}) && h.Offer != o.Digest():
		return wire.Joined{}, ErrTokenUsed
	case r.Expired:
		return wire.Joined{}, ErrTokenExpired
	case h.HostKey == (Key{}):
		a, err := o.Answer(PresharedKey(h.JoinPSK))
		if err != nil {
			return wire.Joined{}, err
		}
		h.HostKey, h.HostPSK, h.Offer, h.Ciphertext = o.PublicKey, a.PresharedKey[:], o.Digest(), a.Ciphertext
	}
	if err := r.tell(); err != nil {
		return wire.Joined{}, err
	}
	return Answer{PresharedKey(h.HostPSK), h.Ciphertext}.Joined(h.Name, own.String())
}

func (r *registry) Rekey(_ context.Context, hostAddr netip.Addr, o Offer) (wire.Rekeyed, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, _ := Number(hostAddr)
	i := slices.IndexFunc(r.Hosts, func(h *registered) bool { return h.Number == n })
	if i < 0 {
		return wire.Rekeyed{}, ErrRekeyStale
	}
	h := r.Hosts[i]
	if h.Offer == o.Digest() {
		return Answer{PresharedKey(h.HostPSK), h.Ciphertext}.Rekeyed()
	}
	if h.NextKey != (Key{}) && h.NextKey == o.Replaces {
		h.promote()
	}
	if h.HostKey != o.Replaces {
		return wire.Rekeyed{}, ErrRekeyStale
	}
	if h.NextOffer != o.Digest() {
		a, err := o.Answer(PresharedKey(h.HostPSK))
		if err != nil {
			return wire.Rekeyed{}, err
		}
		h.NextKey, h.NextPSK, h.NextOffer, h.NextCT = o.PublicKey, a.PresharedKey[:], o.Digest(), a.Ciphertext
		if err := r.tell(); err != nil {
			return wire.Rekeyed{}, err
		}
	}
	a, err := Answer{PresharedKey(h.NextPSK), h.NextCT}.Rekeyed()
	if r.spoiled {
		a.Ciphertext = bytes.Clone(a.Ciphertext)
		a.Ciphertext[3] ^= 1
	}
	return a, err
}

func (r *registry) spoil(yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spoiled = yes
}

func (r *registry) Beat(context.Context, netip.Addr) (wire.Beat, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.beat
	b.Orchestrator, b.Epoch = "test", orDefault(b.Epoch, "1")
	return b, nil
}

// says changes what pulses are answered with.
func (r *registry) says(f func(*wire.Beat)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.beat)
}

func (r *registry) onChange(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changed = f
}

func (r *registry) expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Expired = true
}

// world is a gateway with its fleet listener, which answers GET with the caller's address and POST with its body.
type world struct {
	*Gateway
	info GatewayInfo
	stop func() error
}

type worldConfig struct {
	number, udp, fleet int
	dir                string
	backend, iface     string
	endpoint           string // host part, default 127.0.0.1
	every              time.Duration
	log                *zap.Logger
	beats              Beats // default: the registry, as below
	enroller           Enroller
	peers              PeerSource
}

func openWorld(ctx context.Context, r *registry, c worldConfig) (*world, error) {
	if c.beats == nil {
		c.beats = r
	}
	if c.enroller == nil {
		c.enroller = r
	}
	if c.peers == nil {
		c.peers = r
	}
	g, err := OpenGateway(ctx, GatewayConfig{
		KeyFile: filepath.Join(c.dir, "gateway.key"), Number: c.number, ListenPort: c.udp,
		Backend: orDefault(c.backend, BackendNetstack), Interface: c.iface, Peers: c.peers, Log: c.log, FleetPort: c.fleet, Every: c.every,
	})
	if err != nil {
		return nil, err
	}
	l, err := g.Listen(ctx, c.fleet)
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	r.onChange(func() { g.Nudge("") })
	fleet := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			_, _ = io.Copy(w, r.Body)
			return
		}
		_, _ = io.WriteString(w, r.RemoteAddr)
	})
	srv := &http.Server{Handler: g.Handler(Served{Enroller: c.enroller, Beats: c.beats, Fleet: fleet})}
	run, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	wg.Go(func() { g.Run(run) })
	return &world{
		Gateway: g,
		info: GatewayInfo{
			Endpoint:  net.JoinHostPort(orDefault(c.endpoint, "127.0.0.1"), strconv.Itoa(g.Port())),
			PublicKey: g.PublicKey(), Addr: g.Addr(), FleetPort: uint16(l.Addr().(*net.TCPAddr).Port),
		},
		stop: sync.OnceValue(func() error {
			cancel()
			closed := srv.Close()
			wg.Wait()
			return errors.Join(closed, g.Close())
		}),
	}, nil
}

func startWorld(t testing.TB, r *registry, c worldConfig) *world {
	t.Helper()
	c.log = testLog(t)
	w, err := openWorld(t.Context(), r, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.mustStop(t) })
	return w
}

// settle makes what was just invited known to the gateway, as it is long before a person has copied a token.
func (w *world) settle(t testing.TB) {
	t.Helper()
	if err := w.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (w *world) mustStop(t testing.TB) {
	t.Helper()
	if err := w.stop(); err != nil {
		t.Errorf("stop gateway: %v", err)
	}
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

// echo sends n bytes and wants them back.
func echo(ctx context.Context, l *Link, g GatewayInfo, n int) error {
	tr := &http.Transport{DialContext: l.DialContext, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	sent := bytes.Repeat([]byte("0123456789abcdef"), n/16)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+g.Fleet()+wire.PathControl, bytes.NewReader(sent))
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err == nil && !bytes.Equal(got, sent) {
		err = errors.New("the echo differs")
	}
	return err
}

func checkWhoami(t testing.TB, l *Link, g GatewayInfo) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	from, err := whoami(ctx, l, g)
	for err != nil && !errors.Is(err, ErrNotGateway) && pause(ctx, 50*time.Millisecond) == nil { // a dial that is short may miss on a busy machine
		from, err = whoami(ctx, l, g)
	}
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
