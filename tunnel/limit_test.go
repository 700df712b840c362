package tunnel

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
)

func TestPaces(t *testing.T) {
	now := time.Unix(1000, 0)
	p := &paces{now: func() time.Time { return now }}
	one, other := doing{from: netip.MustParseAddr("10.77.1.0")}, doing{from: netip.MustParseAddr("10.77.1.1")}
	r := rate{3, time.Second}
	try := func(d doing, n int) (ok int) {
		for range n {
			if p.allow(d, r) {
				ok++
			}
		}
		return ok
	}
	if n := try(one, 10); n != 3 {
		t.Errorf("%d at once", n)
	}
	if n := try(other, 1); n != 1 {
		t.Error("one host's requests count for another")
	}
	if n := try(doing{one.from, true}, 1); n != 1 {
		t.Error("requests count for next keys")
	}
	now = now.Add(2 * time.Second)
	if n := try(one, 10); n != 2 {
		t.Errorf("%d after two more seconds", n)
	}
	now = now.Add(-time.Hour)
	if n := try(one, 10); n != 0 {
		t.Errorf("%d after the clock was set back", n)
	}
	now = now.Add(time.Hour)
	if n := try(one, 10); n > 3 {
		t.Errorf("%d after the clock was set right", n)
	}
	now = now.Add(time.Hour)
	if n := try(one, 10); n != 3 {
		t.Errorf("%d after an hour", n)
	}
	p.keep(func(a netip.Addr) bool { return a == other.from })
	if len(p.used) != 1 {
		t.Errorf("remembered: %v", p.used)
	}
}

// TestHandlerIsPaced: neither requests in a loop nor a next key in a loop get further than a burst of them.
func TestHandlerIsPaced(t *testing.T) {
	peers := peerList{}
	g, _ := tripGateway(t, &peers)
	still := time.Now()
	g.paces.now = func() time.Time { return still }
	h := g.Handler(Served{Enroller: &registry{}, Beats: &registry{}, Fleet: http.NotFoundHandler()})
	count := func(from, path string) (n int) {
		for n = 0; n < 2*hostConns; n++ {
			r := httptest.NewRequest(http.MethodPost, path, strings.NewReader("{}"))
			r.RemoteAddr = from + ":1234"
			w := httptest.NewRecorder()
			if h.ServeHTTP(w, r); w.Code == http.StatusTooManyRequests {
				return n
			}
		}
		return n
	}
	for _, c := range []struct {
		from, path string
		want       int
	}{
		{"10.77.1.0", wire.PathRekey, rekeyRate().burst},
		{"10.77.1.1", wire.PathPulse, hostConns},
		{"10.77.1.2", wire.PathControl, hostConns},
		{"10.76.1.0", wire.PathJoin, 10},
		{"10.76.1.1", wire.PathControl, 10},
	} {
		if n := count(c.from, c.path); n != c.want {
			t.Errorf("%s from %s: %d times", c.path, c.from, n)
		}
	}
	if n := count("10.77.1.3", wire.PathRekey); n == 0 {
		t.Error("one host keeps another from being answered")
	}
}

// TestConnectionsAreBounded: one host cannot take the memory of a gateway from all others.
func TestConnectionsAreBounded(t *testing.T) {
	r := &registry{}
	w := startWorld(t, r, worldConfig{number: 1, dir: t.TempDir()})
	token, others := r.mustInvite(t, 256, "mac", w.info), r.mustInvite(t, 257, "other", w.info)
	w.settle(t)
	l := openTestLink(t, LinkConfig{StateDir: t.TempDir(), Token: token})
	other := openTestLink(t, LinkConfig{StateDir: t.TempDir(), Token: others})
	var open []io.Closer
	refused := false
	for range hostConns + 1 {
		c, err := l.DialContext(t.Context(), "tcp", w.info.Fleet())
		if err != nil {
			t.Fatalf("after %d: %v", len(open), err)
		}
		defer c.Close()
		open = append(open, c)
		if len(open) < hostConns-1 { // the pulses have one or two
			continue
		}
		wait := 2 * time.Second
		if len(open) == hostConns+1 { // this one is refused, if none was before
			wait = 20 * time.Second
		}
		if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
			t.Fatal(err)
		}
		var late net.Error
		if _, err := c.Read(make([]byte, 1)); !errors.As(err, &late) || !late.Timeout() {
			refused = true
			break
		}
	}
	if !refused {
		t.Errorf("a host has %d connections", len(open))
	}
	checkWhoami(t, other, w.info)
	for _, c := range open {
		_ = c.Close()
	}
	eventually(t, "a connection takes the place of those that were closed", func() bool {
		_, err := whoami(t.Context(), l, w.info)
		return err == nil
	})
}

// resetConn is a connection as netstack hands it out that was reset before anybody accepted it: it does not know its other end any more.
type resetConn struct {
	net.Conn
	closed bool
}

func (*resetConn) RemoteAddr() net.Addr { return nil }
func (c *resetConn) Close() error       { c.closed = true; return nil }

// TestResetBeforeAccept: an orchestrator with 10,000 hosts died of it.
func TestResetBeforeAccept(t *testing.T) {
	var k crowds
	c := &resetConn{}
	if k.admit(c, testLog(t)) != nil || !c.closed || len(k.open) > 0 {
		t.Errorf("admitted, closed %v, counted %v", c.closed, k.open)
	}
}
