package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// simHost is a host as orchestrators see it: control sockets with heartbeats and probes, devices that are busy and ready again, a command
// socket for each session, and a fake driver behind it. What an agent does beside that (a folder and a listener for each driver,
// their processes, journals) would take twice of the machine that the orchestrators take, and no host shares theirs.
type simHost struct {
	name     string
	boot     string
	endpoint socket.Endpoint
	running  sync.WaitGroup // sessions

	mu      sync.Mutex // guards what follows
	devices map[string]wire.Device
	order   []string
	links   map[string]*socket.Conn // by address
	hosted  map[string]*simSession
}

type simSession struct {
	device string
	conn   *socket.Conn
}

func newSimHost(hello wire.Hello) *simHost {
	h := &simHost{name: hello.Host, boot: uuid.NewString(), devices: map[string]wire.Device{}, links: map[string]*socket.Conn{}, hosted: map[string]*simSession{}}
	for _, d := range hello.Devices {
		h.devices[d.Name] = d
		h.order = append(h.order, d.Name)
	}
	return h
}

// run is connected to the orchestrators until ctx is done.
func (h *simHost) run(ctx context.Context, addrs []string) error {
	errs := make([]error, len(addrs))
	var all sync.WaitGroup
	for i, addr := range addrs {
		all.Go(func() { errs[i] = h.connect(ctx, addr) })
	}
	all.Wait()
	h.mu.Lock()
	for _, s := range h.hosted {
		s.conn.Close()
	}
	h.mu.Unlock()
	h.running.Wait()
	return errors.Join(errs...)
}

func (h *simHost) dial(ctx context.Context, addr, path string, l socket.Limits) (*socket.Conn, error) {
	return h.endpoint.Dial(ctx, (&net.Dialer{}).DialContext, "ws://"+addr+path, l)
}

// connect runs a control socket. It does not come again: an orchestrator that hangs up has ended.
func (h *simHost) connect(ctx context.Context, addr string) error {
	conn, err := h.dial(ctx, addr, wire.PathControl, socket.Limits{MaxMessage: wire.MaxControl, Silence: 10 * time.Second, Stuck: 5 * time.Second})
	if err != nil {
		return err
	}
	defer conn.Close()
	h.mu.Lock()
	hello := wire.Hello{Protocol: wire.Version, Host: h.name, Agent: "bench", Boot: h.boot, Dial: 1, Devices: h.listLocked()}
	h.links[addr] = conn
	h.mu.Unlock()
	if err := send(conn, wire.Control{Hello: &hello}); err != nil {
		return err
	}
	var beats sync.WaitGroup
	over := make(chan struct{})
	beats.Go(func() { beat(ctx, conn, over) })
	defer beats.Wait()
	defer close(over)
	for {
		b, err := conn.ReadText()
		if err != nil {
			if ctx.Err() != nil || socket.SaidBye(err) {
				err = nil
			}
			return err
		}
		m, err := wire.DecodeControl(b)
		if err != nil {
			return err
		}
		switch {
		case m.Assign != nil:
			h.running.Go(func() { h.assign(ctx, addr, conn, *m.Assign) })
		case m.Release != nil:
			h.running.Go(func() { h.release(conn, *m.Release) })
		case m.Probe != nil:
			err = h.probe(conn, m.Probe.Seq)
		}
		if err != nil {
			return err
		}
	}
}

// beat sends heartbeats, and goodbye when ctx is done.
func beat(ctx context.Context, conn *socket.Conn, over <-chan struct{}) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for seq := uint64(1); ; seq++ {
		select {
		case <-t.C:
			if send(conn, wire.Control{Heartbeat: &wire.Heartbeat{Seq: seq}}) != nil {
				return
			}
		case <-ctx.Done():
			conn.Bye("the agent is shutting down")
			conn.Expire(2 * time.Second)
			return
		case <-over:
			return
		}
	}
}

func send(conn *socket.Conn, m wire.Control) error {
	b, err := m.Encode()
	if err != nil {
		return err
	}
	return conn.WriteText(context.Background(), b)
}

func (h *simHost) listLocked() []wire.Device {
	var all []wire.Device
	for _, name := range h.order {
		all = append(all, h.devices[name])
	}
	return all
}

func (h *simHost) probe(conn *socket.Conn, seq uint64) error {
	h.mu.Lock()
	p := wire.Probed{Seq: seq}
	for _, d := range h.listLocked() {
		p.Devices = append(p.Devices, wire.ProbedDevice{Name: d.Name, State: d.State, Took: time.Millisecond})
	}
	h.mu.Unlock()
	return send(conn, wire.Control{Probed: &p})
}

