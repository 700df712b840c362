package lanes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
)

var errCut = errors.New("cut")

// pipe is a socket in memory. What is written arrives in order, after a delay.
type pipe struct {
	up, down *way
	cut      chan struct{}
	once     sync.Once
	said     atomic.Bool // goodbye, by either end
}

// way is one direction.
type way struct {
	in, out chan []byte
	delay   func() time.Duration
}

type end struct {
	*pipe
	read, write *way
}

// newPipe returns the host's and the orchestrator's end; room is how many messages the host's writes may be ahead.
func newPipe(room int, delay func() time.Duration) (host, orch *end) {
	p := &pipe{cut: make(chan struct{})}
	for _, w := range []**way{&p.up, &p.down} {
		*w = &way{in: make(chan []byte, room), out: make(chan []byte), delay: delay}
		go (*w).carry(p.cut)
	}
	return &end{p, p.down, p.up}, &end{p, p.up, p.down}
}

func (w *way) carry(cut chan struct{}) {
	for {
		select {
		case b := <-w.in:
			t := time.NewTimer(w.delay())
			select {
			case <-t.C:
			case <-cut:
				t.Stop()
				return
			}
			select {
			case w.out <- b:
			case <-cut:
				return
			}
		case <-cut:
			return
		}
	}
}

func (e *end) ReadBinary() ([]byte, error) {
	select {
	case b := <-e.read.out:
		return b, nil
	case <-e.cut:
		return nil, errCut
	}
}

