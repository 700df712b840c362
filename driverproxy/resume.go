package driverproxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// ResumeLimit is how long a session is kept without its sockets: a tunnel that can be repaired is, within seconds.
const ResumeLimit = 30 * time.Second

// takeLimit bounds the first messages of a command socket.
const takeLimit = 15 * time.Second

var (
	errTooLate  = errors.New("the session has ended")
	errMismatch = errors.New("the host's journal and the orchestrator's do not belong together")
)

// serveCommand is the handler of a session's command socket. A session has one at a time: the newest.
func (f *Fleet) serveCommand(w http.ResponseWriter, r *http.Request) {
	s, status, err := f.sessionOf(r)
	if err != nil {
		http.Error(w, err.Error(), status)
		return
	}
	conn, done, err := f.accept(w, r, socket.Session(wire.MaxMessage))
	if err != nil {
		return
	}
	// Not in the handler: while that runs, the server keeps the request, its buffers and a tall stack, a third of what an idle session takes.
	go func() { // Close waits for it
		defer done()
		defer f.hangUp(conn)
		s.carry(conn)
	}()
}

// carry runs a command socket to its end.
func (s *Session) carry(conn *socket.Conn) {
	c := &carried{conn: conn, over: make(chan struct{})}
	if err := s.take(c); err != nil {
		s.fleet.cfg.Log.Warn("command socket refused", zap.String("session", s.key.id), zap.Error(err))
		conn.Bye(err.Error())
		close(c.over)
		return
	}
	var writer sync.WaitGroup
	stop := make(chan struct{})
	writer.Go(func() {
		if err := s.write(c, stop); err != nil {
			conn.Close()
		}
	})
	err := s.read(conn)
	close(stop)
	conn.Close()
	writer.Wait()
	close(c.over)
	s.leave(c, err)
}

// take makes c the session's command socket, once both ends have said what they know. What the one before brought is in
// by then.
func (s *Session) take(c *carried) error {
	select {
	case <-s.done: // before the host takes the socket for carried
		return errTooLate
	default:
	}
	limit := time.NewTimer(takeLimit)
	defer limit.Stop()
	select {
	case s.taking <- struct{}{}:
		defer func() { <-s.taking }()
	case <-s.done:
		return errTooLate
	case <-limit.C:
		return errors.New("another command socket is being taken")
	}
	s.mu.Lock()
	before := s.conn
	s.mu.Unlock()
	if before != nil {
		before.conn.Close()
		<-before.over // its reads and writes have ended: bounded by the socket's close
	}
	s.mu.Lock()
	answered := s.stream.answered()
	s.mu.Unlock()
	if err := c.conn.WriteBinary(context.Background(), wire.Resumed{Answered: answered}.Append(nil)); err != nil {
		return err
	}
	c.conn.SetSilence(takeLimit)
	b, err := c.conn.ReadBinary()
	if err != nil {
		return err
	}
	c.conn.SetSilence(socket.Session(0).Silence)
	m, err := wire.DecodeResume(b)
	if err != nil {
		return err
	}
	return s.use(c, m)
}

func (s *Session) use(c *carried, m wire.Resume) error {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return errTooLate
	}
	first := false
	select {
	case <-s.attached:
	default:
		first = true
	}
	if first && s.adopted {
		s.stream.adopt(m)
		for _, p := range s.stream.unanswered {
			s.kept = append(s.kept, Kept{p.seq, p.origin, p})
		}
	} else if !s.stream.resume(m) {
		s.mu.Unlock()
		s.end(fmt.Errorf("%w: %w", ErrHostLost, errMismatch))
		return errMismatch
	}
	s.conn = c
	s.watchLocked()
	s.tellLocked()
	if first {
		close(s.attached)
	}
	s.mu.Unlock()
	poke(s.wake)
	return nil
}

// leave is called when a command socket has ended.
func (s *Session) leave(c *carried, cause error) {
	s.mu.Lock()
	if s.conn == c {
		s.conn = nil
	}
	s.why = fmt.Errorf("%w: the session's command socket broke: %w", ErrHostLost, cause)
	over := s.failure != nil && s.conn == nil // nothing more comes
	s.watchLocked()
	s.mu.Unlock()
	if over {
		s.end(s.hostErr())
	}
}

// watchLocked sees to it that a session does not wait for its sockets for ever.
func (s *Session) watchLocked() {
	missing := s.conn == nil || s.host == nil
	switch {
	case s.err != nil, !s.hasStarted():
	case missing && s.away == nil:
		s.away = time.AfterFunc(s.fleet.cfg.ResumeLimit, func() { s.giveUp(s.hostErr()) })
	case !missing && s.away != nil:
		s.away.Stop()
		s.away = nil
	}
}

// hasStarted says whether Assign has, or could have, returned the session: before that nothing is resumed.
func (s *Session) hasStarted() bool {
	select {
	case <-s.told:
		return true
	default:
		return false
	}
}

// unlink is called when the host's control socket is gone.
func (s *Session) unlink(h *hostConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.host == h {
		s.host = nil
		s.why = h.err()
		s.watchLocked()
	}
}

// relink gives the session the host's new control socket.
func (s *Session) relink(h *hostConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.host = h
	s.watchLocked()
	close(s.relinked)
	s.relinked = make(chan struct{})
}

// undo has a host release a start that it may have made while its control socket was replaced.
func (s *Session) undo(asked *hostConn) {
	s.mu.Lock()
	h := s.host
	s.mu.Unlock()
	if h == nil || h == asked || s.adopted {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = h.send(ctx, wire.Control{Release: &wire.Release{Session: s.key.id, Term: s.key.term}}) // or the host has it listed in its next hello
}

// reconcile compares the sessions of a host that has come back with what it says it runs.
func (f *Fleet) reconcile(h *hostConn, hello *wire.Hello) {
	for _, s := range f.sessionsOf(h.name) {
		if !s.hasStarted() {
			continue // its Assign gives up by itself
		}
		switch {
		case s.boot != h.boot:
			s.giveUp(fmt.Errorf("%w: %s: its agent was started anew", ErrHostLost, h.name))
		case slices.Contains(hello.Sessions, wire.Hosted{Session: s.key.id, Term: s.key.term, Epoch: f.cfg.Epoch}):
			s.relink(h)
		default:
			s.relink(h) // to be released, and for what is still on its way
			s.onEnded(why(s, hello))
		}
	}
	for _, v := range hello.Sessions {
		if v.Epoch == f.cfg.Epoch && f.gaveUp(sessionKey{v.Session, v.Term}) { // while the host was away
			_ = h.send(context.Background(), wire.Control{Release: &wire.Release{Session: v.Session, Term: v.Term}}) // or the socket has broken
		}
	}
}

// why is what ended a session that a host does not run any more.
func why(s *Session, hello *wire.Hello) *wire.Failure {
	for _, e := range hello.Ended {
		if e.Session == s.key.id && e.Term == s.key.term {
			return &e.Failure
		}
	}
	return &wire.Failure{Code: wire.FailureGone, Message: "the host does not run the session any more"}
}
