package host

import (
	"context"
	"sync"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// carrier is a session's end of the command stream. Sockets come and go; what was taken and answered does not depend on them.
type carrier struct {
	commands chan wire.Command // taken, in order of their numbers; has room for all there may be

	writing sync.Mutex // held while something is written, and to change conn
	scratch []byte     // guarded by writing

	mu      sync.Mutex // guards what follows
	journal journal
	conn    *socket.Conn // takes answers; nil: there is none that could
	sent    uint64       // highest number whose answer was written to conn
}

func newCarrier() *carrier { return &carrier{commands: make(chan wire.Command, wire.MaxOutstanding)} }

// talk runs one command socket to its end: it tells what is known, sends what the orchestrator has not seen, and takes commands.
// It says whether the orchestrator took the socket as the session's.
func (c *carrier) talk(conn *socket.Conn) (carried bool, err error) {
	c.mu.Lock()
	resume := c.journal.resume()
	c.mu.Unlock()
	if err := conn.WriteBinary(context.Background(), resume.Append(nil)); err != nil {
		return false, err
	}
	b, err := conn.ReadBinary()
	if err != nil {
		return false, err
	}
	resumed, err := wire.DecodeResumed(b)
	if err != nil {
		return false, err
	}
	c.use(conn, resumed.Answered)
	defer c.use(nil, 0)
	var first sync.WaitGroup
	first.Go(c.flush) // the socket must be read meanwhile
	defer first.Wait()
	defer conn.Close()
	for {
		b, err := conn.ReadBinary()
		if err != nil {
			return true, err
		}
		order, err := wire.DecodeOrder(b)
		if err != nil {
			return true, err
		}
		if err := c.obey(order); err != nil {
			return true, err
		}
	}
}

func (c *carrier) use(conn *socket.Conn, answered uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn, c.sent = conn, answered
}

func (c *carrier) obey(order any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch m := order.(type) {
	case *wire.Forget:
		c.journal.forget(m.Seqs)
	case *wire.Command:
		fresh, err := c.journal.take(m)
		if err != nil {
			return err
		}
		if fresh {
			c.commands <- *m // never blocks: the journal has no more
		}
	}
	return nil
}

// answer keeps a command's answer and sends it, if there is a socket.
func (c *carrier) answer(a wire.Answer) error {
	c.mu.Lock()
	err := c.journal.answer(a)
	c.mu.Unlock()
	if err == nil {
		c.flush()
	}
	return err
}

// flush writes the answers that the socket has not taken yet.
func (c *carrier) flush() {
	c.writing.Lock()
	defer c.writing.Unlock()
	for {
		c.mu.Lock()
		conn := c.conn
		var a *wire.Answer
		if conn != nil {
			if a = c.journal.after(c.sent); a != nil {
				c.sent = a.Seq
			}
		}
		c.mu.Unlock()
		if a == nil {
			return
		}
		if c.write(conn, a) != nil {
			conn.Close() // its reader ends, and another socket begins with this answer
			return
		}
	}
}

func (c *carrier) write(conn *socket.Conn, a *wire.Answer) error {
	head := wire.Answer{Seq: a.Seq, Outcome: a.Outcome, Status: a.Status, Took: a.Took}.Append(c.scratch[:0])
	c.scratch = head
	if len(a.Body) <= 4096 {
		head = append(head, a.Body...)
		c.scratch = head
		return conn.WriteBinary(context.Background(), head)
	}
	return conn.WriteBinary(context.Background(), head, a.Body)
}
