package stream

import (
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// Runner runs the commands of one stream.
type Runner interface {
	// Alone says that a command must run after those before it have been answered, and before any other is begun.
	Alone(c webdriver.Command) bool
	// Begin hands a command on, without waiting, in the order of the calls. wait waits for its answer; it is called once, and must return.
	Begin(number uint64, c webdriver.Command) (wait func() Result)
	// Acknowledge says that the client has the answer with that Seq.
	Acknowledge(seq uint64)
}

// Result is what became of a command.
type Result struct {
	Answer webdriver.Answer
	Seq    uint64 // to acknowledge it by; 0: there is nothing to acknowledge
	Moved  bool   // the answer has to be had from another orchestrator: there is none here
}

// Ending is why a stream ends; Moved means that it goes on at another orchestrator.
type Ending struct {
	Moved  bool
	Reason string // of the websocket's close: 120 bytes of it are sent
}

// Stream is the server's end of one stream. It takes commands from the connection that has its [Seat], and keeps answers until the
// client acknowledges them.
type Stream struct {
	token Token
	run   Runner
	now   func() time.Time

	mu      sync.Mutex // guards what follows
	ledger  ledger
	flight  []*entry // begun and not answered, in the order in which they were begun
	done    chan struct{}
	seat    *Seat
	left    time.Time // when the last connection left, or the stream was made
	ending  *Ending   // no command is taken any more
	settled bool      // and there will be no further answer
}

// New returns a stream without a connection, whose client has every answer up to a number. End ends it.
func New(t Token, answered uint64, r Runner, now func() time.Time) *Stream {
	return &Stream{token: t, run: r, now: now, left: now(), ledger: ledger{acked: answered}}
}

// Adopt adds a command that was begun elsewhere. It is called in the order of the numbers, before the first connection.
func (s *Stream) Adopt(number uint64, wait func() Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flyLocked(s.ledger.adopt(number, wait))
}

// Idle says since when the stream has had no connection, and whether everything it was given is answered and acknowledged.
// connected: it has one.
func (s *Stream) Idle() (since time.Time, clean, connected bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left, len(s.ledger.entries) == 0 && len(s.flight) == 0, s.seat != nil
}

// Highest is the highest number of a command that the stream was given.
func (s *Stream) Highest() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ledger.high()
}

// Drop acknowledges the answers of a stream that is given up. false: something of it still runs, or it is connected, and
// nothing was done.
func (s *Stream) Drop() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seat != nil || len(s.flight) > 0 {
		return false
	}
	s.acknowledgeLocked(s.ledger.forget(s.ledger.high()))
	return true
}

// End takes no further command and waits until those that were taken are answered, which is up to the [Runner]. The connection then gets
// what is left of the answers, and the reason.
func (s *Stream) End(e Ending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending == nil {
		s.ending = &e
	}
	s.pumpLocked()
	if done := s.done; done != nil {
		s.mu.Unlock()
		<-done
		s.mu.Lock()
	}
	s.settled = true
	s.pokeLocked()
}

// pumpLocked begins the commands whose turn it is.
func (s *Stream) pumpLocked() {
	for s.ending == nil || !s.ending.Moved {
		e := s.ledger.next(s.ending != nil) // what comes after the end is answered without a host
		if e == nil {
			return
		}
		if n := len(s.flight); n > 0 && (s.flight[n-1].alone || s.run.Alone(e.command)) {
			return
		}
		e.alone = s.run.Alone(e.command)
		s.ledger.begin(e, s.run.Begin(e.number, e.command))
		s.flyLocked(e)
	}
}

func (s *Stream) flyLocked(e *entry) {
	s.flight = append(s.flight, e)
	if s.done == nil {
		s.done = make(chan struct{})
		go s.collect(s.done)
	}
}

// collect waits for answers until there are none to come; End waits for it.
func (s *Stream) collect(done chan<- struct{}) {
	defer close(done)
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.flight) > 0 {
		e := s.flight[0]
		s.mu.Unlock()
		r := e.wait()
		var message []byte
		if !r.Moved {
			message = encodeAnswer(e.number, r.Answer)
		}
		s.mu.Lock()
		s.flight[0] = nil
		s.flight = s.flight[1:]
		s.settleLocked(e, r, message)
		s.pumpLocked()
		s.pokeLocked()
	}
	s.flight, s.done = nil, nil
}

func (s *Stream) settleLocked(e *entry, r Result, message []byte) {
	if r.Moved {
		if s.ending == nil || !s.ending.Moved {
			s.ending = &Ending{Moved: true, Reason: "the session moves to another orchestrator: resume the stream"}
		}
		return
	}
	if !s.ledger.settle(e, message, r.Seq) && r.Seq != 0 {
		s.run.Acknowledge(r.Seq)
	}
}

func (s *Stream) acknowledgeLocked(seqs []uint64) {
	for _, seq := range seqs {
		s.run.Acknowledge(seq)
	}
}

// pokeLocked has the connection look again.
func (s *Stream) pokeLocked() {
	if s.seat != nil {
		poke(s.seat.wake)
		poke(s.seat.room)
	}
}

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Sit gives the stream to a new connection, whose client has every answer up to that number; whoever had it is told so. The
// caller serves the seat. [ErrNumber].
func (s *Stream) Sit(answered uint64) (*Seat, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seqs, err := s.ledger.resume(answered)
	if err != nil {
		return nil, err
	}
	s.acknowledgeLocked(seqs)
	if s.seat != nil {
		close(s.seat.taken)
	}
	s.seat = &Seat{
		stream: s, next: answered + 1, hello: hello{Stream: s.token.String(), Received: s.ledger.received(), Window: Window, Bytes: maxWaiting},
		wake: make(chan struct{}, 1), room: make(chan struct{}, 1), taken: make(chan struct{}),
	}
	s.pumpLocked()
	return s.seat, nil
}
