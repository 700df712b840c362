package stream

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/driftstack/fleet/driverproxy/socket"
)

// ackWithin is how long a client that must acknowledge before it can go on may take to do so, beside the time in which a slow line
// brings it what it has not acknowledged.
const (
	ackWithin = 10 * time.Second
	slowLine  = 1 << 20 // bytes a second
)

// lastWords is how long a socket that has been told goodbye may take to close.
const lastWords = 5 * time.Second

// closeTaken is the close code of a connection whose stream another one has resumed.
const closeTaken = 4001

// Seat is one connection's place at a stream.
type Seat struct {
	stream *Stream
	hello  hello
	next   uint64        // the number of the next answer to send; the writer's
	wake   chan struct{} // buffered: there may be something to write
	room   chan struct{} // buffered: there may be room for a command
	taken  chan struct{} // closed when another connection has the stream
}

// Leave gives the seat up. Calling it again is harmless.
func (s *Seat) Leave() {
	t := s.stream
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.seat == s {
		t.seat, t.left = nil, t.now()
	}
	poke(s.room)
}

// Serve upgrades the request and carries the stream until the client leaves, breaks the protocol, or another connection
// takes the stream. It leaves the seat.
func (s *Seat) Serve(w http.ResponseWriter, r *http.Request) {
	defer s.Leave()
	conn, err := new(socket.Endpoint).Accept(w, r, limits())
	if err != nil {
		return // Accept has answered
	}
	stop, written := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(written)
		s.write(conn, stop)
	}()
	err = s.read(conn)
	close(stop)
	if err != nil {
		s.Leave() // it may be resumed at once
		bye(conn, socket.ClosePolicy, err.Error())
		drain(conn)
	}
	conn.Close()
	<-written
}

// bye says why the socket is about to be closed, and lets the client close it.
func bye(conn *socket.Conn, code int, reason string) {
	conn.Leave(socket.Close{Code: code, Reason: reason})
	conn.Expire(lastWords)
}

func drain(conn *socket.Conn) {
	for {
		if _, err := conn.ReadText(); err != nil {
			return
		}
	}
}

// read takes commands until the socket is gone; an error is the client's, and meant for it.
func (s *Seat) read(conn *socket.Conn) error {
	for {
		s.await()
		b, err := conn.ReadText()
		if err != nil {
			return nil
		}
		m, err := decode(b)
		if err != nil {
			return err
		}
		if err := s.take(m); err != nil {
			return err
		}
	}
}

// await waits for room for a command, for as long as the seat has its stream.
func (s *Seat) await() {
	t := s.stream
	for {
		t.mu.Lock()
		full := t.seat == s && t.ending == nil && !t.ledger.room()
		t.mu.Unlock()
		if !full {
			return
		}
		select {
		case <-s.room:
		case <-s.taken:
		}
	}
}

// take does what a message says, unless it comes after the end or after another connection.
func (s *Seat) take(m message) error {
	t := s.stream
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.seat != s {
		return nil
	}
	if m.Ack != nil {
		seqs, err := t.ledger.ack(*m.Ack)
		if err != nil {
			return err
		}
		t.acknowledgeLocked(seqs)
	}
	if m.ID != nil && t.ending == nil {
		if err := t.ledger.take(*m.ID, m.command()); err != nil {
			return err
		}
	}
	t.pumpLocked()
	poke(s.wake)
	return nil
}

// view is what the writer finds to do.
type view struct {
	message []byte // the next answer
	left    bool   // else: the reader has left, and says why
	code    int    // else, if not 0: there is no other answer, and the socket is closed with
	reason  string
	stalled bool   // else: nothing goes on until the client acknowledges
	acked   uint64 // more than this
	kept    int    // bytes of answers above it
}

func (s *Seat) look() view {
	t := s.stream
	t.mu.Lock()
	defer t.mu.Unlock()
	g := &t.ledger
	select {
	case <-s.taken:
		return view{code: closeTaken, reason: "another connection has resumed the stream"}
	default:
	}
	if t.seat != s {
		return view{left: true}
	}
	s.next = max(s.next, g.acked+1) // what the client says that it has is not sent
	if s.next <= g.high() {
		if e := g.at(s.next); e.phase == answered {
			return view{message: e.message}
		}
	}
	switch {
	case t.ending != nil && t.ending.Moved:
		return view{code: socket.CloseGoingAway, reason: t.ending.Reason}
	case t.settled:
		return view{code: socket.CloseNormal, reason: t.ending.Reason}
	}
	return view{stalled: len(t.flight) == 0 && g.queued(), acked: g.acked, kept: g.kept}
}

// write sends the hello and the answers until stop is closed, the socket breaks, or there is nothing more to come.
func (s *Seat) write(conn *socket.Conn, stop <-chan struct{}) {
	defer s.Leave()
	if err := s.writeAll(conn, stop); err != nil {
		select {
		case <-stop: // the reader is saying why
		default:
			conn.Close()
		}
	}
}

func (s *Seat) writeAll(conn *socket.Conn, stop <-chan struct{}) error {
	first, err := json.Marshal(s.hello)
	if err != nil {
		return err
	}
	if err := conn.WriteText(context.Background(), first); err != nil {
		return err
	}
	patience := time.NewTimer(ackWithin)
	defer patience.Stop()
	var before view
	for expired := false; ; {
		v := s.look()
		switch {
		case v.message != nil:
			if err := conn.WriteText(context.Background(), v.message); err != nil {
				return err
			}
			s.next++
			continue
		case v.left:
			return nil
		case v.code != 0:
			bye(conn, v.code, v.reason)
			return nil
		case !v.stalled || !before.stalled || v.acked != before.acked:
			patience.Reset(ackWithin + time.Duration(v.kept/slowLine)*time.Second)
		case expired:
			s.Leave()
			bye(conn, socket.ClosePolicy, `too much is unacknowledged: send {"ack": N}, the id up to which you have the answers`)
			return nil
		}
		before, expired = v, false
		select {
		case <-s.wake:
		case <-s.taken:
		case <-patience.C:
			expired = true
		case <-stop:
			return nil
		}
	}
}
