package driverproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// Errors of OpenBiDi; use errors.Is.
var (
	// ErrNoBiDi means that the session was started without WebDriver BiDi.
	ErrNoBiDi = errors.New("driverproxy: the session was started without WebDriver BiDi: it takes the capability webSocketUrl: true")
	// ErrBiDiFull means that the session has [wire.MaxBiDi] connections already.
	ErrBiDiFull = fmt.Errorf("driverproxy: the session has %d WebDriver BiDi connections already: close one", wire.MaxBiDi)
)

// bidiDoor is where the BiDi connections of a session come in.
type bidiDoor struct {
	mu      sync.Mutex // guards what follows
	last    uint64     // ID given last
	open    int        // connections, also those that are on their way
	waiting map[uint64]*BiDi
}

// BiDi is a connection to the BiDi endpoint of a session's driver. Whoever has it ends it with Serve or Close.
type BiDi struct {
	session *Session
	id      uint64
	came    chan struct{} // closed when the host's socket is there
	host    *socket.Conn  // set before came is closed
	over    chan struct{} // closed by Close
	once    sync.Once
}

// expect makes room for one more connection.
func (d *bidiDoor) expect(s *Session) (*BiDi, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open >= wire.MaxBiDi {
		return nil, ErrBiDiFull
	}
	d.open++
	d.last++
	b := &BiDi{session: s, id: d.last, came: make(chan struct{}), over: make(chan struct{})}
	if d.waiting == nil {
		d.waiting = map[uint64]*BiDi{}
	}
	d.waiting[b.id] = b
	return b, nil
}

// waits says whether somebody waits for the connection.
func (d *bidiDoor) waits(id uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting[id] != nil
}

// arrive hands the host's socket to whoever waits for it; nil when nobody does any more.
func (d *bidiDoor) arrive(id uint64, conn *socket.Conn) *BiDi {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.waiting[id]
	if b != nil {
		delete(d.waiting, id)
		b.host = conn
		close(b.came)
	}
	return b
}

func (d *bidiDoor) leave(b *BiDi) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.waiting, b.id)
	d.open--
}

// OpenBiDi connects to the BiDi endpoint of the session's driver: it asks the host and waits for the socket that the host dials.
// Errors: [ErrNoBiDi], [ErrBiDiFull], [ErrHostLost], what Err says when the session has ended, or the cause of ctx's end.
func (s *Session) OpenBiDi(ctx context.Context) (*BiDi, error) {
	if !hasBiDi(s.Capabilities()) {
		return nil, ErrNoBiDi
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	b, err := s.bidi.expect(s)
	if err != nil {
		return nil, err
	}
	if err := b.wait(ctx); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

func (b *BiDi) wait(ctx context.Context) error {
	s := b.session
	if _, err := s.ask(ctx, wire.Control{OpenBiDi: &wire.OpenBiDi{Session: s.key.id, Term: s.key.term, ID: b.id}}); err != nil {
		return err
	}
	select {
	case <-b.came:
		return nil
	case <-s.done:
		return s.Err()
	case <-ctx.Done():
		return fmt.Errorf("driverproxy: open a BiDi connection: %w", context.Cause(ctx))
	}
}

// hasBiDi says whether what the host reports of a session has a webSocketUrl. The driver's own never leaves the host.
func hasBiDi(capabilities json.RawMessage) bool {
	var c struct {
		WebSocketURL bool `json:"webSocketUrl"`
	}
	return json.Unmarshal(capabilities, &c) == nil && c.WebSocketURL
}

// serveBiDi is the handler of a BiDi connection's socket.
func (f *Fleet) serveBiDi(w http.ResponseWriter, r *http.Request) {
	s, status, err := f.sessionOf(r)
	if err != nil {
		http.Error(w, err.Error(), status)
		return
	}
	id, err := strconv.ParseUint(r.URL.Query().Get("id"), 10, 64)
	if err != nil || !s.bidi.waits(id) {
		http.Error(w, "driverproxy: nobody waits for this connection", http.StatusNotFound)
		return
	}
	conn, done, err := f.accept(w, r, socket.Hop(wire.MaxMessage))
	if err != nil {
		return
	}
	defer done()
	defer f.hangUp(conn)
	b := s.bidi.arrive(id, conn)
	if b == nil {
		conn.Bye("nobody waits for this connection any more")
		return
	}
	select {
	case <-b.over:
	case <-s.done: // whoever serves it knows best why, and says so first
		grace := time.NewTimer(endGrace)
		defer grace.Stop()
		select {
		case <-b.over:
		case <-grace.C:
		}
	}
}

// Close ends the connection; after Serve it does nothing.
func (b *BiDi) Close() {
	b.once.Do(func() {
		b.session.bidi.leave(b)
		close(b.over)
	})
}

// Serve upgrades a client's request and relays until the client or the driver closes, the connection breaks, or ctx ends with a
// *[socket.Close] as its cause; it returns which of them it was. up and down are called for each piece of a message of the
// client and of the driver. A request that cannot be upgraded is answered with a W3C error.
func (b *BiDi) Serve(ctx context.Context, w http.ResponseWriter, r *http.Request, up, down func(bytes int)) (socket.Close, error) {
	defer b.Close()
	f := b.session.fleet
	conn, err := f.clients.Accept(w, r, socket.Edge(wire.MaxMessage))
	if err != nil {
		b.host.Leave(socket.Close{Code: socket.CloseGoingAway, Reason: "the client did not connect"})
		return socket.Close{}, fmt.Errorf("driverproxy: BiDi: %w", err)
	}
	how := socket.Relay(ctx,
		socket.Side{Conn: conn, Seen: up, Broken: socket.Close{Code: socket.CloseGoingAway, Reason: "the client broke off"}},
		socket.Side{Conn: b.host, Seen: down, Broken: socket.Close{Code: socket.CloseAgain, Reason: "the connection to the device broke: connect again"}})
	f.cfg.Log.Debug("BiDi connection ended", zap.String("session", b.session.key.id), zap.Int("code", how.Code)) // its words are the client's or the driver's
	return how, nil
}

// refuseClient answers a client's request that is no websocket's.
func refuseClient(w http.ResponseWriter, _ *http.Request, status int, reason error) {
	a := (&webdriver.Error{Code: webdriver.InvalidArgument, Message: "a WebDriver BiDi connection is a websocket: " + reason.Error()}).Answer()
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	w.WriteHeader(status)
	_, _ = w.Write(a.Body) // the client may be gone
}