func (e *end) WriteBinary(ctx context.Context, parts ...[]byte) error {
	select {
	case e.write.in <- parts[0]:
		return nil
	case <-e.cut:
		return errCut
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *end) Expire(time.Duration) {}
func (e *end) Bye(string)           { e.said.Store(true); e.Close() }
func (e *end) Close()               { e.once.Do(func() { close(e.pipe.cut) }) }

// world is a Sender and a Receiver, and what joins them.
type world struct {
	t        *testing.T
	receiver *Receiver
	sender   *Sender
	over     chan struct{}
	serving  sync.WaitGroup
	room     int
	delay    func() time.Duration

	mu     sync.Mutex
	refuse bool
	spoil  func(message []byte) // what arrives; nil: nothing
	ends   [wire.MaxLanes]*end  // newest of each lane
	dials  int
}

func newWorld(t *testing.T, lanes, room int, delay func() time.Duration) *world {
	w := &world{t: t, over: make(chan struct{}), room: room, delay: delay}
	w.begin(lanes)
	return w
}

func (w *world) begin(lanes int) {
	w.receiver = NewReceiver(w.over, 0)
	first, err := w.dial(w.t.Context(), 0)
	if err != nil {
		w.t.Fatal(err)
	}
	w.sender = NewSender(first, Config{Dial: w.dial, Lanes: lanes})
}

func (w *world) dial(_ context.Context, lane int) (Socket, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dials++
	if w.refuse {
		return nil, errors.New("refused")
	}
	host, orch := newPipe(w.room, w.delay)
	w.ends[lane] = host
	receiver := w.receiver
	w.serving.Go(func() {
		_ = receiver.Serve(lane, &spoilt{orch, w.spoil})
		orch.Close()
	})
	return host, nil
}

// spoilt is an end that does not hear what was said.
type spoilt struct {
	*end
	spoil func([]byte)
}

func (s *spoilt) ReadBinary() ([]byte, error) {
	b, err := s.end.ReadBinary()
	if err == nil && s.spoil != nil {
		b = bytes.Clone(b)
		s.spoil(b)
	}
	return b, err
}

// refusing makes dials fail, or not.
func (w *world) refusing(refuse bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuse = refuse
}

// live lists the lanes.
func (w *world) live() (numbers []int) {
	w.sender.mu.Lock()
	defer w.sender.mu.Unlock()
	for n, l := range w.sender.lanes {
		if l != nil {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

func (w *world) cutLane(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ends[n] != nil {
		w.ends[n].Close()
	}
}

func (w *world) stop() {
	w.sender.Finish(time.Second)
	w.receiver.Close()
	w.serving.Wait()
}

// send sends chunks and the end as a Pump does, and hears acknowledgements until all is acknowledged.
func (w *world) send(chunks []*wire.Chunk) error {
	var hearing sync.WaitGroup
	hear, enough := context.WithCancel(w.t.Context())
	total := int64(0)
	for _, c := range chunks {
		total += int64(len(c.Data))
	}
	whole := make(chan error, 1)
	hearing.Go(func() {
		for acked := int64(0); acked < total; {
			b, err := w.sender.Receive(hear)
			if err != nil {
				whole <- err
				return
			}
			a, err := wire.DecodeAck(b)
			if err != nil || a.Offset <= acked {
				whole <- fmt.Errorf("%+v after %d: %v", a, acked, err)
				return
			}
			acked = a.Offset
		}
		whole <- nil
	})
	defer hearing.Wait()
	defer enough()
	for _, c := range chunks {
		if err := w.sender.Send(w.t.Context(), c.Append(nil)); err != nil {
			return err
		}
	}
	if err := w.sender.Send(w.t.Context(), wire.End{Total: total}.Append(nil)); err != nil {
		return err
	}
	return <-whole
}

// receive reads to the end as Ingest does, acknowledging now and then; it checks every byte.
func (w *world) receive(data []byte, ackEvery int64) error { return w.receiveFrom(data, 0, ackEvery) }

func (w *world) receiveFrom(data []byte, got, ackEvery int64) error {
	acked := got
	for {
		v, err := w.receiver.Receive(w.t.Context())
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", got, len(data), err)
		}
		switch v := v.(type) {
		case *wire.Chunk:
			if v.Offset != got || string(v.Data) != string(data[got:][:len(v.Data)]) {
				return fmt.Errorf("chunk at %d after %d bytes", v.Offset, got)
			}
			got += int64(len(v.Data))
		case *wire.End:
			if got != int64(len(data)) || v.Total != got {
				return fmt.Errorf("the end %+v after %d bytes of %d", v, got, len(data))
			}
			acked = -1
		}
		if acked < 0 || got-acked >= ackEvery {
			acked = got
			if err := w.receiver.Ack(w.t.Context(), got); err != nil {
				return err
			}
		}
		if acked == got && got == int64(len(data)) {
			if _, ok := v.(*wire.End); ok {
				return nil
			}
		}
	}
}

// TestNothingIsLostHoweverLanesDie: random delays, chunks and deaths of lanes, of all of them too.
func TestNothingIsLostHoweverLanesDie(t *testing.T) {
	all := stream(20 << 20)
	most, deaths := 0, 0
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			var mu sync.Mutex // of r
			random := func(n int) int {
				mu.Lock()
				defer mu.Unlock()
				return r.IntN(n)
			}
			data := all[:random(len(all))]
			largest := 1 + random(256<<10)
			chunks := split(data, func() int { return max(1<<10, 1+random(largest)) })
			slow := time.Duration(1+random(20)) * time.Millisecond
			w := newWorld(t, 1+random(wire.MaxLanes), 1+random(64), func() time.Duration { return time.Duration(random(int(slow))) })
			received := make(chan error, 1)
			go func() { received <- w.receive(data, int64(1+random(64<<10))) }()
			quit, reaped := make(chan struct{}), make(chan struct{})
			go func() { // reaper
				defer close(reaped)
				for {
					t := time.NewTimer(time.Duration(random(int(400 * time.Millisecond))))
					select {
					case <-t.C:
						w.cutLane(random(wire.MaxLanes))
						mu.Lock()
						deaths++
						mu.Unlock()
					case <-quit:
						t.Stop()
						return
					}
				}
			}()
			if err := w.send(chunks); err != nil {
				t.Errorf("seed %d: send: %v", seed, err)
			}
			close(quit)
			<-reaped
			if err := <-received; err != nil {
				t.Errorf("seed %d: receive: %v", seed, err)
			}
			most = max(most, w.dials)
			w.stop()
		})
	}
	if most < 4 || deaths < 100 {
		t.Errorf("%d sockets in one run at most and %d deaths: this tests little", most, deaths)
	}
}

