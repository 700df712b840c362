package lanes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

const (
	// grace is how long a recording without a lane waits for one; a little more than the host tries.
	grace = redialLimit + 2*time.Second
	// maxDamaged is how many chunks whose checksum does not hold are waited for once more: no network makes so many, a host's memory may.
	maxDamaged = 8
	// lastWords is how long a lane is read that cannot be written to: what the host sent before it was lost is not thrown away.
	lastWords = time.Second
)

// Errors of a Receiver.
var (
	ErrClosed = errors.New("lanes: the recording is closed")
	ErrLost   = errors.New("lanes: the recording has lost its last socket")
)

// Socket is a *[socket.Conn].
type Socket interface {
	ReadBinary() ([]byte, error)
	WriteBinary(ctx context.Context, parts ...[]byte) error
	Expire(d time.Duration) // lets reads go on for d and no longer
	Bye(reason string)
	Close()
}

// Receiver is the orchestrator's end of a recording.
type Receiver struct {
	over    <-chan struct{} // closed when no lane is dialled anew any more
	changed chan struct{}   // buffered: a field below has changed

	mu    sync.Mutex // guards what follows
	merge merge
	lanes [wire.MaxLanes]Socket // nil: there is none of this number
	mute  [wire.MaxLanes]bool   // a write failed: it is only read, to its end
	live  int
	heard int // lane that was heard last
	acked int64
	bad   int   // chunks whose checksum did not hold
	final bool  // no lane may come any more
	cause error // of the end of the last lane that broke
	err   error // breach of the rules, or Close
}

// NewReceiver returns a Receiver without lanes, of a recording whose bytes before from are on disk. over is closed when lost lanes do not
// come back any more.
func NewReceiver(over <-chan struct{}, from int64) *Receiver {
	return &Receiver{over: over, changed: make(chan struct{}, 1), merge: merge{next: from, ready: from}, acked: from}
}

func (r *Receiver) poke() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Serve reads a lane until it ends; the caller closes it then. A lane of the same number is replaced.
func (r *Receiver) Serve(lane int, s Socket) error {
	if lane < 0 || lane >= wire.MaxLanes {
		return fmt.Errorf("%w: lane %d, there are %d", ErrRules, lane, wire.MaxLanes)
	}
	if err := r.join(lane, s); err != nil {
		s.Bye(err.Error())
		return err
	}
	err := r.read(lane, s)
	r.leave(lane, s, err)
	return err
}

func (r *Receiver) join(lane int, s Socket) error {
	r.mu.Lock()
	old, acked, err := r.lanes[lane], r.acked, r.err
	switch {
	case err != nil:
	case r.final:
		err = ErrLost
	default:
		r.lanes[lane], r.mute[lane], r.heard = s, false, lane
		if old == nil {
			r.live++
		}
	}
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if old != nil {
		old.Close()
	}
	r.poke()
	if acked > 0 { // the last one may have been lost with another lane
		_ = r.say(context.Background(), lane, s, wire.Ack{Offset: acked}.Append(nil)) // if it breaks, read says so
	}
	return nil
}

func (r *Receiver) read(lane int, s Socket) error {
	for {
		b, err := s.ReadBinary()
		if err != nil {
			return err
		}
		message, err := wire.DecodeRecording(b)
		if errors.Is(err, wire.ErrChecksum) && r.again() {
			return err // what the lane carried is sent again, over another or when it comes back
		}
		if err != nil {
			r.fail(err)
			return err
		}
		waits, err := r.put(lane, message)
		if err != nil {
			r.fail(err)
			return err
		}
		if !waits {
			continue
		}
		held := wire.Held{Offset: message.(*wire.Chunk).Offset}
		_ = r.say(context.Background(), lane, s, held.Append(nil)) // if it breaks, what is here is read nevertheless
	}
}

// again says whether a damaged chunk may be sent once more.
func (r *Receiver) again() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bad++
	return r.bad <= maxDamaged
}

// say writes to a lane, unless a write to it has failed.
func (r *Receiver) say(ctx context.Context, lane int, s Socket, message []byte) error {
	r.mu.Lock()
	mute := r.lanes[lane] != s || r.mute[lane]
	r.mu.Unlock()
	if mute {
		return ErrLost
	}
	err := s.WriteBinary(ctx, message)
	if err == nil || ctx.Err() != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lanes[lane] == s && !r.mute[lane] {
		r.mute[lane] = true
		s.Expire(lastWords)
	}
	return err
}

