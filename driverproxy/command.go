package driverproxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// Receipt says what became of a command.
type Receipt struct {
	Seq     uint64        // its number in the session; 0 if it was never sent
	Outcome wire.Outcome  // done, unknown, or not run
	Took    time.Duration // at the driver, as the host measured it; 0 if it did not answer
}

// pending is a command that waits for its answer.
type pending struct {
	command webdriver.Command
	seq     uint64 // 0 until sent; guarded by Session.mu
	done    chan settled
}

type settled struct {
	answer  webdriver.Answer
	receipt Receipt
	err     error
}

// settle is called once: by whoever took p out of the queue or the flight.
func (p *pending) settle(s settled) { p.done <- s }

// lost is the result of a command that the host did not answer.
func lost(outcome wire.Outcome, seq uint64, err error) settled {
	text, name := "the command was not run: ", "not_run"
	if outcome == wire.OutcomeUnknown {
		text, name = "whether the command was run is not known: ", "unknown"
	}
	e := &webdriver.Error{
		Code: webdriver.UnknownError, Message: text + forClient(err), Data: map[string]any{"outcome": name},
	}
	return settled{answer: e.Answer(), receipt: Receipt{Seq: seq, Outcome: outcome}, err: err}
}

// forClient says why there is no answer, without the hosts and addresses that the error itself names.
func forClient(err error) string {
	var f *wire.Failure
	switch {
	case errors.As(err, &f):
		return f.Error()
	case errors.Is(err, ErrHostLost):
		return "the device's host was lost"
	case errors.Is(err, ErrReleased):
		return "the session has ended"
	case errors.Is(err, ErrClosed):
		return "the orchestrator is shutting down"
	case errors.Is(err, context.DeadlineExceeded):
		return "it took too long"
	}
	return "it was given up"
}

// Do sends a command and waits for its answer. Commands run in the order of the calls; many calls may wait at once.
//
// The Answer is always one that can go to a client. With a nil error it came from the host (also when the Receipt's
// outcome is not done: the driver died under the command), or the command was malformed and went nowhere. A non-nil error says
// why the host gave none: ctx ended, or what [Session.Err] says. The answer is then a W3C "unknown error" with
// data.outcome "unknown" or "not_run". A command that was sent when ctx ended runs on; its answer is dropped.
func (s *Session) Do(ctx context.Context, c webdriver.Command) (webdriver.Answer, Receipt, error) {
	if err := c.Validate(); err != nil {
		return err.Answer(), Receipt{Outcome: wire.OutcomeNotRun}, nil
	}
	if room := wire.MaxMessage - 1<<17; len(c.Body) > room {
		e := webdriver.Error{Code: webdriver.InvalidArgument, Message: fmt.Sprintf("the command's body is longer than %d bytes", room)}
		return e.Answer(), Receipt{Outcome: wire.OutcomeNotRun}, nil
	}
	p := &pending{command: c, done: make(chan settled, 1)}
	s.mu.Lock()
	if err := s.err; err != nil {
		s.mu.Unlock()
		r := lost(wire.OutcomeNotRun, 0, err)
		return r.answer, r.receipt, r.err
	}
	s.queue = append(s.queue, p)
	s.mu.Unlock()
	poke(s.wake)
	select {
	case r := <-p.done:
		return r.answer, r.receipt, r.err
	case <-ctx.Done():
		r := s.abandon(p, context.Cause(ctx))
		return r.answer, r.receipt, r.err
	}
}

// abandon takes the command out of the queue; one that was sent stays in flight, so that its answer is known for what it is.
func (s *Session) abandon(p *pending, cause error) settled {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case r := <-p.done: // it came at the same moment: what is known is told
		return r
	default:
	}
	if p.seq != 0 {
		return lost(wire.OutcomeUnknown, p.seq, cause)
	}
	s.queue = slices.DeleteFunc(s.queue, func(q *pending) bool { return q == p })
	return lost(wire.OutcomeNotRun, 0, cause)
}

