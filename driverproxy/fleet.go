package driverproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// Errors of this package; use errors.Is.
var (
	// ErrHostLost means that the host is not connected, or no longer.
	ErrHostLost = errors.New("driverproxy: the driver host is not connected")
	// ErrGoodbye is the cause of a HostDown, and of the loss of sessions, when the host closed its control socket with a
	// goodbye: its agent was stopped.
	ErrGoodbye = errors.New("it said goodbye")
	// ErrSilent is the cause when nothing was heard of the host for HeartbeatLimit.
	ErrSilent = errors.New("nothing is heard of it")
	// ErrOverflow is Session.Err when more commands or answers were unacknowledged than [wire.MaxOutstanding] and [wire.MaxMessage] allow.
	ErrOverflow = errors.New("driverproxy: too much of the session is unacknowledged")
	// ErrReleased is Session.Err after a Release.
	ErrReleased = errors.New("driverproxy: the session was released")
	// ErrLeft is Session.Err after a Leave.
	ErrLeft = errors.New("driverproxy: the session was left to be adopted")
	// ErrClosed means that the Fleet is closed.
	ErrClosed = errors.New("driverproxy: the fleet is closed")
)

// Directory is what the fleet needs to know about hosts, and where it tells what it learns. Calls for one host are made
// one at a time: HostUp, then any DevicesChanged, then HostDown.
type Directory interface {
	// HostByAddr names the enrolled host that owns the tunnel address.
	HostByAddr(ctx context.Context, addr netip.Addr) (host string, err error)
	// HostUp is called before the host is used; refusing closes its socket, and then HostDown is not called.
	HostUp(ctx context.Context, hello wire.Hello) error
	// DevicesChanged reports the newest states of some devices; states in between may be left out.
	DevicesChanged(ctx context.Context, host string, devices []wire.Device) error
	// HostDown says that the control socket is gone or silent. The cause wraps ErrGoodbye or ErrSilent where that is why, and
	// what Drop was given.
	HostDown(ctx context.Context, host string, cause error)
}

// Config is what a Fleet needs.
type Config struct {
	Orchestrator   string // this replica's name
	Epoch          string // changes with each start of this replica
	Directory      Directory
	HeartbeatEvery time.Duration    // 0: 1 s
	HeartbeatLimit time.Duration    // 0: 5 s
	ResumeLimit    time.Duration    // 0: ResumeLimit
	ProbeEvery     time.Duration    // of a host's devices, driver included; 0: 10 s. Rounded up to heartbeats
	Log            *zap.Logger      // nil: none
	Now            func() time.Time // nil: time.Now; sockets' own deadlines follow the system's clock
}

// Assignment is a session to start on a device.
type Assignment struct {
	Host, Device, Session string
	Term                  int64
	Capabilities          json.RawMessage // one W3C capability object, see webdriver.NewSession.Match
	Record                bool
}

// Fleet holds the sockets of all connected hosts. Its methods may be called at once from many goroutines.
type Fleet struct {
	cfg      Config
	endpoint *socket.Endpoint
	clients  *socket.Endpoint // of BiDi connections
	running  sync.WaitGroup   // handlers of sockets
	frames   sync.Pool        // buffers of commands' frames: an idle session has none

	mu       sync.Mutex // guards what follows
	closed   bool
	hosts    map[string]*hostConn // from its hello until its HostDown has returned
	sessions map[sessionKey]*Session
	left     map[sessionKey]time.Time  // sessions that were left, and when: their hosts are not told to end them
	conns    map[*socket.Conn]struct{} // every open socket
	damped   dampers
}

type sessionKey struct {
	id   string
	term int64
}

// NewFleet returns a Fleet without hosts.
func NewFleet(cfg Config) *Fleet {
	if cfg.HeartbeatEvery <= 0 {
		cfg.HeartbeatEvery = time.Second
	}
	if cfg.HeartbeatLimit <= 0 {
		cfg.HeartbeatLimit = 5 * time.Second
	}
	if cfg.ResumeLimit <= 0 {
		cfg.ResumeLimit = ResumeLimit
	}
	if cfg.ProbeEvery <= 0 {
		cfg.ProbeEvery = 10 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Fleet{
		cfg: cfg, endpoint: &socket.Endpoint{}, clients: &socket.Endpoint{Refuse: refuseClient},
		frames: sync.Pool{New: func() any { b := make([]byte, 0, 512); return &b }},
		hosts:  map[string]*hostConn{}, sessions: map[sessionKey]*Session{}, left: map[sessionKey]time.Time{}, conns: map[*socket.Conn]struct{}{},
		damped: dampers{},
	}
}

// Handler serves the control, command, recording and BiDi paths of the fleet listener.
func (f *Fleet) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.PathControl, f.serveControl)
	mux.HandleFunc("GET "+wire.PathCommand, f.serveCommand)
	mux.HandleFunc("GET "+wire.PathRecording, f.serveRecording)
	mux.HandleFunc("GET "+wire.PathBiDi, f.serveBiDi)
	return mux
}

