package driverproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// directoryLimit bounds one call of the Directory.
const directoryLimit = 10 * time.Second

var (
	errReplaced  = errors.New("a newer control socket of the host took over")
	errConnected = errors.New("the host has a live control socket already")
)

// hostConn is a host's control socket from its hello on.
type hostConn struct {
	name    string
	boot    string
	dial    uint64
	addr    netip.Addr
	conn    *socket.Conn
	came    time.Time     // its hello, by Config.Now
	up      bool          // guarded by Fleet.mu
	dropped bool          // guarded by Fleet.mu
	lost    chan struct{} // closed when the socket is given up; cause is set before
	gone    chan struct{} // closed when HostDown has returned

	mu    sync.Mutex // guards what follows
	cause error
	seen  time.Time              // last heartbeat, by Config.Now
	round time.Duration          // what the host last measured of one; 0: not known
	known known                  // of its devices
	dirty map[string]wire.Device // devices to report to the Directory
	wake  chan struct{}          // buffered: something is dirty
}

func newHostConn(c *socket.Conn, addr netip.Addr, hello wire.Hello, now time.Time) *hostConn {
	return &hostConn{
		known: newKnown(hello.Devices, now), name: hello.Host, boot: hello.Boot, dial: hello.Dial, addr: addr, conn: c, came: now, seen: now,
		lost: make(chan struct{}), gone: make(chan struct{}), dirty: map[string]wire.Device{}, wake: make(chan struct{}, 1),
	}
}

// give gives the socket up; only the first cause counts.
func (h *hostConn) give(cause error) {
	h.mu.Lock()
	if h.cause == nil {
		h.cause = cause
		close(h.lost)
	}
	h.mu.Unlock()
	h.conn.Close()
}

// err is ErrHostLost with the cause.
func (h *hostConn) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return fmt.Errorf("%w: %s: %w", ErrHostLost, h.name, h.cause)
}

func (h *hostConn) send(ctx context.Context, m wire.Control) error {
	b, err := m.Encode()
	if err != nil {
		return err
	}
	err = h.conn.WriteText(ctx, b)
	if err != nil && ctx.Err() == nil {
		h.give(err)
		return h.err()
	}
	return err
}

func (f *Fleet) serveControl(w http.ResponseWriter, r *http.Request) {
	addr, name, err := f.identify(r)
	if err != nil {
		f.cfg.Log.Warn("control socket refused", zap.String("remote", r.RemoteAddr), zap.Error(err))
		http.Error(w, "no enrolled host has this address", http.StatusForbidden)
		return
	}
	log := f.cfg.Log.With(zap.String("host", name))
	conn, done, err := f.accept(w, r, socket.Limits{
		MaxMessage: wire.MaxControl, Silence: f.cfg.HeartbeatLimit, Stuck: f.cfg.HeartbeatLimit,
	})
	if err != nil {
		log.Warn("control socket refused", zap.Error(err))
		return
	}
	defer done()
	defer f.hangUp(conn)
	if err := f.hostSocket(conn, addr, name, log); err != nil {
		log.Warn("control socket refused", zap.Error(err))
		conn.Bye(err.Error())
	}
}

func (f *Fleet) identify(r *http.Request) (netip.Addr, string, error) {
	addr, err := remoteAddr(r)
	if err != nil {
		return addr, "", err
	}
	ctx, cancel := context.WithTimeout(r.Context(), directoryLimit)
	defer cancel()
	name, err := f.cfg.Directory.HostByAddr(ctx, addr)
	return addr, name, err
}

