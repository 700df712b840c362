package driverproxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
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

// pending is a command that waits for its answer. Session.mu guards seq and keep.
type pending struct {
	command webdriver.Command
	origin  wire.Origin
	seq     uint64 // 0 until it is sent
	keep    bool   // the host keeps the answer until it is acknowledged
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
	case errors.Is(err, ErrOverflow):
		return "too much of the session was unacknowledged"
	case errors.Is(err, ErrReleased):
		return "the session has ended"
	case errors.Is(err, ErrLeft):
		return "the session was handed over to another orchestrator"
	case errors.Is(err, ErrClosed):
		return "the orchestrator is shutting down"
	case errors.Is(err, context.DeadlineExceeded):
		return "it took too long"
	}
	return "it was given up"
}

// Do sends a command and waits for its answer. Commands run in the order of the calls; many calls may wait at once. A socket
// that breaks meanwhile makes it take longer, and never run twice.
//
// The Answer is always one that can go to a client. With a nil error it came from the host (also when the Receipt's
// outcome is not done: the driver died under the command), or the command was malformed and went nowhere. A non-nil error says
// why the host gave none: ctx ended, or what [Session.Err] says. The answer is then a W3C "unknown error" with
// data.outcome "unknown" or "not_run". A command that was sent when ctx ended runs on; its answer is dropped.
//
// At most [wire.MaxOutstanding] commands may be without an acknowledged answer; one more ends the session with ErrOverflow.
func (s *Session) Do(ctx context.Context, c webdriver.Command) (webdriver.Answer, Receipt, error) {
	return s.do(ctx, &pending{command: c, done: make(chan settled, 1)})
}

// DoFrom is Do for a command of a client's stream. The host keeps its answer until [Session.Acknowledge], so that it is there
// when the stream goes on at another orchestrator.
func (s *Session) DoFrom(ctx context.Context, from wire.Origin, c webdriver.Command) (webdriver.Answer, Receipt, error) {
	return s.do(ctx, &pending{command: c, origin: from, keep: true, done: make(chan settled, 1)})
}

// Begin is DoFrom without the wait, so that others can follow the command: they run in the order of the calls. The function that it
// returns is called once; it gives what DoFrom does.
func (s *Session) Begin(from wire.Origin, c webdriver.Command) (wait func(context.Context) (webdriver.Answer, Receipt, error)) {
	p := &pending{command: c, origin: from, keep: true, done: make(chan settled, 1)}
	if r, begun := s.begin(p); !begun {
		return func(context.Context) (webdriver.Answer, Receipt, error) { return r.answer, r.receipt, r.err }
	}
	poke(s.wake) // writing it here could wait for the socket
	return func(ctx context.Context) (webdriver.Answer, Receipt, error) { return s.settled(ctx, p) }
}

func (s *Session) do(ctx context.Context, p *pending) (webdriver.Answer, Receipt, error) {
	if r, begun := s.begin(p); !begun {
		return r.answer, r.receipt, r.err
	}
	s.send(p)
	return s.settled(ctx, p)
}

// begin takes a command, unless it is malformed or comes too late: then it says what became of it.
func (s *Session) begin(p *pending) (settled, bool) {
	notRun := Receipt{Outcome: wire.OutcomeNotRun}
	if err := p.command.Validate(); err != nil {
		return settled{answer: err.Answer(), receipt: notRun}, false
	}
	if room := wire.MaxMessage - 1<<17; len(p.command.Body) > room {
		e := webdriver.Error{Code: webdriver.InvalidArgument, Message: fmt.Sprintf("the command's body is longer than %d bytes", room)}
		return settled{answer: e.Answer(), receipt: notRun}, false
	}
	s.mu.Lock()
	err, full := s.err, s.stream.full(p.command)
	if err == nil && !full {
		s.stream.add(p)
	}
	s.mu.Unlock()
	if err == nil && full {
		err = ErrOverflow
		s.end(err)
	}
	if err != nil {
		return lost(wire.OutcomeNotRun, 0, err), false
	}
	return settled{}, true
}

func (s *Session) settled(ctx context.Context, p *pending) (webdriver.Answer, Receipt, error) {
	select {
	case r := <-p.done:
		return r.answer, r.receipt, r.err
	case <-ctx.Done():
		r := s.abandon(p, context.Cause(ctx))
		return r.answer, r.receipt, r.err
	}
}

// abandon takes the command out of the queue; one that was sent stays, so that its answer is known for what it is.
func (s *Session) abandon(p *pending, cause error) settled {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case r := <-p.done: // it came at the same moment: what is known is told
		return r
	default:
	}
	if p.origin == (wire.Origin{}) { // a stream acknowledges it all the same
		p.keep = false
	}
	if p.seq != 0 {
		return lost(wire.OutcomeUnknown, p.seq, cause)
	}
	s.stream.drop(p)
	return lost(wire.OutcomeNotRun, 0, cause)
}

