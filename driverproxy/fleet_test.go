package driverproxy_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

func TestHostileControlSockets(t *testing.T) {
	s := serve(t, limit)
	text := func(b string) func(p *peer) {
		return func(p *peer) { _ = p.ws.WriteMessage(websocket.TextMessage, []byte(b)) }
	}
	send := func(m wire.Control) func(p *peer) { return func(p *peer) { p.send(m) } }
	old := hello("mac-1", "b")
	old.Hello.Protocol = wire.Version + 1
	twice := hello("mac-1", "b")
	twice.Hello.Devices = append(twice.Hello.Devices, twice.Hello.Devices...)
	for name, act := range map[string]func(p *peer){
		"not JSON":           text("hello"),
		"unknown field":      text(`{"hello":{"protocol":1,"host":"mac-1","boot":"b","devices":[],"admin":true}}`),
		"two messages":       text(`{"hello":{"protocol":1,"host":"mac-1","boot":"b","devices":[]},"heartbeat":{"seq":1}}`),
		"nothing":            text(`{}`),
		"wrong first":        send(wire.Control{Heartbeat: &wire.Heartbeat{Seq: 1}}),
		"someone else":       send(hello("mac-2", "b")),
		"no boot":            send(hello("mac-1", "")),
		"other version":      send(old),
		"device named twice": send(twice),
		"oversized":          text(`{"hello":{"host":"` + strings.Repeat("x", wire.MaxControl) + `"}}`),
		"binary":             func(p *peer) { _ = p.ws.WriteMessage(websocket.BinaryMessage, []byte("x")) },
	} {
		p := s.control(t, "127.0.0.1")
		act(p)
		if m, err := p.receive(); err == nil {
			t.Errorf("%s: got %+v, want the socket to end", name, m)
		} else if e := (net.Error)(nil); errors.As(err, &e) && e.Timeout() {
			t.Errorf("%s: the socket stays open", name)
		}
	}
	if calls := s.dir.noted(); len(calls) != 0 {
		t.Errorf("the directory heard %v", calls)
	}
	if _, err := s.dial(t, "127.0.0.3", wire.PathControl); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("unknown address: %v, want 403", err)
	}
	d := websocket.Dialer{}
	if _, answer, err := d.Dial("ws://"+s.addr+wire.PathControl, http.Header{"Origin": {"http://" + s.addr}}); err == nil || answer == nil || answer.StatusCode != 403 {
		t.Errorf("a web page: %v, want 403", err)
	}

	// Nonsense after the hello takes the host down, and nothing else.
	for name, act := range map[string]func(p *peer){
		"not JSON":                text("hello"),
		"an orchestrator's":       send(wire.Control{Release: &wire.Release{Session: "s", Term: 1}}),
		"a second hello":          send(hello("mac-1", "b")),
		"a bad device":            text(`{"device":{"name":1}}`),
		"a device out of nowhere": send(wire.Control{Device: &wire.Device{Name: "tablet", State: wire.DeviceReady}}),
	} {
		p := s.up(t, name)
		act(p)
		if _, err := p.receive(); err == nil {
			t.Errorf("%s: the socket stays open", name)
		}
		eventually(t, "the host is down", func() bool { return len(s.Hosts()) == 0 })
	}
}

func TestRefusedHost(t *testing.T) {
	s := serve(t, limit)
	s.dir.refuse = errors.New("cordoned for ever")
	p := s.control(t, "127.0.0.1")
	p.send(hello("mac-1", "b"))
	if _, err := p.receive(); err == nil || !strings.Contains(err.Error(), "cordoned") {
		t.Errorf("refused host was told %v", err)
	}
	if calls := s.dir.noted(); !slices.Equal(calls, []string{"up b"}) {
		t.Errorf("the directory heard %v", calls)
	}
}