// hostSocket serves one control socket; the error says why the host was not taken.
func (f *Fleet) hostSocket(conn *socket.Conn, addr netip.Addr, name string, log *zap.Logger) error {
	hello, err := readHello(conn)
	if err != nil {
		return err
	}
	if hello.Host != name {
		return fmt.Errorf("hello names host %q, and the address belongs to %q", hello.Host, name)
	}
	h := newHostConn(conn, addr, *hello, f.cfg.Now())
	ctx, cancel := context.WithTimeout(context.Background(), directoryLimit)
	defer cancel()
	if err := f.register(ctx, h); err != nil {
		return err
	}
	defer func() {
		f.mu.Lock()
		delete(f.hosts, h.name)
		f.mu.Unlock()
		close(h.gone)
	}()
	if err := f.cfg.Directory.HostUp(ctx, *hello); err != nil {
		return fmt.Errorf("the host was refused: %w", err)
	}
	log.Info("host up", zap.String("agent", hello.Agent), zap.Int("devices", len(hello.Devices)))
	cause := f.converse(h, hello)
	h.give(cause)
	f.down(h)
	log.Warn("host down", zap.Error(h.cause))
	return nil
}

// readHello reads and checks the first message.
func readHello(conn *socket.Conn) (*wire.Hello, error) {
	b, err := conn.ReadText()
	if err != nil {
		return nil, fmt.Errorf("no hello: %w", err)
	}
	m, err := wire.DecodeControl(b)
	if err != nil {
		return nil, err
	}
	if m.Hello == nil {
		return nil, errors.New("the first message must be hello")
	}
	if m.Hello.Protocol != wire.Version {
		return nil, fmt.Errorf("the host speaks protocol version %d and the orchestrator %d: update the older one", m.Hello.Protocol, wire.Version)
	}
	if m.Hello.Boot == "" {
		return nil, errors.New("hello has no boot")
	}
	names := map[string]bool{}
	for _, d := range m.Hello.Devices {
		if d.Name == "" || names[d.Name] {
			return nil, fmt.Errorf("hello names device %q twice, or a device has no name", d.Name)
		}
		names[d.Name] = true
	}
	return m.Hello, nil
}

// register takes the host's place in f.hosts, see the package comment. It waits for a predecessor to be done with.
func (f *Fleet) register(ctx context.Context, h *hostConn) error {
	for {
		f.mu.Lock()
		if f.closed {
			f.mu.Unlock()
			return ErrClosed
		}
		old := f.hosts[h.name]
		if old == nil {
			f.hosts[h.name] = h
			f.mu.Unlock()
			return nil
		}
		f.mu.Unlock()
		if old.boot == h.boot && old.dial >= h.dial && !f.overdue(old) {
			return errConnected
		}
		old.give(errReplaced)
		select {
		case <-old.gone:
		case <-ctx.Done():
			return fmt.Errorf("the host's former control socket is still being closed: %w", ctx.Err())
		}
	}
}

// overdue says whether the host has been given up, or has missed more than one heartbeat.
func (f *Fleet) overdue(h *hostConn) bool {
	now := f.cfg.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cause != nil || f.lateLocked(h, now)
}

// lateLocked: the caller holds h.mu.
func (f *Fleet) lateLocked(h *hostConn, now time.Time) bool {
	return now.Sub(h.seen) > 5*f.cfg.HeartbeatEvery/2
}

// converse runs the control socket until it breaks.
func (f *Fleet) converse(h *hostConn, hello *wire.Hello) error {
	var reporter sync.WaitGroup
	reporter.Go(func() { f.reportDevices(h) })
	defer reporter.Wait() // before HostDown
	err := h.send(context.Background(), wire.Control{Welcome: &wire.Welcome{
		Protocol: wire.Version, Orchestrator: f.cfg.Orchestrator, Epoch: f.cfg.Epoch,
		HeartbeatEvery: f.cfg.HeartbeatEvery, HeartbeatLimit: f.cfg.HeartbeatLimit,
	}})
	if err != nil {
		return err
	}
	f.reconcile(h, hello)
	f.mu.Lock()
	h.up = true
	f.mu.Unlock()
	for {
		b, err := h.conn.ReadText()
		switch reason, bye := socket.Goodbye(err); {
		case err == nil:
			err = f.hear(h, b)
		case bye:
			err = fmt.Errorf("%w: %s", ErrGoodbye, reason)
		case timedOut(err):
			err = fmt.Errorf("%w for %s", ErrSilent, f.cfg.HeartbeatLimit)
		}
		if err != nil {
			h.give(err)
			return err
		}
	}
}

