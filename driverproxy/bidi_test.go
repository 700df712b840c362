package driverproxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// bidiSession is a session whose driver offers BiDi, as its host says.
func (p *peer) bidiSession(id string) *driverproxy.Session {
	p.t.Helper()
	done := make(chan assigned, 1)
	go func() {
		s, err := p.s.Assign(context.Background(), driverproxy.Assignment{Host: "mac-1", Device: "phone", Session: id, Term: 1})
		done <- assigned{s, err}
	}()
	if m, err := p.receive(); err != nil || m.Assign == nil {
		p.t.Fatalf("assign: %+v %v", m, err)
	}
	if _, _, err := p.command(id, 1, wire.Resume{}); err != nil {
		p.t.Fatal(err)
	}
	p.send(wire.Control{Assigned: &wire.Assigned{Session: id, Term: 1, Capabilities: []byte(`{"webSocketUrl":true}`)}})
	a := <-done
	if a.err != nil {
		p.t.Fatal(a.err)
	}
	return a.Session
}

type opened struct {
	*driverproxy.BiDi
	err error
}

func open(ctx context.Context, s *driverproxy.Session) <-chan opened {
	done := make(chan opened, 1)
	go func() {
		b, err := s.OpenBiDi(ctx)
		done <- opened{b, err}
	}()
	return done
}

// asked is the host's view of one OpenBiDi: what it has to dial.
func (p *peer) asked() string {
	p.t.Helper()
	m, err := p.receive()
	if err != nil || m.OpenBiDi == nil || m.OpenBiDi.Term != 1 {
		p.t.Fatalf("open: %+v %v", m, err)
	}
	return fmt.Sprintf("%s?session=%s&term=1&id=%d", wire.PathBiDi, m.OpenBiDi.Session, m.OpenBiDi.ID)
}

// connection is a client and a host that are relayed to each other.
type connection struct {
	client, host *websocket.Conn
	end          context.CancelCauseFunc
	up, down     atomic.Int64 // bytes
	over         chan struct{}
}

func (p *peer) connect(s *driverproxy.Session) *connection {
	p.t.Helper()
	waiting := open(p.t.Context(), s)
	host, err := p.s.dial(p.t, p.from, p.asked())
	if err != nil {
		p.t.Fatal(err)
	}
	b := <-waiting
	if b.err != nil {
		p.t.Fatal(b.err)
	}
	c := &connection{host: host, over: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(context.Background())
	c.end = cancel
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(c.over)
		_, _ = b.Serve(ctx, w, r, func(n int) { c.up.Add(int64(n)) }, func(n int) { c.down.Add(int64(n)) })
	}))
	p.t.Cleanup(func() {
		cancel(nil)
		within(p.t, "the connection ends", c.over)
		server.Close()
	})
	if c.client, _, err = websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(server.URL, "http"), nil); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = c.client.Close() })
	return c
}

// closed reads until the socket is closed.
func closed(t *testing.T, ws *websocket.Conn) (code int, reason string) {
	t.Helper()
	_ = ws.SetReadDeadline(time.Now().Add(limit))
	for {
		_, _, err := ws.ReadMessage()
		var c *websocket.CloseError
		if errors.As(err, &c) {
			return c.Code, c.Text
		}
		if err != nil {
			t.Fatalf("no goodbye: %v", err)
		}
	}
}

func bye(ws *websocket.Conn, code int, reason string) {
	_ = ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, reason), time.Now().Add(time.Second))
}

