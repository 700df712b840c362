package driverproxy

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// linked are two control sockets of a host, of which only the second is one, and what the host hears over it.
func linked(t *testing.T) (before, now *hostConn, hears func() wire.Control) {
	t.Helper()
	var e socket.Endpoint
	limits := socket.Limits{MaxMessage: wire.MaxControl, Silence: 30 * time.Second, Stuck: 30 * time.Second}
	conns := make(chan *socket.Conn, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, err := e.Accept(w, r, limits); err == nil {
			conns <- c
		}
	}))
	t.Cleanup(server.Close)
	far, err := e.Dial(t.Context(), (&net.Dialer{}).DialContext, "ws"+strings.TrimPrefix(server.URL, "http"), limits)
	if err != nil {
		t.Fatal(err)
	}
	near := <-conns
	t.Cleanup(func() { near.Close(); far.Close() })
	hello := wire.Hello{Host: "mac-1", Boot: "b"}
	hears = func() wire.Control {
		t.Helper()
		b, err := far.ReadText()
		if err != nil {
			t.Fatal(err)
		}
		m, err := wire.DecodeControl(b)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	return newHostConn(nil, netip.Addr{}, hello, time.Now()), newHostConn(near, netip.Addr{}, hello, time.Now()), hears
}

// TestUndo: a start that fails after the host has come back over a new control socket, which made the session its own there, is
// undone over that: nobody else would, for as long as the socket lives.
func TestUndo(t *testing.T) {
	before, now, hears := linked(t)
	f := NewFleet(Config{})
	s := newSession(f, before, sessionKey{"s1", 3}, false)
	s.relink(now)
	s.undo(before)
	if m := hears(); m.Release == nil || m.Release.Session != "s1" || m.Release.Term != 3 {
		t.Fatalf("the host hears %+v", m)
	}
	// The host that was asked has been told, or is gone; and what is adopted was running before.
	s.undo(now)
	s.relink(nil)
	s.undo(before)
	adopted := newSession(f, now, sessionKey{"s2", 3}, true)
	adopted.undo(before)
	if err := now.send(context.Background(), wire.Control{Heartbeat: &wire.Heartbeat{Seq: 1}}); err != nil {
		t.Fatal(err)
	}
	if m := hears(); m.Heartbeat == nil {
		t.Errorf("the host hears %+v", m)
	}
}
