package host

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// bidiDialLimit bounds the making of a BiDi connection: to the driver, and to the orchestrator.
const bidiDialLimit = 15 * time.Second

// bidi is the BiDi endpoint of a session's driver, and the connections that are relayed to it.
type bidi struct {
	relays sync.WaitGroup

	mu   sync.Mutex // guards what follows
	url  string     // of the endpoint; "": the session has none
	end  *relaysEnd // of those that run
	over bool
}

// relaysEnd is what relays wait for.
type relaysEnd struct {
	told chan struct{} // closed when they are to end
	how  socket.Close  // set before
}

func (e *relaysEnd) tell(how socket.Close) {
	e.how = how
	close(e.told)
}

func newBiDi() *bidi { return &bidi{end: newRelaysEnd()} }

func newRelaysEnd() *relaysEnd { return &relaysEnd{told: make(chan struct{})} }

// find takes the endpoint out of what the driver matched. Whichever host it names, it is taken to be where the driver listens.
func (b *bidi) find(matched json.RawMessage, addr string) error {
	var c struct {
		WebSocketURL string `json:"webSocketUrl"`
	}
	_ = json.Unmarshal(matched, &c) // anything but a string is no URL
	u, err := url.Parse(c.WebSocketURL)
	if err != nil || u.Scheme != "ws" || !strings.HasPrefix(u.Path, "/") {
		return errors.New("the driver was asked for WebDriver BiDi and offers none")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.url = "ws://" + addr + u.RequestURI()
	return nil
}

// begin runs relay with the endpoint, unless the session has none or is over; it says whether. end waits for it.
func (b *bidi) begin(relay func(endpoint string, end *relaysEnd)) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over || b.url == "" {
		return false
	}
	endpoint, end := b.url, b.end
	b.relays.Go(func() { relay(endpoint, end) })
	return true
}

// handOver ends the relays of the orchestrator that had the session. Clients come again, over the one that has it now.
func (b *bidi) handOver() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over {
		b.end.tell(socket.Close{Code: socket.CloseAgain, Reason: "another orchestrator has the session: connect again"})
		b.end = newRelaysEnd()
	}
}

// close ends every relay and waits for them: each is bounded by the time that its goodbyes may take.
func (b *bidi) close() {
	b.mu.Lock()
	if !b.over {
		b.over = true
		b.end.tell(socket.Close{Code: socket.CloseGoingAway, Reason: "the session has ended"})
	}
	b.mu.Unlock()
	b.relays.Wait()
}

// openBiDi makes a connection that the orchestrator asks for. It returns at once.
func (a *agent) openBiDi(m wire.OpenBiDi) {
	s := a.session(m.Session)
	if s == nil || !s.has(m.Term) {
		return // its end is on its way
	}
	if !s.bidi.begin(func(endpoint string, end *relaysEnd) { s.relayBiDi(endpoint, m.ID, end) }) {
		s.log.Warn("no BiDi connection: the session has no endpoint, or is over")
	}
}

// relayBiDi connects both ends and relays until one of them closes, or it is told to end.
func (s *session) relayBiDi(endpoint string, id uint64, end *relaysEnd) {
	ctx, cancel := context.WithCancelCause(context.Background())
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-end.told:
			cancel(&end.how)
		case <-ctx.Done():
		}
	})
	defer watch.Wait()
	defer cancel(nil)
	up, down, err := s.dialBiDi(ctx, endpoint, id)
	if err != nil {
		s.log.Warn("no BiDi connection", zap.Error(err))
		return
	}
	how := socket.Relay(ctx,
		socket.Side{Conn: up, Broken: socket.Close{Code: socket.CloseGoingAway, Reason: "the connection to the client broke"}},
		socket.Side{Conn: down, Broken: socket.Close{Code: socket.CloseFailed, Reason: "the driver broke off"}})
	s.log.Debug("BiDi connection ended", zap.Int("code", how.Code)) // its words are the client's or the driver's
}

var errNoEndpoint = errors.New("host: the driver's WebDriver BiDi endpoint does not answer")

// dialBiDi opens the socket to the orchestrator and the one to the driver. A driver that does not answer is the orchestrator's to know.
func (s *session) dialBiDi(ctx context.Context, endpoint string, id uint64) (up, down *socket.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, bidiDialLimit)
	defer cancel()
	if up, err = s.dialWith(ctx, wire.PathBiDi, socket.Hop(wire.MaxMessage), "id", strconv.FormatUint(id, 10)); err != nil {
		return nil, nil, err
	}
	if down, err = s.agent.endpoint.Dial(ctx, (&net.Dialer{}).DialContext, endpoint, socket.Edge(wire.MaxMessage)); err == nil {
		return up, down, nil
	}
	why := &socket.Close{Code: socket.CloseFailed, Reason: "the driver's WebDriver BiDi endpoint does not answer"}
	errors.As(context.Cause(ctx), &why) // unless the session has ended
	up.Leave(*why)
	up.Expire(lingerLimit)
	up.Drain() // to the answer to the goodbye
	up.Close()
	return nil, nil, errNoEndpoint
}
