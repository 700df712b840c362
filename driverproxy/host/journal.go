package host

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// errOverflow says that the orchestrator has more unacknowledged than a host keeps.
var errOverflow = errors.New("host: more is unacknowledged than a session may have")

// journal is the authority on what a session has executed: every command that was taken, until its answer is acknowledged.
// The caller locks.
type journal struct {
	received uint64  // highest number taken
	entries  []entry // those not acknowledged, in order of their numbers
	kept     int     // bytes of their answers
}

type entry struct {
	seq    uint64
	origin wire.Origin
	answer *wire.Answer // nil: it waits, or runs
}

func (j *journal) find(seq uint64) (int, bool) {
	return slices.BinarySearchFunc(j.entries, seq, func(e entry, seq uint64) int { return cmp.Compare(e.seq, seq) })
}

// take notes a command before it can run. It is false for one that was taken before: it must not run again.
func (j *journal) take(c *wire.Command) (fresh bool, err error) {
	n, _ := j.find(c.Ack + 1)
	j.forgetFirst(n)
	switch {
	case c.Seq <= j.received:
		return false, nil
	case c.Seq != j.received+1:
		return false, fmt.Errorf("host: command %d after %d: numbers must follow one another", c.Seq, j.received)
	case len(j.entries) == wire.MaxOutstanding:
		return false, errOverflow
	}
	j.received = c.Seq
	j.entries = append(j.entries, entry{seq: c.Seq, origin: c.Origin})
	return true, nil
}

// forgetFirst forgets the first n entries, up to the first that has no answer yet: that is not forgotten, whatever the other
// end says.
func (j *journal) forgetFirst(n int) {
	for i := range n {
		if j.entries[i].answer == nil {
			n = i
			break
		}
		j.kept -= len(j.entries[i].answer.Body)
	}
	j.entries = slices.Delete(j.entries, 0, n)
}

// forget forgets single answers.
func (j *journal) forget(seqs []uint64) {
	for _, seq := range seqs {
		if i, there := j.find(seq); there && j.entries[i].answer != nil {
			j.kept -= len(j.entries[i].answer.Body)
			j.entries = slices.Delete(j.entries, i, i+1)
		}
	}
}

// answer keeps a command's answer.
func (j *journal) answer(a wire.Answer) error {
	i, there := j.find(a.Seq)
	if !there {
		return nil // nothing forgets what has no answer: this cannot be
	}
	j.entries[i].answer = &a
	j.kept += len(a.Body)
	if j.kept > wire.MaxKept && len(j.entries) > 1 {
		return errOverflow
	}
	return nil
}

// after is the answer of the first command above a number, nil when that has none yet or there is none.
func (j *journal) after(seq uint64) *wire.Answer {
	if i, _ := j.find(seq + 1); i < len(j.entries) {
		return j.entries[i].answer
	}
	return nil
}

// resume is what a new command socket begins with.
func (j *journal) resume() wire.Resume {
	m := wire.Resume{Received: j.received}
	for _, e := range j.entries {
		m.Kept = append(m.Kept, wire.Kept{Seq: e.seq, Origin: e.origin})
	}
	return m
}
