package driverproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

var errCommandSocket = errors.New("the session's command socket broke")

// Session is a driver session that runs on a host. Its methods may be called at once from many goroutines.
type Session struct {
	fleet *Fleet
	host  *hostConn
	key   sessionKey

	assigned chan *wire.Assigned // buffered
	told     chan struct{}       // closed when the host has answered the assign
	attached chan struct{}       // closed when the command socket is up
	released chan struct{}       // closed when the host has nothing of the session any more
	done     chan struct{}
	wake     chan struct{}       // buffered: the queue is not empty
	recorder chan *RecordingConn // buffered: the recording socket until someone takes it

	mu        sync.Mutex // guards what follows
	caps      json.RawMessage
	conn      *socket.Conn
	recording *RecordingConn // the same socket, for expireRecording
	queue     []*pending     // not yet sent
	flight    []*pending     // sent, in order; Seq ack+1 is the first
	seq, ack  uint64
	broken    bool          // the command socket is gone
	failure   *wire.Failure // Ended was received
	leftover  *wire.Failure // of Released
	grace     *time.Timer
	err       error
}

func newSession(f *Fleet, h *hostConn, key sessionKey) *Session {
	return &Session{
		fleet: f, host: h, key: key,
		assigned: make(chan *wire.Assigned, 1), told: make(chan struct{}), attached: make(chan struct{}), released: make(chan struct{}),
		done: make(chan struct{}), wake: make(chan struct{}, 1), recorder: make(chan *RecordingConn, 1),
	}
}

// Capabilities is what the driver matched, as New Session's answer gives it to the client.
func (s *Session) Capabilities() json.RawMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.caps
}

// Done is closed when the session has ended, by itself or by Release.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is nil until Done; then it is [ErrHostLost] (errors.Is), a *[wire.Failure], [ErrReleased] or [ErrClosed].
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// start asks the host for the session, and waits for its answer and its command socket.
func (s *Session) start(ctx context.Context, a Assignment) (err error) {
	err = s.host.send(ctx, wire.Control{Assign: &wire.Assign{
		Session: a.Session, Term: a.Term, Device: a.Device, Capabilities: a.Capabilities, Record: a.Record,
	}})
	if err != nil {
		return err
	}
	select {
	case answer := <-s.assigned:
		if answer.Failure != nil {
			return answer.Failure
		}
		s.mu.Lock()
		s.caps = answer.Capabilities
		s.mu.Unlock()
	case <-s.host.lost:
		return s.host.err()
	case <-s.done:
		return s.Err()
	case <-ctx.Done():
		return s.abort(ctx)
	}
	select {
	case <-s.attached:
		return nil
	case <-s.host.lost:
		return s.host.err()
	case <-s.done:
		return s.Err()
	case <-ctx.Done():
		return s.abort(ctx)
	}
}

// abort tells the host to stop what it started and does not wait for it.
func (s *Session) abort(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	err := s.host.send(bounded, wire.Control{Release: &wire.Release{Session: s.key.id, Term: s.key.term}})
	return errors.Join(fmt.Errorf("driverproxy: assign: %w", context.Cause(ctx)), err)
}

// onAssigned is called by the host's reader only.
func (s *Session) onAssigned(a *wire.Assigned) {
	select {
	case <-s.told: // a second answer changes nothing
	default:
		s.assigned <- a
		close(s.told)
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
	s.leftover = r.Failure
	s.mu.Unlock()
	s.end(ErrReleased)
	s.fleet.forget(s)
	close(s.released) // last: whoever waits for it finds the session ended
}

// onEnded waits, bounded, for the answers that are still on their way down the command socket.
func (s *Session) onEnded(failure *wire.Failure) {
	s.mu.Lock()
	s.failure = failure
	wait := s.conn != nil && !s.broken
	if wait && s.grace == nil && s.err == nil {
		s.grace = time.AfterFunc(endGrace, func() { s.end(failure) })
	}
	s.mu.Unlock()
	if !wait {
		s.end(failure)
	}
}

// onBroken is called when the command socket is gone; it waits, bounded, for the reason. A host that could not start the session
// closes the socket, cleans up for as long as that takes, and then answers the assign with why.
func (s *Session) onBroken(cause error) {
	select {
	case <-s.told:
	case <-s.done: // at the latest when Assign gives up
	}
	cause = fmt.Errorf("%w: %w: %w", ErrHostLost, errCommandSocket, cause)
	s.mu.Lock()
	s.broken = true
	known := s.failure != nil
	s.mu.Unlock()
	if known {
		s.end(cause)
		return
	}
	timer := time.NewTimer(endGrace)
	defer timer.Stop()
	select {
	case <-s.done:
	case <-timer.C:
		s.end(cause)
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
	queue, flight, conn := s.queue, s.flight, s.conn
	s.queue, s.flight = nil, nil
	if s.grace != nil {
		s.grace.Stop()
	}
	close(s.done)
	s.mu.Unlock()
	for _, p := range flight {
		p.settle(lost(wire.OutcomeUnknown, p.seq, err))
	}
	for _, p := range queue {
		p.settle(lost(wire.OutcomeNotRun, 0, err))
	}
	if conn != nil {
		conn.Close()
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
	return s.host.send(ctx, wire.Control{StopRecording: &wire.StopRecording{Session: s.key.id, Term: s.key.term}})
}

// Release ends the session and waits until the host says that nothing of it runs any more. A *[wire.Failure] says what could
// not be cleaned up. [ErrHostLost]: the host could not be asked, and cleans up by itself. Calling it again is harmless.
func (s *Session) Release(ctx context.Context) error {
	select {
	case <-s.released:
		return s.releaseResult()
	default:
	}
	if err := s.host.send(ctx, wire.Control{Release: &wire.Release{Session: s.key.id, Term: s.key.term}}); err != nil {
		return err
	}
	select {
	case <-s.released:
		return s.releaseResult()
	case <-s.host.lost:
		return s.host.err()
	case <-ctx.Done():
		return fmt.Errorf("driverproxy: release: %w", context.Cause(ctx))
	}
}

func (s *Session) releaseResult() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leftover != nil {
		return s.leftover
	}
	return nil
}
