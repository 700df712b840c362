package tunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/driftstack/fleet/tunnel/tunneltest"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func TestIsAnswer(t *testing.T) {
	message := func(kind byte, size int) []byte {
		b := make([]byte, size)
		b[0] = kind
		return b
	}
	for _, c := range []struct {
		b    []byte
		want bool
	}{
		{nil, false},
		{[]byte{2, 0, 0}, false},
		{message(device.MessageInitiationType, device.MessageInitiationSize), false},
		{message(device.MessageResponseType, device.MessageResponseSize), true},
		{message(device.MessageResponseType, device.MessageResponseSize-1), false},
		{message(device.MessageCookieReplyType, device.MessageCookieReplySize), true},
		{message(device.MessageTransportType, device.MessageCookieReplySize), false},
	} {
		if got := isAnswer(c.b); got != c.want {
			t.Errorf("%d bytes, %v: %v", len(c.b), c.b[:min(4, len(c.b))], got)
		}
	}
}

// answeringDevice is a dialDevice whose gateway answers each handshake and nothing after it.
type answeringDevice struct {
	*dialDevice
	answer func()
	met    bool // in this handshake, as a kernel tells
}

func (d *answeringDevice) apply(ctx context.Context, cfg wgtypes.Config) error {
	err := d.dialDevice.apply(ctx, cfg)
	if d.met {
		d.d.Peers[0].ReceiveBytes = 92
	}
	d.answer()
	return err
}

// TestSlowGatewayIsGivenTime: with each new handshake a host throws away what the one before has brought, and the gateway
// has more to do. So one that answers handshakes gets few of them, and one that answers nothing many.
func TestSlowGatewayIsGivenTime(t *testing.T) {
	for _, c := range []struct {
		name       string
		from       netip.AddrPort
		met        bool
		least, max int
	}{
		{"nothing comes back", netip.AddrPort{}, false, 80, 130},
		{"late answers, or cookies", netip.MustParseAddrPort("127.0.0.1:9"), false, 3, 12},
		{"as a kernel tells", netip.AddrPort{}, true, 3, 12},
		{"someone else answers", netip.MustParseAddrPort("127.0.0.1:10"), false, 80, 130},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, d := dialLink(t, func(ctx context.Context, _ int) error { <-ctx.Done(); return os.ErrDeadlineExceeded })
				defer l.end()
				l.dev = &answeringDevice{dialDevice: d, answer: func() { l.answered(c.from) }, met: c.met}
				time.Sleep(2 * deviceEvery) // of the bubble: a new device would be allowed
				g := l.all()[0]
				k := &keeper{l: l, g: g, log: testLog(t), pulser: newPulser(l, g), clocks: newClocks(time.Now)}
				ctx, cancel := context.WithTimeout(t.Context(), 58*time.Second)
				defer cancel()
				if c.least > 50 {
					l.opened = time.Since(l.began) // the fake has no other
				}
				k.mend(ctx, trouble{what: "test"})
				k.pulser.close()
				if n := len(d.peers) / 2; n < c.least || n > c.max {
					t.Errorf("%d handshakes in %s", n, 58*time.Second)
				}
				if n := l.Repairs(); c.max < 50 && (n.Socket > 1 || n.Device > 0) {
					t.Errorf("repairs of what works: %+v", n)
				}
			})
		})
	}
}

// TestBusyGatewayHealsItsHosts: a gateway restarts, its hosts have to be let in again, and what they send passes slowly.
// Were every host to try again as soon as it gets no answer, what waits would grow for ever, and no answer come in time.
func TestBusyGatewayHealsItsHosts(t *testing.T) {
	t.Parallel()
	const hosts, rate = 12, 18
	x := openRelayed(t, tunneltest.RelayConfig{}, LinkConfig{})
	links := []*Link{x.link}
	for i := 1; i < hosts; i++ {
		token := x.r.mustInvite(t, 256+i, "mac-"+strconv.Itoa(i), x.info)
		x.settle(t)
		links = append(links, openTestLink(t, LinkConfig{StateDir: t.TempDir(), Token: token}))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	for _, l := range links {
		if err := l.await(ctx, l.all()[0].ready, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	x.restart(t)
	x.relay.SetRate(rate)
	began := time.Now()
	for _, l := range links { // as when a dial gets no answer
		g := l.all()[0]
		for g.quiet() < silenceLimit {
			if err := pause(ctx, silenceLimit-g.quiet()); err != nil {
				t.Fatal(err)
			}
		}
		g.setMending(true)
		g.nudge()
	}
	var all sync.WaitGroup
	for i, l := range links {
		all.Go(func() {
			if err := l.await(ctx, l.all()[0].healing(), 80*time.Second); err != nil || !l.all()[0].heardSince(began.Sub(l.began)) {
				t.Errorf("host %d is not heard, after %s: %+v, %v", i, time.Since(began), l.Repairs(), err)
			}
		})
	}
	all.Wait()
	t.Logf("MEASURED %d hosts were heard again after %s, at %d datagrams a second", hosts, time.Since(began).Round(time.Millisecond), rate)
	for i, l := range links {
		// A minute without anything heard costs a device, and no more than one.
		if n := l.Repairs(); n.Handshake+n.Socket+n.Resolve > 60 || n.Device > 1 {
			t.Errorf("host %d: repairs %+v", i, n)
		}
	}
}

// TestSmallBind: what a join tunnel sends through is a bind like the other.
func TestSmallBind(t *testing.T) {
	a, b := &smallBind{}, &smallBind{}
	received := make(chan string, 1)
	fns, port, err := a.Open(0)
	if err != nil || port == 0 {
		t.Fatal(port, err)
	}
	if _, _, err := a.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
		t.Errorf("opened twice: %v", err)
	}
	if _, _, err := b.Open(0); err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for _, receive := range fns {
		readers.Go(func() {
			packet, sizes, eps := [][]byte{make([]byte, 100)}, make([]int, 1), make([]conn.Endpoint, 1)
			for {
				n, err := receive(packet, sizes, eps)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil || n != 1 || !eps[0].DstIP().IsLoopback() {
					t.Errorf("%d, %v, from %v", n, err, eps[0])
					return
				}
				received <- string(packet[0][:sizes[0]])
			}
		})
	}
	to, err := b.ParseEndpoint(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Send([][]byte{[]byte("one"), []byte("two")}, to); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "two"} {
		if got := <-received; got != want {
			t.Errorf("%q instead of %q", got, want)
		}
	}
	if err := errors.Join(a.Close(), b.Close(), b.Close()); err != nil {
		t.Error(err)
	}
	readers.Wait()
	if err := b.Send([][]byte{[]byte("late")}, to); err == nil {
		t.Error("a closed one sends")
	}
	if _, err := b.ParseEndpoint("nowhere"); err == nil {
		t.Error("an endpoint without a port")
	}
}