// next takes the first command off the queue, as a frame in two parts; nil when there is none.
func (s *Session) next(scratch []byte) ([]byte, []byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 || s.err != nil {
		return nil, nil, nil
	}
	p := s.queue[0]
	s.queue = slices.Delete(s.queue, 0, 1)
	s.seq++
	p.seq = s.seq
	s.flight = append(s.flight, p)
	body := p.command.Body
	head, err := wire.Command{Seq: p.seq, Ack: s.ack, Method: p.command.Method, Path: p.command.Path}.Append(scratch)
	p.command = webdriver.Command{}
	return head, body, err
}

// serveCommand is the handler of a session's command socket: it reads answers, beside the writer.
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
	defer done()
	defer f.hangUp(conn)
	if !s.attach(conn) {
		conn.Bye("the session has a command socket already, or has ended")
		return
	}
	var writer sync.WaitGroup
	stop := make(chan struct{})
	writer.Go(func() {
		if err := s.write(conn, stop); err != nil {
			conn.Close()
		}
	})
	err = s.read(conn)
	close(stop)
	conn.Close()
	writer.Wait()
	s.onBroken(err)
}

func (s *Session) attach(conn *socket.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil || s.err != nil {
		return false
	}
	s.conn = conn
	close(s.attached)
	return true
}

// write sends commands until stop is closed or the socket breaks.
func (s *Session) write(conn *socket.Conn, stop <-chan struct{}) error {
	var scratch []byte
	for {
		head, body, err := s.next(scratch[:0])
		switch {
		case err != nil:
			return err
		case head == nil:
			select {
			case <-s.wake:
			case <-stop:
				return nil
			}
			continue
		case len(body) <= 4096:
			head = append(head, body...)
			err = conn.WriteBinary(context.Background(), head)
		default:
			err = conn.WriteBinary(context.Background(), head, body)
		}
		if err != nil {
			return err
		}
		if cap(head) <= 8192 {
			scratch = head
		}
	}
}

// read hands out answers until the socket breaks.
func (s *Session) read(conn *socket.Conn) error {
	for {
		b, err := conn.ReadBinary()
		if err != nil {
			return err
		}
		a, err := wire.DecodeAnswer(b)
		if err != nil {
			return err
		}
		if err := s.answered(a); err != nil {
			return err
		}
	}
}

func (s *Session) answered(a wire.Answer) error {
	if a.Status < 200 || a.Status > 599 {
		return fmt.Errorf("driverproxy: answer %d has HTTP status %d: an HTTP server cannot pass it on", a.Seq, a.Status)
	}
	s.mu.Lock()
	if len(s.flight) == 0 || s.flight[0].seq != a.Seq {
		s.mu.Unlock()
		return fmt.Errorf("driverproxy: answer %d is not the next one: answers come in the order of the commands", a.Seq)
	}
	p := s.flight[0]
	s.flight = slices.Delete(s.flight, 0, 1)
	s.ack = a.Seq
	s.mu.Unlock()
	p.settle(settled{
		answer:  webdriver.Answer{Status: a.Status, Body: a.Body},
		receipt: Receipt{Seq: a.Seq, Outcome: a.Outcome, Took: a.Took},
	})
	return nil
}

// sessionOf finds the session that a socket's request names; it must come from the session's host.
func (f *Fleet) sessionOf(r *http.Request) (*Session, int, error) {
	addr, err := remoteAddr(r)
	if err != nil {
		return nil, http.StatusForbidden, err
	}
	term, err := strconv.ParseInt(r.URL.Query().Get("term"), 10, 64)
	if err != nil {
		return nil, http.StatusBadRequest, fmt.Errorf("driverproxy: term: %w", err)
	}
	s := f.session(sessionKey{r.URL.Query().Get("session"), term})
	if s == nil || s.host.addr != addr {
		return nil, http.StatusNotFound, fmt.Errorf("driverproxy: no such session of this host and term")
	}
	return s, 0, nil
}
