package stream

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// world is a client, a server and a host, without sockets and goroutines: what is on its way between them is in slices, and is
// lost when a test says so.
type world struct {
	t *rapid.T

	// client
	outbox outbox
	window int // what it keeps to
	added  []*Pending
	remote []int // those of them that are for the driver
	given  int   // answers that have come
	linked bool
	up     [][]byte // to the server
	down   [][]byte // to the client

	// server
	ledger ledger
	flight []*entry
	next   uint64            // of the connection
	seqs   map[uint64]uint64 // of the host's commands, by the number in the stream
	seq    uint64

	// host
	sent []kept // begun by the server, and not at the host
	kept []kept // at the host, in order
	acks []uint64
	ran  []int // the commands that the driver has executed
}

// kept is a command at the host.
type kept struct {
	seq, number uint64
	command     int
	done        bool
}

// order is what the body of a command says.
type order struct {
	N     int  `json:"n"`
	Local bool `json:"local"` // answered by the server, without the host
}

func (w *world) add() {
	o := order{N: len(w.added), Local: rapid.IntRange(0, 5).Draw(w.t, "local") == 0}
	b, _ := json.Marshal(o)
	if !o.Local {
		w.remote = append(w.remote, o.N)
	}
	p := &Pending{command: webdriver.Command{Method: "POST", Path: "/x", Body: b}, done: make(chan struct{})}
	w.added = append(w.added, p)
	w.outbox.add(p)
}

func (w *world) clientWrites() {
	if !w.linked {
		return
	}
	if m := w.outbox.next(); m != nil {
		w.up = append(w.up, m)
	}
}

func (w *world) serverReads() {
	if !w.linked || len(w.up) == 0 || !w.ledger.room() {
		return
	}
	m, err := decode(w.up[0])
	w.up = w.up[1:]
	if err != nil {
		w.t.Fatal(err)
	}
	if m.Ack != nil {
		seqs, err := w.ledger.ack(*m.Ack)
		if err != nil {
			w.t.Fatal(err)
		}
		w.acks = append(w.acks, seqs...)
	}
	if m.ID != nil {
		if err := w.ledger.take(*m.ID, m.command()); err != nil {
			w.t.Fatal(err)
		}
	}
	w.pump()
}

func (w *world) pump() {
	for {
		e := w.ledger.next(false)
		if e == nil {
			return
		}
		var o order
		if err := json.Unmarshal(e.command.Body, &o); err != nil {
			w.t.Fatal(err)
		}
		if o.Local {
			w.seqs[e.number] = 0
		} else {
			w.seq++
			w.seqs[e.number] = w.seq
			w.sent = append(w.sent, kept{seq: w.seq, number: e.number, command: o.N})
		}
		w.ledger.begin(e, nil)
		w.flight = append(w.flight, e)
	}
}

func (w *world) hostReads() {
	if len(w.sent) > 0 {
		w.kept = append(w.kept, w.sent[0])
		w.sent = w.sent[1:]
	}
	if len(w.acks) > 0 {
		w.kept = slices.DeleteFunc(w.kept, func(k kept) bool { return k.seq == w.acks[0] })
		w.acks = w.acks[1:]
	}
}

func (w *world) hostRuns() {
	if i := slices.IndexFunc(w.kept, func(k kept) bool { return !k.done }); i >= 0 {
		w.ran = append(w.ran, w.kept[i].command)
		w.kept[i].done = true
	}
}

// serverHears takes the answer of the first command in flight, if it is there.
func (w *world) serverHears() {
	if len(w.flight) == 0 {
		return
	}
	e := w.flight[0]
	seq := w.seqs[e.number]
	value := fmt.Sprintf("local %d", e.number)
	if seq != 0 {
		i := slices.IndexFunc(w.kept, func(k kept) bool { return k.seq == seq })
		if i < 0 || !w.kept[i].done {
			return
		}
		value = fmt.Sprintf("ran %d", w.kept[i].command)
	}
	w.flight = w.flight[1:]
	a, _ := webdriver.ValueAnswer(value)
	if !w.ledger.settle(e, encodeAnswer(e.number, a), seq) && seq != 0 {
		w.acks = append(w.acks, seq)
	}
	w.pump()
}

func (w *world) serverWrites() {
	if !w.linked {
		return
	}
	w.next = max(w.next, w.ledger.acked+1)
	if w.next <= w.ledger.high() && w.ledger.at(w.next).phase == answered {
		w.down = append(w.down, w.ledger.at(w.next).message)
		w.next++
	}
}

func (w *world) clientReads() {
	if len(w.down) == 0 {
		return
	}
	a, err := decodeAnswer(w.down[0])
	w.down = w.down[1:]
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := w.outbox.answer(a)
	if err != nil {
		w.t.Fatal(err)
	}
	want := fmt.Sprintf("%q", fmt.Sprintf("ran %d", w.given))
	if string(a.Value) != want && string(a.Value) != fmt.Sprintf("%q", fmt.Sprintf("local %d", a.ID)) || p != w.added[w.given] {
		w.t.Fatalf("answer %d is %s, want %s", w.given, a.Value, want)
	}
	w.given++
}

