package socket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// Codes of a Close, RFC 6455, section 7.4.
const (
	CloseNormal    = websocket.CloseNormalClosure
	CloseGoingAway = websocket.CloseGoingAway
	ClosePolicy    = websocket.ClosePolicyViolation
	CloseTooBig    = websocket.CloseMessageTooBig
	CloseFailed    = websocket.CloseInternalServerErr
	CloseAgain     = websocket.CloseServiceRestart // connect again
)

// Close is how a socket is left: a code, and words for a person, of which 123 bytes fit.
type Close struct {
	Code   int
	Reason string
}

// Error implements error, so that a Close can be a context's cause.
func (c *Close) Error() string { return fmt.Sprintf("socket: close %d: %s", c.Code, c.Reason) }

// Edge is for the sockets at which a relay begins and ends, on either end.
func Edge(maxMessage int64) Limits {
	return Limits{MaxMessage: maxMessage, Silence: 60 * time.Second, Stuck: 30 * time.Second, PingEvery: 15 * time.Second}
}

// Hop is for the sockets between two edges. Their patience is greater: who takes nothing is at an edge, and must have
// been found out there before a hop is taken for dead.
func Hop(maxMessage int64) Limits {
	l := Edge(maxMessage)
	l.Stuck *= 3
	return l
}

// goodbyeLimit is how long a relay waits for its goodbyes to be taken and answered.
const goodbyeLimit = 2 * time.Second

// Side is one side of a relay.
type Side struct {
	Conn   *Conn
	Broken Close           // what the other side is told when this one breaks off without a goodbye, or takes nothing for Limits.Stuck
	Seen   func(bytes int) // is called for each piece of a message that comes from this side, before it is passed on; may be nil
}

// Relay carries messages of either kind between two sockets, both ways, until a side says goodbye or breaks off, or ctx ends,
// with a *Close as its cause. Whoever is still there is then told the same, both sockets are closed, and what ended it is returned.
//
// A message is passed on piece by piece, so that its length costs no memory; and what one side does not take, the other
// cannot send.
func Relay(ctx context.Context, a, b Side) Close {
	r := &relay{sides: [2]Side{a, b}, ending: make(chan struct{})}
	over := make(chan struct{})
	var ways, watch sync.WaitGroup
	ways.Go(func() { (&way{relay: r, from: a, to: b}).run() })
	ways.Go(func() { (&way{relay: r, from: b, to: a}).run() })
	watch.Go(func() { r.watch(ctx, over) })
	ways.Wait()
	close(over)
	watch.Wait()
	r.close()
	return r.how
}

type relay struct {
	sides  [2]Side
	once   sync.Once
	how    Close         // set once
	ending chan struct{} // closed after
}

// watch ends the relay when ctx does, and closes the sockets when its end takes longer than it may: a way may be reading from
// a side that says nothing more, or writing to one that takes nothing.
func (r *relay) watch(ctx context.Context, over <-chan struct{}) {
	select {
	case <-r.ending:
	case <-ctx.Done():
		r.end(closing(context.Cause(ctx), Close{CloseGoingAway, ""}))
	}
	late := time.NewTimer(goodbyeLimit)
	defer late.Stop()
	select {
	case <-over:
	case <-late.C:
		r.close()
	}
}

func (r *relay) close() {
	for _, s := range r.sides {
		s.Conn.Close()
	}
}

// end tells both sides; only the first call does. The ways go on until the goodbyes are answered, or watch closes the sockets.
func (r *relay) end(how Close) {
	r.once.Do(func() {
		r.how = how
		close(r.ending)
		var told sync.WaitGroup
		for _, s := range r.sides {
			told.Go(func() { s.Conn.Leave(how) }) // in vain where the goodbye came from
		}
		told.Wait()
	})
}

// closing is what err, of a read or a context, means to the other side.
func closing(err error, otherwise Close) Close {
	var own *Close
	var c *websocket.CloseError
	switch {
	case errors.As(err, &own):
		return *own
	case errors.As(err, &c) && c.Code != websocket.CloseAbnormalClosure:
		return Close{c.Code, c.Text}
	case errors.Is(err, websocket.ErrReadLimit): // gorilla has told who sent it
		return Close{CloseTooBig, "a message is longer than is relayed"}
	}
	return otherwise
}

// Pieces of messages. Most messages fit into the smaller one.
const (
	smallPiece = 4 << 10
	piece      = 32 << 10
)

// way is one direction of a relay; one goroutine owns it.
type way struct {
	relay    *relay
	from, to Side
	buf      []byte
	deaf     bool // to takes nothing any more; from is read on, to hear its goodbye
}

func (w *way) run() {
	w.buf = make([]byte, smallPiece)
	for {
		kind, message, err := w.from.Conn.next()
		if err == nil {
			err = w.pass(kind, message)
		}
		if err != nil {
			w.relay.end(closing(err, w.from.Broken))
			return
		}
	}
}

// pass passes one message on. The error is that of from.
func (w *way) pass(kind int, message io.Reader) error {
	var out *outgoing
	w.try(func() (err error) {
		out, err = w.to.Conn.begin(kind)
		return err
	})
	if out != nil {
		defer out.release()
	}
	for {
		w.from.Conn.extend()
		n, err := message.Read(w.buf)
		if n > 0 {
			if w.from.Seen != nil {
				w.from.Seen(n)
			}
			w.try(func() error { return out.write(w.buf[:n]) })
		}
		if errors.Is(err, io.EOF) {
			w.try(func() error { return out.finish() })
			return nil
		}
		if err != nil {
			return err
		}
		if n == smallPiece && len(w.buf) == smallPiece {
			w.buf = make([]byte, piece)
		}
	}
}

// try does something to to, for as long as it is there.
func (w *way) try(step func() error) {
	if w.deaf {
		return
	}
	if err := step(); err != nil {
		w.deaf = true
		w.relay.end(w.to.Broken)
	}
}

// next is the next message. The one before must have been read to its end.
func (c *Conn) next() (kind int, message io.Reader, err error) {
	c.extend()
	return c.ws.NextReader()
}

// Drain reads on, and drops what comes, until the socket ends: after a Leave the peer may have something left to say before it
// answers.
func (c *Conn) Drain() {
	for {
		_, message, err := c.next()
		if err == nil {
			_, err = io.Copy(io.Discard, message)
		}
		if err != nil {
			return
		}
	}
}

// outgoing is a message that is sent in pieces. It has the writer's turn until it is released.
type outgoing struct {
	conn *Conn
	w    io.WriteCloser
}

func (c *Conn) begin(kind int) (*outgoing, error) {
	select {
	case c.writer <- struct{}{}:
	case <-c.closed:
		return nil, ErrClosed
	}
	w, err := c.ws.NextWriter(kind)
	if err != nil {
		<-c.writer
		return nil, err
	}
	return &outgoing{c, w}, nil
}

func (o *outgoing) write(p []byte) error {
	return o.conn.send(func() error { _, err := o.w.Write(p); return err })
}

func (o *outgoing) finish() error { return o.conn.send(o.w.Close) }

func (o *outgoing) release() { <-o.conn.writer }