// TestSilenceIsLoss has a host that stays connected and says nothing.
func TestSilenceIsLoss(t *testing.T) {
	s := serveFor(t, 4*time.Second, 100*time.Millisecond)
	p := s.up(t, "b")
	stop := make(chan struct{})
	var beats sync.WaitGroup
	beats.Go(func() { // the host lives until the session runs
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case <-tick.C:
				b, _ := wire.Control{Heartbeat: &wire.Heartbeat{Seq: 1}}.Encode()
				_ = p.ws.WriteMessage(websocket.TextMessage, b)
			case <-stop:
				tick.Stop()
				return
			}
		}
	})
	done := make(chan assigned, 1)
	go func() {
		v, err := s.Assign(context.Background(), driverproxy.Assignment{Host: "mac-1", Device: "phone", Session: "s1", Term: 1})
		done <- assigned{v, err}
	}()
	command, err := websocketOf(p, "s1")
	close(stop)
	beats.Wait()
	if err != nil {
		t.Fatal(err)
	}
	p.send(wire.Control{Assigned: &wire.Assigned{Session: "s1", Term: 1}})
	a := <-done
	if a.err != nil {
		t.Fatal(a.err)
	}
	_ = command // stays open: only the control socket tells
	answer, receipt, err := a.Do(t.Context(), webdriver.Command{Method: "GET", Path: "/url"})
	if !errors.Is(err, driverproxy.ErrHostLost) || receipt.Outcome != wire.OutcomeUnknown || !strings.Contains(string(answer.Body), `"outcome":"unknown"`) {
		t.Errorf("in flight: %v, outcome %d, %s", err, receipt.Outcome, answer.Body)
	}
	within(t, "the session ends", a.Done())
	if body := string(answer.Body); strings.Contains(body, "mac-1") || strings.Contains(body, "127.0.0.1") {
		t.Errorf("the client is told of our hosts and addresses: %s", body)
	}
	if !errors.Is(a.Err(), driverproxy.ErrHostLost) {
		t.Errorf("Err %v, want ErrHostLost", a.Err())
	}
	if _, receipt, err := a.Do(t.Context(), webdriver.Command{Method: "GET", Path: "/url"}); !errors.Is(err, driverproxy.ErrHostLost) || receipt.Outcome != wire.OutcomeNotRun {
		t.Errorf("afterwards: %v, outcome %d", err, receipt.Outcome)
	}
	if err := a.Release(t.Context()); !errors.Is(err, driverproxy.ErrHostLost) {
		t.Errorf("Release: %v", err)
	}
	eventually(t, "HostDown", func() bool { return slices.Contains(s.dir.noted(), "down") })
}

// websocketOf waits for the assign, past echoes of heartbeats, and dials the command socket.
func websocketOf(p *peer, id string) (*websocket.Conn, error) {
	for {
		m, err := p.receive()
		if err != nil {
			return nil, err
		}
		if m.Assign != nil {
			ws, _, err := p.command(id, 1, wire.Resume{})
			return ws, err
		}
	}
}

func TestSecondControlSocket(t *testing.T) {
	s := serve(t, limit)
	first := s.up(t, "boot 1")
	session, _ := first.session("s1")

	same := s.control(t, "127.0.0.1") // the first is alive: refused
	same.send(hello("mac-1", "boot 1"))
	if _, err := same.receive(); err == nil || !strings.Contains(err.Error(), "live control socket") {
		t.Errorf("second socket of a live agent: %v", err)
	}
	if err := session.Err(); err != nil {
		t.Errorf("its session ended: %v", err)
	}

	s.now.Add(int64(10 * time.Second)) // it has missed its heartbeats: replaced
	second := s.up(t, "boot 1")
	within(t, "the session that the host does not list any more ends", session.Done())
	if _, err := first.receive(); err == nil {
		t.Error("the first socket stays open")
	}

	third := s.up(t, "boot 2") // the agent was started anew: replaced at once
	if _, err := second.receive(); err == nil {
		t.Error("the second socket stays open")
	}
	want := []string{"up boot 1", "down", "up boot 1", "down", "up boot 2"}
	if calls := s.dir.noted(); !slices.Equal(calls, want) {
		t.Errorf("the directory heard %v, want %v", calls, want)
	}
	third.send(wire.Control{Device: &wire.Device{Name: "phone", State: wire.DeviceQuarantined}})
	eventually(t, "the device changes", func() bool { return slices.Contains(s.dir.noted(), "device phone quarantined") })
}

