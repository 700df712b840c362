package driverproxy

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// model is a host as simple as can be, and a socket between it and the commands of a session that may lose what is under way.
type model struct {
	t        *rapid.T
	o        outstanding
	down     []wire.Command // on the socket
	forgets  [][]uint64     // likewise, each behind as many commands as were there
	received uint64
	executed []uint64
	kept     map[uint64]bool // by number: whether it has been answered
	sent     uint64          // highest answer on the socket
	up       []uint64
	settled  map[uint64]int
	waiting  []uint64 // answered commands whose asker has not acknowledged
	added    int
}

func (m *model) command() {
	if m.o.full(pendingCommand().command) {
		return
	}
	p := pendingCommand()
	p.keep = rapid.Bool().Draw(m.t, "keep")
	m.o.add(p)
	m.added++
}

func pendingCommand() *pending { return &pending{done: make(chan settled, 1)} }

func (m *model) write() {
	if f := m.o.forgotten(); len(f) > 0 {
		m.forgets = append(m.forgets, f)
	}
	if p := m.o.next(); p != nil {
		m.down = append(m.down, wire.Command{Seq: p.seq, Ack: m.o.ack()})
	}
}

func (m *model) take() {
	for _, f := range m.forgets {
		for _, seq := range f {
			m.forgetOne(seq)
		}
	}
	m.forgets = nil
	if len(m.down) == 0 {
		return
	}
	c := m.down[0]
	m.down = m.down[1:]
	for seq := range m.kept {
		if seq <= c.Ack {
			m.forgetOne(seq)
		}
	}
	if c.Seq != m.received+1 {
		m.t.Fatalf("command %d came after %d", c.Seq, m.received)
	}
	m.received = c.Seq
	m.kept[c.Seq] = false
	if len(m.kept) > wire.MaxOutstanding {
		m.t.Fatalf("the host has to keep %d commands", len(m.kept))
	}
}

func (m *model) forgetOne(seq uint64) {
	answered, there := m.kept[seq]
	if there && (!answered || m.settled[seq] == 0 || slices.Contains(m.waiting, seq)) {
		m.t.Fatalf("the host is to forget %d, which is still wanted", seq)
	}
	delete(m.kept, seq)
}

func (m *model) execute() {
	next := uint64(len(m.executed)) + 1
	if next > m.received {
		return
	}
	m.executed = append(m.executed, next)
	m.kept[next] = true
}

func (m *model) answer() {
	for seq := m.sent + 1; seq <= m.received; seq++ {
		if answered, there := m.kept[seq]; there {
			if answered {
				m.sent = seq
				m.up = append(m.up, seq)
			}
			return
		}
	}
}

func (m *model) read() {
	if len(m.up) == 0 {
		return
	}
	seq := m.up[0]
	m.up = m.up[1:]
	p := m.o.take(seq, 1)
	if p == nil {
		m.t.Fatalf("answer %d is out of turn", seq)
	}
	if m.settled[seq]++; p.keep {
		m.waiting = append(m.waiting, seq)
	}
}

func (m *model) acknowledge() {
	if len(m.waiting) == 0 {
		return
	}
	i := rapid.IntRange(0, len(m.waiting)-1).Draw(m.t, "which")
	seq := m.waiting[i]
	m.waiting = slices.Delete(m.waiting, i, i+1)
	m.o.acknowledge(seq)
}

// breakSocket loses what is under way, and resumes.
func (m *model) breakSocket() {
	m.down, m.up, m.forgets = nil, nil, nil
	m.sent = m.o.answered()
	r := wire.Resume{Received: m.received}
	for seq := range m.kept {
		r.Kept = append(r.Kept, wire.Kept{Seq: seq})
	}
	slices.SortFunc(r.Kept, func(a, b wire.Kept) int { return int(a.Seq) - int(b.Seq) })
	if !m.o.resume(r) {
		m.t.Fatalf("%+v does not fit", r)
	}
}

// TestOutstanding: whatever is lost when, each command is executed once and in order, answered once, and forgotten by the host
// only when nobody wants its answer any more.
func TestOutstanding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{t: t, kept: map[uint64]bool{}, settled: map[uint64]int{}}
		t.Repeat(map[string]func(*rapid.T){
			"command": func(*rapid.T) { m.command() }, "write": func(*rapid.T) { m.write() }, "take": func(*rapid.T) { m.take() },
			"execute": func(*rapid.T) { m.execute() }, "answer": func(*rapid.T) { m.answer() }, "read": func(*rapid.T) { m.read() },
			"acknowledge": func(*rapid.T) { m.acknowledge() }, "break": func(*rapid.T) { m.breakSocket() },
		})
		for range 8 * (m.added + 1) { // all that is under way arrives
			m.write()
			m.take()
			m.execute()
			m.answer()
			m.read()
			m.acknowledge()
		}
		if len(m.executed) != m.added || len(m.settled) != m.added {
			t.Fatalf("%d commands, %d executed, %d answered", m.added, len(m.executed), len(m.settled))
		}
		for i, seq := range m.executed {
			if seq != uint64(i+1) || m.settled[seq] != 1 {
				t.Fatalf("place %d is command %d, answered %d times", i+1, seq, m.settled[seq])
			}
		}
		if rapid.Bool().Draw(t, "broken") {
			m.breakSocket() // with an acknowledgement that was under way
		}
		m.o.urge()
		m.write()
		m.take()
		if len(m.kept) > 0 {
			t.Fatalf("everything is acknowledged, and the host keeps %v", m.kept)
		}
	})
}

// TestAdopted: what a host kept is answered again, and new commands follow it.
func TestAdopted(t *testing.T) {
	var o outstanding
	o.adopt(wire.Resume{Received: 9, Kept: []wire.Kept{{Seq: 4}, {Seq: 7}, {Seq: 9}}})
	p := pendingCommand()
	o.add(p)
	if got := o.next(); got != p || p.seq != 10 {
		t.Fatalf("the next command is %d", got.seq)
	}
	for _, seq := range []uint64{4, 7, 9, 10} {
		if o.take(seq, 1) == nil {
			t.Errorf("answer %d is not taken", seq)
		}
	}
	if o.ack() != 3 {
		t.Errorf("ack %d although nothing was acknowledged", o.ack())
	}
	o.acknowledge(7)
	if f := o.forgotten(); !slices.Equal(f, []uint64{10, 7}) && !slices.Equal(f, []uint64{7, 10}) {
		t.Errorf("to forget: %v", f)
	}
	o.acknowledge(4)
	o.acknowledge(9)
	if o.ack() != 10 {
		t.Errorf("ack %d when all are acknowledged", o.ack())
	}
}

// TestReplacedSocketCarriesNothing: a caller that was held up before it wrote finds another socket in use. What it took would be
// lost with the old one.
func TestReplacedSocketCarriesNothing(t *testing.T) {
	f := NewFleet(Config{})
	s := &Session{fleet: f, conn: &carried{}}
	p := pendingCommand()
	s.stream.add(p)
	if wrote, err := s.writeOne(&carried{}); wrote || err != nil || p.seq != 0 {
		t.Fatalf("written to a socket that was replaced: %v %v, as %d", wrote, err, p.seq)
	}
}
