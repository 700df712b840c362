package driverproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// endGrace is how long the end of a session waits for its other half: a dying driver is told on the control socket, and the
// command socket then closes behind its last answers; which of the two comes first is open.
const endGrace = time.Second

// recordingGrace is how long a lost host's recording socket may still be read: what has arrived is not thrown away.
const recordingGrace = 2 * time.Second

// Session is a driver session that runs on a host. Its methods may be called at once from many goroutines.
type Session struct {
	fleet *Fleet
	key   sessionKey
	name  string     // of the host
	addr  netip.Addr // of the host
	boot  string     // of its agent: another has none of the session

	assigned chan *wire.Assigned // buffered
	told     chan struct{}       // closed when the host has answered the assign
	attached chan struct{}       // closed when the first command socket is up
	released chan struct{}       // closed when the host has nothing of the session any more
	lost     chan struct{}       // closed when the host is given up: it cannot be asked any more
	done     chan struct{}
	wake     chan struct{}       // buffered: there is something to write
	recorder chan *RecordingConn // buffered: the recording socket until someone takes it
	taking   chan struct{}       // holds a token while a command socket takes the place of another
	resumed  chan struct{}       // closed when the recording of an adopted session goes on
	bidi     bidiDoor

	mu        sync.Mutex // guards what follows
	host      *hostConn  // nil while it has no control socket
	relinked  chan struct{}
	caps      json.RawMessage
	visited   []string
	adopted   bool // of another orchestrator: what it knew is asked from the host
	conn      *carried
	away      *time.Timer    // runs while the host has no control socket or the session no command socket
	why       error          // of the last loss of a socket
	recording *RecordingConn // the same socket, for expireRecording
	stream    outstanding
	kept      []Kept
	failure   *wire.Failure // Ended was received
	leftover  *wire.Failure // of Released
	wiped     *wire.Wiped   // of Released
	grace     *time.Timer
	telling   *time.Timer // runs while the host is to hear of acknowledgements
	err       error
}

// carried is a command socket in use.
type carried struct {
	conn *socket.Conn
	turn sync.Mutex    // held from taking a frame to having written it: frames go in the order of their numbers
	over chan struct{} // closed when nothing is read from it any more
}

func newSession(f *Fleet, h *hostConn, key sessionKey, adopted bool) *Session {
	return &Session{
		fleet: f, host: h, name: h.name, addr: h.addr, boot: h.boot, key: key, adopted: adopted, relinked: make(chan struct{}),
		assigned: make(chan *wire.Assigned, 1), told: make(chan struct{}), attached: make(chan struct{}), released: make(chan struct{}),
		lost: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1), recorder: make(chan *RecordingConn, 1),
		taking: make(chan struct{}, 1), resumed: make(chan struct{}),
	}
}

// Capabilities is what the driver matched, as New Session's answer gives it to the client.
func (s *Session) Capabilities() json.RawMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.caps
}

// Visited are pages where the session was before it was adopted. They are customer data.
func (s *Session) Visited() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.visited
}

// Done is closed when the session has ended, by itself, by Release or by Leave.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is nil until Done; then it is [ErrHostLost] (errors.Is), a *[wire.Failure], [ErrOverflow], [ErrReleased],
// [ErrLeft] or [ErrClosed].
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Wiped says what became of what the browser had stored for the sites that the session was at, once it is released; nil: it was nowhere.
func (s *Session) Wiped() *wire.Wiped {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wiped
}

// start asks the host for the session, and waits for its answer and its command socket. A host that is lost meanwhile has
// nothing that could be resumed.
func (s *Session) start(ctx context.Context, h *hostConn, ask wire.Control) (err error) {
	if err = h.send(ctx, ask); err != nil {
		return err
	}
	select {
	case answer := <-s.assigned:
		if answer.Failure != nil {
			return answer.Failure
		}
		s.mu.Lock()
		s.caps, s.visited = answer.Capabilities, answer.Visited
		s.mu.Unlock()
	case <-h.lost:
		return h.err()
	case <-s.done:
		return s.Err()
	case <-ctx.Done():
		return s.abort(ctx, h)
	}
	select {
	case <-s.attached:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.watchLocked()
		return nil
	case <-h.lost:
		return h.err()
	case <-s.done:
		return s.Err()
	case <-ctx.Done():
		return s.abort(ctx, h)
	}
}

