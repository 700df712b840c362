package tunnel

import "time"

// rung is a way to get a silent gateway back. Each includes the ones that are cheaper where it needs them.
//
//	1 handshake  the peer is removed and added: a gateway that was restarted has forgotten the session
//	2 socket     a new UDP socket, so a new source port: a NAT or a network that changed has forgotten the old one
//	3 resolve    the endpoint looked up again, its next address taken: the gateway has moved
//	4 device     a new device with the same identity
//	then 1 again, and so on until the gateway is heard
type rung int

const (
	rungHandshake rung = 1 + iota
	rungSocket
	rungResolve
	rungDevice
)

func (r rung) String() string {
	switch r {
	case rungHandshake:
		return "handshake"
	case rungSocket:
		return "socket"
	case rungResolve:
		return "resolve"
	case rungDevice:
		return "device"
	}
	return "none"
}

// deviceEvery is how seldom a new device is tried: it breaks every connection. socketEvery is how seldom a second socket is
// tried in one silence: an answer that is late comes to the one before, which nobody hears any more.
const (
	deviceEvery  = time.Minute
	socketEvery  = 10 * time.Second
	socketSettle = 500 * time.Millisecond // another keeper's handshake is on its way through a socket so new
)

// situation is what the choice of a rung depends on, besides the one before.
type situation struct {
	shared    bool          // another gateway is heard through the same socket and device, or this one's handshakes: neither can be the trouble
	deviceAge time.Duration // since the device was opened
	socketAge time.Duration // since the socket was, by whichever keeper
	silence   time.Duration // since repairs have begun
}

// socket says whether a new one may help.
func (s situation) socket() bool {
	return !s.shared && (s.socketAge >= socketEvery || s.socketAge >= max(s.silence, socketSettle))
}

// next is the rung after r; 0 is below the first.
func (r rung) next(s situation) rung {
	n := r%rungDevice + 1
	if n == rungDevice && (s.shared || s.deviceAge < deviceEvery) {
		n = rungHandshake
	}
	if n == rungSocket && !s.socket() {
		n = rungResolve
	}
	return n
}

// clocks finds out that this machine, or only this process, stood still.
type clocks struct {
	now  func() time.Time // wall clock
	wall time.Time        // at the last look, without its monotonic reading
	mono time.Time        // at the last look
}

func newClocks(now func() time.Time) *clocks {
	return &clocks{now: now, wall: now().Round(0), mono: time.Now()}
}

// nap is how long was missed. A machine that sleeps stops its monotonic clock and not the wall clock: what the two have
// drifted apart since the last look. A process that was stopped finds both ahead: it waited for longer than planned. A
// wall clock that was set back says nothing.
func (c *clocks) nap(planned, waited time.Duration) time.Duration {
	wall, mono := c.now().Round(0), time.Now()
	missed := max(wall.Sub(c.wall)-mono.Sub(c.mono), waited-planned, 0)
	c.wall, c.mono = wall, mono
	return missed
}
