package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/tunnel/tunneltest"
)

// relayed is a gateway, a relay in front of it and a host that has joined through the relay.
type relayed struct {
	*world
	relay *tunneltest.Relay
	r     *registry
	c     worldConfig
	link  *Link
}

// gatewayName is the endpoint's where a test looks names up.
const gatewayName = "gateway.test"

func openRelayed(t testing.TB, rc tunneltest.RelayConfig, lc LinkConfig) *relayed {
	t.Helper()
	x := &relayed{r: &registry{}, c: worldConfig{number: 1, dir: t.TempDir()}}
	x.world = startWorld(t, x.r, x.c)
	x.c.fleet = int(x.info.FleetPort)
	rc.Target = x.info.Endpoint
	relay, err := tunneltest.OpenRelay(rc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := relay.Close(); err != nil {
			t.Error(err)
		}
	})
	x.relay = relay
	x.info.Endpoint = relay.Addr()
	if lc.Lookup != nil {
		_, port, _ := net.SplitHostPort(relay.Addr())
		x.info.Endpoint = net.JoinHostPort(gatewayName, port)
	}
	lc.StateDir, lc.Token = t.TempDir(), x.r.mustInvite(t, 256, "mac", x.info)
	x.settle(t)
	x.link = openTestLink(t, lc)
	return x
}

// restart is a gateway that dies without a word and is started anew, at another UDP port, in another epoch.
func (x *relayed) restart(t testing.TB) {
	t.Helper()
	info := x.info
	x.relay.Cut(true)
	defer x.relay.Cut(false)
	x.mustStop(t)
	x.r.says(func(b *wire.Beat) { b.Epoch += "again" })
	x.world = startWorld(t, x.r, x.c)
	if err := x.relay.SetTarget(x.info.Endpoint); err != nil {
		t.Fatal(err)
	}
	x.info = info
}

// heartbeats is a control socket as the watch sees it: a connection on which something comes every so often. It dials
// anew when it breaks, as the agent does, and says so on redialled.
type heartbeats struct {
	answers chan string // one a heartbeat: the connection's local address
	every   time.Duration
	stop    func()
}

const beatEvery = time.Second // as on control sockets

func startHeartbeats(t testing.TB, x *relayed) *heartbeats {
	t.Helper()
	return startHeartbeatsEvery(t, x, beatEvery)
}

func startHeartbeatsEvery(t testing.TB, x *relayed, every time.Duration) *heartbeats {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	h := &heartbeats{answers: make(chan string), every: every}
	done := make(chan struct{})
	link, fleet := x.link, x.info.Fleet() // a restart writes x
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			h.hold(ctx, link, fleet)
		}
	}()
	h.stop = func() { cancel(); <-done }
	t.Cleanup(h.stop)
	return h
}

// hold speaks on one connection until it breaks.
func (h *heartbeats) hold(ctx context.Context, link *Link, fleet string) {
	c, err := link.DialContext(ctx, "tcp", fleet)
	if err != nil {
		_ = pause(ctx, 10*time.Millisecond)
		return
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	defer c.Close()
	in := bufio.NewReader(c)
	for {
		if err := exchange(c, in, "beat"); err != nil {
			return
		}
		select {
		case h.answers <- c.LocalAddr().String():
		case <-ctx.Done():
			return
		}
		if pause(ctx, h.every) != nil {
			return
		}
	}
}

// exchange echoes a short text on an open connection.
func exchange(c net.Conn, in *bufio.Reader, text string) error {
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", wire.PathControl, len(text), text); err != nil {
		return err
	}
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(resp.Body)
	if err == nil && string(b) != text {
		err = errors.New("the echo differs")
	}
	return err
}

// next is the connection that the next heartbeat came on.
func (h *heartbeats) next(t testing.TB) string {
	t.Helper()
	select {
	case a := <-h.answers:
		return a
	case <-time.After(30 * time.Second):
		t.Fatal("no heartbeat")
		return ""
	}
}

// heal is when, from now on, a heartbeat comes on another connection than before.
func (h *heartbeats) heal(t testing.TB, before string) time.Duration {
	t.Helper()
	began := time.Now()
	for h.next(t) == before {
		if time.Since(began) > 30*time.Second {
			t.Fatal("the connection of before was not replaced")
		}
	}
	return time.Since(began)
}

// within wants one of three attempts to take no longer than the limit: a machine that is busy with something else may
// spoil one.
func within(t testing.TB, what string, limit time.Duration, attempt func() time.Duration) {
	t.Helper()
	for n := 1; ; n++ {
		took := attempt()
		t.Logf("%s: the next answer came after %s", what, took.Round(time.Millisecond))
		if took <= limit {
			return
		}
		if n == 3 {
			t.Errorf("%s: the next answer took %s, not under %s", what, took, limit)
			return
		}
	}
}