func TestCommandSocket(t *testing.T) {
	s := impatient(t)
	p := s.up(t, "b")
	session, ws := p.session("s1")
	if string(session.Capabilities()) != `{"a":1}` {
		t.Errorf("capabilities %s", session.Capabilities())
	}
	for _, path := range []string{"?session=s1", "?session=s1&term=2", "?session=s2&term=1"} {
		if _, err := s.dial(t, "127.0.0.1", wire.PathCommand+path); err == nil {
			t.Errorf("command socket %s was taken", path)
		}
	}
	if _, err := s.dial(t, "127.0.0.2", wire.PathCommand+"?session=s1&term=1"); err == nil {
		t.Error("another host's command socket was taken")
	}
	const n = 3
	type result struct {
		receipt driverproxy.Receipt
		answer  webdriver.Answer
		err     error
	}
	results := make([]chan result, n)
	for i := range n { // pipelined: all are sent before the first is answered
		results[i] = make(chan result, 1)
		go func() {
			a, r, err := session.Do(context.Background(), webdriver.Command{Method: "POST", Path: fmt.Sprint("/", i), Body: []byte("{}")})
			results[i] <- result{r, a, err}
		}()
		_, b, err := ws.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		c, err := wire.DecodeCommand(b)
		if err != nil || c.Seq != uint64(i+1) || c.Path != fmt.Sprint("/", i) || string(c.Body) != "{}" {
			t.Fatalf("command %+v %v", c, err)
		}
	}
	big := strings.Repeat("x", 3<<20)
	body := `{"value":"` + big + `"}`
	if err := ws.WriteMessage(websocket.BinaryMessage, wire.Answer{Seq: 1, Status: 200, Took: 7, Body: []byte(body)}.Append(nil)); err != nil {
		t.Fatal(err)
	}
	r := <-results[0]
	var v string
	if r.err != nil || r.answer.Value(&v) != nil || v != big || r.receipt.Took != 7 {
		t.Errorf("answer: %d bytes, %+v, %v", len(v), r.receipt, r.err)
	}
	// An answer out of turn breaks the socket; the host does not come back.
	if err := ws.WriteMessage(websocket.BinaryMessage, wire.Answer{Seq: 3, Status: 200}.Append(nil)); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < n; i++ {
		r := <-results[i]
		if !errors.Is(r.err, driverproxy.ErrHostLost) || r.receipt.Outcome != wire.OutcomeUnknown {
			t.Errorf("command %d: %v, outcome %d", i, r.err, r.receipt.Outcome)
		}
	}
}

// TestEndedAndItsAnswers gives the end on the control socket before the last answer on the command socket.
func TestEndedAndItsAnswers(t *testing.T) {
	s := serve(t, limit)
	p := s.up(t, "b")
	session, ws := p.session("s1")
	got := make(chan driverproxy.Receipt, 1)
	go func() {
		_, r, err := session.Do(context.Background(), webdriver.Command{Method: "GET", Path: "/url"})
		if err != nil {
			t.Errorf("Do: %v", err)
		}
		got <- r
	}()
	if _, _, err := ws.ReadMessage(); err != nil {
		t.Fatal(err)
	}
	p.send(wire.Control{Ended: &wire.Ended{Session: "s1", Term: 1, Failure: wire.Failure{Code: wire.FailureDriver, Message: "died"}}})
	p.send(wire.Control{Heartbeat: &wire.Heartbeat{Seq: 9}})
	if m, err := p.receive(); err != nil || m.Heartbeat == nil || m.Heartbeat.Seq != 9 || m.Heartbeat.Epoch != "e" { // so Ended was heard
		t.Fatalf("heartbeat: %+v %v", m, err)
	}
	_ = ws.WriteMessage(websocket.BinaryMessage, wire.Answer{Seq: 1, Status: 200, Body: []byte(`{"value":null}`)}.Append(nil))
	if r := <-got; r.Outcome != wire.OutcomeDone {
		t.Errorf("outcome %d, want done", r.Outcome)
	}
	_ = ws.Close()
	within(t, "the session ends", session.Done())
	var f *wire.Failure
	if !errors.As(session.Err(), &f) || f.Code != wire.FailureDriver {
		t.Errorf("Err %v", session.Err())
	}
	done := make(chan error, 1)
	go func() { done <- session.Release(context.Background()) }()
	if m, err := p.receive(); err != nil || m.Release == nil {
		t.Fatalf("release: %+v %v", m, err)
	}
	p.send(wire.Control{Released: &wire.Released{Session: "s1", Term: 1, Failure: &wire.Failure{Code: wire.FailureCleanup, Message: "dirty"}}})
	if err := <-done; !errors.As(err, &f) || f.Code != wire.FailureCleanup {
		t.Errorf("Release: %v, want cleanup_failed", err)
	}
}

