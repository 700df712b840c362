package host_test

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/socket/sockettest"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// A host is never silent for longer than middleboxes allow, however seldom its orchestrator wants heartbeats.
func TestControlSocketIsNotSilent(t *testing.T) {
	if runtime.GOOS == "darwin" {
		t.Skip("a safaridriver would be started")
	}
	state := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		n := sockettest.New()
		dir := &directory{host: "mac-1", devices: map[string]wire.Device{}}
		fleet := driverproxy.NewFleet(driverproxy.Config{
			Orchestrator: "eu-1", Epoch: "e1", Directory: dir, HeartbeatEvery: time.Hour, HeartbeatLimit: 2 * time.Hour,
		})
		stop := n.Serve(fleet.Handler())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		cfg := (&stack{addr: "fleet:80", state: state}).benchConfig()
		cfg.Dial = n.Dial
		// A driver would listen on a socket of the system's, for which the bubble's clock waits. None of this kind runs here.
		cfg.Devices[0].Kind, cfg.Devices[0].UDID = host.KindSafariDriver, "x"
		go func() { done <- host.Run(ctx, cfg) }()
		<-time.After(time.Hour)
		links := n.Links()
		if len(links) != 1 || len(fleet.Hosts()) != 1 {
			t.Errorf("%d connections of %q", len(links), fleet.Hosts())
		}
		for _, l := range links {
			if agent, orchestrator := l.Longest(time.Now()); agent > socket.MaxPing || orchestrator > socket.MaxPing {
				t.Errorf("the host was silent for %v and the orchestrator for %v, want at most %v", agent, orchestrator, socket.MaxPing)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		closing, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := fleet.Close(closing); err != nil {
			t.Error(err)
		}
		stop()
	})
}
