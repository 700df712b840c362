package tunneltest

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

// RelayConfig is the network that a Relay stands for.
type RelayConfig struct {
	Listen  string        // host:port that hosts send to; default: a port of 127.0.0.1
	Target  string        // host:port of the gateway
	Delay   time.Duration // one way; a round trip takes twice as long
	Loss    float64       // share of the datagrams lost at random, each way
	Seed    uint64        // of the loss: the n-th datagram of a direction is lost or not by seed, direction and n
	MaxSize int           // larger datagrams vanish without a word; 0: none. See PathFor
	Rate    int           // datagrams a second that reach the gateway: more wait for their turn; 0: any number
	Log     func(string)  // what goes wrong while it runs, may be nil
}

// PathFor is the MaxSize of a path on which a tunnel of the given MTU just works: WireGuard adds a header of 16 bytes, a
// tag of 16, and pads to multiples of 16.
func PathFor(mtu int) int { return (mtu+15)/16*16 + 32 }

const (
	socketBuffer = 8 << 20 // as much of it as the system allows
	queueLimit   = 1 << 16 // datagrams under way in one direction; more are dropped, like by a router
	smallBuffer  = 2048    // fits what WireGuard sends at any usual MTU
	sendBatch    = 128     // datagrams taken from the queue at once
)

// Stats counts datagrams of both directions.
type Stats struct {
	Forwarded, Lost, TooLarge, Cut, Overflow int
}

// Relay forwards UDP datagrams between any number of hosts, which send to Addr, and one gateway. Towards the gateway
// every host's socket has a port of its own, as behind a NAT. All methods may be called at any time from anywhere.
type Relay struct {
	inside   *net.UDPConn
	up, down *line
	log      func(string)
	closed   chan struct{}
	running  sync.WaitGroup
	once     sync.Once

	mu       sync.Mutex // guards everything below
	target   netip.AddrPort
	sessions map[netip.AddrPort]*session // by the host's address; nil once closed
	delay    time.Duration
	loss     float64
	maxSize  int
	rate     int
	cut      bool
	stats    Stats
}

// session is one socket of a host.
type session struct {
	host    netip.AddrPort
	outside *net.UDPConn // guarded by Relay.mu: Rebind replaces it
}

// datagram is under way; it came from, or goes to, the session's host.
type datagram struct {
	due  time.Time
	data *[]byte
	of   *session
}

// line is one direction: datagrams in the order in which they leave.
type line struct {
	rand *rand.Rand    // guarded by Relay.mu
	wake chan struct{} // holds one token: written by push, read by the line's goroutine

	mu    sync.Mutex // guards queue and last
	queue []datagram
	last  time.Time // due time of the newest: a shorter delay does not overtake
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, smallBuffer); return &b }}

// OpenRelay starts a relay. Close it in the end.
func OpenRelay(cfg RelayConfig) (*Relay, error) {
	target, err := resolve(cfg.Target)
	if err != nil {
		return nil, err
	}
	inside, err := listenAt(cmp.Or(cfg.Listen, "127.0.0.1:0"))
	if err != nil {
		return nil, err
	}
	r := &Relay{
		inside: inside, log: cfg.Log, closed: make(chan struct{}),
		up:     &line{rand: rand.New(rand.NewPCG(cfg.Seed, 1)), wake: make(chan struct{}, 1)},
		down:   &line{rand: rand.New(rand.NewPCG(cfg.Seed, 2)), wake: make(chan struct{}, 1)},
		target: target, sessions: map[netip.AddrPort]*session{}, delay: cfg.Delay, loss: cfg.Loss, maxSize: cfg.MaxSize, rate: cfg.Rate,
	}
	r.running.Go(r.readInside)
	r.running.Go(func() { r.deliver(r.up, r.sendUp) })
	r.running.Go(func() { r.deliver(r.down, r.sendDown) })
	return r, nil
}

func resolve(target string) (netip.AddrPort, error) {
	a, err := net.ResolveUDPAddr("udp4", target)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("tunneltest: relay to %q: %w", target, err)
	}
	p := a.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port()), nil
}

func listen() (*net.UDPConn, error) { return listenAt("127.0.0.1:0") }

func listenAt(address string) (*net.UDPConn, error) {
	at, err := resolve(address)
	if err != nil {
		return nil, err
	}
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, fmt.Errorf("tunneltest: relay: %w", err)
	}
	if err := errors.Join(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer)); err != nil {
		return nil, errors.Join(fmt.Errorf("tunneltest: relay: %w", err), c.Close())
	}
	return c, nil
}

// Addr is where hosts send to, as host:port.
func (r *Relay) Addr() string { return r.inside.LocalAddr().String() }

// Cut drops every datagram, those under way included, until it is called with false.
func (r *Relay) Cut(cut bool) { r.set(func() { r.cut = cut }) }

// SetDelay changes the delay of what comes from now on. Datagrams keep their order.
func (r *Relay) SetDelay(oneWay time.Duration) { r.set(func() { r.delay = oneWay }) }

// SetLoss changes the share that is lost.
func (r *Relay) SetLoss(share float64) { r.set(func() { r.loss = share }) }

// SetMaxSize changes the size of the largest datagram that passes; 0: all.
func (r *Relay) SetMaxSize(n int) { r.set(func() { r.maxSize = n }) }

// SetRate changes how many datagrams a second reach the gateway; 0: any number. What waits already keeps its turn.
func (r *Relay) SetRate(n int) { r.set(func() { r.rate = n }) }

// SetTarget is for a gateway that came back at another address.
func (r *Relay) SetTarget(target string) error {
	a, err := resolve(target)
	if err == nil {
		r.set(func() { r.target = a })
	}
	return err
}

