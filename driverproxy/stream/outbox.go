package stream

import (
	"fmt"
	"slices"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// The client acknowledges with its next command, and by itself after so many answers or bytes of them.
const (
	ackAnswers = 16
	ackBytes   = 1 << 20
)

// outbox is what the client knows of its stream. The caller locks.
type outbox struct {
	window   int        // most commands that may be unacknowledged
	most     int        // most bytes of commands that may be unanswered, if more than one is
	numbered uint64     // the highest id given
	answered uint64     // every answer up to here is here
	received uint64     // and up to here the server has said to have the commands
	acked    uint64     // and up to here the server may have been told so
	flight   []*Pending // the commands answered+1 … numbered
	sent     int        // of flight: those that this connection took or its server has
	queue    []*Pending // commands without an id: they were not sent yet
	bytes    int        // of answers above acked
	waiting  int        // of commands in flight
}

func (o *outbox) add(p *Pending) { o.queue = append(o.queue, p) }

// withdraw takes back a command that was never sent.
func (o *outbox) withdraw(p *Pending) bool {
	i := slices.Index(o.queue, p)
	if i >= 0 {
		o.queue = slices.Delete(o.queue, i, i+1)
	}
	return i >= 0
}

// connected begins a connection whose server has the commands up to received.
func (o *outbox) connected(h hello) error {
	if h.Received < o.answered || h.Received > o.numbered {
		return fmt.Errorf("stream: the server has %d commands of the stream, of which %d were sent and %d answered", h.Received, o.numbered, o.answered)
	}
	o.received = h.Received
	o.window, o.most, o.sent, o.acked, o.bytes = h.Window, h.Bytes, int(h.Received-o.answered), o.answered, 0
	// What was sent and is not received has not run, as far as this server knows; another before it may know more.
	return nil
}

// next is the message to send now; nil when there is none.
func (o *outbox) next() []byte {
	if o.sent == len(o.flight) && len(o.queue) > 0 && o.room(len(o.queue[0].command.Body)) {
		o.waiting += len(o.queue[0].command.Body)
		o.flight = append(o.flight, o.queue[0])
		o.queue = slices.Delete(o.queue, 0, 1)
		o.numbered++
	}
	due := o.answered - o.acked
	if o.sent == len(o.flight) {
		if due < ackAnswers && o.bytes < ackBytes {
			return nil
		}
		o.acknowledge()
		return encodeAck(o.answered)
	}
	p := o.flight[o.sent]
	o.sent++
	p.sent = true
	var ack uint64
	if due > 0 {
		ack = o.answered
		o.acknowledge()
	}
	return encodeCommand(o.answered+uint64(o.sent), p.command, ack)
}

// room says whether a command of that size may follow those in flight.
func (o *outbox) room(size int) bool {
	return len(o.flight) == 0 || len(o.flight) < o.window && o.waiting+size <= o.most
}

// ready says whether an answer gave next something to do.
func (o *outbox) ready() bool {
	return o.answered-o.acked >= ackAnswers || o.bytes >= ackBytes || len(o.queue) > 0
}

func (o *outbox) acknowledge() { o.acked, o.bytes = o.answered, 0 }

// last is the acknowledgement to leave with, nil if there is nothing to acknowledge.
func (o *outbox) last() []byte {
	if o.acked == o.answered {
		return nil
	}
	o.acknowledge()
	return encodeAck(o.answered)
}

// answer takes the next answer; it is for the command that is returned. After an adoption it may come before the command
// was sent again: the host had it, and the server misses one before it.
func (o *outbox) answer(a answer) (*Pending, error) {
	if a.ID != o.answered+1 || len(o.flight) == 0 {
		return nil, fmt.Errorf("stream: the server answered %d, and the next answer is that of %d", a.ID, o.answered+1)
	}
	p := o.flight[0]
	o.waiting -= len(p.command.Body)
	p.command = webdriver.Command{}
	o.flight[0] = nil
	o.flight = o.flight[1:]
	o.sent = max(0, o.sent-1)
	o.answered++
	o.bytes += len(a.Value)
	return p, nil
}

// rest is every command without an answer; none is left.
func (o *outbox) rest() []*Pending {
	all := append(o.flight, o.queue...)
	o.flight, o.queue, o.sent = nil, nil, 0
	return all
}
