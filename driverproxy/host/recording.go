package host

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/lanes"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// recording is the recorder of a session and its sockets.
type recording struct {
	conn       *lanes.Sender
	supervisor *supervisor
	exited     <-chan struct{} // nil: it was not started
	asked      atomic.Bool     // it was asked to stop
	once       sync.Once
	pumped     chan struct{} // closed when the last byte has gone, or cannot go
	cancel     context.CancelFunc
}

// startRecording starts the recorder. A recording that cannot be made ends as failed, and the session goes on.
func (s *session) startRecording(ctx context.Context) {
	first, err := s.dialLane(ctx, 0)
	if err != nil {
		s.log.Warn("no recording: its socket could not be opened", zap.Error(err))
		return
	}
	pump, cancel := context.WithCancel(context.Background())
	r := &recording{conn: lanes.NewSender(first, lanes.Config{Dial: s.dialLane, Lanes: s.agent.cfg.RecordingLanes}), supervisor: s.supervisor, pumped: make(chan struct{}), cancel: cancel}
	s.recording = r
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
		r.conn.Finish(lingerLimit)
	})
}

// dialLane opens one of the sockets of the recording.
func (s *session) dialLane(ctx context.Context, lane int) (lanes.Socket, error) {
	c, err := s.dial(ctx, wire.PathRecording, wire.MaxChunkData+1024, "lane", strconv.Itoa(lane))
	if err != nil {
		return nil, err // never a *socket.Conn that is nil inside the interface
	}
	return c, nil
}

var _ RecordingConn = (*lanes.Sender)(nil)

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
	r.conn.Settle()
	r.stop()
	t := time.NewTimer(drainLimit)
	defer t.Stop()
	select {
	case <-r.pumped:
	case <-t.C:
	}
	r.cancel()
}
