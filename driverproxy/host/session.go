package host

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// session is one session of a device. run's goroutine owns it; others use cancel, stopRecording, over and owner only.
type session struct {
	agent  *agent
	owner  *owner
	device *device
	kind   kind
	id     string
	ask    wire.Assign
	log    *zap.Logger
	cancel context.CancelCauseFunc
	over   chan struct{} // closed when the device is free again
	halt   chan struct{} // buffered: the recording is to stop
	broken chan *wire.Failure
	visits webdriver.Visits // for who adopts the session: its profile is captured from them

	// guarded by agent.mu
	waiting  []reply         // who waits for released
	epoch    string          // of the orchestrator that has it
	assigned json.RawMessage // capabilities that were matched; nil until it is assigned: only then it outlives its link

	running    sync.WaitGroup // goroutines of the session
	dir, mark  string
	supervisor *supervisor // nil: nothing runs outside of this process
	display    Display
	displayPid int
	driver     *driver
	ports      []int      // reserved for the driver
	inside     *inProcess // the driver of kind fake
	exits      []exit     // what must not exit
	browser    <-chan struct{}
	carrier    *carrier
	carried    chan struct{}      // closed when commands are not carried any more
	drop       context.CancelFunc // ends carrying
	recording  *recording
	closing    closing
	bidi       *bidi
	quarantine string
}

// exit is something whose end is the session's.
type exit struct {
	what string
	gone <-chan struct{}
}

func newSession(a *agent, l *link, d *device, m wire.Assign, cancel context.CancelCauseFunc) *session {
	k, _ := newKind(d.Device, a.cfg.Fake) // was checked when the agent started
	return &session{
		agent: a, owner: newOwner(l, m.Term), device: d, kind: k, id: m.Session, epoch: l.epoch, ask: m, cancel: cancel,
		carrier: newCarrier(), carried: make(chan struct{}), drop: func() {},
		log:  a.cfg.Log.With(zap.String("session", m.Session), zap.Int64("term", m.Term), zap.String("device", d.Name)),
		over: make(chan struct{}), halt: make(chan struct{}, 1), broken: make(chan *wire.Failure, 1),
		closing: newClosing(), bidi: newBiDi(),
	}
}

// has says whether the session is at this term.
func (s *session) has(term int64) bool {
	_, now, _ := s.owner.now()
	return now == term
}

// stopRecording may be called at any time.
func (s *session) stopRecording() {
	select {
	case s.halt <- struct{}{}:
	default:
	}
}

// run is the session's whole life. ctx is cancelled with the reason to end it from outside.
func (s *session) run(ctx context.Context) {
	defer close(s.over)
	matched, failure := s.start(ctx)
	assigned := failure == nil
	if assigned {
		watch, stop := context.WithCancel(ctx)
		defer stop()
		if s.closing.driverPid != 0 {
			s.browser = watchBrowser(watch, &s.running, s.closing.driverPid)
		}
		s.agent.assigned(s, matched)
		failure = s.serve(ctx)
		stop()
	}
	failure = endedBy(ctx, failure)
	if failure != nil {
		s.log.Warn("session failed", zap.String("code", string(failure.Code)), zap.String("reason", failure.Message))
	}
	if !assigned && s.recording != nil {
		s.recording.cancel() // nobody takes the recording of a session that did not start: its end is not to be waited for
	}
	if failure != nil && assigned {
		s.agent.ended(s, *failure)
	}
	leftover := s.cleanUp()
	s.agent.free(s, leftover, s.quarantine)
	if failure != nil && !assigned { // only now, so that the device can be had again
		l, term, _ := s.owner.now()
		l.post(wire.Control{Assigned: &wire.Assigned{Session: s.id, Term: term, Failure: failure}})
	}
}

