package driverproxy

import (
	"cmp"
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
	unacked    []kept   // answered, and whoever asked has not acknowledged; in order
	forget     []uint64 // acknowledged above others that are not, and the host has not been told
	told       uint64   // the host knows that it may forget up to here
	untold     int      // bytes of the answers that it may forget besides
	urged      bool     // it is to be told without a command
	seq        uint64   // given last
	body       int      // bytes of the bodies in queue and unanswered
}

// kept is an answer that a host has to keep.
type kept struct {
	seq  uint64
	size int
}

// untoldMost is how many bytes of answers a host keeps for nothing before it is told.
const untoldMost = 1 << 20

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

// carries notes that a frame with the acknowledgement up to ack was taken.
func (o *outstanding) carries(ack uint64) {
	o.told, o.untold, o.urged = ack, 0, false
}

// behind says that the host keeps what it need not, and urgent that it is much; urge has it told.
func (o *outstanding) behind() bool { return o.told < o.ack() || len(o.forget) > 0 }
func (o *outstanding) urgent() bool { return o.untold >= untoldMost }
func (o *outstanding) urge() bool {
	o.urged = o.behind()
	return o.urged
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
		return min(o.unacked[0].seq-1, o.answered())
	}
	return o.answered()
}

// take is the command that an answer is for; nil when it is not the next one's.
func (o *outstanding) take(seq uint64, size int) *pending {
	if len(o.unanswered) == 0 || o.unanswered[0].seq != seq {
		return nil
	}
	p := o.unanswered[0]
	o.unanswered = slices.Delete(o.unanswered, 0, 1)
	o.unsent = min(o.unsent, len(o.unanswered))
	o.body -= len(p.command.Body)
	if p.keep {
		o.unacked = append(o.unacked, kept{seq, size})
	} else {
		o.release(seq, size)
	}
	return p
}

// acknowledge lets the host forget an answer.
func (o *outstanding) acknowledge(seq uint64) {
	i, there := o.find(seq)
	if !there {
		return
	}
	size := o.unacked[i].size
	o.unacked = slices.Delete(o.unacked, i, i+1)
	o.release(seq, size)
}

func (o *outstanding) find(seq uint64) (int, bool) {
	return slices.BinarySearchFunc(o.unacked, seq, func(k kept, seq uint64) int { return cmp.Compare(k.seq, seq) })
}

// release notes that the host may forget an answer.
func (o *outstanding) release(seq uint64, size int) {
	o.untold += size
	if o.ack() < seq {
		o.forget = append(o.forget, seq)
	}
}

// forgotten are the numbers to tell the host now, beside what the next command says: those above ack, and all of them when it waits
// for too long or keeps too much.
func (o *outstanding) forgotten() []uint64 {
	ack := o.ack()
	f := slices.DeleteFunc(o.forget, func(seq uint64) bool { return seq <= ack })
	o.forget = nil
	if o.urged || o.urgent() {
		for seq := o.told + 1; seq <= ack && len(f) < wire.MaxOutstanding; seq++ {
			f = append(f, seq)
		}
		o.carries(ack)
	}
	return f
}

// resume prepares for a new socket, of a host that knows this much; false: what it says cannot be.
func (o *outstanding) resume(m wire.Resume) bool {
	if m.Received > o.seq || m.Received < o.answered() {
		return false
	}
	o.unsent = int(o.seq - m.Received)
	o.forget = nil
	o.knows(m)
	for _, k := range m.Kept {
		if _, unacked := o.find(k.Seq); k.Seq <= o.answered() && !unacked {
			o.forget = append(o.forget, k.Seq) // it was told on a socket that broke
		}
	}
	return true
}

// knows takes down what the host has forgotten.
func (o *outstanding) knows(m wire.Resume) {
	o.carries(m.Received)
	if len(m.Kept) > 0 {
		o.told = m.Kept[0].Seq - 1
	}
}

// adopt takes over what a host has: it answers all of it once more.
func (o *outstanding) adopt(m wire.Resume) {
	o.seq = m.Received
	o.knows(m)
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
