package host_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/socket"
)

// bidi is a client's BiDi connection through the fleet and the host.
type bidi struct {
	*websocket.Conn
	end  context.CancelCauseFunc
	down atomic.Int64 // bytes that came from the host
	over chan struct{}
}

// connect opens a BiDi connection as a client has it.
func connect(t *testing.T, s *driverproxy.Session) *bidi {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	b, err := s.OpenBiDi(ctx)
	if err != nil {
		t.Fatalf("OpenBiDi: %v", err)
	}
	c := &bidi{over: make(chan struct{})}
	var serving context.Context
	serving, c.end = context.WithCancelCause(context.Background())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(c.over)
		if _, err := b.Serve(serving, w, r, nil, func(n int) { c.down.Add(int64(n)) }); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(func() {
		c.end(nil)
		within(t, "the connection ends", c.over)
		server.Close()
	})
	if c.Conn, _, err = websocket.DefaultDialer.DialContext(ctx, "ws"+strings.TrimPrefix(server.URL, "http"), nil); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(limit))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// closed reads until the connection is closed.
func (c *bidi) closed(t *testing.T) (code int, reason string) {
	t.Helper()
	for {
		_, _, err := c.ReadMessage()
		var e *websocket.CloseError
		if errors.As(err, &e) {
			return e.Code, e.Text
		}
		if err != nil {
			t.Fatalf("no goodbye: %v", err)
		}
	}
}

func wantBiDi(session string) driverproxy.Assignment {
	a := first(session, 1)
	a.Capabilities = []byte(`{"webSocketUrl":true}`)
	return a
}

// bidiStack is a host with one device, whose driver gives BiDi connections to serve.
func bidiStack(t *testing.T, serve func(*websocket.Conn)) (*stack, *drivertest.Driver) {
	t.Helper()
	d := drivertest.New()
	d.OfferBiDi(serve)
	s := newFleet(t)
	cfg := s.config(t)
	cfg.Devices[0].BiDi = true
	cfg.Fake = fakes(d)
	s.run(t, cfg)
	return s, d
}

func TestBiDi(t *testing.T) {
	t.Parallel()
	s, d := bidiStack(t, nil)
	session := assign(t, s, wantBiDi("s1"))
	if got := string(session.Capabilities()); !strings.Contains(got, `"webSocketUrl":true`) || !strings.Contains(string(d.Asked()), `"webSocketUrl":true`) {
		t.Errorf("the driver was asked for %s; told %s", d.Asked(), got)
	}
	a, b := connect(t, session), connect(t, session)
	for i, c := range []*bidi{a, b, a} {
		want := strings.Repeat(fmt.Sprint(i), 3<<20)
		if err := c.WriteMessage(websocket.TextMessage, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if kind, got, err := c.ReadMessage(); err != nil || kind != websocket.TextMessage || string(got) != want {
			t.Errorf("%d: kind %d, %d bytes, %v", i, kind, len(got), err)
		}
	}
	_ = a.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4001, "bye"), time.Now().Add(time.Second))
	within(t, "a ends", a.over)
	release(t, session)
	if code, _ := b.closed(t); code != socket.CloseGoingAway {
		t.Errorf("after the release: code %d", code)
	}
	s.ready(t, "phone")

	// Another session of the same driver, without it.
	plain := assign(t, s, first("s2", 1))
	if _, err := plain.OpenBiDi(t.Context()); !errors.Is(err, driverproxy.ErrNoBiDi) {
		t.Errorf("a session that did not ask for it: %v", err)
	}
	release(t, plain)
}

