package host

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// recording is the recorder of a session and its socket.
type recording struct {
	conn       *recordingConn
	supervisor *supervisor
	exited     <-chan struct{} // nil: it was not started
	asked      atomic.Bool     // it was asked to stop
	once       sync.Once
	pumped     chan struct{} // closed when the last byte has gone, or cannot go
	cancel     context.CancelFunc
}

// startRecording starts the recorder. A recording that cannot be made ends as failed, and the session goes on.
func (s *session) startRecording(ctx context.Context) {
	conn, err := s.dial(ctx, wire.PathRecording, wire.MaxChunkData+1024)
	if err != nil {
		s.log.Warn("no recording: its socket could not be opened", zap.Error(err))
		return
	}
	pump, cancel := context.WithCancel(context.Background())
	r := &recording{conn: newRecordingConn(conn), supervisor: s.supervisor, pumped: make(chan struct{}), cancel: cancel}
	s.recording = r
	s.running.Go(r.conn.read)
	err = s.startRecorder(ctx, r)
	s.running.Go(func() {
		defer close(r.pumped)
		if err == nil {
			err = s.agent.cfg.Recorder.Pump(pump, s.supervisor.recording, r.conn, r.asked.Load)
		} else {
			err = errors.Join(err, r.conn.Send(pump, wire.End{Reason: wire.EndFailed}.Append(nil)))
		}
		if err != nil {
			s.log.Warn("recording is not whole", zap.Error(err))
		}
		r.conn.finish()
	})
}

func (s *session) startRecorder(ctx context.Context, r *recording) error {
	if s.agent.cfg.Recorder == nil {
		return errors.New("host: this host has no recorder")
	}
	args := s.agent.cfg.Recorder.Args(s.display)
	if len(args) == 0 {
		return errors.New("host: the recorder has no command line")
	}
	var err error
	_, r.exited, err = s.supervisor.start(ctx, request{Name: procRecorder, Args: args, Env: s.environ(), Dir: s.dir})
	return err
}

// stop ends the recorder, so that it can finish its output; it waits for it, bounded. Only the first call does.
func (r *recording) stop() {
	r.once.Do(func() {
		if r.exited == nil {
			return
		}
		for _, step := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
			r.asked.Store(true)
			if r.supervisor.signal(procRecorder, step) != nil {
				return // everything is dead
			}
			t := time.NewTimer(recorderLimit)
			select {
			case <-r.exited:
				t.Stop()
				return
			case <-r.supervisor.over:
				t.Stop()
				return
			case <-t.C:
			}
		}
	})
}

// end stops the recorder and waits, bounded, until the orchestrator has what it wrote.
func (r *recording) end() {
	r.stop()
	t := time.NewTimer(drainLimit)
	defer t.Stop()
	select {
	case <-r.pumped:
	case <-t.C:
	}
	r.cancel()
}

// recordingConn is the host's end of a recording socket. It reads on after nobody receives any more: closing a socket
// with something unread in it may take from the other end what it has not read yet.
type recordingConn struct {
	conn *socket.Conn
	acks chan []byte
	done chan struct{} // closed when nobody receives any more
	over chan struct{} // closed when the socket has ended
}

var _ RecordingConn = (*recordingConn)(nil)

func newRecordingConn(c *socket.Conn) *recordingConn {
	return &recordingConn{conn: c, acks: make(chan []byte, 16), done: make(chan struct{}), over: make(chan struct{})}
}

func (c *recordingConn) read() {
	defer close(c.over)
	for {
		b, err := c.conn.ReadBinary()
		if err != nil {
			return
		}
		select {
		case c.acks <- b:
		case <-c.done:
		}
	}
}

// Send implements RecordingConn.
func (c *recordingConn) Send(ctx context.Context, message []byte) error {
	stop := context.AfterFunc(ctx, c.conn.Close)
	defer stop()
	return c.conn.WriteBinary(ctx, message)
}

// Receive implements RecordingConn.
func (c *recordingConn) Receive(ctx context.Context) ([]byte, error) {
	select {
	case b := <-c.acks:
		return b, nil
	case <-c.over:
		select {
		case b := <-c.acks:
			return b, nil
		default:
		}
		return nil, io.ErrUnexpectedEOF
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// finish says goodbye and gives the other end a while to read and to close.
func (c *recordingConn) finish() {
	close(c.done)
	c.conn.Bye("the recording has ended")
	t := time.NewTimer(lingerLimit)
	defer t.Stop()
	select {
	case <-c.over:
	case <-t.C:
	}
	c.conn.Close()
}