func (w *world) cut() { w.linked, w.up, w.down = false, nil, nil }

// connect resumes the stream, which cuts the connection that there is.
func (w *world) connect() {
	w.cut()
	seqs, err := w.ledger.resume(w.outbox.answered)
	if err != nil {
		w.t.Fatal(err)
	}
	w.acks = append(w.acks, seqs...)
	w.next = w.outbox.answered + 1
	if err := w.outbox.connected(hello{Received: w.ledger.received(), Window: w.window, Bytes: maxWaiting}); err != nil {
		w.t.Fatal(err)
	}
	w.linked = true
	w.pump()
}

// die replaces the server by one that knows nothing but what the host has.
func (w *world) die() {
	w.cut()
	w.sent, w.acks, w.flight, w.ledger, w.seqs = nil, nil, nil, ledger{}, map[uint64]uint64{}
	all := slices.Clone(w.kept)
	slices.SortFunc(all, func(a, b kept) int { return int(a.number) - int(b.number) })
	for _, k := range all {
		w.seqs[k.number] = k.seq
		w.flight = append(w.flight, w.ledger.adopt(k.number, nil))
	}
	if len(all) == 0 { // as one makes a stream that nobody knows
		w.ledger = ledger{acked: w.outbox.answered}
	}
}

// check holds what must always hold.
func (w *world) check() {
	g := &w.ledger
	var began, waiting, keeps int
	for i, e := range g.entries {
		if e.number != g.acked+uint64(i)+1 {
			w.t.Fatalf("entry %d of a ledger acknowledged up to %d has number %d", i, g.acked, e.number)
		}
		switch e.phase {
		case begun, answered:
			began++
		}
		if e.phase != answered {
			waiting += e.size
		}
		keeps += len(e.message)
	}
	if began != g.began || waiting != g.waiting || keeps != g.kept {
		w.t.Fatalf("%d begun, %d bytes wait, %d are kept; the ledger counts %d, %d, %d", began, waiting, keeps, g.began, g.waiting, g.kept)
	}
	if began > Window || len(g.entries) > maxHeld {
		w.t.Fatalf("%d commands are begun, %d here", began, len(g.entries))
	}
	if n := w.outbox.numbered - w.outbox.answered; n != uint64(len(w.outbox.flight)) || n > uint64(w.window) {
		w.t.Fatalf("%d commands are sent, %d remembered", n, len(w.outbox.flight))
	}
}

// Whatever is lost on the way, and whoever dies: every command runs once, in order, and its answer reaches who sent it.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{t: t, seqs: map[uint64]uint64{}, window: rapid.SampledFrom([]int{1, Window, Window, maxHeld - 1}).Draw(t, "window")}
		w.connect()
		steps := []func(){w.add, w.clientWrites, w.serverReads, w.hostReads, w.hostRuns, w.serverHears, w.serverWrites, w.clientReads}
		breaks := []func(){w.cut, w.connect, w.connect, w.die}
		for range rapid.IntRange(1, 20).Draw(t, "rounds") {
			for range rapid.IntRange(0, 300).Draw(t, "steps") {
				rapid.SampledFrom(steps).Draw(t, "step")()
				w.check()
			}
			rapid.SampledFrom(breaks).Draw(t, "break")()
			w.check()
		}
		for rounds := 0; w.given < len(w.added); rounds++ {
			if rounds > 100_000 {
				t.Fatalf("%d of %d commands are answered, and nothing goes on: %+v", w.given, len(w.added), w.ledger)
			}
			if !w.linked {
				w.connect()
			}
			for _, step := range steps[1:] {
				step()
			}
			w.check()
		}
		w.finish()
	})
}

// finish acknowledges everything, after which nothing may be left anywhere.
func (w *world) finish() {
	if !w.linked {
		w.connect()
	}
	if m := w.outbox.last(); m != nil {
		w.up = append(w.up, m)
	}
	for len(w.up) > 0 || len(w.acks) > 0 || len(w.sent) > 0 {
		w.serverReads()
		w.hostReads()
	}
	if !slices.Equal(w.ran, w.remote) {
		w.t.Fatalf("the driver ran %v, was to run %v", w.ran, w.remote)
	}
	if len(w.ledger.entries) > 0 || w.ledger.kept > 0 || w.ledger.waiting > 0 || w.ledger.began > 0 || len(w.flight) > 0 {
		w.t.Fatalf("left over: %+v, %d in flight", w.ledger, len(w.flight))
	}
	if len(w.kept) > 0 {
		w.t.Fatalf("the host keeps %+v", w.kept)
	}
}
