package driverproxy_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

func (p *peer) beat(seq uint64, round time.Duration) {
	p.t.Helper()
	p.send(wire.Control{Heartbeat: &wire.Heartbeat{Seq: seq, RoundTrip: round}})
	if m, err := p.receive(); err != nil || m.Heartbeat == nil || m.Heartbeat.Seq != seq || m.Heartbeat.RoundTrip != 0 {
		p.t.Fatalf("heartbeat: %+v %v", m, err)
	}
}

func TestLinksTellWhatHostsMeasured(t *testing.T) {
	s := serve(t, limit)
	start := time.Unix(0, s.now.Load())
	if links := s.Links(); len(links) != 0 {
		t.Errorf("nobody is connected: %+v", links)
	}
	p := s.up(t, "b")
	want := driverproxy.LinkHealth{Host: "mac-1", Since: start, Heard: start}
	check := func(what string) {
		t.Helper()
		if links := s.Links(); len(links) != 1 || links[0] != want {
			t.Errorf("%s: %+v, want %+v", what, links, want)
		}
	}
	check("after the hello")
	s.now.Add(int64(2 * time.Second))
	p.beat(1, 42*time.Millisecond)
	want.Heard, want.RoundTrip = start.Add(2*time.Second), 42*time.Millisecond
	check("after a heartbeat")
	s.now.Add(int64(2500 * time.Millisecond))
	check("one heartbeat is missing")
	s.now.Add(1)
	want.Late = true
	check("two are")
	p.beat(2, -time.Hour)
	want.Heard, want.RoundTrip, want.Late = time.Unix(0, s.now.Load()), 0, false
	check("heard again, with a round trip that cannot be")
}

// TestDropCutsAtOnce has all the sockets of a host open, and one that nobody has asked for yet.
func TestDropCutsAtOnce(t *testing.T) {
	s := serve(t, limit)
	p := s.up(t, "b")
	session, command := p.session("s1")
	rec, err := s.dial(t, "127.0.0.1", wire.PathRecording+"?term=1&session=s1")
	if err != nil {
		t.Fatal(err)
	}
	taken, err := session.Recording(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	asked := make(chan error, 1)
	go func() {
		_, _, err := session.Do(context.Background(), webdriver.Command{Method: "GET", Path: "/url"})
		asked <- err
	}()
	if _, _, err := command.ReadMessage(); err != nil {
		t.Fatal(err)
	}

	if s.Drop("mac-2", errors.New("wrong one")) {
		t.Error("a host that is not connected was dropped")
	}
	revoked := errors.New("it was removed")
	if !s.Drop("mac-1", revoked) {
		t.Fatal("the host is not known")
	}
	select { // without waiting: that is what Drop promises
	case <-session.Done():
	default:
		t.Error("the session goes on")
	}
	if err := session.Err(); !errors.Is(err, driverproxy.ErrHostLost) || !errors.Is(err, revoked) {
		t.Errorf("Err %v, want ErrHostLost with its cause", err)
	}
	_ = rec.WriteMessage(websocket.BinaryMessage, wire.Chunk{CRC: wire.Checksum([]byte("late")), Data: []byte("late")}.Append(nil))
	if m, err := taken.Receive(t.Context()); err == nil {
		t.Errorf("recorded after the drop: %+v", m)
	}
	if err := <-asked; !errors.Is(err, driverproxy.ErrHostLost) {
		t.Errorf("the command in flight: %v", err)
	}
	for what, ws := range map[string]*websocket.Conn{"control": p.ws, "command": command, "recording": rec} {
		_ = ws.SetReadDeadline(time.Now().Add(limit))
		for {
			_, _, err := ws.ReadMessage()
			if err == nil {
				continue
			}
			if e := interface{ Timeout() bool }(nil); errors.As(err, &e) && e.Timeout() {
				t.Errorf("the %s socket stays open", what)
			}
			break
		}
	}
	if _, err := s.Assign(t.Context(), driverproxy.Assignment{Host: "mac-1", Device: "phone", Session: "s2", Term: 1}); !errors.Is(err, driverproxy.ErrHostLost) {
		t.Errorf("assign after the drop: %v", err)
	}
	eventually(t, "HostDown", func() bool { return strings.HasPrefix(s.dir.last(), "down") })
	if !errors.Is(s.dir.cause(), revoked) {
		t.Errorf("the directory hears %v", s.dir.cause())
	}
	s.up(t, "b2") // keeping it away is the directory's business
}

func TestGoodbyeIsNotSilence(t *testing.T) {
	s := serve(t, 4*time.Second)
	p := s.up(t, "b")
	_ = p.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, "going home"), time.Now().Add(limit))
	eventually(t, "HostDown", func() bool { return s.dir.cause() != nil })
	if err := s.dir.cause(); !errors.Is(err, driverproxy.ErrGoodbye) || fmt.Sprint(err) != "it said goodbye: going home" {
		t.Errorf("goodbye: %v", err)
	}
	s.dir.forget()
	s.up(t, "b2")
	eventually(t, "HostDown", func() bool { return s.dir.cause() != nil })
	if err := s.dir.cause(); !errors.Is(err, driverproxy.ErrSilent) || fmt.Sprint(err) != "nothing is heard of it for 4s" {
		t.Errorf("silence: %v", err)
	}
	s.dir.forget()
	p = s.up(t, "b3")
	_ = p.ws.Close()
	eventually(t, "HostDown", func() bool { return s.dir.cause() != nil })
	if err := s.dir.cause(); errors.Is(err, driverproxy.ErrGoodbye) || errors.Is(err, driverproxy.ErrSilent) {
		t.Errorf("a cut: %v", err)
	}
}

// TestALossIsOneHosts: what ends or cuts off the sessions of one host leaves another's alone.
func TestALossIsOneHosts(t *testing.T) {
	for what, lose := range map[string]func(*server, *peer){
		"a goodbye": func(_ *server, p *peer) {
			_ = p.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, "going home"), time.Now().Add(limit))
		},
		"cut off":     func(s *server, p *peer) { s.Drop(p.name, errors.New("revoked")) },
		"begins anew": func(s *server, p *peer) { s.hostUp(p.t, 1, "b2") },
		"is not back": func(_ *server, p *peer) { _ = p.ws.Close() },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := impatient(t)
			lost := s.hostUp(t, 1, "b")
			gone, _ := lost.session("s1")
			other := s.hostUp(t, 2, "b")
			stays, ws := other.session("s2")
			lose(s, lost)
			within(t, "the lost host's session ends", gone.Done())
			if !errors.Is(gone.Err(), driverproxy.ErrHostLost) {
				t.Errorf("it ended with %v", gone.Err())
			}
			go func() { _, _, _ = stays.Do(t.Context(), webdriver.Command{Method: "GET", Path: "/url"}) }()
			_ = ws.SetReadDeadline(time.Now().Add(limit))
			if _, _, err := ws.ReadMessage(); err != nil || stays.Err() != nil {
				t.Errorf("the other's: a command: %v; ended: %v", err, stays.Err())
			}
		})
	}
}
