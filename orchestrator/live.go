package orchestrator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/profilestate"
)

// device is a running driver session, as this package needs it.
type device interface {
	Do(ctx context.Context, c webdriver.Command) (webdriver.Answer, driverproxy.Receipt, error)
	Begin(from wire.Origin, c webdriver.Command) (wait func(context.Context) (webdriver.Answer, driverproxy.Receipt, error))
	Acknowledge(seq uint64)
	Kept() []driverproxy.Kept
	Await(ctx context.Context, k driverproxy.Kept) (webdriver.Answer, driverproxy.Receipt, error)
	OpenBiDi(ctx context.Context) (*driverproxy.BiDi, error)
	Done() <-chan struct{}
	Err() error
}

var _ device = (*driverproxy.Session)(nil)

// live is a session that this process runs. The line in run.go owns it; commands come to it from any goroutine.
type live struct {
	claim   Claim
	journal *journal
	now     func() time.Time
	began   time.Time // when it was claimed or adopted
	streams *streams

	look    chan struct{} // wakes hold: somebody may have cancelled the session
	serving chan struct{} // closed when commands are taken
	closed  chan struct{} // closed when the session takes no more commands
	quiet   chan struct{} // has an element when the last command that ran has ended
	over    chan struct{} // closed when the session has ended, or is another orchestrator's

	visits webdriver.Visits

	relays sync.WaitGroup // of BiDi connections; added to while the session is open only

	logging sync.Mutex // guards seq; apart from mu, because the journal may make its callers wait
	seq     int64

	mu         sync.Mutex // guards what follows
	device     device
	inflight   int
	idleAt     time.Time            // when the last command ended
	end        *EndError            // the first reason to end wins
	restored   *profilestate.Report // what the browser was given; nil: it is not known yet
	reportLost bool                 // it never will be
}

func newLive(c Claim, j *journal, now func() time.Time) *live {
	l := &live{
		claim: c, journal: j, now: now, began: now(), seq: c.LastEvent,
		look: make(chan struct{}, 1), serving: make(chan struct{}), closed: make(chan struct{}), quiet: make(chan struct{}, 1), over: make(chan struct{}),
	}
	l.streams = newStreams(l)
	return l
}

// emit adds a line to the session's log.
func (l *live) emit(e Event) {
	l.logging.Lock()
	defer l.logging.Unlock()
	// Numbering and queueing are one step, or the log would be stored out of order.
	l.journal.add(l.stampLocked(e))
}

// stamp numbers an event that is stored with something else.
func (l *live) stamp(e Event) Event {
	l.logging.Lock()
	defer l.logging.Unlock()
	return l.stampLocked(e)
}

func (l *live) stampLocked(e Event) Event {
	l.seq++
	e.Session, e.Term, e.Seq, e.At = l.claim.Session, l.claim.Term, l.seq, l.now()
	return e
}

// stop ends serving, with the first reason given.
func (l *live) stop(e *EndError) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end == nil {
		l.end = e
		close(l.closed)
	}
}

// conclude is stop with what the session came to in the end.
func (l *live) conclude(e *EndError) {
	l.stop(e)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end = e
}

