package lanes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

const (
	// laneWindow is how much may be on its way on one lane: about twice what a stream carries in a round trip of 130 ms with a
	// little loss, so that a stream is never idle, and so little that a slow lane holds up the others for a moment only.
	laneWindow = 512 << 10

	// DefaultLanes is the default of Config.Lanes.
	DefaultLanes = 4
)

// ErrFinished is the error of a Sender after Finish.
var ErrFinished = errors.New("lanes: the recording has ended")

// ErrRestarted is why lanes ended when the recording went on with another receiver.
var ErrRestarted = errors.New("lanes: another receiver has the recording")

// Config is what a Sender needs.
type Config struct {
	// Dial opens a lane; it is bounded by ctx and by itself.
	Dial func(ctx context.Context, lane int) (Socket, error)
	// Lanes is the most there may be at once; 0: DefaultLanes.
	Lanes int
}

// Sender is the host's end of a recording. Send and Receive may be called at once, each by one goroutine.
type Sender struct {
	cfg     Config
	running sync.WaitGroup // goroutines
	heard   chan struct{}  // buffered: acked has grown
	lost    chan struct{}  // closed when err is set
	orders  chan int       // numbers of lanes to dial, never full
	cancel  context.CancelFunc

	mu      sync.Mutex // guards what follows
	changed *sync.Cond // any of it
	queue   queue
	lanes   [wire.MaxLanes]*lane // nil: there is none of this number
	live    int
	dialled [wire.MaxLanes]bool // ordered, and neither there nor given up yet
	dialing int                 // of dialled
	pause   time.Time           // no further lane before
	until   time.Time           // without a lane, no try after
	end     []byte              // the encoded end, once there is one
	ended   bool                // the end was written to a lane
	idled   bool                // nothing new was acknowledged since the last lane was dialled anew
	told    int64               // acknowledgement that Receive gave last
	final   bool                // the last lane is not dialled anew
	closing bool                // nothing is dialled any more
	cause   error               // of the end of the last lane that broke
	err     error
}

// lane is a socket, its reader and its writer.
type lane struct {
	n       int
	sock    Socket
	flight  int64 // cost of what it carries
	writing bool
	ended   bool // it carries the end
	former  bool // it leads to who does not have the recording any more
	idle    *time.Timer
}

// NewSender begins with a lane that is dialled already, number 0. Finish must be called.
func NewSender(first Socket, cfg Config) *Sender {
	if cfg.Lanes <= 0 {
		cfg.Lanes = DefaultLanes
	}
	cfg.Lanes = min(cfg.Lanes, wire.MaxLanes)
	ctx, cancel := context.WithCancel(context.Background()) // the life of the recording, ended by Finish
	s := &Sender{
		cfg: cfg, heard: make(chan struct{}, 1), lost: make(chan struct{}), orders: make(chan int, wire.MaxLanes), cancel: cancel,
	}
	s.changed = sync.NewCond(&s.mu)
	s.mu.Lock()
	s.addLocked(0, first)
	s.mu.Unlock()
	s.running.Go(func() { s.open(ctx) })
	return s
}

// Send takes a chunk or the end, encoded; the caller must not change it afterwards. It waits while a window of bytes is
// unacknowledged; the end is written to a lane when it returns. When ctx ends during the call, the recording is lost.
func (s *Sender) Send(ctx context.Context, message []byte) error {
	v, err := wire.DecodeRecording(message)
	if err != nil {
		return fmt.Errorf("lanes: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := v.(*wire.Chunk)
	if !ok {
		s.end = message
		s.changed.Broadcast()
		return s.waitLocked(ctx, func() bool { return s.ended })
	}
	if err := s.waitLocked(ctx, func() bool { return s.queue.cost+cost(c) <= wire.RecordingWindow }); err != nil {
		return err
	}
	s.queue.add(&frame{message: message, offset: c.Offset, end: c.Offset + int64(len(c.Data)), cost: cost(c)})
	s.moreLocked()
	s.changed.Broadcast()
	return nil
}

func (s *Sender) waitLocked(ctx context.Context, holds func() bool) error {
	if s.err == nil && holds() {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { s.fail(context.Cause(ctx)) })
	defer stop()
	for {
		switch {
		case s.err != nil:
			return s.err
		case holds():
			return nil
		}
		s.changed.Wait()
	}
}

// Receive returns the newest acknowledgement, encoded. Those that another has overtaken are left out.
func (s *Sender) Receive(ctx context.Context) ([]byte, error) {
	for {
		select {
		case <-s.heard:
		case <-s.lost:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		s.mu.Lock()
		acked, fresh, err := s.queue.acked, s.queue.acked > s.told, s.err
		s.told = acked
		s.mu.Unlock()
		switch {
		case fresh:
			return wire.Ack{Offset: acked}.Append(nil), nil
		case err != nil:
			return nil, err
		}
	}
}

// Settle lets no lane be dialled anew once the last one is lost.
func (s *Sender) Settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.final = true
	if s.live == 0 {
		s.failLocked(fmt.Errorf("%w: %w", ErrLost, s.cause))
	}
}

// Restart has the recording go on with another receiver, that Dial leads to by now: its lanes are dialled anew, and what is not acknowledged is
// sent again over them.
func (s *Sender) Restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || s.closing {
		return
	}
	for _, l := range s.lanes {
		if l != nil {
			l.former = true
			s.removeLocked(l)
		}
	}
	s.queue.restart()
	s.idled, s.ended, s.cause = false, false, ErrRestarted
	s.redialLocked(ErrRestarted)
	s.changed.Broadcast()
}

// Finish says goodbye on every lane, gives the other end a while to read and to close, and ends the Sender.
func (s *Sender) Finish(while time.Duration) {
	s.mu.Lock()
	s.final, s.closing = true, true
	lanes := s.lanes
	s.mu.Unlock()
	var byes sync.WaitGroup // a lane that is stuck takes a second
	for _, l := range lanes {
		if l != nil {
			byes.Go(func() { l.sock.Bye("the recording has ended") })
		}
	}
	late := time.AfterFunc(while, func() { s.fail(ErrFinished) })
	s.mu.Lock()
	for s.live > 0 && s.err == nil {
		s.changed.Wait()
	}
	s.failLocked(ErrFinished)
	s.mu.Unlock()
	late.Stop()
	byes.Wait()
	s.running.Wait()
}

func (s *Sender) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failLocked(err)
}

