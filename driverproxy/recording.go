package driverproxy

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/lanes"
	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// RecordingConn is the recording of a session, over one socket or several.
type RecordingConn struct {
	lanes *lanes.Receiver
	since time.Time
}

// Since is when the host dialled the first socket, which it does as it starts the encoder: the recording begins there.
func (c *RecordingConn) Since() time.Time { return c.since }

// serveRecording is the handler of a recording socket.
func (f *Fleet) serveRecording(w http.ResponseWriter, r *http.Request) {
	s, status, err := f.sessionOf(r)
	if err != nil {
		http.Error(w, err.Error(), status)
		return
	}
	lane, err := laneOf(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	conn, done, err := f.accept(w, r, socket.Session(wire.MaxChunkData+1024))
	if err != nil {
		return
	}
	defer done()
	defer f.hangUp(conn)
	c := s.recordingFor(r.Context(), f.cfg.Now())
	if c == nil {
		conn.Bye("the session has ended")
		return
	}
	err = c.lanes.Serve(lane, conn)
	f.cfg.Log.Debug("recording socket ended", zap.String("session", s.key.id), zap.Int("lane", lane), zap.Error(err))
}

// laneOf is the number of a recording socket among those of its session; 0 when none is given.
func laneOf(r *http.Request) (int, error) {
	q := r.URL.Query().Get("lane")
	if q == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(q)
	if err != nil || n < 0 || n >= wire.MaxLanes {
		return 0, fmt.Errorf("driverproxy: lane %q: numbers from 0 to %d are allowed", q, wire.MaxLanes-1)
	}
	return n, nil
}

// resumeWait is how long a recording socket of an adopted session waits until it is known where the recording goes on.
const resumeWait = 20 * time.Second

// recordingFor is what a recording socket belongs to. The first one begins the recording, which a session that has ended
// does not; but its recording may still be sent over further sockets. That of an adopted session begins with ResumeRecording.
func (s *Session) recordingFor(ctx context.Context, now time.Time) *RecordingConn {
	s.mu.Lock()
	if !s.adopted {
		defer s.mu.Unlock()
		if s.recording == nil && s.err == nil {
			s.recording = &RecordingConn{lanes: lanes.NewReceiver(s.done, 0), since: now}
			s.recorder <- s.recording
		}
		return s.recording
	}
	s.mu.Unlock()
	t := time.NewTimer(resumeWait)
	defer t.Stop()
	select {
	case <-s.resumed:
	case <-s.done:
	case <-t.C:
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recording
}

// ResumeRecording goes on with the recording of an adopted session, of which every byte before from is on disk. The caller owns it and
// closes it. It is called once, or not at all: then the host's recording ends.
func (s *Session) ResumeRecording(from int64) *RecordingConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recording = &RecordingConn{lanes: lanes.NewReceiver(s.done, from), since: s.fleet.cfg.Now()}
	close(s.resumed)
	return s.recording
}

// expireRecording bounds what can still be read of a lost host's recording.
func (s *Session) expireRecording() {
	s.mu.Lock()
	c := s.recording
	s.mu.Unlock()
	if c != nil {
		c.lanes.Expire(recordingGrace)
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

// Receive returns the next *[wire.Chunk] (its checksum holds, and it follows the one before) or *[wire.End]. One caller at
// a time. When ctx ends during a Receive the sockets are closed.
func (c *RecordingConn) Receive(ctx context.Context) (any, error) {
	message, err := c.lanes.Receive(ctx)
	if err != nil {
		return nil, fmt.Errorf("driverproxy: recording: %w", err)
	}
	return message, nil
}

// Ack says that every byte before offset is on disk.
func (c *RecordingConn) Ack(ctx context.Context, offset int64) error {
	if err := c.lanes.Ack(ctx, offset); err != nil {
		return fmt.Errorf("driverproxy: recording: acknowledge: %w", err)
	}
	return nil
}

// Close closes the sockets. Its error is always nil.
func (c *RecordingConn) Close() error {
	c.lanes.Close()
	return nil
}