// endedBy is what the orchestrator is told; nil when it knows.
func endedBy(ctx context.Context, failure *wire.Failure) *wire.Failure {
	switch cause := context.Cause(ctx); {
	case cause == nil:
		return failure
	case errors.Is(cause, errShutdown):
		return &wire.Failure{Code: wire.FailureShutdown, Message: "the agent was stopped"}
	case errors.Is(cause, errFenced):
		return &wire.Failure{Code: wire.FailureStaleTerm, Message: "a newer term of the session was assigned"}
	case errors.Is(cause, errOrphaned):
		return &wire.Failure{Code: wire.FailureGone, Message: errOrphaned.Error()}
	}
	return nil
}

func failed(code wire.FailureCode, format string, args ...any) *wire.Failure {
	return &wire.Failure{Code: code, Message: fmt.Sprintf(format, args...)}
}

// start brings everything up; what it has brought up when it fails is cleaned up like the rest.
func (s *session) start(ctx context.Context) ([]byte, *wire.Failure) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if err := s.prepare(); err != nil {
		return nil, failed(wire.FailureDriver, "%v", err)
	}
	capabilities, err := forDriver(s.kind, s.dir, s.ask.Capabilities)
	if err != nil {
		return nil, failed(wire.FailureCapabilities, "%v", err)
	}
	var sockets sync.WaitGroup // an ocean away: dialled while the driver starts
	var command *socket.Conn
	var commandErr error
	sockets.Go(func() {
		if command, commandErr = s.dial(ctx, wire.PathCommand, wire.MaxMessage); commandErr == nil {
			s.carryOn(command)
		}
	})
	matched, failure := s.launch(ctx, capabilities)
	sockets.Wait()
	if failure == nil && commandErr != nil {
		failure = failed(wire.FailureDriver, "the session's command socket could not be opened: %v", commandErr)
	}
	return matched, failure
}

func (s *session) launch(ctx context.Context, capabilities map[string]any) ([]byte, *wire.Failure) {
	if s.kind.display() {
		if err := s.startDisplay(ctx); err != nil {
			return nil, failed(wire.FailureDriver, "the display did not start: %v", err)
		}
	}
	if s.ask.Record {
		s.startRecording(ctx)
	}
	if err := s.startDriver(ctx); err != nil {
		return nil, failed(wire.FailureDriver, "the driver did not start: %v", err)
	}
	matched, failure := s.driver.newSession(ctx, capabilities)
	if failure != nil {
		if failure.Message == paired {
			s.quarantine = "the driver says: " + paired
		}
		return nil, failure
	}
	if s.kind.display() {
		s.fillDisplay(ctx)
	}
	if asked, _ := capabilities["webSocketUrl"].(json.RawMessage); string(asked) == "true" {
		if err := s.bidi.find(matched, s.driver.addr); err != nil {
			return nil, failed(wire.FailureDriver, "%v", err)
		}
	}
	told, err := forClient(s.kind, s.device.Device, matched)
	if err != nil {
		return nil, failed(wire.FailureDriver, "%v", err)
	}
	return told, nil
}

// prepare makes the session's directory and its record, and starts its supervisor if a process will run.
func (s *session) prepare() error {
	s.mark = random()
	s.dir = s.agent.sessionDir(s.mark)
	r := record{Mark: s.mark}
	if err := r.write(s.dir); err != nil {
		return err
	}
	for _, d := range confinedDirs() {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o700); err != nil {
			return fmt.Errorf("host: the session's directory: %w", err)
		}
	}
	if s.kind.args(0) == nil && (!s.ask.Record || s.agent.cfg.Recorder == nil) {
		return nil
	}
	var err error
	if s.supervisor, err = startSupervisor(s.agent.cfg.Supervisor, s.dir, s.mark); err != nil {
		return err
	}
	s.exits = append(s.exits, exit{"supervisor", s.supervisor.over})
	r.Group = s.supervisor.cmd.Process.Pid
	r.Started = started(r.Group)
	return r.write(s.dir)
}

func (s *session) environ() []string {
	return append(s.kind.environ(s.dir, s.display.Name), markVariable+"="+s.mark)
}

