package driverproxy_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/socket/sockettest"
)

// flap has the host's control socket break without a goodbye, and come back; boot is that of the next one.
func (s *server) flap(t *testing.T, p *peer, boot string) *peer {
	t.Helper()
	_ = p.ws.Close()
	eventually(t, "the host is gone", func() bool { return len(s.Hosts()) == 0 })
	return s.up(t, boot)
}

func (s *server) damping(t *testing.T) *driverproxy.Damping {
	t.Helper()
	links := s.Links()
	if len(links) != 1 {
		t.Fatalf("links %+v", links)
	}
	return links[0].Damping
}

// TestFlappingHostIsDamped: by the clock of Config.Now, and back by itself.
func TestFlappingHostIsDamped(t *testing.T) {
	s := serve(t, limit)
	p := s.up(t, "1")
	for _, boot := range []string{"2", "3"} {
		p = s.flap(t, p, boot)
		if s.damping(t) != nil || !slices.Equal(s.Open(), []string{"mac-1"}) {
			t.Fatalf("damped after too few losses: %+v", s.damping(t))
		}
		s.now.Add(int64(10 * time.Second))
	}
	p = s.flap(t, p, "4")
	third := s.damping(t)
	if third == nil || third.Losses != 3 || third.Left < 7*time.Minute || third.Left > 8*time.Minute {
		t.Fatalf("after three losses: %+v", third)
	}
	if open, up := s.Open(), s.Hosts(); len(open) != 0 || len(up) != 1 {
		t.Errorf("open %q, connected %q", open, up)
	}
	// Each further loss makes the back-off longer, up to a bound.
	p = s.flap(t, p, "5")
	if fourth := s.damping(t); fourth.Losses != 4 || fourth.Left < third.Left+time.Minute {
		t.Errorf("after a fourth loss: %+v, before %+v", fourth, third)
	}
	for range 30 {
		p = s.flap(t, p, "6")
	}
	most := s.damping(t)
	if most.Left > 20*time.Minute || most.Left < 19*time.Minute {
		t.Errorf("at most: %+v", most)
	}
	s.now.Add(int64(most.Left - time.Second))
	if s.damping(t) == nil || len(s.Open()) != 0 {
		t.Error("back before its time")
	}
	s.now.Add(int64(time.Second))
	if d := s.damping(t); d != nil || len(s.Open()) != 1 {
		t.Errorf("not back: %+v", d)
	}
	// One loss soon after is not forgiven as a first one is, and is none of three either.
	p = s.flap(t, p, "7")
	if s.damping(t) != nil {
		t.Error("damped for one loss after it was quiet")
	}
	s.now.Add(int64(time.Hour))
	for _, boot := range []string{"8", "9"} {
		p = s.flap(t, p, boot)
	}
	if s.damping(t) != nil {
		t.Error("losses of an hour ago count")
	}
	_ = p
}

// TestWhatIsNoFlap: goodbyes, and hosts that we cut off.
func TestWhatIsNoFlap(t *testing.T) {
	s := serve(t, limit)
	p := s.up(t, "b")
	again := func() {
		t.Helper()
		eventually(t, "the host is gone", func() bool { return len(s.Hosts()) == 0 })
		p = s.up(t, "b")
		if s.damping(t) != nil {
			t.Fatalf("damped: %+v", s.damping(t))
		}
	}
	for range 4 {
		_ = p.ws.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, "restarted"))
		again()
	}
	s.Drop("mac-1", errors.New("removed"))
	again()
	for range 2 { // a third loss would be one too many
		_ = p.ws.Close()
		again()
	}
}

// TestSilentHostIsFoundOutAfterFiveSeconds: five seconds after its last word, not before and not much later, and its sessions wait
// for it for thirty seconds from then on, as docs/operations.md says.
func TestSilentHostIsFoundOutAfterFiveSeconds(t *testing.T) {
	const resume = 30 * time.Second
	synctest.Test(t, func(t *testing.T) {
		var mute atomic.Bool
		n := sockettest.New()
		n.Slow = func(int) time.Duration {
			if mute.Load() {
				return time.Hour
			}
			return 0
		}
		dir := &directory{}
		fleet := driverproxy.NewFleet(driverproxy.Config{Orchestrator: "eu-1", Epoch: "e", Directory: dir})
		stop := n.Serve(fleet.Handler())
		h := dialIdle(t, n)
		for len(fleet.Hosts()) == 0 {
			<-time.After(time.Millisecond)
		}
		session, err := fleet.Assign(t.Context(), driverproxy.Assignment{Host: "mac-1", Device: "phone", Session: "s", Term: 1})
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(10*time.Second + 500*time.Millisecond) // between two heartbeats
		h.hush()
		mute.Store(true)   // what its sockets would say by themselves
		last := time.Now() // its last word was at most a heartbeat ago
		for len(fleet.Hosts()) > 0 {
			<-time.After(10 * time.Millisecond)
		}
		if silent := time.Since(last); silent < 4*time.Second || silent > 5*time.Second+50*time.Millisecond {
			t.Errorf("given up after %s", silent)
		}
		for dir.cause() == nil {
			<-time.After(time.Millisecond)
		}
		if !errors.Is(dir.cause(), driverproxy.ErrSilent) {
			t.Errorf("because %v", dir.cause())
		}
		lost := time.Now()
		select {
		case <-session.Done():
			t.Error("the session did not wait")
		case <-time.After(resume - 100*time.Millisecond):
		}
		<-session.Done()
		if took := time.Since(lost); !errors.Is(session.Err(), driverproxy.ErrHostLost) || took > resume+100*time.Millisecond {
			t.Errorf("the session ended after %s: %v", took, session.Err())
		}
		h.close()
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := fleet.Close(ctx); err != nil {
			t.Error(err)
		}
		stop()
	})
}
