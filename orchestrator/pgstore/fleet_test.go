package pgstore_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/tunnel"
)

// replica is an orchestrator's tunnel end on the database: gateway, fleet listener, notifications.
type replica struct {
	store *pgstore.Store
	*tunnel.Gateway
	info tunnel.GatewayInfo
}

type epoch struct{ tunnel.Beats }

func (e epoch) Beat(ctx context.Context, a netip.Addr) (wire.Beat, error) {
	b, err := e.Beats.Beat(ctx, a)
	b.Epoch = "1"
	return b, err
}

func startReplica(t *testing.T, dsn string, number int, log *zap.Logger) *replica {
	t.Helper()
	return startReplicaEvery(t, dsn, number, 0, true, log)
}

// startReplicaEvery starts a replica that looks at the database this often, 0 being the default, and listens for news of it or does not.
func startReplicaEvery(t *testing.T, dsn string, number int, every time.Duration, listens bool, log *zap.Logger) *replica {
	t.Helper()
	s, err := pgstore.Open(t.Context(), dsn, fmt.Sprintf("eu-%d", number), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	g, err := tunnel.OpenGateway(t.Context(), tunnel.GatewayConfig{
		KeyFile: t.TempDir() + "/gateway.key", Number: number, Backend: tunnel.BackendNetstack, FleetPort: 7700, Peers: s, Log: log, Every: every,
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := g.Listen(t.Context(), 7700)
	if err != nil {
		t.Fatal(err)
	}
	whoami := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) })
	srv := &http.Server{Handler: g.Handler(tunnel.Served{Enroller: s, Beats: epoch{s}, Fleet: whoami})}
	c := tunnel.KeeperConfig{Announcer: s, Endpoint: net.JoinHostPort("127.0.0.1", strconv.Itoa(g.Port())), FleetPort: 7700, RotateAge: time.Hour}
	if _, err := g.Announce(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	wg.Go(func() { g.Run(ctx) })
	wg.Go(func() { g.Keep(ctx, c) })
	wg.Go(func() {
		if !listens {
			return
		}
		s.Listen(ctx, pgstore.Wakes{Queue: func(string) {}, Hosts: g.Nudge, Session: func(string) {}, Cancel: func(string) {}})
	})
	t.Cleanup(func() {
		stop()
		_ = srv.Close()
		_ = g.Close()
		wg.Wait()
	})
	return &replica{s, g, g.Info(c.Endpoint, c.FleetPort)}
}

// token invites a host as the API does, for all gateways.
func (r *replica) token(t *testing.T, name string) string {
	t.Helper()
	gateways, err := r.store.Gateways(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var text string
	_, err = r.store.Invite(t.Context(), name, time.Hour, func(number int) (i orchestrator.Invitation, err error) {
		tok, err := tunnel.NewToken(number, gateways)
		if err != nil {
			return i, err
		}
		if text, err = tok.Encode(); err != nil {
			return i, err
		}
		i.JoinPublicKey, i.PresharedKey, err = tok.Credentials()
		return i, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// seen is the address a gateway sees the host at.
func seen(ctx context.Context, l *tunnel.Link, g tunnel.GatewayInfo) (string, error) {
	tr := &http.Transport{DialContext: l.DialContext, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.Fleet()+"/", nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	host, _, _ := net.SplitHostPort(string(b))
	return host, err
}

// TestNotificationsLost: what no notification tells of, a gateway sees on its next tick: a host that was invited, and that it was removed.
func TestNotificationsLost(t *testing.T) {
	r := startReplicaEvery(t, postgres.Database(t), 1, 50*time.Millisecond, false, zap.NewNop())
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	l, err := tunnel.OpenLink(ctx, tunnel.LinkConfig{StateDir: t.TempDir(), Token: r.token(t, "mac"), Backend: tunnel.BackendNetstack})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if at, err := seen(ctx, l, r.info); err != nil || at != l.Addr().String() {
		t.Fatalf("seen as %q, %v", at, err)
	}
	if err := r.store.Revoke(ctx, "mac", time.Hour, orchestrator.Act{By: "test"}); err != nil {
		t.Fatal(err)
	}
	for {
		peers, err := r.Status(ctx)
		if err != nil {
			t.Fatalf("the removed host is still on the device: %v", err)
		}
		if len(peers) == 0 {
			return
		}
	}
}

// TestFiftyHostsJoinAtOnce: on two orchestrators, each host gets an address of its own and reaches both. Everything that
// is logged meanwhile, at the finest level, is read for secrets.
func TestFiftyHostsJoinAtOnce(t *testing.T) {
	if !raceDetector {
		joinAtOnce(t, 50)
		return
	}
	// The race detector makes a handshake many times as expensive, and a device several times as large. So it watches a few
	// hosts, and the fifty are in a process without it.
	joinAtOnce(t, 8)
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-timeout=10m", "-v", "-run=^TestFiftyHostsJoinAtOnce$", ".")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "MEASURED 50 hosts") {
		t.Errorf("without the race detector: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "MEASURED") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

func joinAtOnce(t *testing.T, hosts int) {
	dsn := postgres.Database(t)
	core, logs := observer.New(zap.DebugLevel)
	replicas := []*replica{startReplica(t, dsn, 1, zap.New(core)), startReplica(t, dsn, 2, zap.New(core))}
	if err := replicas[0].Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	tokens := make([]string, hosts)
	dirs := make([]string, hosts)
	for i := range hosts {
		tokens[i], dirs[i] = replicas[i%2].token(t, fmt.Sprintf("mac-%d", i)), t.TempDir()
	}
	links := make([]*tunnel.Link, hosts)
	began := time.Now()
	var group sync.WaitGroup
	for i := range hosts {
		group.Go(func() {
			l, err := tunnel.OpenLink(ctx, tunnel.LinkConfig{StateDir: dirs[i], Token: tokens[i], Backend: tunnel.BackendNetstack, Log: zap.New(core)})
			if err != nil {
				t.Errorf("host %d: %v", i, err)
				return
			}
			links[i] = l
			for _, r := range replicas {
				// One hundred tunnels that come up at once keep two cores busy for longer than a dial waits.
				at, err := seen(ctx, l, r.info)
				for err != nil && ctx.Err() == nil {
					select { // agents do not ask again at once either
					case <-time.After(100 * time.Millisecond):
					case <-ctx.Done():
					}
					at, err = seen(ctx, l, r.info)
				}
				if err != nil || at != l.Addr().String() {
					t.Errorf("host %d at %s: seen as %q, %v", i, r.info.Addr, at, err)
				}
			}
		})
	}
	group.Wait()
	t.Logf("MEASURED %d hosts joined on 2 orchestrators and reached both in %s", hosts, time.Since(began).Round(time.Millisecond))
	addrs := map[netip.Addr]string{}
	secrets := append([]string{}, tokens...)
	for i, l := range links {
		if l == nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if other, twice := addrs[l.Addr()]; twice {
			t.Errorf("%s has the address of %s", l.Host(), other)
		}
		addrs[l.Addr()] = l.Host()
		secrets = append(secrets, secretsOf(t, dirs[i])...)
	}
	if len(addrs) != hosts {
		t.Errorf("%d addresses for %d hosts", len(addrs), hosts)
	}
	enc := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	var all strings.Builder
	for _, e := range logs.All() {
		line, err := enc.EncodeEntry(e.Entry, e.Context)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(line.Bytes())
	}
	for _, s := range secrets {
		if strings.Contains(all.String(), s) {
			t.Error("a token, a private key or a preshared key is in the log")
		}
	}
	if all.Len() < 1000*hosts {
		t.Errorf("the log has %d bytes only: it is not the whole", all.Len())
	}
}

// secretsOf are the secrets that a host has stored.
func secretsOf(t *testing.T, dir string) []string {
	t.Helper()
	b, err := os.ReadFile(dir + "/tunnel.json")
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		PrivateKey   string `json:"private_key"`
		PresharedKey string `json:"preshared_key"`
	}
	if err := json.Unmarshal(b, &s); err != nil || s.PrivateKey == "" || s.PresharedKey == "" {
		t.Fatalf("the state of a host: %v", err)
	}
	return []string{s.PrivateKey, s.PresharedKey}
}

// TestOneTokenOnTwoMachines: over the tunnel, and through different orchestrators.
func TestOneTokenOnTwoMachines(t *testing.T) {
	dsn := postgres.Database(t)
	one, two := startReplica(t, dsn, 1, zap.NewNop()), startReplica(t, dsn, 2, zap.NewNop())
	token := one.token(t, "mac")
	for _, r := range []*replica{one, two} {
		if err := r.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := tunnel.OpenLink(ctx, tunnel.LinkConfig{StateDir: t.TempDir(), Token: token, Backend: tunnel.BackendNetstack})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = tunnel.OpenLink(ctx, tunnel.LinkConfig{StateDir: t.TempDir(), Token: token, Backend: tunnel.BackendNetstack})
	if !errors.Is(err, tunnel.ErrTokenUsed) || strings.Contains(err.Error(), token) {
		t.Errorf("the second machine: %v", err)
	}
	if at, err := seen(ctx, l, two.info); err != nil || at != l.Addr().String() {
		t.Errorf("the first is seen as %q, %v", at, err)
	}
}

// TestStolenDatabase takes every value of every row for a private key, beside the preshared keys that are there,
// and tries to join and to be a host with it.
func TestStolenDatabase(t *testing.T) {
	t.Parallel()
	dsn := postgres.Database(t)
	r := startReplica(t, dsn, 1, zap.NewNop())
	joined, waiting := r.token(t, "joined"), r.token(t, "waiting")
	if err := r.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	l, err := tunnel.OpenLink(ctx, tunnel.LinkConfig{StateDir: dir, Token: joined, Backend: tunnel.BackendNetstack})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var dump [][]byte
	for _, table := range r.store.Tables(t) {
		dump = append(dump, r.store.Dump(t, table)...)
	}
	peers, err := r.store.Peers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[tunnel.Key]string{}
	for _, p := range peers {
		keys[p.PublicKey] = p.Name
	}
	if len(keys) != 3 {
		t.Fatalf("%d peers", len(keys))
	}
	tried := 0
	for _, v := range dump {
		for i := 0; i+32 <= len(v); i++ {
			tried++
			// WireGuard lets in who has the private key of a peer, and nobody else: it is enough to look for one.
			var k tunnel.PrivateKey
			copy(k[:], v[i:])
			if name, ok := keys[k.Public()]; ok {
				t.Errorf("the database holds the private key of %s", name)
			}
		}
	}
	if tried < 100 {
		t.Fatalf("only %d keys were tried: %d values", tried, len(dump))
	}
	// Nor does it hold what they are derived from.
	for _, secret := range append(secretsOf(t, dir)[:1], joined, waiting) {
		raw, _ := base64.StdEncoding.DecodeString(secret)
		for _, v := range dump {
			if strings.Contains(string(v), secret) || len(raw) > 0 && strings.Contains(string(v), string(raw)) {
				t.Error("the database holds a secret of a host")
			}
		}
	}
	for _, text := range []string{joined, waiting} {
		tok, err := tunnel.ParseToken(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range dump {
			if strings.Contains(string(v), string(tok.Secret[:])) {
				t.Error("the database holds a token's secret")
			}
			// A thief can print a token around any bytes of the dump; it opens nothing.
			for i := 0; i+32 <= len(v); i++ {
				forged := tok
				copy(forged.Secret[:], v[i:])
				if k, _, err := forged.Credentials(); err != nil || keys[k] != "" {
					t.Errorf("a token made of the dump is %s's: %v", keys[k], err)
				}
			}
		}
	}
	// The tunnel itself, with the most promising of them: the right preshared key, and a key from the dump.
	forged := waiting
	tok, err := tunnel.ParseToken(forged)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range peers {
		if p.Addr == tok.Addr {
			tok.Secret = tunnel.Secret(p.PresharedKey)
		}
	}
	if forged, err = tok.Encode(); err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(ctx, 3*time.Second)
	defer stop()
	if _, err := tunnel.OpenLink(short, tunnel.LinkConfig{StateDir: t.TempDir(), Token: forged, Backend: tunnel.BackendNetstack}); err == nil {
		t.Error("a forged token joined")
	}
	// And the invited host still can.
	ok, err := tunnel.OpenLink(ctx, tunnel.LinkConfig{StateDir: t.TempDir(), Token: waiting, Backend: tunnel.BackendNetstack})
	if err != nil {
		t.Fatal(err)
	}
	_ = ok.Close()
}