// failLocked ends everything; only the first reason counts.
func (s *Sender) failLocked(err error) {
	if s.err != nil {
		return
	}
	s.err = err
	s.cancel()
	close(s.lost)
	for _, l := range s.lanes {
		if l != nil {
			s.removeLocked(l)
		}
	}
	s.changed.Broadcast()
}

// addLocked starts a lane.
func (s *Sender) addLocked(n int, sock Socket) {
	l := &lane{n: n, sock: sock}
	s.lanes[n] = l
	s.live++
	if n > 0 {
		l.idle = time.AfterFunc(idleLimit, func() { s.retire(l) })
	}
	s.running.Go(func() { s.read(l) })
	s.running.Go(func() { s.write(l) })
	s.changed.Broadcast()
}

// removeLocked takes a lane out of use. What it carried goes again over the others.
func (s *Sender) removeLocked(l *lane) {
	if s.lanes[l.n] != l {
		return
	}
	s.lanes[l.n] = nil
	s.live--
	s.queue.takeBack(l)
	if l.idle != nil {
		l.idle.Stop()
	}
	s.running.Go(l.sock.Close) // may wait for a ping that is being written
	s.changed.Broadcast()
}

// drop is called by a lane's own goroutines when it is broken.
func (s *Sender) drop(l *lane, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lanes[l.n] != l {
		return
	}
	s.removeLocked(l)
	s.cause = err
	switch {
	case s.live > 0:
	case s.final || socket.SaidBye(err):
		s.failLocked(fmt.Errorf("%w: %w", ErrLost, err))
	default:
		s.redialLocked(err)
	}
}

func (s *Sender) read(l *lane) {
	for {
		b, err := l.sock.ReadBinary()
		if err != nil {
			s.drop(l, err)
			return
		}
		if err := s.receipt(l, b); err != nil {
			s.fail(err)
			return
		}
	}
}

func (s *Sender) receipt(l *lane, b []byte) error {
	v, err := wire.DecodeReceipt(b)
	if err != nil {
		return fmt.Errorf("lanes: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.former {
		return nil
	}
	switch v := v.(type) {
	case wire.Ack:
		if s.queue.acknowledge(v.Offset) {
			s.idled = false
			select {
			case s.heard <- struct{}{}:
			default:
			}
		}
	case wire.Held:
		s.queue.hold(v.Offset)
	}
	s.moreLocked()
	s.changed.Broadcast()
	return nil
}

func (s *Sender) write(l *lane) {
	for {
		message := s.next(l)
		if message == nil {
			return
		}
		if err := l.sock.WriteBinary(context.Background(), message); err != nil {
			s.drop(l, err)
			return
		}
	}
}

// next waits for something that this lane is to carry; nil: it is out of use.
func (s *Sender) next(l *lane) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.writing {
		l.writing = false
		s.ended = s.ended || l.ended
		s.changed.Broadcast()
	}
	for s.lanes[l.n] == l {
		if f := s.takeLocked(l); f != nil {
			return f.message
		}
		if s.end != nil && !l.ended && s.queue.waiting == 0 {
			l.ended, l.writing = true, true // on every lane: one of them may break
			return s.end
		}
		s.changed.Wait()
	}
	return nil
}

func (l *lane) free() bool { return !l.writing && l.flight < laneWindow }

// takeLocked gives a lane the oldest chunk that waits, unless a lane before it is free: the last ones are to become idle.
func (s *Sender) takeLocked(l *lane) *frame {
	if !l.free() || slices.ContainsFunc(s.lanes[:l.n], func(o *lane) bool { return o != nil && o.free() }) {
		return nil
	}
	f := s.queue.take()
	if f == nil {
		return nil
	}
	f.lane = l
	l.flight += f.cost
	l.writing = true
	if l.idle != nil {
		l.idle.Reset(idleLimit)
	}
	if s.queue.waiting > 0 {
		s.moreLocked()
		s.changed.Broadcast()
	}
	return f
}