// abort tells the host to stop what it started and does not wait for it. What runs already is not stopped.
func (s *Session) abort(ctx context.Context, h *hostConn) error {
	if s.adopted {
		return fmt.Errorf("driverproxy: adopt: %w", context.Cause(ctx))
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	err := h.send(bounded, wire.Control{Release: &wire.Release{Session: s.key.id, Term: s.key.term}})
	return errors.Join(fmt.Errorf("driverproxy: assign: %w", context.Cause(ctx)), err)
}

// onAssigned is called by the host's reader only.
func (s *Session) onAssigned(a *wire.Assigned) {
	select {
	case <-s.told: // a second answer changes nothing
	default:
		close(s.told) // first: whoever has the answer has a session that waits for its sockets
		s.assigned <- a
	}
}

// onReleased is called by the host's reader only.
func (s *Session) onReleased(r *wire.Released) {
	select {
	case <-s.released:
		return // a second answer changes nothing
	default:
	}
	s.mu.Lock()
	s.leftover, s.wiped = r.Failure, r.Wiped
	s.mu.Unlock()
	s.end(ErrReleased)
	s.fleet.forget(s)
	close(s.released) // last: whoever waits for it finds the session ended
}

// onEnded waits, bounded, for the answers that are still on their way down the command socket.
func (s *Session) onEnded(failure *wire.Failure) {
	s.mu.Lock()
	s.failure = failure
	wait := s.conn != nil
	if wait && s.grace == nil && s.err == nil {
		s.grace = time.AfterFunc(endGrace, func() { s.end(failure) })
	}
	s.mu.Unlock()
	if !wait {
		s.end(failure)
	}
}

// end ends the session on this side; only the first reason counts, and the host's own before the loss of a socket.
func (s *Session) end(err error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	if s.failure != nil && errors.Is(err, ErrHostLost) {
		err = s.failure // the host said why before it was lost
	}
	s.err = err
	unanswered := s.stream.drain()
	conn := s.conn
	for _, t := range []*time.Timer{s.grace, s.away, s.telling} {
		if t != nil {
			t.Stop()
		}
	}
	close(s.done)
	s.mu.Unlock()
	for _, p := range unanswered {
		if p.seq == 0 {
			p.settle(lost(wire.OutcomeNotRun, 0, err))
		} else {
			p.settle(lost(wire.OutcomeUnknown, p.seq, err))
		}
	}
	if conn != nil {
		conn.conn.Close()
	}
}

// giveUp ends a session whose host is lost for good: nothing of it can be asked any more.
func (s *Session) giveUp(err error) {
	s.end(err)
	s.expireRecording()
	s.fleet.forget(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.lost:
	default:
		close(s.lost)
	}
}

// StopRecording ends the recording and leaves the session running. The answer is the End on the recording socket. A
// session that ended because its driver died stops its recording by itself: nil.
func (s *Session) StopRecording(ctx context.Context) error {
	s.mu.Lock()
	err, failed := s.err, s.failure != nil
	s.mu.Unlock()
	if failed {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = s.ask(ctx, wire.Control{StopRecording: &wire.StopRecording{Session: s.key.id, Term: s.key.term}})
	return err
}

// Release ends the session and waits until the host says that nothing of it runs any more. A *[wire.Failure] says what could
// not be cleaned up. [ErrHostLost]: the host could not be asked, and cleans up by itself. Calling it again is harmless.
func (s *Session) Release(ctx context.Context) error {
	for {
		select {
		case <-s.released:
			return s.releaseResult()
		default:
		}
		h, err := s.ask(ctx, wire.Control{Release: &wire.Release{Session: s.key.id, Term: s.key.term}})
		if err != nil {
			return err
		}
		select {
		case <-s.released:
			return s.releaseResult()
		case <-h.lost: // with the answer, maybe: it is asked again
		case <-s.lost:
			return s.hostErr()
		case <-ctx.Done():
			return fmt.Errorf("driverproxy: release: %w", context.Cause(ctx))
		}
	}
}

// Leave ends this end of the session and leaves the host's as it is, for whoever adopts it. Commands that were sent are answered
// as unknown, and go on there.
func (s *Session) Leave() {
	s.fleet.leave(s.key)
	s.end(ErrLeft)
	s.cutRecording()
	s.fleet.forget(s)
}

func (s *Session) releaseResult() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leftover != nil {
		return s.leftover
	}
	return nil
}

// ask sends a message to the host, which may have to come back for it. It says over which control socket.
func (s *Session) ask(ctx context.Context, m wire.Control) (*hostConn, error) {
	for {
		s.mu.Lock()
		h, relinked := s.host, s.relinked
		s.mu.Unlock()
		if h != nil {
			err := h.send(ctx, m)
			if err == nil || ctx.Err() != nil {
				return h, err
			}
		}
		select {
		case <-relinked:
		case <-s.lost:
			return nil, s.hostErr()
		case <-ctx.Done():
			return nil, fmt.Errorf("driverproxy: %w, and did not come back: %w", ErrHostLost, context.Cause(ctx))
		}
	}
}

func (s *Session) hostErr() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != nil {
		return s.why
	}
	return ErrHostLost
}