func timedOut(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// hear acts on one message of a host.
func (f *Fleet) hear(h *hostConn, b []byte) error {
	m, err := wire.DecodeControl(b)
	if err != nil {
		return err
	}
	switch {
	case m.Heartbeat != nil:
		h.mu.Lock()
		h.seen, h.round = f.cfg.Now(), max(m.Heartbeat.RoundTrip, 0)
		h.mu.Unlock()
		err := h.send(context.Background(), wire.Control{Heartbeat: &wire.Heartbeat{Seq: m.Heartbeat.Seq, Epoch: f.cfg.Epoch}})
		if err == nil {
			err = f.probe(h)
		}
		return err
	case m.Device != nil:
		return h.changed(*m.Device, f.cfg.Now())
	case m.Probed != nil:
		return h.probed(*m.Probed, f.cfg.Now())
	case m.Assigned != nil:
		if s := f.sessionOn(h, m.Assigned.Session, m.Assigned.Term); s != nil {
			s.onAssigned(m.Assigned)
		}
	case m.Released != nil:
		if s := f.sessionOn(h, m.Released.Session, m.Released.Term); s != nil {
			s.onReleased(m.Released)
		}
	case m.Ended != nil:
		if s := f.sessionOn(h, m.Ended.Session, m.Ended.Term); s != nil {
			s.onEnded(&m.Ended.Failure)
		}
	default:
		return errors.New("driverproxy: the host sent a message that only an orchestrator sends")
	}
	return nil
}

// sessionOn is nil for a session that is not (any more) on the host: its answer came too late.
func (f *Fleet) sessionOn(h *hostConn, id string, term int64) *Session {
	if s := f.session(sessionKey{id, term}); s != nil && s.name == h.name && s.boot == h.boot {
		return s
	}
	return nil
}

// reportDevices tells the Directory about changed devices until the host is lost. What could not be told is told again: a
// device whose "ready" got lost would be left out for as long as its host stays connected.
func (f *Fleet) reportDevices(h *hostConn) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 100*time.Millisecond, 5*time.Second
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-h.wake:
		case <-again.C:
		case <-h.lost:
			return
		}
		h.mu.Lock()
		dirty := h.dirty
		h.dirty = map[string]wire.Device{}
		h.mu.Unlock()
		if f.report(h, slices.Collect(maps.Values(dirty))) {
			pause.Reset()
		} else {
			again.Reset(pause.NextBackOff())
		}
	}
}

// report tells of devices, all at once; where that fails, of each: one that cannot be told of must not hide the others.
func (f *Fleet) report(h *hostConn, devices []wire.Device) bool {
	if len(devices) == 0 {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), directoryLimit)
	defer cancel()
	err := f.cfg.Directory.DevicesChanged(ctx, h.name, devices)
	switch {
	case err == nil:
		return true
	case len(devices) == 1 || ctx.Err() != nil: // in time for none, in time for each would be worse
		f.cfg.Log.Error("device changes not recorded", zap.String("host", h.name), zap.String("device", devices[0].Name), zap.Int("devices", len(devices)), zap.Error(err))
		for _, d := range devices {
			h.untold(d)
		}
		return false
	}
	all := true
	for _, d := range devices {
		all = f.report(h, []wire.Device{d}) && all
	}
	return all
}

// untold keeps a change that could not be reported, unless a newer one of the device has come.
func (h *hostConn) untold(d wire.Device) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, newer := h.dirty[d.Name]; !newer {
		h.dirty[d.Name] = d
	}
}

// down is called when the host's control socket is gone. Its sessions wait for it to come back, unless it said that it does not.
func (f *Fleet) down(h *hostConn) {
	cause := h.err()
	f.mu.Lock()
	h.up = false // from here on no session is added
	f.countLossLocked(h, cause)
	f.mu.Unlock()
	for _, s := range f.sessionsOf(h.name) {
		if errors.Is(cause, ErrGoodbye) || !s.hasStarted() {
			s.giveUp(cause)
		} else {
			s.unlink(h)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), directoryLimit)
	defer cancel()
	f.cfg.Directory.HostDown(ctx, h.name, h.cause)
}

// poke puts a token into a channel of capacity 1.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