// TestADamagedChunkIsSentAgain, and one that is damaged each time ends the recording.
func TestADamagedChunkIsSentAgain(t *testing.T) {
	data := stream(4 << 20)
	for _, lanes := range []int{1, 4} {
		for _, always := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex // of heard and spoiled
				heard, spoiled := 0, 0
				w := &world{t: t, over: make(chan struct{}), room: 8, delay: steady(time.Millisecond), spoil: func(b []byte) {
					mu.Lock()
					defer mu.Unlock()
					heard++
					if (heard%5 == 0 && spoiled < maxDamaged || always) && len(b) > 100 {
						b[len(b)-heard%50-1] ^= 1
						spoiled++
					}
				}}
				w.begin(lanes)
				received := make(chan error, 1)
				go func() {
					err := w.receive(data, 1<<16)
					w.refusing(true) // a receiver that has failed hangs up at once, and by this clock that takes no time
					received <- err
				}()
				err := w.send(split(data, func() int { return 64 << 10 }))
				got := <-received
				w.stop()
				if always && (err == nil || !errors.Is(got, wire.ErrChecksum)) || !always && (err != nil || got != nil) {
					t.Errorf("%d lanes, always %v: send %v, receive %v", lanes, always, err, got)
				}
				if want := maxDamaged; spoiled != want && !always || always && spoiled <= want {
					t.Errorf("%d lanes, always %v: %d chunks were damaged", lanes, always, spoiled)
				}
			})
		}
	}
}

func steady(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// TestAnIdleRecordingHasOneSocket sends a second of a usual recording a second, an ocean away.
func TestAnIdleRecordingHasOneSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, wire.MaxLanes, 1<<10, steady(time.Millisecond))
		data := stream(2 << 20)
		received := make(chan error, 1)
		go func() { received <- w.receive(data, 1) }()
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for _, c := range split(data, func() int { return 16 << 10 }) {
			if err := w.sender.Send(t.Context(), c.Append(nil)); err != nil {
				t.Fatal(err)
			}
			<-tick.C
		}
		if err := w.sender.Send(t.Context(), wire.End{Total: int64(len(data))}.Append(nil)); err != nil {
			t.Fatal(err)
		}
		if err := <-received; err != nil {
			t.Error(err)
		}
		if w.dials != 1 {
			t.Errorf("%d sockets were dialled", w.dials)
		}
		w.stop()
	})
}

// TestLanesComeWithTheBacklogAndGoWithoutIt: one lane cannot carry it all.
func TestLanesComeWithTheBacklogAndGoWithoutIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4, 2, steady(10*time.Millisecond))
		const backlog, few = 8 << 20, 8
		data := stream(backlog + 60*few)
		received := make(chan error, 1)
		go func() { received <- w.receive(data, 1) }()
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		n := 0
		chunks := split(data, func() int {
			if n++; n <= backlog/(16<<10) {
				return 16 << 10
			}
			return few
		})
		for i, c := range chunks {
			if err := w.sender.Send(t.Context(), c.Append(nil)); err != nil {
				t.Fatal(err)
			}
			switch after := c.Offset + int64(len(c.Data)); {
			case i == 8 && len(w.live()) != 1:
				t.Errorf("lanes %v for a few chunks", w.live())
			case after == backlog:
				if got := fmt.Sprint(w.live()); got != "[0 1 2 3]" {
					t.Errorf("lanes %s for a backlog", got)
				}
			case after > backlog: // a little goes on
				<-tick.C
			}
		}
		if got := fmt.Sprint(w.live()); got != "[0]" {
			t.Errorf("lanes %s when the backlog is gone", got)
		}
		for n, e := range w.ends[1:4] {
			if e.said.Load() {
				t.Errorf("idle lane %d left with a goodbye: to a receiver that has lost the others the recording is over", n+1)
			}
		}
		if err := w.sender.Send(t.Context(), wire.End{Total: int64(len(data))}.Append(nil)); err != nil {
			t.Fatal(err)
		}
		if err := <-received; err != nil {
			t.Error(err)
		}
		w.stop()
	})
}

// TestALaneThatComesBackIsTold what is acknowledged: the acknowledgement may have been lost with the lane before.
func TestALaneThatComesBackIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewReceiver(make(chan struct{}), 0)
		var serving sync.WaitGroup
		lane := func() *end {
			host, orch := newPipe(1, steady(0))
			serving.Go(func() { _ = r.Serve(0, orch) })
			synctest.Wait()
			return host
		}
		lane().Close()
		synctest.Wait()
		if err := r.Ack(t.Context(), 7); err != nil { // there is no lane to say it on
			t.Error(err)
		}
		back := lane()
		defer back.Close()
		if b, err := back.ReadBinary(); err != nil || string(b) != string(wire.Ack{Offset: 7}.Append(nil)) {
			t.Errorf("%x %v", b, err)
		}
		r.Close()
		serving.Wait()
	})
}