// Stats is what was forwarded and dropped until now.
func (r *Relay) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
}

func (r *Relay) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// Rebind gives every host a new port towards the gateway, as a NAT does that has forgotten it. What the gateway still
// sends to the old ones is lost.
func (r *Relay) Rebind() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sessions {
		c, err := listen()
		if err != nil {
			return err
		}
		old := s.outside
		r.readOutsideLocked(s, c)
		_ = old.Close() // its reader ends
	}
	return nil
}

// Close drops what is under way and waits until nothing of the relay runs any more.
func (r *Relay) Close() error {
	r.once.Do(func() {
		close(r.closed)
		_ = r.inside.Close()
		r.mu.Lock()
		for _, s := range r.sessions {
			_ = s.outside.Close()
		}
		r.sessions = nil
		r.mu.Unlock()
	})
	r.running.Wait()
	return nil
}

func (r *Relay) readInside() {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := r.inside.ReadFromUDPAddrPort(buf)
		if err != nil {
			if r.ended(err) {
				return
			}
			continue
		}
		s, err := r.session(from)
		if err != nil {
			r.say(err)
			continue
		}
		if s == nil {
			return // closed
		}
		r.push(r.up, s, buf[:n])
	}
}

// session is that of a host's address, made when it is new.
func (r *Relay) session(from netip.AddrPort) (*session, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sessions[from]; s != nil || r.sessions == nil {
		return s, nil
	}
	c, err := listen()
	if err != nil {
		return nil, err
	}
	s := &session{host: from}
	r.readOutsideLocked(s, c)
	r.sessions[from] = s
	return s, nil
}

// readOutsideLocked makes c the session's socket towards the gateway.
func (r *Relay) readOutsideLocked(s *session, c *net.UDPConn) {
	s.outside = c
	r.running.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				if r.ended(err) {
					return
				}
				continue
			}
			r.mu.Lock()
			stranger := from != r.target
			r.mu.Unlock()
			if !stranger {
				r.push(r.down, s, buf[:n])
			}
		}
	})
}

// ended says whether a socket was closed; other errors, such as an ICMP refusal, pass.
func (r *Relay) ended(err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return true
	}
	r.say(err)
	return false
}

func (r *Relay) say(err error) {
	if r.log != nil {
		r.log(err.Error())
	}
}

// push decides on a datagram's fate and puts it on the line.
func (r *Relay) push(l *line, s *session, b []byte) {
	r.mu.Lock()
	lost := r.loss > 0 && l.rand.Float64() < r.loss
	delay, gap := r.delay, time.Duration(0)
	if l == r.up && r.rate > 0 {
		gap = time.Second / time.Duration(r.rate)
	}
	keep := false
	switch {
	case r.cut:
		r.stats.Cut++
	case r.maxSize > 0 && len(b) > r.maxSize:
		r.stats.TooLarge++
	case lost:
		r.stats.Lost++
	default:
		keep = true
	}
	r.mu.Unlock()
	if keep && !l.push(s, b, delay, gap) {
		r.set(func() { r.stats.Overflow++ })
	}
}

func (l *line) push(s *session, b []byte, delay, gap time.Duration) bool {
	data := buffers.Get().(*[]byte)
	*data = append((*data)[:0], b...)
	due := time.Now().Add(delay)
	l.mu.Lock()
	if len(l.queue) >= queueLimit {
		l.mu.Unlock()
		buffers.Put(data)
		return false
	}
	if first := l.last.Add(gap); due.Before(first) {
		due = first
	}
	l.last = due
	l.queue = append(l.queue, datagram{due, data, s})
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return true
}

// take moves what is due to batch and says how long it is until the next is; -1: there is none.
func (l *line) take(batch []datagram) ([]datagram, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, n := time.Now(), 0
	for n < len(l.queue) && len(batch) < sendBatch && !l.queue[n].due.After(now) {
		batch = append(batch, l.queue[n])
		n++
	}
	if l.queue = l.queue[n:]; len(l.queue) == 0 {
		l.queue = nil // or a line that was busy once would hold its array
		return batch, -1
	}
	return batch, max(0, l.queue[0].due.Sub(now))
}

// deliver sends a line's datagrams when they are due, until the relay is closed.
func (r *Relay) deliver(l *line, send func(*session, []byte)) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var batch []datagram
	for {
		var wait time.Duration
		batch, wait = l.take(batch[:0])
		for _, d := range batch {
			send(d.of, *d.data)
			if cap(*d.data) <= smallBuffer {
				buffers.Put(d.data)
			}
		}
		switch {
		case len(batch) > 0: // sending took time: others may be due
		case wait < 0:
			select {
			case <-l.wake:
			case <-r.closed:
				return
			}
		default:
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-r.closed:
				return
			}
		}
	}
}

func (r *Relay) sendUp(s *session, b []byte) {
	r.mu.Lock()
	conn, to := s.outside, r.target
	r.mu.Unlock()
	r.send(conn, b, to)
}

func (r *Relay) sendDown(s *session, b []byte) { r.send(r.inside, b, s.host) }

// send is the far end of the path. A socket that is closed, by Close or Rebind, is where a datagram gets lost.
func (r *Relay) send(conn *net.UDPConn, b []byte, to netip.AddrPort) {
	r.mu.Lock()
	cut := r.cut
	if cut {
		r.stats.Cut++
	} else {
		r.stats.Forwarded++
	}
	r.mu.Unlock()
	if cut {
		return
	}
	if _, err := conn.WriteToUDPAddrPort(b, to); err != nil && !errors.Is(err, net.ErrClosed) {
		r.say(err)
	}
}
