package stream

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// begun takes and begins a command.
func (g *ledger) mustBegin(t *testing.T, id uint64) *entry {
	t.Helper()
	if err := g.take(id, webdriver.Command{Method: "GET", Path: "/"}); err != nil {
		t.Fatal(err)
	}
	e := g.next(false)
	if e == nil || e.number != id {
		t.Fatalf("command %d is not the next", id)
	}
	g.begin(e, nil)
	return e
}

func TestBoundsOfAnswers(t *testing.T) {
	var g ledger
	large := make([]byte, maxKept/2)
	g.settle(g.mustBegin(t, 1), large, 1)
	second := g.mustBegin(t, 2)
	third := g.mustBegin(t, 3) // nobody knows yet how long the answers before it will be
	g.settle(second, large, 2)
	if err := g.take(4, webdriver.Command{}); err != nil {
		t.Fatal(err)
	}
	if g.next(false) != nil || g.next(true) == nil {
		t.Error("a command is begun although the answers fill what there is")
	}
	g.settle(third, large, 3)
	if seqs, err := g.ack(1); err != nil || !slices.Equal(seqs, []uint64{1}) || g.next(false) != nil {
		t.Errorf("%v, %v, and %v is begun", seqs, err, g.next(false))
	}
	if seqs, err := g.ack(3); err != nil || !slices.Equal(seqs, []uint64{2, 3}) || g.next(false) == nil {
		t.Errorf("%v, %v, and nothing goes on", seqs, err)
	}
}

func TestBoundsOfCommands(t *testing.T) {
	var g ledger
	for id, size := range []int{maxWaiting - 1, 1, 1} {
		if !g.room() {
			t.Fatalf("no room for command %d of a client that keeps to the bound", id+1)
		}
		if err := g.take(uint64(id)+1, webdriver.Command{Body: make([]byte, size)}); err != nil {
			t.Fatal(err)
		}
	}
	if g.room() {
		t.Error("room beyond the bound")
	}
	e := g.next(false)
	g.begin(e, nil)
	g.settle(e, []byte("answer"), 1)
	if !g.room() {
		t.Error("no room, though the large one is answered")
	}
}

// A command that is missing is always let in: everything else waits for it.
func TestRoomForWhatIsMissing(t *testing.T) {
	var g ledger
	g.adopt(maxHeld, nil)
	if _, err := g.resume(0); err != nil {
		t.Fatal(err)
	}
	if len(g.entries) != maxHeld || !g.room() {
		t.Fatalf("%d commands are here, room %t", len(g.entries), g.room())
	}
	for id := uint64(1); id < maxHeld; id++ {
		if err := g.take(id, webdriver.Command{}); err != nil {
			t.Fatal(err)
		}
	}
	if g.room() {
		t.Error("room beyond the bound")
	}
}

// Numbers that no stream has cost nothing but their answers.
func TestKeptNumbersThatDoNotFit(t *testing.T) {
	var g ledger
	for number, dropped := range map[uint64]bool{0: true} {
		if e := g.adopt(number, nil); e.dropped != dropped {
			t.Errorf("%d: %t", number, e.dropped)
		}
	}
	g.adopt(5, nil)
	for _, number := range []uint64{5, 4, 0} {
		if e := g.adopt(number, nil); !e.dropped {
			t.Errorf("%d after 5 is kept for the client", number)
		}
	}
	old := g.entries[0]
	g.adopt(1<<62, nil)
	if len(g.entries) != 1 || !old.dropped || g.acked != 1<<62-1 {
		t.Fatalf("%d entries above %d", len(g.entries), g.acked)
	}
	if _, err := g.resume(7); !errors.Is(err, ErrNumber) {
		t.Errorf("answers that are gone: %v", err)
	}
	if _, err := g.resume(1<<62 + 3); err != nil || g.received() != 1<<62+3 {
		t.Errorf("received %d, %v", g.received(), err)
	}
}

// What a client has already is acknowledged as soon as it is here, and not sent.
func TestAdoptedAnswerThatTheClientHas(t *testing.T) {
	d := &driver{}
	s := New(Token{1}, 0, d, time.Now)
	arrive := make(chan struct{})
	s.Adopt(4, func() Result {
		<-arrive
		return echo(4, webdriver.Command{})
	})
	seat, err := s.Sit(6)
	if err != nil || seat.hello.Received != 6 {
		t.Fatalf("received %d, %v", seat.hello.Received, err)
	}
	if _, clean, _ := s.Idle(); clean {
		t.Error("nothing is left to do, though an answer is to come")
	}
	close(arrive)
	eventually(t, "it is acknowledged", func() bool { return slices.Equal(d.acknowledged(), []uint64{1004}) })
	eventually(t, "nothing is left", func() bool { _, clean, _ := s.Idle(); return clean })
	if v := seat.look(); v.message != nil {
		t.Errorf("sends %s", v.message)
	}
	s.End(Ending{})
}

// A connection that another one has replaced says nothing that counts, however late its messages are read.
func TestReplacedConnectionIsNotHeard(t *testing.T) {
	d := &driver{}
	s := New(Token{1}, 0, d, time.Now)
	first, err := s.Sit(0)
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Sit(0)
	if err != nil {
		t.Fatal(err)
	}
	one := message{ID: new(uint64), Method: "GET", Path: "/"}
	*one.ID = 1
	if err := first.take(one); err != nil || len(d.executed()) > 0 {
		t.Fatalf("%v ran, %v", d.executed(), err)
	}
	if err := second.take(one); err != nil {
		t.Fatal(err)
	}
	first.Leave() // is not the one that is connected
	if _, _, connected := s.Idle(); !connected {
		t.Error("the second has lost its place")
	}
	s.End(Ending{})
	if ran := d.executed(); !slices.Equal(ran, []uint64{1}) {
		t.Fatalf("%v ran", ran)
	}
}

// A stream that is given up lets its answers go, but not before they are here.
func TestDrop(t *testing.T) {
	d := &driver{}
	s := New(Token{1}, 0, d, time.Now)
	arrive := make(chan struct{})
	s.Adopt(1, func() Result {
		<-arrive
		return echo(1, webdriver.Command{})
	})
	if s.Drop() {
		t.Error("dropped while its command runs")
	}
	close(arrive)
	eventually(t, "it is dropped", s.Drop)
	if acked := d.acknowledged(); !slices.Equal(acked, []uint64{1001}) {
		t.Errorf("acknowledged %v", acked)
	}
	seat, err := s.Sit(1)
	if err != nil {
		t.Fatal(err)
	}
	if s.Drop() {
		t.Error("dropped while it is connected")
	}
	seat.Leave()
	s.End(Ending{})
}
