package tunnel

import (
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// A gateway that answers handshakes is there, even when the answer comes too late for the handshake, or is a cookie: what
// WireGuard sends under load, for the next handshake to bring along. A host that made one handshake after the other would
// throw each answer and each cookie away, and with many such hosts a gateway that was busy for a moment is so for good.

// watchedBind tells where answers to handshakes come from, and counts handshakes.
type watchedBind struct {
	conn.Bind
	tell  func(from netip.AddrPort) // may be nil
	count handshakes
}

// Open implements conn.Bind.
func (b *watchedBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, actual, err := b.Bind.Open(port)
	for i, receive := range fns {
		fns[i] = func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			n, err := receive(packets, sizes, eps)
			for j := range n {
				packet := packets[j][:sizes[j]]
				if isHandshake(packet) {
					b.count.add(time.Now())
				}
				if b.tell == nil || !isAnswer(packet) {
					continue
				}
				if from, err := netip.ParseAddrPort(eps[j].DstToString()); err == nil {
					b.tell(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
				}
			}
			return n, err
		}
	}
	return fns, actual, err
}

// isAnswer says of a datagram that it has the form of an answer to a handshake. That it is one is for WireGuard to find
// out: one that is forged from the gateway's address makes a repair wait longer, as one that is held back does.
func isAnswer(b []byte) bool {
	if len(b) < 4 {
		return false
	}
	switch binary.LittleEndian.Uint32(b) {
	case device.MessageResponseType:
		return len(b) == device.MessageResponseSize
	case device.MessageCookieReplyType:
		return len(b) == device.MessageCookieReplySize
	}
	return false
}

// isHandshake says whether a handshake begins or is answered with a datagram.
func isHandshake(b []byte) bool {
	return len(b) >= 4 && binary.LittleEndian.Uint32(b) < device.MessageTransportType
}

// answered notes an answer to a handshake.
func (l *Link) answered(from netip.AddrPort) {
	for _, g := range l.all() {
		g.mu.Lock()
		its := g.at == from
		g.mu.Unlock()
		if its {
			g.answers.Store(int64(g.since()))
		}
	}
}

// answeredSince says whether a handshake was answered since then.
func (g *remoteGateway) answeredSince(at time.Duration) bool {
	last := time.Duration(g.answers.Load())
	return last > 0 && last >= at
}

// met looks whether the gateway has answered the last handshake: all that a kernel tells. The counters are of that
// handshake, since the peer was new with it.
func (l *Link) met(ctx context.Context, g *remoteGateway) {
	d, err := l.held().dev.read(ctx)
	if err != nil {
		return // the next repair fails for it, with a name
	}
	key := wgtypes.Key(g.get().PublicKey)
	for _, p := range d.Peers {
		if p.PublicKey == key && p.ReceiveBytes > 0 {
			g.answers.Store(int64(g.since()))
		}
	}
}

// crowded is how many handshakes within a second bring wireguard-go close to what it takes for load.
const crowded = 64

// handshakes counts what comes in of them.
type handshakes struct {
	mu    sync.Mutex // guards what follows
	since time.Time  // start of the second that is counted
	n     int
	load  time.Time // when there were many last
}

func (h *handshakes) add(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now.Sub(h.since) >= time.Second {
		h.since, h.n = now, 0
	}
	if h.n++; h.n >= crowded {
		h.load = now
	}
}

// settle is how long to wait before a device that receives no more may be closed: under load wireguard-go's workers use what
// its Close has closed, and the process would end with that panic. They need much less for what waits.
func (h *handshakes) settle(now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return max(loadLasts-now.Sub(h.load), 0)
}

const loadLasts = 2 * time.Second // wireguard-go holds on to it for one

// closeDevice ends a device of wireguard-go.
func closeDevice(d *device.Device, b *watchedBind) {
	_ = d.Down() // closes its socket; what fails here Close does again
	if wait := b.count.settle(time.Now()); wait > 0 {
		<-time.After(wait)
	}
	d.Close()
}