// serve takes commands until there is a reason to end. When stopping is closed, or the lease is lost, the session is not
// ended but left: what it returns then says so.
func (l *live) serve(ctx context.Context, d device, stopping <-chan struct{}) *EndError {
	l.mu.Lock()
	l.device, l.idleAt = d, l.now()
	l.mu.Unlock()
	l.streams.adopt(d)
	close(l.serving)

	deadline := time.NewTimer(l.remaining())
	defer deadline.Stop()
	idle := time.NewTimer(l.claim.Idle)
	defer idle.Stop()
	for {
		select {
		case <-l.closed:
		case <-stopping:
			l.stop(leave(nil))
			if l.leaving() && l.settle(ctx.Done(), d.Done(), settleLimit) {
				return endOf(d.Err()) // there is nothing to hand over any more
			}
		case <-ctx.Done():
			l.stop(unlessLost(context.Cause(ctx)))
			if l.leaving() {
				l.settle(nil, d.Done(), leaseMargin-time.Second)
			}
		case <-d.Done():
			l.stop(endOf(d.Err()))
		case <-deadline.C:
			l.stop(endWith(Deadline, nil))
		case <-idle.C:
			left := l.idleLeft()
			if left > 0 {
				idle.Reset(left)
				continue
			}
			l.stop(endWith(Idle, nil))
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.end
	}
}

// idleLeft is how long the session may still be idle. A command that runs is not idleness, however long it takes.
func (l *live) idleLeft() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inflight > 0 {
		return l.claim.Idle
	}
	return l.claim.Idle - l.now().Sub(l.idleAt)
}

// do runs one command of the client. The answer is always one that can be sent.
func (l *live) do(ctx context.Context, c webdriver.Command) webdriver.Answer {
	route, unknown := c.Endpoint()
	if unknown != nil {
		return unknown.Answer()
	}
	if !l.started(ctx) {
		return (&webdriver.Error{Code: webdriver.Timeout, Message: "the session has not started yet; try again"}).Answer()
	}
	d, ok := l.admit()
	if !ok {
		return gone(l.ended())
	}
	defer l.ran()
	limit, refused := l.check(route, c)
	if refused != nil {
		return refused.Answer()
	}
	// A client that leaves does not undo its command, so its command is waited for all the same.
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	if route == webdriver.RouteCloseWindow && lastWindow(call, d) {
		return l.closeLast()
	}
	begin := l.now()
	a, receipt, err := d.Do(call, c)
	l.follow(route, c.Body, begin, a, receipt, err)
	return a
}

// started waits until commands are taken, or never will be. It is false when ctx ends before, and only then.
func (l *live) started(ctx context.Context) bool {
	select {
	case <-l.serving:
		return true
	default:
	}
	select {
	case <-l.serving:
	case <-l.closed:
	case <-ctx.Done():
		return false
	}
	return true
}

// admit lets a command in, unless the session has ended; ran must follow.
func (l *live) admit() (device, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end != nil || l.device == nil {
		return nil, false
	}
	l.inflight++
	return l.device, true
}

// ended is why the session takes no more commands, nil while it does.
func (l *live) ended() *EndError {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end
}

// check says how long a command may take, and refuses what no driver could run.
func (l *live) check(route webdriver.Route, c webdriver.Command) (time.Duration, *webdriver.Error) {
	if bad := c.Parameters(); bad != nil {
		return 0, bad
	}
	return l.limit(route, c.Body)
}

// follow does what follows from an answer.
func (l *live) follow(route webdriver.Route, body []byte, begin time.Time, a webdriver.Answer, receipt driverproxy.Receipt, err error) {
	took := l.now().Sub(begin)
	if route == webdriver.RouteBatch && err == nil {
		l.steps(body, a)
	}
	l.emit(Event{Kind: EventCommand, Route: route, Status: a.Status, Took: took, Driver: receipt.Took,
		BytesIn: int64(len(body)), BytesOut: int64(len(a.Body))})
	if errors.Is(err, context.DeadlineExceeded) {
		l.stop(endWith(CommandDeadline, nil))
	}
	if err == nil && a.Status < 400 {
		l.notice(route, body, a)
	}
}

// closeLast answers the command that closes the last window. It ends a W3C session; ended here, the profile can still be
// captured.
func (l *live) closeLast() webdriver.Answer {
	if !l.quit() {
		return elsewhere()
	}
	a, _ := webdriver.ValueAnswer([]string{})
	return a
}

// ran ends what admit began.
func (l *live) ran() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idleAt = l.now()
	if l.inflight--; l.inflight == 0 {
		poke(l.quiet)
	}
}

