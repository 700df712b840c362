package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// closing knows whether the browser may be gone because the client closed it.
type closing struct {
	driverPid int
	turn      chan struct{} // holds a token while a command runs that may close the browser
	closed    bool          // the client has closed it; guarded by turn
}

func newClosing() closing { return closing{turn: make(chan struct{}, 1)} }

// byClient says whether the client closed the browser; it waits, bounded, for a command that may be doing so.
func (c *closing) byClient() bool {
	t := time.NewTimer(lingerLimit)
	defer t.Stop()
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
		return c.closed
	case <-t.C:
		return false
	}
}

// serve runs commands until the session is to end, and says why if something failed.
func (s *session) serve(ctx context.Context) *wire.Failure {
	serving, stop := context.WithCancel(ctx)
	defer stop()
	quiet := make(chan struct{}) // closed when no command runs any more
	s.running.Go(func() { s.work(serving, quiet) })
	failure := s.wait(ctx)
	stop()
	linger := time.NewTimer(lingerLimit)
	defer linger.Stop()
	select { // so that what was running is answered before the orchestrator hears of the end
	case <-quiet:
	case <-linger.C:
	}
	return failure
}

func (s *session) wait(ctx context.Context) *wire.Failure {
	over := make(chan string, 1)
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, e := range s.exits {
		s.running.Go(func() {
			select {
			case <-e.gone:
				select {
				case over <- e.what:
				default:
				}
			case <-waiting.Done():
			}
		})
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case what := <-over:
			return failed(wire.FailureDriver, "the %s died", what)
		case <-s.browser:
			if !s.closing.byClient() {
				return failed(wire.FailureDriver, "the browser died")
			}
			s.browser = nil
		case f := <-s.broken:
			return f
		case <-s.halt:
			if s.recording != nil {
				s.running.Go(s.recording.stop)
			}
		}
	}
}

// work runs the commands that are taken, one after the other, until serving ends; from then on they are answered as not run, until
// the session is not carried any more.
func (s *session) work(serving context.Context, quiet chan<- struct{}) {
	for serving.Err() == nil {
		select {
		case c := <-s.carrier.commands:
			s.answer(s.execute(serving, c))
		case <-serving.Done():
		}
	}
	for told := false; ; {
		select {
		case c := <-s.carrier.commands:
			s.answer(s.execute(serving, c))
			continue
		default:
		}
		if !told {
			told = true
			close(quiet)
		}
		select {
		case c := <-s.carrier.commands:
			s.answer(s.execute(serving, c))
		case <-s.carried:
			return
		}
	}
}

func (s *session) answer(a wire.Answer) {
	if err := s.carrier.answer(a); err != nil {
		s.fail(overflow())
	}
}

// execute runs a command at the driver, at most once.
func (s *session) execute(ctx context.Context, c wire.Command) wire.Answer {
	command := webdriver.Command{Method: c.Method, Path: c.Path, Body: c.Body}
	if err := command.Validate(); err != nil {
		a := err.Answer()
		return wire.Answer{Seq: c.Seq, Outcome: wire.OutcomeNotRun, Status: a.Status, Body: a.Body}
	}
	if ctx.Err() != nil {
		return notAnswered(c.Seq, wire.OutcomeNotRun, "the session has ended: the command was not run")
	}
	route, _ := webdriver.Match(c.Method, c.Path)
	if route == webdriver.RouteBatch {
		return s.runBatch(ctx, c)
	}
	mayClose := route == webdriver.RouteDeleteSession || route == webdriver.RouteCloseWindow
	if mayClose {
		s.closing.turn <- struct{}{}
		defer func() { <-s.closing.turn }()
	}
	s.used.Store(true)
	begin := time.Now()
	answer, err := s.driver.do(ctx, command)
	took := time.Since(begin)
	if err != nil {
		if ctx.Err() == nil {
			s.fail(failed(wire.FailureDriver, "the driver broke off"))
		}
		if neverReached(err) {
			return notAnswered(c.Seq, wire.OutcomeNotRun, "the driver is gone: the command was not run")
		}
		return notAnswered(c.Seq, wire.OutcomeUnknown, "the driver is gone: whether the command was run is not known")
	}
	if mayClose && answer.Status < 400 {
		s.closing.closed = s.closing.closed || route == webdriver.RouteDeleteSession || noWindows(answer)
	}
	if answer.Status == http.StatusNotFound && s.sessionGone(answer, mayClose) {
		s.fail(failed(wire.FailureDriver, "the driver has lost its browser"))
	}
	if answer.Status < 400 || route == webdriver.RouteNavigateTo && timedOut(answer) {
		s.visits.Notice(route, c.Body, answer)
	}
	answer = w3c(answer)
	return wire.Answer{Seq: c.Seq, Outcome: wire.OutcomeDone, Status: answer.Status, Took: took, Body: answer.Body}
}

// fail ends the session; only the first reason counts.
func (s *session) fail(why *wire.Failure) {
	select {
	case s.broken <- why:
	default:
	}
}

// sessionGone says whether the driver has no session although the client did not end it.
func (s *session) sessionGone(a webdriver.Answer, holdsTurn bool) bool {
	var e webdriver.Error
	if a.Value(&e) != nil || e.Code != webdriver.InvalidSessionID {
		return false
	}
	if holdsTurn {
		return !s.closing.closed
	}
	return !s.closing.byClient()
}

// timedOut says whether a page has not come in time. It may have begun to.
func timedOut(a webdriver.Answer) bool {
	var e *webdriver.Error
	return errors.As(a.Err(), &e) && e.Code == webdriver.Timeout
}

func noWindows(a webdriver.Answer) bool {
	var handles []string
	return a.Value(&handles) == nil && len(handles) == 0
}

func notAnswered(seq uint64, outcome wire.Outcome, message string) wire.Answer {
	name := "not_run"
	if outcome == wire.OutcomeUnknown {
		name = "unknown"
	}
	a := (&webdriver.Error{Code: webdriver.UnknownError, Message: message, Data: map[string]any{"outcome": name}}).Answer()
	return wire.Answer{Seq: seq, Outcome: outcome, Status: a.Status, Body: a.Body}
}

// w3c replaces an answer that clients could not read: a driver in trouble answers HTML, or nothing.
func w3c(a webdriver.Answer) webdriver.Answer {
	trimmed := bytes.TrimSpace(a.Body)
	if a.Status == http.StatusOK && len(trimmed) > 1 && trimmed[0] == '{' && trimmed[len(trimmed)-1] == '}' {
		return a
	}
	var e webdriver.Error
	if a.Status >= 400 && a.Value(&e) == nil && e.Code != "" {
		return a
	}
	return (&webdriver.Error{Code: webdriver.UnknownError, Message: fmt.Sprintf("the driver answered HTTP %d without W3C JSON", a.Status)}).Answer()
}