// TestStuckHostBlocksNobody has a host that reads nothing while another one works.
func TestStuckHostBlocksNobody(t *testing.T) {
	s := serve(t, limit)
	p := s.up(t, "b")
	session, _ := p.session("s1") // its command socket is never read
	body := make([]byte, 8<<20)
	for range 4 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, r, err := session.Do(ctx, webdriver.Command{Method: "POST", Path: "/url", Body: body})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || r.Outcome == wire.OutcomeDone {
			t.Errorf("Do: %v, outcome %d", err, r.Outcome)
		}
	}
	p.send(wire.Control{Heartbeat: &wire.Heartbeat{Seq: 4}})
	if m, err := p.receive(); err != nil || m.Heartbeat == nil {
		t.Errorf("the host's control socket is stuck too: %+v %v", m, err)
	}
}

func TestRecordingSocket(t *testing.T) {
	s := impatient(t)
	p := s.up(t, "b")
	session, _ := p.session("s1")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := session.Recording(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no socket yet: %v", err)
	}
	ws, err := s.dial(t, "127.0.0.1", wire.PathRecording+"?session=s1&term=1")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := session.Recording(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	data := []byte("data")
	_ = ws.WriteMessage(websocket.BinaryMessage, wire.Chunk{CRC: wire.Checksum(data), Data: data}.Append(nil))
	if m, err := conn.Receive(t.Context()); err != nil || string(m.(*wire.Chunk).Data) != "data" {
		t.Errorf("chunk: %+v %v", m, err)
	}
	if err := conn.Ack(t.Context(), 4); err != nil {
		t.Error(err)
	}
	_, b, err := ws.ReadMessage()
	if a, derr := wire.DecodeAck(b); err != nil || derr != nil || a.Offset != 4 {
		t.Errorf("ack: %+v %v %v", a, err, derr)
	}
	// The host is lost; what has arrived is still there.
	_ = ws.WriteMessage(websocket.BinaryMessage, wire.End{Total: 4}.Append(nil))
	_ = p.ws.Close()
	within(t, "the session ends", session.Done())
	if m, err := conn.Receive(t.Context()); err != nil || m.(*wire.End).Total != 4 {
		t.Errorf("end: %+v %v", m, err)
	}
	if _, err := conn.Receive(t.Context()); err == nil {
		t.Error("a lost host's recording socket stays open")
	}
	corrupt := wire.Chunk{CRC: 1, Data: data}.Append(nil)
	p = s.up(t, "b2")
	session, _ = p.session("s2")
	if ws, err = s.dial(t, "127.0.0.1", wire.PathRecording+"?session=s2&term=1"); err != nil {
		t.Fatal(err)
	}
	_ = ws.WriteMessage(websocket.BinaryMessage, corrupt)
	damaged, err := session.Recording(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer damaged.Close()
	var bye *websocket.CloseError
	if _, _, err := ws.ReadMessage(); err == nil || errors.As(err, &bye) && bye.Code == websocket.CloseNormalClosure {
		t.Errorf("the socket that brought a corrupt chunk says goodbye, after which nobody dials again: %v", err)
	}
	if ws, err = s.dial(t, "127.0.0.1", wire.PathRecording+"?session=s2&term=1"); err != nil {
		t.Fatal(err)
	}
	_ = ws.WriteMessage(websocket.BinaryMessage, wire.Chunk{CRC: wire.Checksum(data), Data: data}.Append(nil))
	if m, err := damaged.Receive(t.Context()); err != nil || string(m.(*wire.Chunk).Data) != "data" {
		t.Errorf("sent again: %+v %v", m, err)
	}
}

func TestReceiveOfAnEndedContextClosesTheRecording(t *testing.T) {
	s := serve(t, limit)
	session, _ := s.up(t, "b").session("s1")
	ws, err := s.dial(t, "127.0.0.1", wire.PathRecording+"?session=s1&term=1&lane=3")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := session.Recording(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := conn.Receive(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Receive of an ended context: %v", err)
	}
	_ = ws.SetReadDeadline(time.Now().Add(limit))
	var late net.Error
	if _, _, err := ws.ReadMessage(); err == nil || (errors.As(err, &late) && late.Timeout()) {
		t.Errorf("the socket: %v", err)
	}
	ws, err = s.dial(t, "127.0.0.1", wire.PathRecording+"?session=s1&term=1&lane=0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ws.SetReadDeadline(time.Now().Add(limit))
	if _, _, err := ws.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		t.Errorf("a further socket is not told: %v", err)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	s := serve(t, limit)
	p := s.up(t, "b")
	session, _ := p.session("s1")
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if !errors.Is(session.Err(), driverproxy.ErrClosed) {
		t.Errorf("Err %v", session.Err())
	}
	if _, err := s.Assign(t.Context(), driverproxy.Assignment{Host: "mac-1"}); !errors.Is(err, driverproxy.ErrClosed) {
		t.Errorf("Assign: %v", err)
	}
	if _, err := s.dial(t, "127.0.0.1", wire.PathControl); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("dial: %v", err)
	}
}

// TestFailedStartSaysWhy has a host that closes the command socket long before it has cleaned up and answers.
func TestFailedStartSaysWhy(t *testing.T) {
	s := serve(t, limit)
	p := s.up(t, "b")
	done := make(chan assigned, 1)
	go func() {
		v, err := s.Assign(context.Background(), driverproxy.Assignment{Host: "mac-1", Device: "phone", Session: "s1", Term: 1})
		done <- assigned{v, err}
	}()
	if m, err := p.receive(); err != nil || m.Assign == nil {
		t.Fatalf("assign: %+v %v", m, err)
	}
	ws, err := s.dial(t, p.from, wire.PathCommand+"?term=1&session=s1")
	if err != nil {
		t.Fatal(err)
	}
	_ = ws.Close()
	select {
	case a := <-done:
		t.Fatalf("ended before the host said why: %v", a.err)
	case <-time.After(1500 * time.Millisecond): // longer than what is granted to a session that has started
	}
	p.send(wire.Control{Assigned: &wire.Assigned{Session: "s1", Term: 1, Failure: &wire.Failure{Code: wire.FailureCapabilities, Message: "no"}}})
	var f *wire.Failure
	if a := <-done; !errors.As(a.err, &f) || f.Code != wire.FailureCapabilities {
		t.Errorf("Assign: %v, want capabilities_refused", a.err)
	}
}

// TestStatusThatIsNone has a host whose answer would make an HTTP server panic.
func TestStatusThatIsNone(t *testing.T) {
	s := impatient(t)
	p := s.up(t, "b")
	for i, status := range []int{0, 600} {
		session, ws := p.session(fmt.Sprint("s", i))
		answered := make(chan webdriver.Answer, 1)
		go func() {
			a, _, _ := session.Do(context.Background(), webdriver.Command{Method: "GET", Path: "/url"})
			answered <- a
		}()
		if _, _, err := ws.ReadMessage(); err != nil {
			t.Fatal(err)
		}
		_ = ws.WriteMessage(websocket.BinaryMessage, wire.Answer{Seq: 1, Status: status}.Append(nil))
		if a := <-answered; a.Status != http.StatusInternalServerError {
			t.Errorf("status %d reaches the client as %d", status, a.Status)
		}
		_ = ws.Close()
	}
}

// TestDeviceChangesOutliveADatabaseThatIsAway: a "ready" that is lost would leave the device busy for ever.
func TestDeviceChangesOutliveADatabaseThatIsAway(t *testing.T) {
	s := serve(t, limit)
	p := s.up(t, "b")
	s.dir.mu.Lock()
	s.dir.away = 2
	s.dir.mu.Unlock()
	p.send(wire.Control{Device: &wire.Device{Name: "phone", State: wire.DeviceReady}})
	eventually(t, "the change is recorded", func() bool { return slices.Contains(s.dir.noted(), "device phone ready") })
}
