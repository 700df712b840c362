package driverproxy_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const limit = 30 * time.Second

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !holds() {
		select {
		case <-again.C:
		case <-deadline.C:
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

func within(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(limit):
		t.Fatalf("%s: not within %v", what, limit)
	}
}

// directory writes down the calls it gets.
type directory struct {
	refuse error

	mu    sync.Mutex
	calls []string
	downs error
	away  int // calls of DevicesChanged that fail
}

func (d *directory) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, fmt.Sprintf(format, args...))
}

func (d *directory) noted() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.calls)
}

func (d *directory) HostByAddr(_ context.Context, a netip.Addr) (string, error) {
	switch a.String() {
	case "127.0.0.1":
		return "mac-1", nil
	case "127.0.0.2":
		return "mac-2", nil
	}
	return "", errors.New("unknown")
}

func (d *directory) HostUp(_ context.Context, h wire.Hello) error {
	d.note("up %s", h.Boot)
	return d.refuse
}

func (d *directory) DevicesChanged(_ context.Context, host string, list []wire.Device) error {
	d.mu.Lock()
	away := d.away > 0
	d.away--
	d.mu.Unlock()
	if away {
		return errors.New("the database is away")
	}
	for _, v := range list {
		d.note("device %s %s", v.Name, v.State)
	}
	return nil
}

func (d *directory) HostDown(_ context.Context, host string, cause error) {
	d.note("down")
	d.mu.Lock()
	defer d.mu.Unlock()
	d.downs = cause
}

// cause is what the last HostDown came with.
func (d *directory) cause() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.downs
}

func (d *directory) last() string {
	calls := d.noted()
	return calls[len(calls)-1]
}

func (d *directory) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.downs = nil
}

type server struct {
	*driverproxy.Fleet
	dir  *directory
	addr string
	now  atomic.Int64 // of Config.Now, ns
}

func serve(t *testing.T, heartbeatLimit time.Duration) *server {
	t.Helper()
	return serveFor(t, heartbeatLimit, limit)
}

// impatient does not wait long for hosts to come back.
func impatient(t *testing.T) *server {
	t.Helper()
	return serveFor(t, limit, 100*time.Millisecond)
}

func serveFor(t *testing.T, heartbeatLimit, resumeLimit time.Duration) *server {
	t.Helper()
	s := &server{dir: &directory{}}
	s.now.Store(time.Now().UnixNano())
	s.Fleet = driverproxy.NewFleet(driverproxy.Config{
		Orchestrator: "eu-1", Epoch: "e", Directory: s.dir, HeartbeatEvery: time.Second, HeartbeatLimit: heartbeatLimit, ResumeLimit: resumeLimit,
		Now: func() time.Time { return time.Unix(0, s.now.Load()) },
	})
	h := httptest.NewServer(s.Handler())
	s.addr = h.Listener.Addr().String()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
		h.Close()
	})
	return s
}

// peer is a host of which the test writes every message.
type peer struct {
	t    *testing.T
	ws   *websocket.Conn
	from string
	s    *server
	name string // that the directory has for the address
}

func (s *server) dial(t *testing.T, from, path string) (*websocket.Conn, error) {
	d := websocket.Dialer{NetDialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext}
	ws, answer, err := d.Dial("ws://"+s.addr+path, nil)
	if err != nil {
		if answer != nil {
			err = fmt.Errorf("HTTP %d: %w", answer.StatusCode, err)
		}
		return nil, err
	}
	t.Cleanup(func() { _ = ws.Close() })
	return ws, nil
}

func (s *server) control(t *testing.T, from string) *peer {
	t.Helper()
	ws, err := s.dial(t, from, wire.PathControl)
	if err != nil {
		t.Fatal(err)
	}
	return &peer{t, ws, from, s, "mac-" + strings.TrimPrefix(from, "127.0.0.")}
}

func (p *peer) send(m wire.Control) {
	p.t.Helper()
	b, err := m.Encode()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.ws.WriteMessage(websocket.TextMessage, b); err != nil {
		p.t.Fatal(err)
	}
}

// receive returns the next message, or the reason for which the socket ended.
func (p *peer) receive() (wire.Control, error) {
	p.t.Helper()
	_ = p.ws.SetReadDeadline(time.Now().Add(limit))
	_, b, err := p.ws.ReadMessage()
	if err != nil {
		return wire.Control{}, err
	}
	return wire.DecodeControl(b)
}

func hello(host, boot string) wire.Control {
	return wire.Control{Hello: &wire.Hello{Protocol: wire.Version, Host: host, Boot: boot, Devices: []wire.Device{{Name: "phone"}}}}
}

// up is mac-1, connected.
func (s *server) up(t *testing.T, boot string) *peer {
	t.Helper()
	return s.hostUp(t, 1, boot)
}

// hostUp is mac-n, connected.
func (s *server) hostUp(t *testing.T, n int, boot string) *peer {
	t.Helper()
	p := s.control(t, fmt.Sprint("127.0.0.", n))
	p.send(hello(p.name, boot))
	m, err := p.receive()
	if err != nil || m.Welcome == nil || m.Welcome.Epoch != "e" || m.Welcome.Orchestrator != "eu-1" {
		t.Fatalf("welcome: %+v %v", m, err)
	}
	eventually(t, "the host is connected", func() bool { return slices.Contains(s.Hosts(), p.name) })
	return p
}

// command dials a session's command socket, and says what the host knows; answered is what the orchestrator does.
func (p *peer) command(id string, term int, m wire.Resume) (ws *websocket.Conn, answered uint64, err error) {
	p.t.Helper()
	ws, err = p.s.dial(p.t, p.from, fmt.Sprintf("%s?term=%d&session=%s", wire.PathCommand, term, id))
	if err != nil {
		return nil, 0, err
	}
	if err := ws.WriteMessage(websocket.BinaryMessage, m.Append(nil)); err != nil {
		return nil, 0, err
	}
	_ = ws.SetReadDeadline(time.Now().Add(limit))
	_, b, err := ws.ReadMessage()
	if err != nil {
		return nil, 0, err
	}
	resumed, err := wire.DecodeResumed(b)
	return ws, resumed.Answered, err
}

type assigned struct {
	*driverproxy.Session
	err error
}

// session assigns, and answers as the host.
func (p *peer) session(id string) (*driverproxy.Session, *websocket.Conn) {
	p.t.Helper()
	done := make(chan assigned, 1)
	go func() {
		s, err := p.s.Assign(context.Background(), driverproxy.Assignment{Host: p.name, Device: "phone", Session: id, Term: 1})
		done <- assigned{s, err}
	}()
	m, err := p.receive()
	if err != nil || m.Assign == nil {
		p.t.Fatalf("assign: %+v %v", m, err)
	}
	ws, _, err := p.command(id, 1, wire.Resume{})
	if err != nil {
		p.t.Fatal(err)
	}
	p.send(wire.Control{Assigned: &wire.Assigned{Session: id, Term: 1, Capabilities: []byte(`{"a":1}`)}})
	a := <-done
	if a.err != nil {
		p.t.Fatal(a.err)
	}
	return a.Session, ws
}
