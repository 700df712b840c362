package stream

import (
	"errors"
	"fmt"
	"slices"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// Bounds of a stream at the server.
const (
	Window     = 64         // commands that may be begun and not acknowledged: what a host keeps for a stream
	maxHeld    = 2 * Window // commands that may be here and not acknowledged; beyond it the client is not read
	maxKept    = 64 << 20   // bytes of answers not acknowledged; beyond it no command is begun
	maxWaiting = 16 << 20   // bytes of commands not answered; beyond it the client is not read. A client that keeps to it is always read
)

// ErrNumber says that a client's numbers do not fit its stream.
var ErrNumber = errors.New("the stream does not go on there")

type phase byte

const (
	missing  phase = iota // a command that the client is to send again
	queued                // here, and not begun
	begun                 // on its way, or running
	answered              // its answer is kept
)

// entry is a command that is not acknowledged.
type entry struct {
	number  uint64
	phase   phase
	command webdriver.Command // while queued
	size    int               // of the command's body, until it is answered
	alone   bool              // nothing runs beside it
	wait    func() Result     // once begun
	message []byte            // once answered: as it is sent
	seq     uint64            // once answered: what its acknowledgement names; 0: nobody else keeps the answer
	dropped bool              // was acknowledged before it was answered here: by the client of an adopted stream
}

// ledger is what the server knows of a stream: the commands above the acknowledged ones, in order and without gaps. The
// caller locks.
type ledger struct {
	acked   uint64
	entries []*entry // of the numbers acked+1, acked+2, …
	began   int      // entries begun or answered
	waiting int      // bytes of commands not answered
	kept    int      // bytes of answers
	adopted bool     // entries are what a host kept: how far the client is, it has not said yet
}

func (g *ledger) high() uint64 { return g.acked + uint64(len(g.entries)) }

// received is the highest number up to which no command is missing.
func (g *ledger) received() uint64 {
	if i := slices.IndexFunc(g.entries, func(e *entry) bool { return e.phase == missing }); i >= 0 {
		return g.acked + uint64(i)
	}
	return g.high()
}

// room says whether another command may be taken. One that is missing always may: others wait for it.
func (g *ledger) room() bool {
	return g.waiting <= maxWaiting && (len(g.entries) < maxHeld || g.received() < g.high())
}

// queued says whether a command waits to be begun.
func (g *ledger) queued() bool {
	return slices.ContainsFunc(g.entries, func(e *entry) bool { return e.phase == queued })
}

// take adds a command. One that is here, or was, is not taken again.
func (g *ledger) take(id uint64, c webdriver.Command) error {
	received := g.received()
	switch {
	case id <= received:
		return nil
	case id > received+1:
		return fmt.Errorf("command %d came, and %d is the next: ids count without gaps", id, received+1)
	case id > g.high():
		g.entries = append(g.entries, &entry{number: id})
	}
	e := g.at(id)
	e.phase, e.command, e.size = queued, c, len(c.Body)
	g.waiting += e.size
	return nil
}

// at is the entry of a number above acked and up to high.
func (g *ledger) at(id uint64) *entry { return g.entries[id-g.acked-1] }

// next is the command to begin now, nil if there is none or its turn has not come. It is the caller's to begin.
func (g *ledger) next(unbounded bool) *entry {
	if !unbounded && (g.began >= Window || g.kept >= maxKept) {
		return nil
	}
	if i := slices.IndexFunc(g.entries, func(e *entry) bool { return e.phase == queued }); i >= 0 {
		return g.entries[i]
	}
	return nil
}

func (g *ledger) begin(e *entry, wait func() Result) {
	e.phase, e.wait, e.command = begun, wait, webdriver.Command{}
	g.began++
}

// settle keeps the answer of an entry; false: the client has it already.
func (g *ledger) settle(e *entry, message []byte, seq uint64) bool {
	g.waiting -= e.size
	e.size, e.wait = 0, nil
	if e.dropped {
		return false
	}
	e.phase, e.message, e.seq = answered, message, seq
	g.kept += len(message)
	return true
}

// ack forgets the answers up to a number and returns what must be acknowledged for them.
func (g *ledger) ack(to uint64) (seqs []uint64, err error) {
	if to <= g.acked {
		return nil, nil
	}
	if to > g.high() || slices.ContainsFunc(g.entries[:to-g.acked], func(e *entry) bool { return e.phase != answered }) {
		return nil, fmt.Errorf("%w: answer %d is acknowledged and was not given", ErrNumber, to)
	}
	return g.forget(to), nil
}

// forget drops the entries up to a number.
func (g *ledger) forget(to uint64) (seqs []uint64) {
	n := min(to, g.high()) - g.acked
	for _, e := range g.entries[:n] {
		switch e.phase {
		case answered:
			g.kept -= len(e.message)
			g.began--
			if e.seq != 0 {
				seqs = append(seqs, e.seq)
			}
		case begun:
			g.began--
			e.dropped = true
		}
	}
	g.entries = slices.Delete(g.entries, 0, int(n))
	g.acked = to
	return seqs
}

// adopt adds a command that a host kept. Numbers rise; those between are missing.
func (g *ledger) adopt(number uint64, wait func() Result) *entry {
	e := &entry{number: number, phase: begun, wait: wait}
	if number <= g.high() { // no stream counts like that: the answer is nobody's
		e.dropped = true
		return e
	}
	if !g.adopted {
		g.acked, g.adopted = number-1, true
	}
	if number > g.high()+maxHeld { // no client is that far behind: those before are its that the host was not told of
		g.forget(number - 1)
	}
	for g.high() < number-1 {
		g.entries = append(g.entries, &entry{number: g.high() + 1})
	}
	g.entries = append(g.entries, e)
	g.began++
	return e
}

// resume is ack by a client that comes back. What an adopted stream was is the client's to say.
func (g *ledger) resume(to uint64) (seqs []uint64, err error) {
	if !g.adopted {
		if to < g.acked {
			return nil, fmt.Errorf("%w: answers up to %d were acknowledged and are gone, and those above %d are asked for", ErrNumber, g.acked, to)
		}
		return g.ack(to)
	}
	if to < g.acked {
		if g.high()-to > maxHeld {
			return nil, fmt.Errorf("%w: answers above %d are asked for, and %d is the first that is not gone", ErrNumber, to, g.acked+1)
		}
		before := make([]*entry, 0, maxHeld)
		for n := to + 1; n <= g.acked; n++ {
			before = append(before, &entry{number: n})
		}
		g.entries, g.acked = append(before, g.entries...), to
	}
	g.adopted = false
	return g.forget(to), nil
}
