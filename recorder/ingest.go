package recorder

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/recorder/webm"
)

// Source is where a recording comes from: the host's recording socket.
type Source interface {
	Receive(ctx context.Context) (any, error) // *wire.Chunk or *wire.End
	Ack(ctx context.Context, offset int64) error
}

// Errors of Ingest, beside those of the source.
var (
	ErrGap      = errors.New("recorder: bytes are missing between what is here and what was sent")
	ErrChunk    = errors.New("recorder: impossible chunk")
	ErrTooLarge = errors.New("recorder: the recording reached the largest size an object can have")
	ErrSpool    = errors.New("recorder: the spool cannot be written")
)

// tailRoom is kept below the largest object for the index.
const tailRoom = 1 << 20

// intake is the receiving side of a Recording; Recording.gate guards it, but for what its own mutex does.
type intake struct {
	scanner  webm.Scanner
	received int64  // bytes of the stream taken
	pending  []byte // of the stream before its first cluster, not on disk yet
	start    int64  // byte of the stream that is byte headSize of the body; 0 until known
	ended    bool
	cause    Cause // of the last end of Ingest
	broken   error // the spool refused a write or a sync

	mu       sync.Mutex // guards what follows, shared by the receiver and its syncer
	written  int64      // size of the body
	crc      uint32     // of what was written since framed
	framed   int64      // size of the body that is on disk
	complete int64      // size of the body up to the last complete cluster
}

// Ingest takes chunks from src until its end, and acknowledges what is on disk. A lost source is an error; the host may
// come back with another one, from the acknowledged byte on, until the recording is sealed. What arrived
// counts either way: the caller goes on with Seal, which ends an Ingest that still runs.
func (r *Recording) Ingest(ctx context.Context, src Source) error {
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.leave()
	in := &r.in
	switch {
	case r.isSealed() || r.recovered:
		return ErrSealed
	case in.ended:
		return fmt.Errorf("%w: its end was received", ErrSealed)
	case in.broken != nil:
		return in.broken
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if !r.ingesting(cancel) {
		return ErrSealed
	}
	dirty, quit := make(chan struct{}, 1), make(chan struct{})
	synced := make(chan error, 1)
	go func() { // ends when quit is closed or it fails; waited for below
		err := r.syncLoop(ctx, src, dirty, quit)
		if err != nil {
			cancel(err)
		}
		synced <- err
	}()
	if in.received > 0 {
		dirty <- struct{}{} // tells a host that comes back where to go on
	}
	end, err := r.receive(ctx, src, dirty)
	close(quit)
	syncErr := <-synced
	if syncErr != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = syncErr
	}
	if errors.Is(syncErr, ErrSpool) {
		in.broken = syncErr // the next sync could succeed over bytes that this one lost
	}
	if err == nil {
		err = r.finishIntake(ctx, src, end)
	}
	in.cause = causeOf(err, end)
	return err
}

// ingesting lets Seal end this Ingest; false: it is too late to begin one.
func (r *Recording) ingesting(cancel context.CancelCauseFunc) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wantSeal || r.left || r.condemned != nil {
		return false
	}
	r.endIngest = cancel
	return true
}

func causeOf(err error, end *wire.End) Cause {
	switch {
	case errors.Is(err, webm.ErrFormat), errors.Is(err, ErrGap), errors.Is(err, ErrChunk):
		return CauseMalformed
	case errors.Is(err, ErrTooLarge):
		return CauseTooLarge
	case errors.Is(err, ErrSpool):
		return CauseSpool
	case errors.Is(err, ErrNoRoom):
		return CauseSpoolFull
	case err != nil || end == nil:
		return CauseLost
	case end.Reason == wire.EndFailed:
		return CauseEncoder
	case end.Reason == wire.EndOverflow:
		return CauseOverflow
	}
	return CauseNone
}

// receive takes chunks until the end.
func (r *Recording) receive(ctx context.Context, src Source, dirty chan<- struct{}) (*wire.End, error) {
	for {
		// What is not received stays in the windows of the sockets and then in the host's memory.
		if err := r.owner.volume.mayTake(ctx); err != nil {
			return nil, err
		}
		v, err := src.Receive(ctx)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("recorder: source lost: %w", err)
		}
		switch v := v.(type) {
		case *wire.Chunk:
			if err := r.take(v); err != nil {
				return nil, err
			}
			select {
			case dirty <- struct{}{}:
			default: // a sync is due anyway
			}
		case *wire.End:
			if v.Total != r.in.received {
				return nil, fmt.Errorf("%w: the host counts %d bytes, here are %d", ErrGap, v.Total, r.in.received)
			}
			return v, nil
		default:
			return nil, fmt.Errorf("%w: the source gave a %T", ErrChunk, v)
		}
	}
}

