package tunnel

import (
	"bufio"
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/tunnel/tunneltest"
)

// ocean is one way between a Mac in the US and a gateway in the EU.
const ocean = 65 * time.Millisecond

// TestRestartWithIdleHost: bare WireGuard comes back after 119.7 s.
func TestRestartWithIdleHost(t *testing.T) {
	x := openRelayed(t, tunneltest.RelayConfig{Delay: ocean}, LinkConfig{})
	h := startHeartbeats(t, x)
	within(t, "gateway restart", 3*time.Second, func() time.Duration {
		h.next(t)
		before := h.next(t)
		x.restart(t)
		return h.heal(t, before)
	})
	if n := x.link.Repairs(); n.Handshake == 0 || n.Device > 0 {
		t.Errorf("repairs %+v", n)
	}
}

func partition(t *testing.T, d time.Duration) {
	x := openRelayed(t, tunneltest.RelayConfig{Delay: ocean}, LinkConfig{})
	h := startHeartbeats(t, x)
	within(t, "partition of "+d.String(), 2*time.Second, func() time.Duration {
		before := h.next(t)
		x.relay.Cut(true)
		if err := pause(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		x.relay.Cut(false)
		return h.heal(t, before)
	})
}

// TestPartition: bare, a message written during one of 30 s arrives 51 s later. TestSoakPartition waits that long.
func TestPartition(t *testing.T) {
	t.Parallel()
	partition(t, deadAfter+time.Second)
}

// TestRebind: a NAT that forgets the host costs no connection.
func TestRebind(t *testing.T) {
	t.Parallel()
	x := openRelayed(t, tunneltest.RelayConfig{Delay: ocean}, LinkConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := x.link.DialContext(ctx, "tcp", x.info.Fleet())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	in := bufio.NewReader(c)
	for i := range 3 {
		if err := exchange(c, in, strconv.Itoa(i)); err != nil {
			t.Fatalf("exchange %d on the same connection: %v", i, err)
		}
		if err := x.relay.Rebind(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSmallPath: full-size packets vanish, on a path that carries the low MTU.
func TestSmallPath(t *testing.T) {
	t.Parallel()
	x := openRelayed(t, tunneltest.RelayConfig{MaxSize: tunneltest.PathFor(lowMTU)}, LinkConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for err := echo(ctx, x.link, x.info, 64<<10); err != nil; err = echo(ctx, x.link, x.info, 64<<10) { // a repair ends connections, as for a host
		if pause(ctx, 100*time.Millisecond) != nil {
			t.Fatal(err)
		}
	}
	if mtu := x.link.MTU(); mtu != lowMTU {
		t.Errorf("MTU %d", mtu)
	}
	if x.relay.Stats().TooLarge == 0 {
		t.Error("the path was never too small")
	}
	wantText(t, errors.New(x.link.reason(x.link.all()[0])), "1200 is used")
}

// TestPathWidens: the low MTU is not for good, and a path that has stayed small is found out again.
func TestPathWidens(t *testing.T) {
	t.Parallel()
	x := openRelayed(t, tunneltest.RelayConfig{MaxSize: tunneltest.PathFor(lowMTU)}, LinkConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	later := func(size int) {
		t.Helper()
		x.relay.SetMaxSize(size)
		x.link.mu.Lock()
		x.link.sizedAt -= raiseEvery
		x.link.mu.Unlock()
		x.restart(t) // so that the path is measured now
	}
	await := func(what string, is func() bool) {
		t.Helper()
		for !is() {
			if err := pause(ctx, 20*time.Millisecond); err != nil {
				t.Fatalf("%s: MTU %d: %v", what, x.link.MTU(), err)
			}
		}
	}
	low := func() bool { return x.link.MTU() == lowMTU }
	await("small", low)
	startHeartbeats(t, x)
	later(tunneltest.PathFor(lowMTU))
	await("tried again", func() bool { return x.link.sizes().raisedAt > 0 })
	await("still small", low)
	later(0)
	await("wide", func() bool { return !low() && x.link.reason(x.link.all()[0]) == "" })
}

// TestUselessPath: not even the low MTU passes. That is an error with a name, soon, and over once the path is wider.
func TestUselessPath(t *testing.T) {
	t.Parallel()
	x := openRelayed(t, tunneltest.RelayConfig{MaxSize: tunneltest.PathFor(lowMTU) - 100}, LinkConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := x.link.await(ctx, x.link.all()[0].ready, time.Minute); err != nil {
		t.Fatal(err)
	}
	for { // on a busy machine the path is measured again
		err := echo(ctx, x.link, x.info, 64<<10)
		if errors.Is(err, ErrPathMTU) {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("never of no use: %v", err)
		}
	}
	began := time.Now()
	if _, err := x.link.DialContext(ctx, "tcp", x.info.Fleet()); !errors.Is(err, ErrPathMTU) || time.Since(began) > time.Second {
		t.Errorf("the next dial, after %s: %v", time.Since(began), err)
	}
	x.relay.SetMaxSize(0)
	for {
		if err := echo(ctx, x.link, x.info, 64<<10); err == nil {
			break
		} else if !errors.Is(err, ErrPathMTU) {
			t.Fatal(err)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPathShrinks while a connection is in use: its owner sees it close, and the next one works.
func TestPathShrinks(t *testing.T) {
	t.Parallel()
	x := openRelayed(t, tunneltest.RelayConfig{}, LinkConfig{})
	h := startHeartbeats(t, x)
	before := h.next(t)
	x.relay.SetMaxSize(tunneltest.PathFor(lowMTU))
	x.restart(t) // after a heal the path is measured again, as it is every 30 s
	for h.next(t) == before || x.link.MTU() != lowMTU {
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := echo(ctx, x.link, x.info, 64<<10); err != nil {
		t.Fatal(err)
	}
}

// TestDeviceLost: a device that ends is replaced, and the reason is that of whoever asks.
func TestDeviceLost(t *testing.T) {
	x := openRelayed(t, tunneltest.RelayConfig{}, LinkConfig{})
	h := startHeartbeats(t, x)
	tries := 0
	within(t, "lost device", 3*time.Second, func() time.Duration {
		before := h.next(t)
		if err := x.link.held().dev.close(); err != nil {
			t.Fatal(err)
		}
		tries++
		return h.heal(t, before)
	})
	if x.link.held().gen != tries {
		t.Errorf("%d new devices", x.link.held().gen)
	}
}

// TestGatewaysFollowBeats: one is added and dialled, stored, and the other dropped; nonsense and an empty list are not followed.
func TestGatewaysFollowBeats(t *testing.T) {
	t.Parallel()
	x := openRelayed(t, tunneltest.RelayConfig{}, LinkConfig{})
	second := startWorld(t, x.r, worldConfig{number: 2, dir: t.TempDir()})
	second.settle(t)
	wired := func(g GatewayInfo) wire.Gateway {
		return wire.Gateway{Endpoint: g.Endpoint, PublicKey: g.PublicKey.String(), Address: g.Addr.String(), FleetPort: g.FleetPort}
	}
	says := func(gs ...wire.Gateway) wire.Beat { return wire.Beat{Gateways: gs} }
	from := x.link.all()[0]
	addrs, changed := x.link.Fleets()
	if len(addrs) != 1 {
		t.Fatalf("%v", addrs)
	}
	bad := wired(second.info)
	bad.Address = "192.0.2.1"
	for _, b := range []wire.Beat{says(), says(bad), says(wired(x.info), wired(x.info)), says(wire.Gateway{})} {
		x.link.heed(t.Context(), from, b)
		if gs := x.link.Gateways(); len(gs) != 1 || gs[0] != x.info {
			t.Fatalf("%+v is followed: %v", b, gs)
		}
	}
	x.link.heed(t.Context(), from, says(wired(x.info), wired(second.info)))
	<-changed
	checkWhoami(t, x.link, second.info)
	s, err := loadState(x.link.cfg.StateDir)
	if err != nil || len(s.Gateways) != 2 {
		t.Fatalf("stored: %v, %v", s, err)
	}
	x.link.heed(t.Context(), from, says(wired(second.info)))
	if addrs, _ := x.link.Fleets(); len(addrs) != 1 || addrs[0] != second.info.Fleet() {
		t.Errorf("%v", addrs)
	}
	if _, err := x.link.DialContext(t.Context(), "tcp", x.info.Fleet()); !errors.Is(err, ErrNotGateway) {
		t.Errorf("a gateway that was dropped: %v", err)
	}
	checkWhoami(t, x.link, second.info)
}