// turn changes a device's state, if it was from, and tells all orchestrators.
func (h *simHost) turn(name string, from, to wire.DeviceState) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, ok := h.devices[name]
	if !ok || d.State != from {
		return false
	}
	d.State = to
	h.devices[name] = d
	for _, conn := range h.links {
		_ = send(conn, wire.Control{Device: &d}) // one that is gone needs no news
	}
	return true
}

// assign starts a session and carries its commands until it is released.
func (h *simHost) assign(ctx context.Context, addr string, control *socket.Conn, a wire.Assign) {
	answer := wire.Assigned{Session: a.Session, Term: a.Term}
	if !h.turn(a.Device, wire.DeviceReady, wire.DeviceBusy) {
		answer.Failure = &wire.Failure{Code: wire.FailureDevice, Message: "the device is busy"}
		_ = send(control, wire.Control{Assigned: &answer})
		return
	}
	driver := fakeDriver{drivertest.NewQuiet(), ""}
	conn, err := h.start(ctx, addr, a, &driver, &answer)
	if err != nil {
		h.turn(a.Device, wire.DeviceBusy, wire.DeviceReady)
		answer.Failure = &wire.Failure{Code: wire.FailureDriver, Message: err.Error()}
		_ = send(control, wire.Control{Assigned: &answer})
		return
	}
	defer conn.Close()
	s := &simSession{device: a.Device, conn: conn}
	h.mu.Lock()
	h.hosted[a.Session] = s
	h.mu.Unlock()
	_ = send(control, wire.Control{Assigned: &answer}) // or the control socket has ended, and with it the orchestrator
	for {
		b, err := conn.ReadBinary()
		if err != nil {
			return
		}
		order, err := wire.DecodeOrder(b)
		if err != nil {
			return
		}
		c, ok := order.(*wire.Command)
		if !ok {
			continue
		}
		begin := time.Now()
		status, body := driver.do(c.Method, "/session/"+driver.id+c.Path, c.Body)
		if conn.WriteBinary(ctx, wire.Answer{Seq: c.Seq, Status: status, Took: time.Since(begin), Body: body}.Append(nil)) != nil {
			return
		}
	}
}

// start has the driver start a session, and opens the session's command socket.
func (h *simHost) start(ctx context.Context, addr string, a wire.Assign, driver *fakeDriver, answer *wire.Assigned) (*socket.Conn, error) {
	wanted, err := json.Marshal(map[string]any{"capabilities": map[string]any{"alwaysMatch": a.Capabilities}})
	if err != nil {
		return nil, err
	}
	status, body := driver.do(http.MethodPost, "/session", wanted)
	var created struct {
		Value struct {
			SessionID    string          `json:"sessionId"`
			Capabilities json.RawMessage `json:"capabilities"`
		} `json:"value"`
	}
	if err := json.Unmarshal(body, &created); err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("the fake driver answers %d: %s", status, body)
	}
	driver.id, answer.Capabilities = created.Value.SessionID, created.Value.Capabilities
	q := url.Values{"session": {a.Session}, "term": {strconv.FormatInt(a.Term, 10)}}
	conn, err := h.dial(ctx, addr, wire.PathCommand+"?"+q.Encode(), socket.Session(wire.MaxMessage))
	if err != nil {
		return nil, err
	}
	err = conn.WriteBinary(ctx, wire.Resume{}.Append(nil))
	if err == nil {
		_, err = conn.ReadBinary() // nothing was answered before
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// release ends a session; then its device is ready again.
func (h *simHost) release(control *socket.Conn, r wire.Release) {
	h.mu.Lock()
	s := h.hosted[r.Session]
	delete(h.hosted, r.Session)
	h.mu.Unlock()
	if s != nil {
		s.conn.Bye("the session has ended")
		s.conn.Expire(2 * time.Second) // its reader ends when the orchestrator hangs up
	}
	_ = send(control, wire.Control{Released: &wire.Released{Session: r.Session, Term: r.Term}}) // or nobody waits for it
	if s != nil {
		h.turn(s.device, wire.DeviceBusy, wire.DeviceReady)
	}
}

// fakeDriver is called without a connection.
type fakeDriver struct {
	*drivertest.Driver
	id string
}

func (d fakeDriver) do(method, path string, body []byte) (int, []byte) {
	r, err := http.NewRequest(method, path, bytes.NewReader(body))
	if err != nil {
		return http.StatusBadRequest, []byte(err.Error())
	}
	w := answerWriter{header: http.Header{}, status: http.StatusOK}
	d.ServeHTTP(&w, r)
	return w.status, w.body.Bytes()
}

type answerWriter struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *answerWriter) Header() http.Header         { return w.header }
func (w *answerWriter) WriteHeader(status int)      { w.status = status }
func (w *answerWriter) Write(b []byte) (int, error) { return w.body.Write(b) }
