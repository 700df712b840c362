package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/driftstack/fleet/driverproxy/wire"
)

const (
	readSize = 64 << 10
	overhead = 128 // of one waiting frame, so that many tiny reads cannot outgrow the bound
)

// UnacknowledgedError says how much of what the encoder wrote may not have reached the orchestrator's disk.
type UnacknowledgedError struct {
	Bytes int64 // read from the encoder but not acknowledged
	Cause error // why it ended
}

// Error implements error.
func (e *UnacknowledgedError) Error() string {
	return fmt.Sprintf("capture: recording ended with %d bytes not acknowledged: %v", e.Bytes, e.Cause)
}

// Unwrap gives the cause.
func (e *UnacknowledgedError) Unwrap() error { return e.Cause }

// ErrOverflow is returned when capture stopped because too much was unacknowledged. What was read until then was delivered.
var ErrOverflow = errors.New("capture: the orchestrator is too slow, the buffer is full: capture stopped")

// Pump carries the encoder's output to conn until stdout ends, then says why it ended and waits for the last acknowledgement:
// EndStopped at io.EOF when stopped is nil or returns true (it is asked once, after the EOF), EndFailed
// when stopped returns false or reading fails otherwise.
//
// It returns nil once every byte is acknowledged, [ErrOverflow] when every byte read is but capture had to stop, and an
// [*UnacknowledgedError] when conn is lost or ctx ends before. When it gives up before stdout ended it closes stdout if that is
// an io.Closer, which ends the encoder; otherwise it returns only once a pending Read does.
func (c *Capture) Pump(ctx context.Context, stdout io.Reader, conn Conn, stopped func() bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	q := &queue{limit: c.cfg.Buffer}
	q.changed = sync.NewCond(&q.mu)
	stop := context.AfterFunc(ctx, func() { q.fail(context.Cause(ctx)) })
	defer stop()

	var wg sync.WaitGroup
	wg.Go(func() { q.fill(stdout, stopped) })
	wg.Go(func() {
		if err := q.receiveAcks(ctx, conn); err != nil {
			cancel(fmt.Errorf("capture: connection lost: %w", err))
		}
	})
	err := q.drain(ctx, conn)
	if err != nil {
		q.fail(err)
		if closer, ok := stdout.(io.Closer); ok {
			_ = closer.Close() // unblocks fill and ends the encoder
		}
	}
	cancel(errDone) // ends receiveAcks
	wg.Wait()
	return q.result(err)
}

var errDone = errors.New("capture: done")

// queue holds the frames that wait to be sent or acknowledged. fill adds, drain sends, receiveAcks removes.
type queue struct {
	mu      sync.Mutex
	changed *sync.Cond // any field below
	limit   int64

	frames [][]byte // encoded, oldest first, the first of them at offset acked or before
	ends   []int64  // offset after each frame
	sent   int      // of frames
	held   int64    // bytes of memory in frames
	read   int64    // offset after the newest frame
	acked  int64
	end    *wire.End
	err    error
}

func (q *queue) fail(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
	}
	q.changed.Broadcast()
}

// fill reads stdout until it ends, the queue is full or has failed.
func (q *queue) fill(stdout io.Reader, stopped func() bool) {
	buf := make([]byte, readSize)
	for {
		n, err := stdout.Read(buf)
		if n > 0 && !q.add(buf[:n]) {
			if closer, ok := stdout.(io.Closer); ok {
				_ = closer.Close()
			}
			return
		}
		switch {
		case err == io.EOF && (stopped == nil || stopped()):
			q.finish(wire.EndStopped)
			return
		case err != nil:
			q.finish(wire.EndFailed)
			return
		}
	}
}

// add takes a copy of data; false means that nothing more can be taken.
func (q *queue) add(data []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return false
	}
	if q.held+int64(len(data))+overhead > q.limit {
		q.end = &wire.End{Total: q.read, Reason: wire.EndOverflow}
		q.changed.Broadcast()
		return false
	}
	frame := wire.Chunk{Offset: q.read, CRC: wire.Checksum(data), Data: data}.Append(make([]byte, 0, len(data)+13))
	q.frames = append(q.frames, frame)
	q.read += int64(len(data))
	q.ends = append(q.ends, q.read)
	q.held += int64(len(data)) + overhead
	q.changed.Broadcast()
	return true
}

func (q *queue) finish(reason wire.EndReason) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.end = &wire.End{Total: q.read, Reason: reason}
	q.changed.Broadcast()
}

// next waits for a frame to send. It gives the end after the last frame, and neither once all is acknowledged.
func (q *queue) next(endSent bool) (frame []byte, end *wire.End, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		switch {
		case endSent && q.acked >= q.end.Total:
			return nil, nil, nil // before the error: the other end hangs up once it has acknowledged everything
		case q.err != nil:
			return nil, nil, q.err
		case q.sent < len(q.frames):
			q.sent++
			return q.frames[q.sent-1], nil, nil
		case q.end != nil && !endSent:
			return nil, q.end, nil
		}
		q.changed.Wait()
	}
}

// drain sends until everything is sent and acknowledged.
func (q *queue) drain(ctx context.Context, conn Conn) error {
	endSent := false
	for {
		frame, end, err := q.next(endSent)
		if err != nil {
			return err
		}
		switch {
		case end != nil:
			frame, endSent = end.Append(nil), true
		case frame == nil:
			return nil
		}
		if err := conn.Send(ctx, frame); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("capture: connection lost: %w", err)
		}
	}
}

// receiveAcks forgets what is acknowledged, until conn is lost or ctx ends.
func (q *queue) receiveAcks(ctx context.Context, conn Conn) error {
	for {
		message, err := conn.Receive(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		ack, err := wire.DecodeAck(message)
		if err != nil {
			return err
		}
		if err := q.acknowledge(ack.Offset); err != nil {
			return err
		}
	}
}

func (q *queue) acknowledge(offset int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if offset > q.read {
		return fmt.Errorf("capture: byte %d acknowledged, only %d were read: the orchestrator counts something else", offset, q.read)
	}
	if offset <= q.acked {
		return nil
	}
	q.acked = offset
	drop := 0
	for drop < len(q.frames) && q.ends[drop] <= offset {
		q.held -= int64(len(q.frames[drop])) - 13 + overhead
		q.frames[drop] = nil
		drop++
	}
	q.frames, q.ends, q.sent = q.frames[drop:], q.ends[drop:], max(0, q.sent-drop)
	q.changed.Broadcast()
	return nil
}

func (q *queue) result(err error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err == nil {
		if q.end.Reason == wire.EndOverflow {
			return ErrOverflow
		}
		return nil
	}
	return &UnacknowledgedError{Bytes: q.read - q.acked, Cause: err}
}
