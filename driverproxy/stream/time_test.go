package stream

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// pipes is a network in memory, which a clock of the tests can go with.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once

	mu   sync.Mutex
	down bool // guarded by mu: dials fail
	open []net.Conn
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return nil, errors.New("the network is down")
	}
	a, b := net.Pipe()
	select {
	case p.conns <- a:
		p.open = append(p.open, a)
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fail cuts all connections, and lets none be made.
func (p *pipes) fail() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = true
	for _, c := range p.open {
		c.Close()
	}
}

// inBubble runs f with a server whose clock is the test's.
func inBubble(t *testing.T, d *driver, f func(t *testing.T, net *pipes, s *server)) {
	synctest.Test(t, func(t *testing.T) {
		net := newPipes()
		s := &server{url: "ws://in.memory", driver: d, streams: map[Token]*Stream{}}
		h := &http.Server{Handler: s}
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = h.Serve(net) // it ends with Close
		}()
		defer func() {
			h.Close()
			net.fail()
			<-served
			s.end(Ending{Reason: "the test is over"})
			s.open.Wait()
		}()
		f(t, net, s)
	})
}

// A client that takes 64 answers and acknowledges none is told what to do, once something waits for it, and can go on then.
func TestClientThatNeverAcknowledgesIsTold(t *testing.T) {
	d := &driver{}
	inBubble(t, d, func(t *testing.T, net *pipes, s *server) {
		c := openOver(t, net, s, "")
		for id := uint64(1); id <= Window; id++ {
			c.say(t, string(encodeCommand(id, webdriver.Command{Method: "GET", Path: "/x"}, 0)))
			c.hear(t)
		}
		time.Sleep(15 * time.Second) // it may take its time while nothing waits
		begin := time.Now()
		c.say(t, string(encodeCommand(Window+1, webdriver.Command{Method: "GET", Path: "/x"}, 0)))
		c.closed(t, websocket.ClosePolicyViolation, `send {"ack": N}`)
		if took := time.Since(begin); took < ackWithin || took > ackWithin+lastWords {
			t.Errorf("it was told after %s", took)
		}
		if n := len(d.executed()); n != Window {
			t.Fatalf("%d commands ran", n)
		}
		c = openOver(t, net, s, "?answered=64&resume="+c.token)
		if got := c.hear(t); got != `{"id":65,"status":200,"value":"GET/x"}` {
			t.Fatal(got)
		}
	})
}

// A client that sends far more than the window is not read, and told as well; what was not read is not run.
func TestClientThatSendsTooMuchIsNotRead(t *testing.T) {
	d := &driver{}
	inBubble(t, d, func(t *testing.T, net *pipes, s *server) {
		c := openOver(t, net, s, "")
		var sent atomic.Int64
		over := make(chan struct{})
		go func() {
			defer close(over)
			for n := uint64(1); n <= 1000; n++ {
				if c.ws.WriteMessage(websocket.TextMessage, encodeCommand(n, webdriver.Command{Method: "GET", Path: "/x"}, 0)) != nil {
					return
				}
				sent.Add(1)
			}
		}()
		synctest.Wait() // before any time has passed: what comes after the goodbye is read, and thrown away
		if n := sent.Load(); n < maxHeld || n > maxHeld+2 {
			t.Errorf("%d commands were read", n)
		}
		c.closed(t, websocket.ClosePolicyViolation, "unacknowledged")
		c.ws.Close()
		<-over
		if n := len(d.executed()); n != Window {
			t.Errorf("%d commands ran", n)
		}
		c = openOver(t, net, s, "?resume="+c.token)
		if c.received != maxHeld {
			t.Errorf("received %d", c.received)
		}
	})
}

// One that acknowledges within the time goes on.
func TestClientThatAcknowledgesLate(t *testing.T) {
	d := &driver{}
	inBubble(t, d, func(t *testing.T, net *pipes, s *server) {
		c := openOver(t, net, s, "")
		for id := uint64(1); id <= Window; id++ {
			c.say(t, string(encodeCommand(id, webdriver.Command{Method: "GET", Path: "/x"}, 0)))
			c.hear(t)
		}
		for id := uint64(Window + 1); id < Window+5; id++ {
			c.say(t, string(encodeCommand(id, webdriver.Command{Method: "GET", Path: "/x"}, 0)))
			time.Sleep(ackWithin - time.Second)
			c.say(t, string(encodeAck(id-Window)))
			c.hear(t)
		}
	})
}

// A client that is given no connection for its patience says what it knows of each command.
func TestClientGivesUp(t *testing.T) {
	block := make(chan struct{})
	d := &driver{}
	inBubble(t, d, func(t *testing.T, net *pipes, s *server) {
		block = make(chan struct{})
		d.answer = func(number uint64, c webdriver.Command) Result {
			<-block
			return echo(number, c)
		}
		c, err := Dial(t.Context(), s.url, Options{Dial: net.dial})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		sent, err := c.Go(t.Context(), post("/sent", ""))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		net.fail()
		synctest.Wait()
		begin := time.Now()
		withdrawn, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := c.Do(withdrawn, post("/withdrawn", "")); !errors.Is(err, ErrNotSent) || !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		queued, err := c.Go(t.Context(), post("/queued", ""))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sent.Wait(t.Context()); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "the network is down") {
			t.Error(err)
		}
		if took := time.Since(begin); took < 55*time.Second || took > time.Minute {
			t.Errorf("it gave up after %s", took)
		}
		if _, err := queued.Wait(t.Context()); !errors.Is(err, ErrNotSent) {
			t.Error(err)
		}
		if _, err := c.Go(t.Context(), post("/later", "")); !errors.Is(err, ErrNotSent) {
			t.Error(err)
		}
		close(block)
	})
}

// A client that is closed does not wait for a server that says nothing.
func TestCloseIsBounded(t *testing.T) {
	for name, block := range map[string]bool{"a network that is gone": false, "a server that does not read": true} {
		d := &driver{}
		inBubble(t, d, func(t *testing.T, net *pipes, s *server) {
			over := make(chan struct{})
			d.answer = func(number uint64, c webdriver.Command) Result {
				<-over
				return echo(number, c)
			}
			c, err := Dial(t.Context(), s.url, Options{Dial: net.dial})
			if err != nil {
				t.Fatal(err)
			}
			p, err := c.Go(t.Context(), post("/x", ""))
			if err != nil {
				t.Fatal(err)
			}
			if block { // one message more than the server takes: it is on its way for good
				for range 3 {
					if _, err := c.Go(t.Context(), post("/large", `"`+strings.Repeat("x", maxWaiting)+`"`)); err != nil {
						t.Fatal(err)
					}
				}
			} else {
				synctest.Wait()
				net.fail()
			}
			synctest.Wait()
			begin := time.Now()
			c.Close()
			if took := time.Since(begin); took > closeLimit {
				t.Errorf("%s: closed after %s", name, took)
			}
			if _, err := p.Wait(t.Context()); !errors.Is(err, ErrUnknown) || !errors.Is(err, errHungUp) {
				t.Errorf("%s: %v", name, err)
			}
			c.Close() // again is harmless
			close(over)
		})
	}
}

func openOver(t *testing.T, net *pipes, s *server, query string) *raw {
	t.Helper()
	d := websocket.Dialer{NetDialContext: net.dial}
	ws, _, err := d.DialContext(t.Context(), s.url+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	return greeted(t, ws)
}
