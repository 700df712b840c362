package tunnel

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/tunnel/tunneltest"
)

// oneHost is a directory of one host.
type oneHost struct{}

func (oneHost) HostByAddr(context.Context, netip.Addr) (string, error)      { return "mac", nil }
func (oneHost) HostUp(context.Context, wire.Hello) error                    { return nil }
func (oneHost) DevicesChanged(context.Context, string, []wire.Device) error { return nil }
func (oneHost) HostDown(ctx context.Context, host string, cause error)      {}

// agentRig is an agent, with one device, and the orchestrator that it reaches through a relay.
type agentRig struct {
	fleet *driverproxy.Fleet
	relay *tunneltest.Relay
	term  int64
}

func startAgent(t *testing.T) *agentRig {
	t.Helper()
	const port = 7700
	r := &registry{}
	fleet := driverproxy.NewFleet(driverproxy.Config{Orchestrator: "eu-1", Epoch: "1", Directory: oneHost{}})
	w := startWorld(t, r, worldConfig{number: 1, dir: t.TempDir(), fleet: 7701})
	l, err := w.Listen(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: w.Handler(Served{Enroller: r, Beats: r, Fleet: fleet.Handler()})}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(fleet.Close(ctx), srv.Close()); err != nil {
			t.Error(err)
		}
		serving.Wait()
	})
	relay, err := tunneltest.OpenRelay(tunneltest.RelayConfig{Target: w.info.Endpoint, Delay: ocean})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = relay.Close() })
	info := w.info
	info.Endpoint, info.FleetPort = relay.Addr(), port
	token := r.mustInvite(t, 256, "mac", info)
	w.settle(t)
	link := openTestLink(t, LinkConfig{StateDir: t.TempDir(), Token: token})
	ctx, stop := context.WithCancel(context.Background())
	var agent sync.WaitGroup
	agent.Go(func() {
		_ = host.Run(ctx, host.Config{
			Name: "mac", Agent: "test", StateDir: t.TempDir(), Orchestrators: link.Fleets, Dial: link.DialContext,
			Devices: []host.Device{{Name: "phone", Kind: host.KindFake, Model: "fake", PlatformName: "none"}},
			Fake:    func(string) *drivertest.Driver { return drivertest.NewQuiet() },
		})
	})
	t.Cleanup(func() { stop(); agent.Wait() })
	return &agentRig{fleet: fleet, relay: relay}
}

// assigned is when, from now on, the host takes a session; it is released then.
func (a *agentRig) assigned(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	for len(a.fleet.Hosts()) == 0 {
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			t.Fatalf("the host does not come back: %v", err)
		}
	}
	a.term++
	s, err := a.fleet.Assign(ctx, driverproxy.Assignment{Host: "mac", Device: "phone", Session: "s", Term: a.term, Capabilities: []byte(`{}`)})
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	if err := s.Release(ctx); err != nil {
		t.Error(err)
	}
	return took
}

// partitionAgent: an agent gives its control socket up during the partition, and is dialling when it ends.
func partitionAgent(t *testing.T, d time.Duration) {
	a := startAgent(t)
	a.assigned(t)
	within(t, "session after a partition of "+d.String(), 2*time.Second, func() time.Duration {
		if err := pause(t.Context(), time.Second); err != nil { // the pulse of the start
			t.Fatal(err)
		}
		usual := a.assigned(t)
		a.relay.Cut(true)
		if err := pause(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if len(a.fleet.Hosts()) != 0 {
			t.Fatal("the host is still connected")
		}
		a.relay.Cut(false)
		// What a busy machine adds to one session it adds to each of the four steps before: handshake, dial, pulse, hello.
		return a.assigned(t) - 4*max(usual-idleAssign, 0)
	})
}

// idleAssign is what it takes to give a connected host a session, where nothing else is to be done.
const idleAssign = 300 * time.Millisecond

func TestAgentAfterPartition(t *testing.T) {
	t.Parallel()
	partitionAgent(t, 12500*time.Millisecond)
}
