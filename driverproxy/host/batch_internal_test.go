package host

import (
	"context"
	"net"
	"testing"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// A step that no driver has seen says so: it may be sent again.
func TestBatchWithoutADriver(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	for name, ctx := range map[string]context.Context{"nobody listens": t.Context(), "the session has ended": ended} {
		s := &session{standby: &standby{driver: newDriver(addr, SlowStart)}, closing: newClosing(), broken: make(chan *wire.Failure, 1)}
		a := s.runBatch(ctx, wire.Command{Seq: 7, Body: []byte(`{"steps":[{"method":"GET","path":"/url"},{"method":"GET","path":"/title"}],"stop_on_error":false}`)})
		var r batch.Response
		if err := (webdriver.Answer{Status: a.Status, Body: a.Body}).Value(&r); err != nil || a.Seq != 7 || a.Status != 200 || len(r.Results) != 2 {
			t.Fatalf("%s: %d %s, %v", name, a.Status, a.Body, err)
		}
		for i, v := range r.Results {
			if v.Outcome != batch.NotRun || v.Status != 0 || v.Reason == "" {
				t.Errorf("%s: steps[%d] is %+v", name, i, v)
			}
		}
		s.driver.close()
	}
}
