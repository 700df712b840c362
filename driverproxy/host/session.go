package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// session is one session of a device. run's goroutine owns it; others use cancel, stopRecording, over and owner only.
type session struct {
	*standby // of the device, or the session's own; never nil
	agent    *agent
	owner    *owner
	device   *device
	id       string
	ask      wire.Assign
	log      *zap.Logger
	cancel   context.CancelCauseFunc
	over     chan struct{} // closed when the device is free again
	halt     chan struct{} // buffered: the recording is to stop
	broken   chan *wire.Failure
	used     atomic.Bool      // a command was sent to the driver
	visits   webdriver.Visits // for who adopts the session: its profile is captured from them

	// guarded by agent.mu
	waiting  []reply         // who waits for released
	epoch    string          // of the orchestrator that has it
	assigned json.RawMessage // capabilities that were matched; nil until it is assigned: only then it outlives its link

	running   sync.WaitGroup // goroutines of the session
	browser   <-chan struct{}
	carrier   *carrier
	carried   chan struct{}      // closed when commands are not carried any more
	drop      context.CancelFunc // ends carrying
	recording *recording
	closing   closing
	bidi      *bidi
	met       met
}

// met is what a session has found out about its device.
type met struct {
	good     proof
	bad      []grade
	residue  []residue
	needs    proof    // what must be shown before the device can be had again
	question []string // pages that were not found clean
}

func newSession(a *agent, l *link, d *device, m wire.Assign, cancel context.CancelCauseFunc) *session {
	return &session{
		standby: newStandby(a, d.Device), agent: a, owner: newOwner(l, m.Term), device: d, id: m.Session, epoch: l.epoch, ask: m, cancel: cancel,
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
	wiped, leftover := s.cleanUp()
	s.agent.free(s, wiped, leftover)
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
	var sockets sync.WaitGroup // an ocean away: dialled while the driver starts its session
	var command *socket.Conn
	var commandErr error
	sockets.Go(func() {
		if command, commandErr = s.dial(ctx, wire.PathCommand, wire.MaxMessage); commandErr == nil {
			s.carryOn(command)
		}
	})
	matched, failure := s.launch(ctx)
	sockets.Wait()
	if failure == nil && commandErr != nil {
		failure = failed(wire.FailureDriver, "the session's command socket could not be opened: %v", commandErr)
	}
	return matched, failure
}

func (s *session) launch(ctx context.Context) ([]byte, *wire.Failure) {
	if err := s.equip(ctx); err != nil {
		return nil, failed(wire.FailureDriver, "%v", err)
	}
	capabilities, err := forDriver(s.kind, s.dir, s.ask.Capabilities)
	if err != nil {
		return nil, failed(wire.FailureCapabilities, "%v", err)
	}
	if s.ask.Record {
		if s.agent.cfg.Recorder != nil {
			if err := s.supervise(); err != nil {
				return nil, failed(wire.FailureDriver, "%v", err)
			}
		}
		s.startRecording(ctx)
	}
	matched, g, failure := s.driver.newSession(ctx, capabilities, s.device.UDID)
	if g != gradeNone {
		s.met.bad = append(s.met.bad, g)
	}
	if failure != nil {
		return nil, failure
	}
	if g == gradeNone {
		s.met.good = proofSession
	}
	if s.kind.here() {
		s.closing.driverPid = s.driverPid
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

// equip takes the device's standby. Where there is none that works, the session starts what it needs itself.
func (s *session) equip(ctx context.Context) error {
	if had := s.agent.take(ctx, s.device); had != nil {
		if had.usable(ctx) {
			s.standby = had
			return nil
		}
		s.log.Warn("the standby does not work and is replaced", zap.String("gone", had.gone()))
		if !had.spoiled { // else it has been counted
			s.met.bad = append(s.met.bad, had.fault())
		}
		if err := had.takeDown(); err != nil {
			s.met.bad = append(s.met.bad, gradeWiped)
			s.met.residue = append(s.met.residue, had.residue())
			return err
		}
	}
	err := s.standby.start(ctx)
	if err != nil && ctx.Err() == nil {
		s.met.bad = append(s.met.bad, startGrade(err))
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
