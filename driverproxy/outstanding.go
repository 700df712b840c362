package driverproxy

import (
	"slices"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// outstanding are the commands of a session that are not acknowledged, in the order of their numbers:
//
//	       ack          unanswered[0].seq        seq
//	────────┼──────────────────┼──────────────────┼──▶
//	 forgot │ unacknowledged   │ unanswered       │ queue (no number yet)
//	        │ (has an answer)  │ sent    unsent ◀─┘
//
// The caller locks.
type outstanding struct {
	queue      []*pending
	unanswered []*pending
	unsent     int      // how many of unanswered, at its end, this socket has not carried yet
	unacked    []uint64 // answered, and whoever asked has not acknowledged; in order
	forget     []uint64 // acknowledged above others that are not, and the host has not been told
	seq        uint64   // given last
	body       int      // bytes of the bodies in queue and unanswered
}

// maxBodies bounds the bodies of a session that are kept until their answers have come: two of the largest.
const maxBodies = 2 * wire.MaxMessage

// full says that one more command is too many.
func (o *outstanding) full(c webdriver.Command) bool {
	n := len(o.queue) + len(o.unanswered) + len(o.unacked)
	return n >= wire.MaxOutstanding || n > 0 && o.body+len(c.Body) > maxBodies
}

func (o *outstanding) add(p *pending) {
	o.queue = append(o.queue, p)
	o.body += len(p.command.Body)
}

// drop takes a command out that has no number.
func (o *outstanding) drop(p *pending) {
	if i := slices.Index(o.queue, p); i >= 0 {
		o.queue = slices.Delete(o.queue, i, i+1)
		o.body -= len(p.command.Body)
	}
}

// next is the command to be sent now, with its number; nil when there is none.
func (o *outstanding) next() *pending {
	if o.unsent > 0 {
		o.unsent--
		return o.unanswered[len(o.unanswered)-o.unsent-1]
	}
	if len(o.queue) == 0 {
		return nil
	}
	p := o.queue[0]
	o.queue = slices.Delete(o.queue, 0, 1)
	o.seq++
	p.seq = o.seq
	o.unanswered = append(o.unanswered, p)
	return p
}

// answered is the highest number up to which all answers are here.
func (o *outstanding) answered() uint64 {
	if len(o.unanswered) > 0 {
		return o.unanswered[0].seq - 1
	}
	return o.seq
}

// ack is the highest number up to which the host may forget.
func (o *outstanding) ack() uint64 {
	if len(o.unacked) > 0 {
		return min(o.unacked[0]-1, o.answered())
	}
	return o.answered()
}

// take is the command that an answer is for; nil when it is not the next one's.
func (o *outstanding) take(seq uint64) *pending {
	if len(o.unanswered) == 0 || o.unanswered[0].seq != seq {
		return nil
	}
	p := o.unanswered[0]
	o.unanswered = slices.Delete(o.unanswered, 0, 1)
	o.unsent = min(o.unsent, len(o.unanswered))
	o.body -= len(p.command.Body)
	if p.keep {
		o.unacked = append(o.unacked, seq)
	} else if o.ack() < seq {
		o.forget = append(o.forget, seq)
	}
	return p
}

// acknowledge lets the host forget an answer.
func (o *outstanding) acknowledge(seq uint64) {
	i, there := slices.BinarySearch(o.unacked, seq)
	if !there {
		return
	}
	o.unacked = slices.Delete(o.unacked, i, i+1)
	if o.ack() < seq {
		o.forget = append(o.forget, seq)
	}
}

// forgotten are the numbers to tell the host beside ack.
func (o *outstanding) forgotten() []uint64 {
	if len(o.forget) == 0 {
		return nil
	}
	ack := o.ack()
	f := slices.DeleteFunc(o.forget, func(seq uint64) bool { return seq <= ack })
	o.forget = nil
	return f
}

// resume prepares for a new socket, of a host that knows this much; false: what it says cannot be.
func (o *outstanding) resume(m wire.Resume) bool {
	if m.Received > o.seq || m.Received < o.answered() {
		return false
	}
	o.unsent = int(o.seq - m.Received)
	o.forget = nil
	for _, k := range m.Kept {
		if _, unacked := slices.BinarySearch(o.unacked, k.Seq); k.Seq <= o.answered() && !unacked {
			o.forget = append(o.forget, k.Seq) // it was told on a socket that broke
		}
	}
	return true
}

// adopt takes over what a host has: it answers all of it once more.
func (o *outstanding) adopt(m wire.Resume) {
	o.seq = m.Received
	for _, k := range m.Kept {
		o.unanswered = append(o.unanswered, &pending{seq: k.Seq, origin: k.Origin, keep: true, done: make(chan settled, 1)})
	}
}

// drain takes out what has no answer.
func (o *outstanding) drain() []*pending {
	all := append(o.unanswered, o.queue...)
	*o = outstanding{seq: o.seq}
	return all
}