// Acknowledge lets the host forget the answer of a command of DoFrom or Await. Acknowledging again changes nothing.
func (s *Session) Acknowledge(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stream.acknowledge(seq)
	s.tellLocked()
}

// tellAfter is how long the host may wait to hear what it can forget, when no command brings it.
const tellAfter = time.Second

// tellLocked sees to it that the host forgets what nobody needs any more: answers are a customer's, and may be large.
func (s *Session) tellLocked() {
	switch {
	case s.err != nil || !s.stream.behind():
	case s.stream.urgent():
		poke(s.wake)
	case s.telling == nil:
		s.telling = time.AfterFunc(tellAfter, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.telling = nil
			if s.stream.urge() {
				poke(s.wake)
			}
		})
	}
}

// Kept is a command that the host had taken when the session was adopted.
type Kept struct {
	Seq    uint64
	Origin wire.Origin
	p      *pending
}

// Kept lists, after an adoption, the commands whose answers nobody has acknowledged, in order. Each must be awaited and acknowledged.
func (s *Session) Kept() []Kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept
}

// Await waits for the answer of a kept command, once. Answer, receipt and error are those of Do.
func (s *Session) Await(ctx context.Context, k Kept) (webdriver.Answer, Receipt, error) {
	return s.settled(ctx, k.p)
}

// atOnce is how long a body may be that its caller writes itself.
const atOnce = 4096

// send writes a small command at once when nothing else is being written: the way over the writer costs a switch of goroutines.
func (s *Session) send(p *pending) {
	s.mu.Lock()
	c, first := s.conn, s.stream.unsent == 0 && len(s.stream.queue) == 1 && s.stream.queue[0] == p
	s.mu.Unlock()
	if c == nil || !first || len(p.command.Body) > atOnce || !c.turn.TryLock() {
		poke(s.wake)
		return
	}
	_, err := s.writeOne(c)
	c.turn.Unlock()
	if err != nil {
		c.conn.Close() // its reader ends, and another socket carries what this one did not
	}
	s.mu.Lock()
	more := len(s.stream.queue) > 0 // the frame was of acknowledgements
	s.mu.Unlock()
	if more {
		poke(s.wake)
	}
}

// write sends what there is to send until stop is closed or the socket breaks.
func (s *Session) write(c *carried, stop <-chan struct{}) error {
	for {
		c.turn.Lock()
		wrote, err := s.writeOne(c)
		c.turn.Unlock()
		switch {
		case err != nil:
			return err
		case wrote:
			continue
		}
		select {
		case <-s.wake:
		case <-stop:
			return nil
		}
	}
}

// writeOne writes the next frame; the caller has the turn.
func (s *Session) writeOne(c *carried) (wrote bool, err error) {
	scratch := s.fleet.frames.Get().(*[]byte)
	defer s.fleet.frames.Put(scratch)
	frame, body, err := s.next(c, (*scratch)[:0])
	if frame == nil || err != nil {
		return false, err
	}
	if len(body) > atOnce {
		return true, c.conn.WriteBinary(context.Background(), frame, body)
	}
	frame = append(frame, body...)
	if cap(frame) <= 2*atOnce {
		*scratch = frame
	}
	return true, c.conn.WriteBinary(context.Background(), frame)
}

// next is the frame to be sent now, a command's in two parts; nil when there is none.
func (s *Session) next(c *carried, scratch []byte) (frame, body []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || s.conn != c { // the socket was replaced: the next one carries it
		return nil, nil, nil
	}
	if f := s.stream.forgotten(); len(f) > 0 {
		return wire.Forget{Seqs: f}.Append(scratch), nil, nil
	}
	p := s.stream.next()
	if p == nil {
		return nil, nil, nil
	}
	ack := s.stream.ack()
	s.stream.carries(ack)
	frame, err = wire.Command{Seq: p.seq, Ack: ack, Origin: p.origin, Method: p.command.Method, Path: p.command.Path}.Append(scratch)
	return frame, p.command.Body, err
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
	p := s.stream.take(a.Seq, len(a.Body))
	s.tellLocked()
	s.mu.Unlock()
	if p == nil {
		return fmt.Errorf("driverproxy: answer %d is not the next one: answers come in the order of the commands", a.Seq)
	}
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
	if s == nil || s.addr != addr {
		return nil, http.StatusNotFound, fmt.Errorf("driverproxy: no such session of this host and term")
	}
	return s, 0, nil
}