// TestAStalledLaneHoldsUpNothingElse: one of two lanes stands still; what is not on it goes on, as far as the window.
func TestAStalledLaneHoldsUpNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, orch := newPipe(1, steady(0)) // nobody reads this one
		defer orch.Close()
		over := make(chan struct{})
		w := &world{t: t, receiver: NewReceiver(over, 0), room: 1, delay: steady(time.Millisecond)}
		w.sender = NewSender(first, Config{Dial: w.dial, Lanes: 2})
		data := stream(wire.RecordingWindow - 1<<20)
		for _, c := range split(data, func() int { return 64 << 10 }) {
			if err := w.sender.Send(t.Context(), c.Append(nil)); err != nil {
				t.Fatal(err)
			}
		}
		patience := time.NewTimer(time.Minute)
		<-patience.C
		w.receiver.mu.Lock()
		here := len(w.receiver.merge.early)
		w.receiver.mu.Unlock()
		if all := len(data) / (64 << 10); here < all-int(laneWindow/(64<<10))-1 {
			t.Errorf("%d of %d chunks arrived beside the stalled lane", here, all)
		}
		received := make(chan error, 1)
		go func() { received <- w.receive(data, 1) }()
		first.Close() // now it is dead, and what it carried goes over the other
		if err := w.sender.Send(t.Context(), wire.End{Total: int64(len(data))}.Append(nil)); err != nil {
			t.Fatal(err)
		}
		if err := <-received; err != nil {
			t.Error(err)
		}
		w.stop()
	})
}

// TestTheLastLaneIsDialledAnew, for a while.
func TestTheLastLaneIsDialledAnew(t *testing.T) {
	for name, test := range map[string]struct {
		away    time.Duration // for so long every dial is refused
		settle  bool          // the session has ended
		survive bool
	}{
		"at once":           {0, false, true},
		"after a while":     {redialLimit - time.Second, false, true},
		"too late":          {time.Hour, false, false},
		"session has ended": {0, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1, 4, steady(time.Millisecond))
				data := stream(1 << 20)
				received := make(chan error, 1)
				go func() { received <- w.receive(data, 1) }()
				w.refusing(test.away > 0)
				back := time.AfterFunc(test.away, func() { w.refusing(false) })
				defer back.Stop()
				if test.settle {
					w.sender.Settle()
					close(w.over)
				}
				w.cutLane(0)
				began := time.Now()
				err := w.send(split(data, func() int { return 64 << 10 }))
				there := <-received
				if test.survive {
					if err != nil || there != nil {
						t.Errorf("send: %v; receive: %v", err, there)
					}
				} else if !errors.Is(err, ErrLost) || !errors.Is(there, ErrLost) {
					t.Errorf("send: %v; receive: %v, want %v", err, there, ErrLost)
				}
				if took := time.Since(began); took > grace+time.Second || (test.settle && took > time.Second) {
					t.Errorf("it took %v", took)
				}
				w.stop()
			})
		})
	}
}

// TestTakenAndDroppedForever: an orchestrator that takes a lane and drops it each time is given up.
func TestTakenAndDroppedForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		w.sender = NewSender(dropped{}, Config{Dial: func(ctx context.Context, _ int) (Socket, error) {
			pause := time.NewTimer(100 * time.Millisecond)
			<-pause.C
			return dropped{}, nil
		}})
		began := time.Now()
		if err := w.send(split(stream(1<<10), func() int { return 1 << 10 })); !errors.Is(err, ErrLost) {
			t.Errorf("send: %v", err)
		}
		if took := time.Since(began); took > redialLimit+dialLimit {
			t.Errorf("it took %v", took)
		}
		w.sender.Finish(time.Second)
	})
}

