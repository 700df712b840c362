package driverproxy

import (
	"context"
	"encoding/json"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// Session is a driver session that runs on a host. Its methods may be called at once from many goroutines.
type Session struct{}

// Receipt says what became of a command.
type Receipt struct {
	Seq     uint64        // its number in the session; 0 if it was never sent
	Outcome wire.Outcome  // done, unknown, or not run
	Took    time.Duration // at the driver, as the host measured it; 0 if it did not answer
}

// Capabilities is what the driver matched, as New Session's answer gives it to the client.
func (s *Session) Capabilities() json.RawMessage { panic("being written") }

// Do sends a command and waits for its answer. Commands run in the order of the calls; many calls may wait at once.
//
// The Answer is always one that can go to a client. With a nil error it came from the host (also when the Receipt's
// outcome is not done: the driver died under the command). A non-nil error says why the host gave none: ctx ended, or
// what [Session.Err] says. The answer is then a W3C "unknown error" with data.outcome "unknown" or "not_run". A command
// that was sent when ctx ended runs on; its answer is dropped.
func (s *Session) Do(ctx context.Context, c webdriver.Command) (webdriver.Answer, Receipt, error) {
	panic("being written")
}

// Done is closed when the session has ended, by itself or by Release.
func (s *Session) Done() <-chan struct{} { panic("being written") }

// Err is nil until Done; then it is [ErrHostLost] (errors.Is), a *[wire.Failure], [ErrReleased] or [ErrClosed].
func (s *Session) Err() error { panic("being written") }

// Recording waits for the recording socket. The caller owns it and closes it. It is there to be read to its end also
// after the session has ended.
func (s *Session) Recording(ctx context.Context) (*RecordingConn, error) { panic("being written") }

// StopRecording ends the recording and leaves the session running. The answer is the End on the recording socket.
func (s *Session) StopRecording(ctx context.Context) error { panic("being written") }

// Release ends the session and waits until the host says that nothing of it runs any more. A *[wire.Failure] says what could
// not be cleaned up. [ErrHostLost]: the host could not be asked, and cleans up by itself. Calling it again is harmless.
func (s *Session) Release(ctx context.Context) error { panic("being written") }

// RecordingConn is the recording socket of a session.
type RecordingConn struct{}

// Receive returns the next *[wire.Chunk] (its checksum holds) or *[wire.End]. One caller at a time. When ctx ends during a
// Receive the socket is closed.
func (c *RecordingConn) Receive(ctx context.Context) (any, error) { panic("being written") }

// Ack says that every byte before offset is on disk.
func (c *RecordingConn) Ack(ctx context.Context, offset int64) error { panic("being written") }

// Close closes the socket.
func (c *RecordingConn) Close() error { panic("being written") }
