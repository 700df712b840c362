package driverproxy_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/socket/sockettest"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// A command socket that nobody uses is pinged from both ends before a middlebox takes it for dead, and so is a control
// socket, by heartbeats and their answers.
func TestIdleSocketsAreNotSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := sockettest.New()
		fleet := driverproxy.NewFleet(driverproxy.Config{Orchestrator: "eu-1", Epoch: "e", Directory: &directory{}})
		stop := n.Serve(fleet.Handler())
		h := dialIdle(t, n)
		for len(fleet.Hosts()) == 0 {
			<-time.After(time.Millisecond)
		}
		assigned := make(chan *driverproxy.Session, 1)
		go func() {
			s, err := fleet.Assign(context.Background(), driverproxy.Assignment{Host: "mac-1", Device: "phone", Session: "s", Term: 1})
			if err != nil {
				t.Error(err)
			}
			assigned <- s
		}()
		session := <-assigned
		<-time.After(time.Hour)
		if session != nil && session.Err() != nil {
			t.Errorf("the session has ended: %v", session.Err())
		}
		if hosts := fleet.Hosts(); !slices.Equal(hosts, []string{"mac-1"}) {
			t.Errorf("connected are %q", hosts)
		}
		links := n.Links()
		if len(links) != 2 {
			t.Errorf("%d connections", len(links))
		}
		for _, l := range links {
			if host, orchestrator := l.Longest(time.Now()); host > socket.MaxPing || orchestrator > socket.MaxPing {
				t.Errorf("%s: the host was silent for %v and the orchestrator for %v, want at most %v", l.Path(), host, orchestrator, socket.MaxPing)
			}
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

// idleHost is a host that starts what it is asked for, and is not asked for anything else.
type idleHost struct {
	t       *testing.T
	n       *sockettest.Network
	control *socket.Conn
	command *socket.Conn // set by the reader of control
	running sync.WaitGroup
	over    chan struct{}
	hush    func() // ends the heartbeats
}

func dialIdle(t *testing.T, n *sockettest.Network) *idleHost {
	t.Helper()
	h := &idleHost{t: t, n: n, over: make(chan struct{})}
	h.hush = sync.OnceFunc(func() { close(h.over) })
	h.control = h.dial(wire.PathControl, socket.Limits{MaxMessage: wire.MaxControl, Silence: time.Minute, Stuck: time.Minute})
	h.send(hello("mac-1", "boot"))
	h.running.Go(h.beat)
	h.running.Go(h.listen)
	return h
}

func (h *idleHost) dial(path string, l socket.Limits) *socket.Conn {
	c, err := new(socket.Endpoint).Dial(context.Background(), h.n.Dial, "ws://fleet"+path, l)
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

func (h *idleHost) send(m wire.Control) {
	b, err := m.Encode()
	if err == nil {
		err = h.control.WriteText(context.Background(), b)
	}
	if err != nil {
		h.t.Error(err)
	}
}

func (h *idleHost) beat() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for seq := uint64(1); ; seq++ {
		select {
		case <-tick.C:
			h.send(wire.Control{Heartbeat: &wire.Heartbeat{Seq: seq}})
		case <-h.over:
			return
		}
	}
}

func (h *idleHost) listen() {
	for {
		b, err := h.control.ReadText()
		if err != nil {
			return
		}
		m, err := wire.DecodeControl(b)
		if err != nil {
			h.t.Error(err)
			return
		}
		if m.Assign == nil {
			continue
		}
		h.command = h.dial(wire.PathCommand+"?term=1&session="+m.Assign.Session, socket.Session(wire.MaxMessage))
		if err := h.command.WriteBinary(context.Background(), wire.Resume{}.Append(nil)); err != nil {
			h.t.Error(err)
		}
		h.running.Go(func() { // answers pings, too
			for {
				if _, err := h.command.ReadBinary(); err != nil {
					return
				}
			}
		})
		h.send(wire.Control{Assigned: &wire.Assigned{Session: m.Assign.Session, Term: 1, Capabilities: []byte(`{}`)}})
	}
}

func (h *idleHost) close() {
	h.hush()
	h.control.Close()
	if h.command != nil {
		h.command.Close()
	}
	h.running.Wait()
	for _, l := range h.n.Links() {
		if !strings.HasPrefix(l.Path(), "/fleet/v1/") {
			h.t.Errorf("dialled %q", l.Path())
		}
	}
}
