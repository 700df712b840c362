package driverproxy

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// RecordingConn is the recording socket of a session.
type RecordingConn struct {
	fleet *Fleet
	conn  *socket.Conn
	since time.Time
}

// Since is when the host dialled the socket, which it does as it starts the encoder: the recording begins there.
func (c *RecordingConn) Since() time.Time { return c.since }

// serveRecording is the handler of a recording socket; whoever takes it owns it from then on.
func (f *Fleet) serveRecording(w http.ResponseWriter, r *http.Request) {
	s, status, err := f.sessionOf(r)
	if err != nil {
		http.Error(w, err.Error(), status)
		return
	}
	conn, done, err := f.accept(w, r, socket.Session(wire.MaxChunkData+1024))
	if err != nil {
		return
	}
	defer done()
	if !s.attachRecording(&RecordingConn{fleet: f, conn: conn, since: f.cfg.Now()}) {
		conn.Bye("the session has a recording socket already, or has ended")
		f.hangUp(conn)
	}
}

func (s *Session) attachRecording(c *RecordingConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || s.recording != nil {
		return false
	}
	s.recording = c
	s.recorder <- c
	return true
}

// expireRecording bounds what can still be read of a lost host's recording.
func (s *Session) expireRecording() {
	s.mu.Lock()
	c := s.recording
	s.mu.Unlock()
	if c != nil {
		c.conn.Expire(recordingGrace)
	}
}

// dropRecording closes a recording socket that nobody took.
func (s *Session) dropRecording() {
	select {
	case c := <-s.recorder:
		_ = c.Close() // it is never an error
	default:
	}
}

// Recording waits for the recording socket. The caller owns it and closes it. It is there to be read to its end also
// after the session has ended; one that nobody has asked for when the session is released is closed.
func (s *Session) Recording(ctx context.Context) (*RecordingConn, error) {
	select {
	case c := <-s.recorder:
		return c, nil
	default:
	}
	select {
	case c := <-s.recorder:
		return c, nil
	case <-s.done:
		return nil, fmt.Errorf("driverproxy: no recording socket: %w", s.Err())
	case <-ctx.Done():
		return nil, fmt.Errorf("driverproxy: no recording socket: %w", context.Cause(ctx))
	}
}

// Receive returns the next *[wire.Chunk] (its checksum holds) or *[wire.End]. One caller at a time. When ctx ends during a
// Receive the socket is closed.
func (c *RecordingConn) Receive(ctx context.Context) (any, error) {
	stop := context.AfterFunc(ctx, c.conn.Close)
	defer stop()
	b, err := c.conn.ReadBinary()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("driverproxy: recording: %w", context.Cause(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("driverproxy: recording: %w", err)
	}
	return wire.DecodeRecording(b)
}

// Ack says that every byte before offset is on disk.
func (c *RecordingConn) Ack(ctx context.Context, offset int64) error {
	if err := c.conn.WriteBinary(ctx, wire.Ack{Offset: offset}.Append(nil)); err != nil {
		return fmt.Errorf("driverproxy: recording: acknowledge: %w", err)
	}
	return nil
}

// Close closes the socket. Its error is always nil.
func (c *RecordingConn) Close() error {
	c.fleet.hangUp(c.conn)
	return nil
}