// Hosts names the connected hosts, sorted.
func (f *Fleet) Hosts() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for name, h := range f.hosts {
		if h.up {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Assign starts a session. It returns once the host has answered and the session's command socket is up. A host
// that cannot gives a *[wire.Failure] (errors.As); a host that is not connected, or is lost meanwhile, [ErrHostLost]. When ctx ends
// first, the host is told to release what it may have started. Every returned Session must be released or left.
func (f *Fleet) Assign(ctx context.Context, a Assignment) (*Session, error) {
	return f.begin(ctx, a, false, wire.Control{Assign: &wire.Assign{
		Session: a.Session, Term: a.Term, Device: a.Device, Capabilities: a.Capabilities, Record: a.Record,
	}})
}

// Adopt takes over a session that runs on a host, at a higher term than it had. It returns like Assign; [Session.Kept] are then
// the commands that the former orchestrator sent. A host that does not have the session gives a *[wire.Failure] of [wire.FailureGone].
// After any other error the host may have the session, for whoever adopts it.
func (f *Fleet) Adopt(ctx context.Context, a Assignment) (*Session, error) {
	return f.begin(ctx, a, true, wire.Control{Adopt: &wire.Adopt{Session: a.Session, Term: a.Term}})
}

func (f *Fleet) begin(ctx context.Context, a Assignment, adopted bool, ask wire.Control) (*Session, error) {
	s, h, err := f.newSession(a, adopted)
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx, h, ask); err != nil {
		if adopted {
			f.leave(s.key)
		}
		s.end(err)
		f.forget(s)
		s.undo(h)
		return nil, err
	}
	return s, nil
}

func (f *Fleet) newSession(a Assignment, adopted bool) (*Session, *hostConn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, nil, ErrClosed
	}
	h := f.hosts[a.Host]
	if h == nil || !h.up {
		return nil, nil, fmt.Errorf("assign to %s: %w", a.Host, ErrHostLost)
	}
	key := sessionKey{a.Session, a.Term}
	if f.sessions[key] != nil {
		return nil, nil, fmt.Errorf("driverproxy: session %s of term %d is assigned already", a.Session, a.Term)
	}
	s := newSession(f, h, key, adopted)
	f.sessions[key] = s
	return s, h, nil
}

func (f *Fleet) session(key sessionKey) *Session {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sessions[key]
}

// forget removes a session of which the host has nothing any more.
func (f *Fleet) forget(s *Session) {
	f.mu.Lock()
	if f.sessions[s.key] == s {
		delete(f.sessions, s.key)
	}
	f.mu.Unlock()
	s.dropRecording()
}

// leftFor is how long a session that was left is remembered: longer than its host keeps it for whoever adopts it.
const leftFor = 10 * time.Minute

// leave notes that a session's host is to keep it.
func (f *Fleet) leave(key sessionKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.cfg.Now()
	maps.DeleteFunc(f.left, func(_ sessionKey, at time.Time) bool { return now.Sub(at) > leftFor })
	f.left[key] = now
}

// gaveUp says whether a session that a host says is this fleet's was given up here, and was not left.
func (f *Fleet) gaveUp(key sessionKey) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, left := f.left[key]
	return f.sessions[key] == nil && !left
}

// sessionsOf lists the sessions on a host.
func (f *Fleet) sessionsOf(host string) []*Session {
	f.mu.Lock()
	defer f.mu.Unlock()
	var of []*Session
	for _, s := range f.sessions {
		if s.name == host {
			of = append(of, s)
		}
	}
	return of
}

// accept upgrades a request and counts its handler; the caller calls done when the handler is over, and closes the socket through f.hangUp.
func (f *Fleet) accept(w http.ResponseWriter, r *http.Request, l socket.Limits) (c *socket.Conn, done func(), err error) {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		http.Error(w, ErrClosed.Error(), http.StatusServiceUnavailable)
		return nil, nil, ErrClosed
	}
	f.running.Add(1)
	f.mu.Unlock()
	c, err = f.endpoint.Accept(w, r, l)
	if err != nil {
		f.running.Done()
		return nil, nil, err
	}
	f.mu.Lock()
	f.conns[c] = struct{}{}
	closed := f.closed
	f.mu.Unlock()
	if closed { // Close did not see it
		f.hangUp(c)
	}
	return c, f.running.Done, nil
}

func (f *Fleet) hangUp(c *socket.Conn) {
	c.Close()
	f.mu.Lock()
	delete(f.conns, c)
	f.mu.Unlock()
}

// Close hangs up on all hosts and waits for every goroutine of the Fleet. The sessions end here with [ErrClosed]; their hosts keep
// what was not released, for whoever adopts it.
func (f *Fleet) Close(ctx context.Context) error {
	f.mu.Lock()
	f.closed = true
	var conns []*socket.Conn
	for c := range f.conns {
		conns = append(conns, c)
	}
	var sessions []*Session
	for _, s := range f.sessions {
		sessions = append(sessions, s)
	}
	f.mu.Unlock()
	for _, s := range sessions {
		s.end(ErrClosed)
	}
	for _, c := range conns {
		c.Bye("the orchestrator is shutting down")
		f.hangUp(c)
	}
	over := make(chan struct{})
	go func() { // ends with the last handler, each of which is bounded
		f.running.Wait()
		close(over)
	}()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("driverproxy: close: %w", ctx.Err())
	}
}

func remoteAddr(r *http.Request) (netip.Addr, error) {
	p, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("driverproxy: remote address %q: %w", r.RemoteAddr, err)
	}
	return p.Addr().Unmap(), nil
}
