package driverproxy_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// next is the host's next message, when a heartbeat is answered after it; nil when there is none before the answer.
func (p *peer) next() *wire.Control {
	p.t.Helper()
	p.send(wire.Control{Heartbeat: &wire.Heartbeat{Seq: 1}})
	m, err := p.receive()
	if err != nil {
		p.t.Fatal(err)
	}
	if m.Heartbeat != nil {
		return nil
	}
	if after, err := p.receive(); err != nil || after.Heartbeat == nil {
		p.t.Fatalf("%+v, %v", after, err)
	}
	return &m
}

// comesBack is the same agent's next control socket; it says what it runs.
func (s *server) comesBack(t *testing.T, old *peer, sessions ...wire.Hosted) *peer {
	t.Helper()
	_ = old.ws.Close()
	eventually(t, "the host is gone", func() bool { return len(s.Hosts()) == 0 })
	p := s.control(t, "127.0.0.1")
	m := hello("mac-1", "b")
	m.Hello.Sessions = sessions
	p.send(m)
	if m, err := p.receive(); err != nil || m.Welcome == nil {
		t.Fatalf("welcome: %+v %v", m, err)
	}
	return p
}

// A session that is left is its host's to keep: neither now nor when the host comes back is it told to end it.
func TestLeave(t *testing.T) {
	s := serve(t, limit)
	p := s.up(t, "b")
	left, ws := p.session("s1")
	answered := make(chan webdriver.Answer, 1)
	go func() {
		a, _, _ := left.Do(context.Background(), webdriver.Command{Method: "GET", Path: "/title"})
		answered <- a
	}()
	if _, _, err := ws.ReadMessage(); err != nil { // it was sent
		t.Fatal(err)
	}
	left.Leave()
	within(t, "the session ends here", left.Done())
	if !errors.Is(left.Err(), driverproxy.ErrLeft) {
		t.Fatalf("ended with %v", left.Err())
	}
	if a := <-answered; !strings.Contains(string(a.Body), `"outcome":"unknown"`) || !strings.Contains(string(a.Body), "handed over") {
		t.Fatalf("the command that ran is answered with %s", a.Body)
	}
	if a, _, err := left.Do(t.Context(), webdriver.Command{Method: "GET", Path: "/title"}); err == nil || !strings.Contains(string(a.Body), `"outcome":"not_run"`) {
		t.Fatalf("a later command is answered with %s, %v", a.Body, err)
	}
	if m := p.next(); m != nil {
		t.Fatalf("the host was told %+v", m)
	}
	left.Leave() // changes nothing

	given, _ := p.session("s2")
	released := make(chan error, 1)
	go func() { released <- given.Release(context.Background()) }()
	if m, err := p.receive(); err != nil || m.Release == nil {
		t.Fatalf("%+v, %v", m, err)
	}
	p.send(wire.Control{Released: &wire.Released{Session: "s2", Term: 1}})
	if err := <-released; err != nil {
		t.Fatal(err)
	}
	p = s.comesBack(t, p, wire.Hosted{Session: "s1", Term: 1, Epoch: "e"}, wire.Hosted{Session: "s2", Term: 1, Epoch: "e"})
	m := p.next()
	if m == nil || m.Release == nil || m.Release.Session != "s2" {
		t.Fatalf("the host that came back was told %+v", m)
	}
	if m := p.next(); m != nil {
		t.Fatalf("the host that came back was told %+v", m)
	}
}

// An adoption that is given up leaves the session to the next one.
func TestAdoptionThatIsGivenUp(t *testing.T) {
	s := serve(t, limit)
	p := s.up(t, "b")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := s.Adopt(ctx, driverproxy.Assignment{Host: "mac-1", Session: "s1", Term: 2})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if m, err := p.receive(); err != nil || m.Adopt == nil || m.Adopt.Term != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	if m := p.next(); m != nil {
		t.Fatalf("the host was told %+v", m)
	}
	p = s.comesBack(t, p, wire.Hosted{Session: "s1", Term: 2, Epoch: "e"})
	if m := p.next(); m != nil {
		t.Fatalf("the host that came back was told %+v", m)
	}
}