// TestBiDiDriverGoodbyes has the driver end connections in its ways.
func TestBiDiDriverGoodbyes(t *testing.T) {
	t.Parallel()
	says := make(chan func(*websocket.Conn), 1)
	s, d := bidiStack(t, func(ws *websocket.Conn) { (<-says)(ws) })
	session := assign(t, s, wantBiDi("s1"))
	says <- func(ws *websocket.Conn) {
		_ = ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4002, "enough"), time.Now().Add(time.Second))
		_, _, _ = ws.ReadMessage()
	}
	if code, reason := connect(t, session).closed(t); code != 4002 || reason != "enough" {
		t.Errorf("the driver's goodbye came as %d %q", code, reason)
	}
	says <- func(ws *websocket.Conn) { _ = ws.UnderlyingConn().Close() }
	if code, reason := connect(t, session).closed(t); code != socket.CloseFailed || reason != "the driver broke off" {
		t.Errorf("a driver that broke off: %d %q", code, reason)
	}
	hears := make(chan error, 1)
	says <- func(ws *websocket.Conn) { _, _, err := ws.ReadMessage(); hears <- err }
	c := connect(t, session)
	_ = c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4003, "client says"), time.Now().Add(time.Second))
	var e *websocket.CloseError
	if err := <-hears; !errors.As(err, &e) || e.Code != 4003 || e.Text != "client says" {
		t.Errorf("the driver hears %v", err)
	}
	d.OfferBiDi(nil)
	d.Kill() // which ends the session as well
	within(t, "the session ends", session.Done())
	release(t, session)
}

// TestBiDiEndpointThatIsNone has a driver that names an endpoint and does not serve it.
func TestBiDiEndpointThatIsNone(t *testing.T) {
	t.Parallel()
	d := drivertest.New()
	server := httptest.NewServer(d)
	t.Cleanup(server.Close)
	s := newFleet(t)
	cfg := s.config(t)
	cfg.Devices[0].BiDi = true
	cfg.Fake = fakes(d)
	s.run(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if _, err := s.fleet.Assign(ctx, wantBiDi("s1")); err == nil || !strings.Contains(err.Error(), "offers none") {
		t.Errorf("a driver that offers no BiDi: %v", err)
	}
	s.ready(t, "phone")
	d.OfferBiDi(nil)
	session := assign(t, s, wantBiDi("s2"))
	d.RefuseBiDi()
	if code, reason := connect(t, session).closed(t); code != socket.CloseFailed || !strings.Contains(reason, "does not answer") {
		t.Errorf("an endpoint that does not answer: %d %q", code, reason)
	}
	do[any](t, session, "GET", "/url", nil) // the session goes on
	release(t, session)
}

// TestBiDiIsAsSlowAsItsClient: what the client does not read, the driver cannot send.
func TestBiDiIsAsSlowAsItsClient(t *testing.T) {
	t.Parallel()
	const messages, each = 48, 1 << 20
	message := bytes.Repeat([]byte("0123456789abcdef"), each/16)
	var sent atomic.Int64
	failed := make(chan error, 1)
	s, _ := bidiStack(t, func(ws *websocket.Conn) {
		for i := range messages {
			message := append([]byte(fmt.Sprintf("%4d", i)), message...)
			if err := ws.WriteMessage(websocket.TextMessage, message); err != nil {
				failed <- err
				return
			}
			sent.Add(1)
		}
		failed <- nil
		_, _, _ = ws.ReadMessage()
	})
	session := assign(t, s, wantBiDi("s1"))
	c := connect(t, session)
	if n := stalled(t, &sent); n > messages/2 {
		t.Errorf("%d of %d MiB were sent while nobody read", n, messages)
	}
	for i := range messages {
		_ = c.SetReadDeadline(time.Now().Add(limit))
		_, b, err := c.ReadMessage()
		if err != nil || string(b[:4]) != fmt.Sprintf("%4d", i) || !bytes.Equal(b[4:], message) {
			t.Fatalf("message %d: %d bytes, %v", i, len(b), err)
		}
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
	release(t, session)
}

// stalled waits until a counter has begun to count and stands still, and says where.
func stalled(t *testing.T, c *atomic.Int64) int64 {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	again := time.NewTicker(500 * time.Millisecond)
	defer again.Stop()
	for before := int64(0); ; {
		select {
		case <-again.C:
		case <-deadline.C:
			t.Fatal("it does not come to a halt")
		}
		now := c.Load()
		if now == before && now > 0 {
			return now
		}
		before = now
	}
}
