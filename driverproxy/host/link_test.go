package host_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// TestSilentOrchestrator is found out by the host.
func TestSilentOrchestrator(t *testing.T) {
	var endpoint socket.Endpoint
	hellos := make(chan wire.Hello, 10)
	over := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := endpoint.Accept(w, r, socket.Limits{MaxMessage: wire.MaxControl, Silence: limit, Stuck: limit})
		if err != nil {
			return
		}
		defer c.Close()
		b, err := c.ReadText()
		if err != nil {
			return
		}
		m, err := wire.DecodeControl(b)
		if err != nil || m.Hello == nil {
			t.Errorf("hello: %s %v", b, err)
			return
		}
		welcome, _ := wire.Control{Welcome: &wire.Welcome{
			Protocol: wire.Version, Orchestrator: "eu-1", Epoch: "e", HeartbeatEvery: 20 * time.Millisecond, HeartbeatLimit: 200 * time.Millisecond,
		}}.Encode()
		if err := c.WriteText(context.Background(), welcome); err != nil {
			return
		}
		select {
		case hellos <- *m.Hello:
		default:
		}
		<-over
	}))
	defer server.Close()
	defer close(over)
	s := &stack{dir: &directory{}, state: t.TempDir(), addr: strings.TrimPrefix(server.URL, "http://")}
	cfg := s.config(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- host.Run(ctx, cfg) }()
	first, second := <-hellos, <-hellos
	if first.Boot == "" || first.Boot != second.Boot || first.Host != "mac-1" || len(first.Devices) != 1 || first.Devices[0].State != wire.DeviceReady {
		t.Errorf("hellos %+v and %+v", first, second)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := host.Config{
		Name: "h", StateDir: t.TempDir(), Orchestrators: host.Fixed("127.0.0.1:1"), Dial: (&net.Dialer{}).DialContext,
		Devices: []host.Device{{Name: "d", Kind: host.KindFake}},
	}
	for says, spoil := range map[string]func(*host.Config){
		"Name":            func(c *host.Config) { c.Name = "" },
		"absolute":        func(c *host.Config) { c.StateDir = "state" },
		"no orchestrator": func(c *host.Config) { c.Orchestrators = nil },
		"orchestrator to": func(c *host.Config) { c.Orchestrators = host.Fixed() },
		"Dial":            func(c *host.Config) { c.Dial = nil },
		"no device":       func(c *host.Config) { c.Devices = nil },
		"used twice":      func(c *host.Config) { c.Devices = append(c.Devices, c.Devices...) },
		"has kind":        func(c *host.Config) { c.Devices = []host.Device{{Name: "d", Kind: "netscape"}} },
		"UDID":            func(c *host.Config) { c.Devices = []host.Device{{Name: "d", Kind: host.KindSafariDriver}} },
	} {
		c := good
		spoil(&c)
		if err := host.Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
}