// TestNobodyDialsLongerThanTheOtherEndWaits, though each dial hangs.
func TestNobodyDialsLongerThanTheOtherEndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		w.sender = NewSender(dropped{}, Config{Dial: func(ctx context.Context, _ int) (Socket, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		began := time.Now()
		if err := w.send(split(stream(1<<10), func() int { return 1 << 10 })); !errors.Is(err, ErrLost) {
			t.Errorf("send: %v", err)
		}
		if took := time.Since(began); took != redialLimit {
			t.Errorf("it took %v, want %v", took, redialLimit)
		}
		w.sender.Finish(time.Second)
	})
}

type dropped struct{}

func (dropped) ReadBinary() ([]byte, error)                  { return nil, io.ErrUnexpectedEOF }
func (dropped) WriteBinary(context.Context, ...[]byte) error { return io.ErrClosedPipe }
func (dropped) Expire(time.Duration)                         {}
func (dropped) Bye(string)                                   {}
func (dropped) Close()                                       {}

// TestALaneThatCannotBeDialled does no harm.
func TestALaneThatCannotBeDialled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4, 2, steady(10*time.Millisecond))
		w.refusing(true)
		data := stream(8 << 20)
		received := make(chan error, 1)
		go func() { received <- w.receive(data, 1) }()
		if err := w.send(split(data, func() int { return 16 << 10 })); err != nil {
			t.Error(err)
		}
		if err := <-received; err != nil {
			t.Error(err)
		}
		if w.dials < 2 || w.dials > 20 {
			t.Errorf("%d dials", w.dials)
		}
		w.stop()
	})
}

func TestSenderRefuses(t *testing.T) {
	for name, answer := range map[string][]byte{"noise": []byte("hello"), "a chunk": chunk(0, "x").Append(nil)} {
		synctest.Test(t, func(t *testing.T) {
			host, orch := newPipe(4, steady(0))
			s := NewSender(host, Config{})
			if err := orch.WriteBinary(t.Context(), answer); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Receive(t.Context()); !errors.Is(err, wire.ErrFrame) {
				t.Errorf("%s: %v", name, err)
			}
			if err := s.Send(t.Context(), chunk(0, "x").Append(nil)); err == nil {
				t.Errorf("%s: it goes on", name)
			}
			s.Finish(time.Second)
		})
	}
}

// TestSendKeepsToTheWindow, and a context ends the wait, with the recording.
func TestSendKeepsToTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, orch := newPipe(1<<20, steady(0))
		defer orch.Close()
		s := NewSender(host, Config{Lanes: 1})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		sent := int64(0)
		var err error
		for _, c := range split(stream(2*wire.RecordingWindow), func() int { return 32 << 10 }) {
			if err = s.Send(ctx, c.Append(nil)); err != nil {
				break
			}
			sent += cost(c)
		}
		if !errors.Is(err, context.Canceled) || sent > wire.RecordingWindow || sent < wire.RecordingWindow-wire.MaxChunkData {
			t.Errorf("%d bytes, then %v", sent, err)
		}
		s.Finish(time.Second)
	})
}

// TestTheFirstFreeLaneCarries, so that the others become idle.
func TestTheFirstFreeLaneCarries(t *testing.T) {
	a, b := &lane{n: 0}, &lane{n: 1}
	s := &Sender{}
	s.changed = sync.NewCond(&s.mu)
	s.lanes[0], s.lanes[1] = a, b
	for i := range int64(3) {
		s.queue.add(&frame{offset: i, end: i + 1, cost: laneWindow / 2})
	}
	if f := s.takeLocked(b); f != nil {
		t.Errorf("the second lane carries %d although the first is free", f.offset)
	}
	if f := s.takeLocked(a); f == nil || f.offset != 0 {
		t.Errorf("the first lane carries %+v", f)
	}
	if f := s.takeLocked(b); f == nil || f.offset != 1 {
		t.Errorf("while the first lane writes the second carries %+v", f)
	}
	a.writing = false
	if f := s.takeLocked(a); f == nil || f.offset != 2 {
		t.Errorf("the first lane, which is free again, carries %+v", f)
	}
	s.queue.add(&frame{offset: 3, end: 4, cost: 1})
	a.writing = false
	if f := s.takeLocked(a); f != nil {
		t.Errorf("the first lane has its window under way, and carries %d too", f.offset)
	}
}