func (r *Receiver) put(lane int, message any) (waits bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return false, r.err
	}
	r.heard = lane
	waits, err = r.merge.put(message)
	if !waits {
		r.poke()
	}
	return waits, err
}

// leave forgets a lane. An acknowledgement that was on it goes again over another.
func (r *Receiver) leave(lane int, s Socket, err error) {
	r.mu.Lock()
	if r.lanes[lane] != s {
		r.mu.Unlock()
		return // it was replaced
	}
	r.lanes[lane] = nil
	r.live--
	r.cause = err
	if r.live == 0 && socket.SaidBye(err) {
		r.final = true
	}
	acked := r.acked
	r.mu.Unlock()
	r.poke()
	if acked > 0 {
		_ = r.Ack(context.Background(), acked) // without a lane the next one brings it
	}
}

// fail ends the recording, and its lanes with a reason. Only the first reason counts.
func (r *Receiver) fail(err error) {
	r.mu.Lock()
	if r.err != nil {
		r.mu.Unlock()
		return
	}
	r.err = err
	lanes := r.lanes
	r.mu.Unlock()
	r.poke()
	var byes sync.WaitGroup // a lane that is stuck takes a second
	for _, s := range lanes {
		if s != nil {
			byes.Go(func() {
				if !errors.Is(err, ErrClosed) { // Close is at once; who dials anew is told
					s.Bye(err.Error())
				}
				s.Close()
			})
		}
	}
	byes.Wait()
}

// Receive returns the next *[wire.Chunk] (its checksum holds) or, after the last one, the *[wire.End], and io.EOF
// after that. One caller at a time. When ctx
// ends during a Receive the recording is closed.
func (r *Receiver) Receive(ctx context.Context) (any, error) {
	stop := context.AfterFunc(ctx, r.Close)
	defer stop()
	var lost <-chan time.Time
	for {
		message, live, err := r.next()
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case message != nil || err != nil:
			return message, err
		}
		over := r.over
		if live {
			over, lost = nil, nil
		} else if lost == nil {
			t := time.NewTimer(grace)
			defer t.Stop()
			lost = t.C
		}
		select {
		case <-r.changed:
		case <-ctx.Done():
		case <-over:
			r.Expire(0)
		case <-lost:
			r.Expire(0)
		}
	}
}

func (r *Receiver) next() (message any, live bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if message := r.merge.pop(); message != nil {
		return message, true, nil
	}
	switch {
	case r.merge.over:
		return nil, false, io.EOF
	case r.err != nil:
		return nil, false, r.err
	case r.live == 0 && r.final:
		return nil, false, fmt.Errorf("%w: %w", ErrLost, r.cause)
	}
	return nil, r.live > 0, nil
}

// Expire lets no further lane come, and those that are there be read for d and no longer.
func (r *Receiver) Expire(d time.Duration) {
	r.mu.Lock()
	r.final = true
	if r.cause == nil {
		r.cause = ErrClosed
	}
	lanes := r.lanes
	r.mu.Unlock()
	r.poke()
	for _, s := range lanes {
		if s != nil {
			s.Expire(d)
		}
	}
}

// Ack says that every byte before offset is on disk. Without a lane it is said on the next one, if one comes: Receive
// tells when none does. When ctx ends during an Ack the recording is closed: a host that takes nothing holds up nobody.
func (r *Receiver) Ack(ctx context.Context, offset int64) error {
	stop := context.AfterFunc(ctx, r.Close)
	defer stop()
	for {
		r.mu.Lock()
		r.acked = max(r.acked, offset)
		offset = r.acked
		lane, s := r.speakerLocked()
		err := r.err
		r.mu.Unlock()
		if s == nil || err != nil {
			return err
		}
		err = r.say(ctx, lane, s, wire.Ack{Offset: offset}.Append(nil))
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// speakerLocked is the lane heard last, or another that can be written to; nil when there is none.
func (r *Receiver) speakerLocked() (int, Socket) {
	for i := range r.lanes {
		if n := (r.heard + i) % len(r.lanes); r.lanes[n] != nil && !r.mute[n] {
			return n, r.lanes[n]
		}
	}
	return 0, nil
}

// Close closes the lanes. Calling it again is harmless.
func (r *Receiver) Close() { r.fail(ErrClosed) }