func (s *session) startDisplay(ctx context.Context) error {
	pid, gone, err := s.supervisor.start(ctx, request{Name: procDisplay, Dir: s.dir, Env: s.environ(), Args: []string{
		"Xvfb", "-displayfd", "3", "-screen", "0", fmt.Sprintf("%dx%dx24", Width, Height), "-nolisten", "tcp", "-noreset",
	}})
	if err != nil {
		return err
	}
	s.displayPid = pid
	s.exits = append(s.exits, exit{"display", gone})
	if limit, ok := ctx.Deadline(); ok {
		_ = s.supervisor.display.SetReadDeadline(limit) // a pipe of ours
	}
	stop := context.AfterFunc(ctx, func() { _ = s.supervisor.display.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReader(s.supervisor.display).ReadString('\n')
	if err != nil {
		return fmt.Errorf("no display number from Xvfb: %w", err)
	}
	number, err := strconv.ParseUint(strings.TrimSpace(line), 10, 16)
	if err != nil {
		return fmt.Errorf("no display number from Xvfb: %w", err)
	}
	s.display = Display{Name: ":" + strconv.FormatUint(number, 10), Width: Width, Height: Height}
	return nil
}

// startDriver tries a few ports: another program may take one before the driver does.
func (s *session) startDriver(ctx context.Context) error {
	if f, ok := s.kind.(fake); ok {
		var err error
		if s.inside, err = serveFake(f.driver()); err != nil {
			return err
		}
		s.driver = newDriver(s.inside.addr)
		s.exits = append(s.exits, exit{"driver", s.inside.driver.Dead()})
		return nil
	}
	var err error
	for range 3 {
		var port, pid int
		if port, err = s.agent.reservePort(); err != nil {
			return err
		}
		s.ports = append(s.ports, port)
		var gone <-chan struct{}
		pid, gone, err = s.supervisor.start(ctx, request{Name: procDriver, Args: s.kind.args(port), Env: s.environ(), Dir: s.dir})
		if err != nil {
			return err
		}
		s.driver = newDriver("127.0.0.1:" + strconv.Itoa(port))
		if err = s.driver.ready(ctx, gone); err == nil {
			s.exits = append(s.exits, exit{"driver", gone})
			s.closing.driverPid = pid
			return nil
		}
		s.driver.close()
		s.driver = nil
		if !errors.Is(err, errDriverExited) {
			return err
		}
	}
	return err
}

// fillDisplay makes the window as large as the display: there is no window manager to do it. MiniBrowser's tool bar keeps the
// window at least 447 pixels wide, so that a strip on the right is not in a recording.
func (s *session) fillDisplay(ctx context.Context) {
	body := fmt.Sprintf(`{"x":0,"y":0,"width":%d,"height":%d}`, Width, Height)
	a, err := s.driver.do(ctx, webdriver.Command{Method: "POST", Path: "/window/rect", Body: []byte(body)})
	if err == nil {
		err = a.Err()
	}
	if err != nil {
		s.log.Warn("the window keeps its own size", zap.Error(err))
	}
}

// dial opens one of the session's sockets to the orchestrator that has it; more are names and values for the query.
func (s *session) dial(ctx context.Context, path string, most int64, more ...string) (*socket.Conn, error) {
	return s.dialWith(ctx, path, socket.Session(most), more...)
}

func (s *session) dialWith(ctx context.Context, path string, limits socket.Limits, more ...string) (*socket.Conn, error) {
	l, term, _ := s.owner.now()
	q := url.Values{"session": {s.id}, "term": {strconv.FormatInt(term, 10)}}
	for i := 0; i+1 < len(more); i += 2 {
		q.Set(more[i], more[i+1])
	}
	return s.agent.endpoint.Dial(ctx, socket.DialFunc(s.agent.cfg.Dial), "ws://"+l.addr+path+"?"+q.Encode(), limits)
}