func TestBiDiRelay(t *testing.T) {
	s := serve(t, limit)
	p := s.up(t, "b1")
	session := p.bidiSession("s1")
	c := p.connect(session)
	for _, ends := range [][2]*websocket.Conn{{c.client, c.host}, {c.host, c.client}} {
		for _, kind := range []int{websocket.TextMessage, websocket.BinaryMessage} {
			if err := ends[0].WriteMessage(kind, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			got, b, err := ends[1].ReadMessage()
			if err != nil || got != kind || string(b) != "hello" {
				t.Errorf("kind %d %q %v, want kind %d", got, b, err, kind)
			}
		}
	}
	if c.up.Load() != 10 || c.down.Load() != 10 {
		t.Errorf("%d bytes up, %d down", c.up.Load(), c.down.Load())
	}
	bye(c.client, 4001, "enough")
	if code, reason := closed(t, c.host); code != 4001 || reason != "enough" {
		t.Errorf("the host hears %d %q", code, reason)
	}
	within(t, "it ends", c.over)

	c = p.connect(session)
	bye(c.host, 4002, "driver says")
	if code, reason := closed(t, c.client); code != 4002 || reason != "driver says" {
		t.Errorf("the client hears %d %q", code, reason)
	}

	c = p.connect(session)
	_ = c.host.Close()
	if code, reason := closed(t, c.client); code != 1012 || !strings.Contains(reason, "connect again") {
		t.Errorf("after the host's socket broke, the client hears %d %q", code, reason)
	}

	c = p.connect(session)
	_ = c.client.Close()
	if code, _ := closed(t, c.host); code != 1001 {
		t.Errorf("after the client's socket broke, the host hears %d", code)
	}

	c = p.connect(session)
	c.end(&socket.Close{Code: 1000, Reason: "the session has ended: completed"})
	for name, ws := range map[string]*websocket.Conn{"client": c.client, "host": c.host} {
		if code, reason := closed(t, ws); code != 1000 || reason != "the session has ended: completed" {
			t.Errorf("the %s hears %d %q", name, code, reason)
		}
	}
}

func TestBiDiIsBounded(t *testing.T) {
	s := serve(t, limit)
	p := s.up(t, "b1")
	if plain, _ := p.session("plain"); !errors.Is(second(plain.OpenBiDi(t.Context())), driverproxy.ErrNoBiDi) {
		t.Error("a session without BiDi gave a connection")
	}
	session := p.bidiSession("s1")
	var held []*driverproxy.BiDi
	for range wire.MaxBiDi {
		waiting := open(t.Context(), session)
		if _, err := s.dial(t, p.from, p.asked()); err != nil {
			t.Fatal(err)
		}
		b := <-waiting
		if b.err != nil {
			t.Fatal(b.err)
		}
		held = append(held, b.BiDi)
	}
	if _, err := session.OpenBiDi(t.Context()); !errors.Is(err, driverproxy.ErrBiDiFull) {
		t.Errorf("one more: %v", err)
	}
	held[0].Close()
	held[0].Close() // counts once
	waiting := open(t.Context(), session)
	if _, err := s.dial(t, p.from, p.asked()); err != nil {
		t.Fatal(err)
	}
	again := <-waiting
	if again.err != nil {
		t.Fatal(again.err)
	}
	held[0] = again.BiDi
	if _, err := session.OpenBiDi(t.Context()); !errors.Is(err, driverproxy.ErrBiDiFull) {
		t.Errorf("one more than may be: %v", err)
	}
	for _, b := range held {
		b.Close()
	}
}

func second[A any](_ A, err error) error { return err }

func TestBiDiSocketsOfOthersAreRefused(t *testing.T) {
	s := serve(t, limit)
	p := s.up(t, "b1")
	session := p.bidiSession("s1")
	waiting := open(t.Context(), session)
	path := p.asked()
	for name, c := range map[string]struct{ from, path string }{
		"another host":    {"127.0.0.2", path},
		"another session": {"127.0.0.1", strings.Replace(path, "s1", "s2", 1)},
		"another id":      {"127.0.0.1", path + "7"},
		"no id":           {"127.0.0.1", strings.Split(path, "&id")[0]},
	} {
		if _, err := s.dial(t, c.from, c.path); err == nil || !strings.Contains(err.Error(), "HTTP 404") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.dial(t, p.from, path); err != nil {
		t.Fatal(err)
	}
	b := <-waiting
	if b.err != nil {
		t.Fatal(b.err)
	}
	defer b.Close()
	if _, err := s.dial(t, p.from, path); err == nil || !strings.Contains(err.Error(), "HTTP 404") {
		t.Errorf("a second time: %v", err)
	}
}

func TestBiDiWaitEnds(t *testing.T) {
	s := serve(t, limit)
	p := s.up(t, "b1")
	session := p.bidiSession("s1")
	ctx, cancel := context.WithCancel(t.Context())
	waiting := open(ctx, session)
	path := p.asked()
	cancel()
	if b := <-waiting; !errors.Is(b.err, context.Canceled) {
		t.Errorf("given up: %v", b.err)
	}
	if _, err := s.dial(t, p.from, path); err == nil || !strings.Contains(err.Error(), "HTTP 404") {
		t.Errorf("a socket that comes too late: %v", err)
	}
	waiting = open(t.Context(), session)
	p.asked()
	p.send(wire.Control{Ended: &wire.Ended{Session: "s1", Term: 1, Failure: wire.Failure{Code: wire.FailureDriver, Message: "died"}}})
	var f *wire.Failure
	if b := <-waiting; !errors.As(b.err, &f) {
		t.Errorf("the session ended: %v", b.err)
	}
	if _, err := session.OpenBiDi(t.Context()); !errors.As(err, &f) {
		t.Errorf("after the end: %v", err)
	}
}

// TestBiDiOfAnEndedSession is held by somebody who does not notice the end.
func TestBiDiOfAnEndedSession(t *testing.T) {
	s := serve(t, limit)
	p := s.up(t, "b1")
	session := p.bidiSession("s1")
	waiting := open(t.Context(), session)
	host, err := s.dial(t, p.from, p.asked())
	if err != nil {
		t.Fatal(err)
	}
	b := <-waiting
	if b.err != nil {
		t.Fatal(b.err)
	}
	defer b.Close()
	if !s.Drop("mac-1", errors.New("revoked")) {
		t.Fatal("it was not connected")
	}
	_ = host.SetReadDeadline(time.Now().Add(limit))
	if _, _, err := host.ReadMessage(); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the socket of a host that was dropped: %v", err)
	}
}

// TestBiDiClientThatIsNone asks for the connection with a plain request, or from a web page.
func TestBiDiClientThatIsNone(t *testing.T) {
	s := serve(t, limit)
	p := s.up(t, "b1")
	session := p.bidiSession("s1")
	for name, headers := range map[string]http.Header{
		"plain":    {},
		"web page": {"Origin": {"https://page.example"}, "Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}},
	} {
		waiting := open(t.Context(), session)
		host, err := s.dial(t, p.from, p.asked())
		if err != nil {
			t.Fatal(err)
		}
		b := <-waiting
		if b.err != nil {
			t.Fatal(b.err)
		}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header = headers
		w := httptest.NewRecorder()
		if _, err := b.Serve(t.Context(), w, r, nil, nil); err == nil {
			t.Errorf("%s: served", name)
		}
		said, _ := io.ReadAll(w.Result().Body)
		if w.Code < 400 || w.Code >= 500 || !strings.Contains(string(said), `"error":"invalid argument"`) {
			t.Errorf("%s: %d %s", name, w.Code, said)
		}
		if code, _ := closed(t, host); code != 1001 {
			t.Errorf("%s: the host hears %d", name, code)
		}
	}
}