// quit ends the session as its client wants it. It is a command like any other in the log. It is false for a session that
// goes on elsewhere, and has to be quit there.
func (l *live) quit() bool {
	if l.leaving() {
		return false
	}
	if l.ended() == nil { // before the session's own last events
		l.emit(Event{Kind: EventCommand, Route: webdriver.RouteDeleteSession, Status: http.StatusOK})
	}
	l.stop(endWith(Completed, nil))
	return !l.leaving()
}

// quitted is the answer to a quit, once the session has ended: one that ended by itself was not there to be quit.
func (l *live) quitted() webdriver.Answer {
	e := l.ended()
	if e != nil && (e.left || e.Reason != Completed) {
		return gone(e)
	}
	a, _ := webdriver.ValueAnswer(nil) // null always can be
	return a
}

// lastWindow says whether the current window is the only one there is.
func lastWindow(ctx context.Context, d device) bool {
	var current string
	var all []string
	return ask(ctx, d, "/window", &current) && ask(ctx, d, "/window/handles", &all) && len(all) == 1 && all[0] == current
}

func ask(ctx context.Context, d device, path string, v any) bool {
	a, _, err := d.Do(ctx, webdriver.Command{Method: http.MethodGet, Path: path})
	return err == nil && a.Err() == nil && a.Value(v) == nil
}

// notice remembers the pages a session was at: its profile is captured from them.
func (l *live) notice(r webdriver.Route, body []byte, a webdriver.Answer) {
	l.visits.Notice(r, body, a)
}

func (l *live) visit(at string) { l.visits.Add(at) }

func (l *live) pages() []string { return l.visits.Pages() }

// gone is the answer to a command that came too late.
func gone(e *EndError) webdriver.Answer {
	w := &webdriver.Error{Code: webdriver.InvalidSessionID, Message: "there is no such session"}
	if e != nil && e.left {
		return elsewhere()
	}
	if e != nil {
		row := Endings()[e.Reason]
		w.Code, w.Message = row.W3C, e.Error()
		w.Data = map[string]any{"reason": string(e.Reason), "retry": row.Retry}
	}
	return w.Answer()
}

// endOf classifies why a stage failed or a session ended.
func endOf(err error) *EndError {
	var end *EndError
	var f *wire.Failure
	switch {
	case err == nil:
		return endWith(Internal, nil)
	case errors.As(err, &end):
		return end
	case errors.As(err, &f):
		r := DriverFailed
		switch f.Code {
		case wire.FailureDevice, wire.FailureStaleTerm:
			r = DeviceUnavailable
		case wire.FailureShutdown, wire.FailureGone:
			r = HostLost
		case wire.FailureOverflow:
			r = StreamOverflow
		}
		return &EndError{Reason: r, Detail: f.Message, cause: err}
	case errors.Is(err, driverproxy.ErrOverflow):
		return &EndError{Reason: StreamOverflow, cause: err}
	case errors.Is(err, driverproxy.ErrHostLost), errors.Is(err, driverproxy.ErrClosed):
		return &EndError{Reason: HostLost, cause: err}
	case errors.Is(err, ErrLeaseLost), errors.Is(err, ErrUnavailable):
		return &EndError{Reason: LeaseLost, cause: err}
	case errors.Is(err, errCancelled):
		return &EndError{Reason: Cancelled, cause: err}
	case errors.Is(err, errDrained):
		return &EndError{Reason: Drained, cause: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &EndError{Reason: DriverFailed, Detail: "the device did not start the driver in time", cause: err}
	}
	return &EndError{Reason: Internal, cause: err}
}

// driver speaks to a device for restore and capture: what it does is in no session's log.
type driver struct{ device device }

// Do implements inert.Driver.
func (d driver) Do(ctx context.Context, method, path string, body []byte) (json.RawMessage, error) {
	a, _, err := d.device.Do(ctx, webdriver.Command{Method: method, Path: path, Body: bytes.TrimSpace(body)})
	if err != nil {
		return nil, err
	}
	return a.Raw()
}
