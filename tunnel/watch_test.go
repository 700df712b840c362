package tunnel

import (
	"context"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/tunnel/tunneltest"
)

// TestDeviceLostBesideDeadGateway: a device is replaced once, whatever becomes of the other gateway meanwhile.
func TestDeviceLostBesideDeadGateway(t *testing.T) {
	t.Parallel()
	x := openRelayed(t, tunneltest.RelayConfig{}, LinkConfig{})
	h := startHeartbeats(t, x)
	before := h.next(t)
	gone := wire.Gateway{Endpoint: "gone.invalid:1", PublicKey: Key{1}.String(), Address: addr(ownRange, 2).String(), FleetPort: 1}
	live := wire.Gateway{Endpoint: x.info.Endpoint, PublicKey: x.info.PublicKey.String(), Address: x.info.Addr.String(), FleetPort: x.info.FleetPort}
	x.r.says(func(b *wire.Beat) { b.Gateways = []wire.Gateway{live, gone} })
	x.link.heed(t.Context(), x.link.all()[0], wire.Beat{Gateways: []wire.Gateway{live, gone}})
	if err := x.link.held().dev.close(); err != nil {
		t.Fatal(err)
	}
	h.heal(t, before)
	for range 3 {
		h.next(t)
	}
	if x.link.held().gen != 1 || x.link.Repairs().Device != 1 {
		t.Errorf("%d new devices, repairs %+v", x.link.held().gen, x.link.Repairs())
	}
	// Another keeper had trouble with the first device, and comes late.
	late := &keeper{l: x.link, g: x.link.all()[1], log: testLog(t)}
	if r, err := late.repair(t.Context(), 0, trouble{lost: ErrDeviceGone}, true); r != rungDevice || err != nil || x.link.held().gen != 1 {
		t.Errorf("%s, %v, %d new devices", r, err, x.link.held().gen)
	}
}

// stuckBeats answers no pulse while it is stuck.
type stuckBeats struct {
	*registry
	stuck atomic.Bool
	asked chan struct{} // of a pulse that is not answered
}

func (b *stuckBeats) Beat(ctx context.Context, a netip.Addr) (wire.Beat, error) {
	if b.stuck.Load() {
		b.asked <- struct{}{}
		<-ctx.Done()
		return wire.Beat{}, ctx.Err()
	}
	return b.registry.Beat(ctx, a)
}

// TestBusyGateway: nothing is repaired, and no connection is lost, for want of answers to pulses while others are read.
func TestBusyGateway(t *testing.T) {
	r := &registry{}
	beats := &stuckBeats{registry: r, asked: make(chan struct{}, 100)}
	w := startWorld(t, r, worldConfig{number: 1, dir: t.TempDir(), beats: beats})
	token := r.mustInvite(t, 256, "mac", w.info)
	w.settle(t)
	x := &relayed{world: w, r: r, link: openTestLink(t, LinkConfig{StateDir: t.TempDir(), Token: token})}
	h := startHeartbeatsEvery(t, x, 100*time.Millisecond)
	before := h.next(t)
	beats.stuck.Store(true)
	x.link.all()[0].nudge()
	<-beats.asked
	for range 40 {
		if now := h.next(t); now != before {
			t.Fatal("the connection was closed")
		}
	}
	<-beats.asked // again, soon
	if n := x.link.Repairs(); n != (wire.Repairs{}) {
		t.Errorf("repairs %+v", n)
	}
}

// TestOtherKeyIsTriedSeldom: a next key is announced for days, and must not slow repairs down meanwhile.
func TestOtherKeyIsTriedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, d := dialLink(t, func(context.Context, int) error { return os.ErrDeadlineExceeded })
		defer l.end()
		g := l.all()[0]
		own, next := g.info.PublicKey, Key{2}
		g.info.NextPublicKey = next
		k := &keeper{l: l, g: g, log: testLog(t), pulser: newPulser(l, g), clocks: newClocks(time.Now)}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		k.mend(ctx, trouble{what: "test"})
		tries := map[Key]int{}
		for _, p := range d.peers {
			if !p.Remove {
				tries[Key(p.PublicKey)]++
			}
		}
		if n := tries[next]; n < 3 || tries[own] < 2*n {
			t.Errorf("tries with the key %d, with the next %d", tries[own], n)
		}
	})
}

// TestSleepStartsWithSocket: that another gateway was heard before this machine slept says nothing.
func TestSleepStartsWithSocket(t *testing.T) {
	l, d := dialLink(t, nil)
	defer l.end()
	l.began = l.began.Add(-time.Hour)
	other := l.newGateway(GatewayInfo{Addr: addr(ownRange, 2)})
	l.gateways = append(l.gateways, other)
	other.heard.Store(int64(other.since()))
	k := &keeper{l: l, g: l.gateways[0], log: testLog(t)}
	for _, c := range []struct {
		what    string
		first   bool
		want    rung
		sockets int
	}{
		{"after sleep", true, rungSocket, 1},
		{"when another keeper has just done so", true, rungHandshake, 1},
		{"later", false, rungResolve, 1},
	} {
		r, err := k.repair(t.Context(), rungHandshake, trouble{below: rungHandshake, since: time.Since(l.began)}, c.first)
		if r != c.want || err != nil || d.ports != c.sockets {
			t.Errorf("%s: %s, %v, %d new sockets", c.what, r, err, d.ports)
		}
	}
}

// TestStartWithoutNames: a host that has joined starts before its network does, and goes on trying.
func TestStartWithoutNames(t *testing.T) {
	r := &registry{}
	w := startWorld(t, r, worldConfig{number: 1, dir: t.TempDir()})
	dir, token := t.TempDir(), r.mustInvite(t, 256, "mac", w.info)
	w.settle(t)
	l := openTestLink(t, LinkConfig{StateDir: dir, Token: token})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.update(func(s *state) { s.Gateways = []GatewayInfo{w.info}; s.Gateways[0].Endpoint = "gone.invalid:1" }); err != nil {
		t.Fatal(err)
	}
	l = openTestLink(t, LinkConfig{StateDir: dir})
	g := l.all()[0]
	g.mu.Lock()
	g.info.Endpoint = w.info.Endpoint // the name resolves now
	g.mu.Unlock()
	checkWhoami(t, l, w.info)
}
