package host_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// BenchmarkCommand is one command through Fleet and host over loopback, beside the same at the driver itself.
func BenchmarkCommand(b *testing.B) {
	b.Run("direct", func(b *testing.B) {
		server := httptest.NewServer(http.HandlerFunc(drivertest.NewQuiet().ServeHTTP))
		defer server.Close()
		for b.Loop() {
			a, err := http.Get(server.URL + "/session/none/url")
			if err != nil {
				b.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, a.Body) // so that the connection is kept
			_ = a.Body.Close()
		}
	})
	b.Run("proxied", func(b *testing.B) {
		dir := &directory{host: "mac-1"}
		fleet := driverproxy.NewFleet(driverproxy.Config{Orchestrator: "eu-1", Epoch: "e", Directory: dir})
		server := httptest.NewServer(fleet.Handler())
		defer server.Close()
		s := &stack{fleet: fleet, dir: dir, addr: server.Listener.Addr().String(), state: b.TempDir()}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		cfg := s.benchConfig()
		go func() { done <- host.Run(ctx, cfg) }()
		for len(fleet.Hosts()) == 0 {
			select {
			case err := <-done:
				b.Fatal(err)
			default:
			}
		}
		session, err := fleet.Assign(ctx, first("s1", 1))
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if a, _, err := session.Do(ctx, webdriver.Command{Method: "GET", Path: "/url"}); err != nil || a.Status != 200 {
				b.Fatal(a.Status, err)
			}
		}
		cancel()
		<-done
		if err := fleet.Close(context.Background()); err != nil {
			b.Fatal(err)
		}
	})
}
