package tunnel

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// TestJoinOverNetstack is the whole way of a host: token, join tunnel, own tunnel, restart without a token.
func TestJoinOverNetstack(t *testing.T) {
	r := &registry{}
	w := startWorld(t, r, worldConfig{number: 1, dir: t.TempDir()})
	token := r.mustInvite(t, 300, "mac-1", w.info)
	w.settle(t)
	dir := t.TempDir()

	l := openTestLink(t, LinkConfig{StateDir: dir, Token: token})
	if want, _ := HostAddr(300); l.Host() != "mac-1" || l.Addr() != want || l.Backend() != BackendNetstack {
		t.Fatalf("joined as %q %s over %s", l.Host(), l.Addr(), l.Backend())
	}
	checkWhoami(t, l, w.info)
	if err := echo(t.Context(), l, w.info, 1<<20); err != nil {
		t.Error(err)
	}
	st, err := os.Stat(statePath(dir))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("state file: %v %v", st, err)
	}
	if _, err := get(t.Context(), l, w.info, wire.PathJoin, http.StatusNotFound); err != nil {
		t.Errorf("a host that has joined asks to join: %v", err)
	}
	if _, err := l.DialContext(t.Context(), "tcp", "192.0.2.1:80"); !errors.Is(err, ErrNotGateway) {
		t.Errorf("dial outside the tunnel: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	again := openTestLink(t, LinkConfig{StateDir: dir})
	if again.Host() != "mac-1" {
		t.Fatalf("after the restart the host is %q", again.Host())
	}
	checkWhoami(t, again, w.info)
}

func TestJoinTwoGateways(t *testing.T) {
	r := &registry{}
	a := startWorld(t, r, worldConfig{number: 1, dir: t.TempDir()})
	b := startWorld(t, r, worldConfig{number: 2, dir: t.TempDir()})
	r.onChange(func() { a.Nudge(""); b.Nudge("") })
	dead := GatewayInfo{Endpoint: "127.0.0.1:9", PublicKey: Key{1}, Addr: addr(ownRange, 9), FleetPort: 1}
	token := r.mustInvite(t, 256, "mac", dead, a.info, b.info)
	a.settle(t)
	b.settle(t)
	// The first gateway of the token is not there: the join takes the next.
	l := openTestLink(t, LinkConfig{StateDir: t.TempDir(), Token: token, DialTimeout: 300 * time.Millisecond})
	checkWhoami(t, l, a.info)
	checkWhoami(t, l, b.info)
}

func TestJoinRefusals(t *testing.T) {
	r := &registry{}
	w := startWorld(t, r, worldConfig{number: 1, dir: t.TempDir()})
	token := r.mustInvite(t, 256, "mac", w.info)
	w.settle(t)
	dir := t.TempDir()
	if _, err := prepareState(LinkConfig{StateDir: dir, Token: token}); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(statePath(dir))
	if err != nil {
		t.Fatal(err)
	}
	first := openTestLink(t, LinkConfig{StateDir: dir, Token: token})

	// A machine that copied the token has another key.
	if _, err := tryLink(t, LinkConfig{StateDir: t.TempDir(), Token: token}); !errors.Is(err, ErrTokenUsed) {
		t.Errorf("the token used twice: %v", err)
	}
	checkWhoami(t, first, w.info)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	// The answer was lost: the state is as before redeeming. The same key gets the same answer.
	s, err := loadState(dir)
	if err != nil {
		t.Fatal(err)
	}
	key := s.PrivateKey
	if err := os.WriteFile(statePath(dir), before, 0o600); err != nil {
		t.Fatal(err)
	}
	second := openTestLink(t, LinkConfig{StateDir: dir, Token: token})
	if s, err = loadState(dir); err != nil || s.PrivateKey != key || s.Host != "mac" {
		t.Errorf("after a lost answer: %v, same key %t, host %q", err, s.PrivateKey == key, s.Host)
	}
	checkWhoami(t, second, w.info)

	late := r.mustInvite(t, 257, "late", w.info)
	r.expire()
	w.settle(t)
	lateDir := t.TempDir()
	if _, err := tryLink(t, LinkConfig{StateDir: lateDir, Token: late}); !errors.Is(err, ErrTokenExpired) {
		t.Errorf("an expired token: %v", err)
	}
	if s, err := loadState(lateDir); err != nil || s.joined() {
		t.Errorf("after a refusal: %+v, %v", s, err)
	}
	if _, err := tryLink(t, LinkConfig{StateDir: t.TempDir()}); !errors.Is(err, ErrNoToken) {
		t.Errorf("no token: %v", err)
	}
}

// TestNewTokenNewKey: a key made for one token is not used with another, which may be another host's.
func TestNewTokenNewKey(t *testing.T) {
	g := GatewayInfo{Endpoint: "127.0.0.1:9", PublicKey: Key{1}, Addr: addr(ownRange, 1), FleetPort: 1}
	r := &registry{}
	cfg, err := LinkConfig{StateDir: t.TempDir(), Token: r.mustInvite(t, 256, "a", g)}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	a, err := prepareState(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if same, err := prepareState(cfg); err != nil || same.PrivateKey != a.PrivateKey {
		t.Errorf("the same token again: %v, same key %t", err, same.PrivateKey == a.PrivateKey)
	}
	cfg.Token = r.mustInvite(t, 257, "b", g)
	if b, err := prepareState(cfg); err != nil || b.PrivateKey == a.PrivateKey {
		t.Errorf("another token: %v, same key", err)
	}
}

// TestGatewayRestart: a host that is up finds a restarted gateway within seconds, though the gateway has forgotten it.
func TestGatewayRestart(t *testing.T) {
	r := &registry{}
	dir := t.TempDir()
	w := startWorld(t, r, worldConfig{number: 1, dir: dir})
	token := r.mustInvite(t, 256, "mac", w.info)
	w.settle(t)
	l := openTestLink(t, LinkConfig{StateDir: t.TempDir(), Token: token})
	checkWhoami(t, l, w.info)
	_, udp, _ := splitPort(w.info.Endpoint)
	w.mustStop(t)

	again := startWorld(t, r, worldConfig{number: 1, dir: dir, udp: udp, fleet: int(w.info.FleetPort)})
	if again.PublicKey() != w.info.PublicKey {
		t.Fatal("the restarted gateway has another key")
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := whoami(ctx, l, w.info); err != nil {
		t.Fatal(err)
	}
	t.Logf("first answer of the restarted gateway after %s", time.Since(began))
}

// TestHandshakeKeepsConnections: a new handshake does not cost the connections that work.
func TestHandshakeKeepsConnections(t *testing.T) {
	r := &registry{}
	w := startWorld(t, r, worldConfig{number: 1, dir: t.TempDir()})
	token := r.mustInvite(t, 256, "mac", w.info)
	w.settle(t)
	l := openTestLink(t, LinkConfig{StateDir: t.TempDir(), Token: token})
	c, err := l.DialContext(t.Context(), "tcp", w.info.Fleet())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// Under WireGuard's 5 s between handshakes: one that the gateway took for a flood or a replay fails the test.
	if err := c.SetDeadline(time.Now().Add(4 * time.Second)); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	for range 3 {
		if _, err := io.WriteString(c, "POST "+wire.PathControl+" HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "hello" {
			t.Fatalf("%q %v", b, err)
		}
		if err := l.handshake(t.Context(), l.all()[0], time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestModeTooWide(t *testing.T) {
	dir := t.TempDir()
	s := testState(t)
	if err := s.save(dir); err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(dir, "gateway.key")
	if _, err := loadOrCreateKey(keyFile); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{statePath(dir), keyFile} {
		if err := os.Chmod(path, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	_, err := tryLink(t, LinkConfig{StateDir: dir})
	wantText(t, err, "chmod 600 "+statePath(dir))
	_, err = OpenGateway(t.Context(), GatewayConfig{KeyFile: keyFile, Number: 1, Backend: BackendNetstack, Peers: &registry{}})
	wantText(t, err, "chmod 600 "+keyFile)
}