// take writes one chunk. Bytes that are here already are dropped.
func (r *Recording) take(c *wire.Chunk) error {
	in := &r.in
	switch {
	case c.Offset < 0 || len(c.Data) == 0 || len(c.Data) > wire.MaxChunkData:
		return fmt.Errorf("%w: %d bytes at %d", ErrChunk, len(c.Data), c.Offset)
	case wire.Checksum(c.Data) != c.CRC:
		return fmt.Errorf("%w: the checksum of the one at %d does not hold", ErrChunk, c.Offset)
	case c.Offset > in.received:
		return fmt.Errorf("%w: expected byte %d, got %d", ErrGap, in.received, c.Offset)
	case c.Offset+int64(len(c.Data)) <= in.received:
		return nil
	}
	data := c.Data[in.received-c.Offset:]
	if in.received+int64(len(data)) > r.maxSize() {
		return ErrTooLarge
	}
	if _, err := in.scanner.Write(data); err != nil {
		return fmt.Errorf("recorder: what arrives is no recording: %w", err)
	}
	in.received += int64(len(data))
	if in.start == 0 {
		in.pending = append(in.pending, data...)
		if in.scanner.Start() == 0 {
			return nil
		}
		if err := r.beginBody(); err != nil {
			return err
		}
		data, in.pending = in.pending[in.start:], nil
	}
	return r.write(data)
}

func (r *Recording) maxSize() int64 { return r.partSize*maxParts - tailRoom }

// beginBody writes the head slot: the stream has reached its first cluster.
func (r *Recording) beginBody() error {
	in := &r.in
	ix, _ := in.scanner.Index()
	slot, err := ix.Head.Live()
	if err != nil {
		return err
	}
	in.start = ix.Start
	if err := r.spoolErr(r.spool.append(record{Head: &headRecord{Start: in.start, Slot: slot}}, true)); err != nil {
		return err
	}
	if _, err := r.spool.body.WriteAt(slot, 0); err != nil {
		return r.spoolErr(err)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.written, in.framed = headSize, headSize
	return nil
}

func (r *Recording) write(data []byte) error {
	in := &r.in
	if len(data) == 0 {
		return nil
	}
	in.mu.Lock()
	at := in.written
	in.mu.Unlock()
	if _, err := r.spool.body.WriteAt(data, at); err != nil {
		return r.spoolErr(err)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.written += int64(len(data))
	in.crc = crcUpdate(in.crc, data)
	in.complete = in.scanner.Complete() - in.start + headSize
	return nil
}

// spoolErr remembers that the spool refused a write: there will be no other, since what a failed write left is unknown.
func (r *Recording) spoolErr(err error) error {
	if err == nil {
		return nil
	}
	r.in.broken = fmt.Errorf("%w: %w", ErrSpool, err)
	return r.in.broken
}

// syncLoop brings what was written to disk and acknowledges it, all there is at a time, until quit is closed and nothing
// is left.
func (r *Recording) syncLoop(ctx context.Context, src Source, dirty, quit <-chan struct{}) error {
	for last := false; !last; {
		select {
		case <-dirty:
		case <-quit:
			last = true
		}
		offset, err := r.syncBody()
		if err != nil {
			return err
		}
		if offset == 0 || ctx.Err() != nil {
			continue
		}
		if err := src.Ack(ctx, offset); err != nil {
			if last {
				return nil // it only matters to a host that sends more
			}
			return fmt.Errorf("recorder: source lost: %w", err)
		}
	}
	return nil
}

// syncBody brings the body to disk and gives the byte of the stream before which all is there.
func (r *Recording) syncBody() (offset int64, err error) {
	in := &r.in
	in.mu.Lock()
	size, crc, complete, framed := in.written, in.crc, in.complete, in.framed
	in.crc = 0
	in.mu.Unlock()
	if size == 0 {
		return 0, nil
	}
	if size > framed {
		if err := r.spool.body.Sync(); err != nil {
			return 0, fmt.Errorf("%w: %w", ErrSpool, err)
		}
		// After the sync: a frame in the log means that its bytes are on disk. It is synced itself: recovery trusts no other bytes.
		if err := r.spool.append(record{Frame: &frameRecord{Size: size, CRC: crc}}, true); err != nil {
			return 0, fmt.Errorf("%w: %w", ErrSpool, err)
		}
		in.mu.Lock()
		in.framed = size
		in.mu.Unlock()
		r.advance(complete)
	}
	return size - headSize + r.spoolStart(), nil
}

func (r *Recording) spoolStart() (start int64) {
	r.spool.look(func(p *progress) { start = p.head.Start })
	return start
}

// finishIntake makes the end durable and then tells the host.
func (r *Recording) finishIntake(ctx context.Context, src Source, end *wire.End) error {
	cause := causeOf(nil, end)
	if cause == CauseNone && !r.in.scanner.Whole() {
		cause = CauseEncoder // it says it stopped as asked, but not at the end of a cluster
	}
	if err := r.spool.append(record{Ended: &endedRecord{Cause: cause}}, true); err != nil {
		return r.spoolErr(err)
	}
	r.in.ended = true
	_ = src.Ack(ctx, end.Total) // everything is safe, whether or not the host hears of it
	return nil
}
