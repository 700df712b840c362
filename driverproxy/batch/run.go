package batch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// ErrNotRun is wrapped by an error of Driver.Do that says that the driver never saw the command.
var ErrNotRun = errors.New("batch: the command was not run")

// Driver is where a batch runs.
type Driver struct {
	// Do runs one command. An error says that there is no answer and will be none: the batch ends there.
	Do  func(context.Context, webdriver.Command) (webdriver.Answer, error)
	Now func() time.Time
}

// Run runs the steps one after the other. It ends early when the driver is lost or ctx ends; there is always a result for
// each step.
func (b *Batch) Run(ctx context.Context, d Driver) Response { return b.runWithin(ctx, d, MaxResults) }

func (b *Batch) runWithin(ctx context.Context, d Driver, room int) Response {
	r := run{Batch: b, driver: d, room: room, results: make([]Result, 0, len(b.steps))}
	response := Response{OK: true}
	over := "" // why no step is run any more
	begin := d.Now()
	for i := range b.steps {
		if over == "" && b.within > 0 && d.Now().Sub(begin) > b.within {
			over, response.OK = "within_ms is over", false
		}
		if over != "" {
			r.results = append(r.results, Result{Outcome: NotRun, Reason: over})
			continue
		}
		result, alive := r.step(ctx, i)
		r.results = append(r.results, result)
		response.OK = response.OK && result.ok()
		switch {
		case !alive:
			over = lost(ctx) + " at " + b.steps[i].label
		case b.stop && !result.ok():
			over = b.steps[i].label + " failed, and stop_on_error is set"
		}
	}
	response.Results = r.results
	return response
}

// run is a batch on its way.
type run struct {
	*Batch
	driver  Driver
	results []Result // of the steps so far
	room    int      // bytes that the values of the others may have
}

// step runs step i; alive is false when the driver is lost.
func (r *run) step(ctx context.Context, i int) (result Result, alive bool) {
	if why := r.waitsFor(i, r.results); why != "" {
		return Result{Outcome: NotRun, Reason: why}, true
	}
	c, refused := r.Command(i, r.results)
	if refused != nil {
		return failed(refused), true
	}
	begin := r.driver.Now()
	switch s := &r.steps[i]; {
	case s.wait != nil:
		result, alive = r.wait(ctx, s, c)
	case s.route == webdriver.RouteCloseWindow:
		result, alive = r.closeWindow(ctx, c)
	default:
		result, alive = r.do(ctx, c)
	}
	if result.Outcome != NotRun {
		result.TookUS = r.driver.Now().Sub(begin).Microseconds()
	}
	if len(result.Value) <= r.room {
		r.room -= len(result.Value)
		return result, alive
	}
	large := failed(&webdriver.Error{Code: webdriver.UnknownError, Message: fmt.Sprintf(
		"%s was run, but with its value of %d bytes the results are more than the %d MiB that a batch may have", r.steps[i].label, len(result.Value), MaxResults>>20)})
	large.TookUS = result.TookUS
	return large, alive
}

// do runs one command and makes its answer a result.
func (r *run) do(ctx context.Context, c webdriver.Command) (result Result, alive bool) {
	a, err := r.driver.Do(ctx, c)
	switch {
	case errors.Is(err, ErrNotRun):
		return Result{Outcome: NotRun, Reason: lost(ctx)}, false
	case err != nil:
		return unknown(ctx), false
	}
	var envelope struct {
		Value json.RawMessage `json:"value"`
	}
	if err := json.Unmarshal(a.Body, &envelope); err != nil || envelope.Value == nil {
		return failed(&webdriver.Error{Code: webdriver.UnknownError, Message: "the driver's answer is not W3C JSON"}), true
	}
	return Result{Status: a.Status, Value: envelope.Value}, true
}

// closeWindow closes the current window, unless it is the only one: that would quit the session.
func (r *run) closeWindow(ctx context.Context, c webdriver.Command) (result Result, alive bool) {
	var all []string
	var current string
	if result, alive = r.ask(ctx, "/window/handles", &all); !alive || !result.ok() {
		return result, alive
	}
	if len(all) > 1 {
		return r.do(ctx, c)
	}
	result, alive = r.ask(ctx, "/window", &current)
	var e *webdriver.Error
	switch {
	case alive && errors.As(result.Err(), &e) && e.Code == webdriver.NoSuchWindow, alive && result.ok() && !slices.Contains(all, current):
		return r.do(ctx, c) // the window is closed already, and the driver says so
	case alive && result.ok():
		return failed(&webdriver.Error{Code: webdriver.UnsupportedOperation, Message: "closing the last window quits the session, which a batch cannot do: " +
			"quit when the batch is done, by DELETE of the session or of its window"}), true
	}
	return result, alive
}

// ask reads something that the step depends on; when the driver is lost meanwhile, the step has not been run.
func (r *run) ask(ctx context.Context, path string, v any) (result Result, alive bool) {
	if result, alive = r.do(ctx, webdriver.Command{Method: "GET", Path: path}); !alive {
		return Result{Outcome: NotRun, Reason: lost(ctx)}, false
	}
	if result.ok() && json.Unmarshal(result.Value, v) != nil {
		result = failed(&webdriver.Error{Code: webdriver.UnknownError, Message: "the driver's answer to GET " + path + " is not W3C WebDriver"})
	}
	return result, true
}

func failed(e *webdriver.Error) Result {
	a := e.Answer()
	r := Result{Status: a.Status}
	_ = a.Value(&r.Value) // it is one of ours
	return r
}

// lost says why there is no answer and will be none.
func lost(ctx context.Context) string {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "the batch's time was up"
	case ctx.Err() != nil:
		return "the session was ended"
	}
	return "the driver was lost"
}

// unknown is the result of a step whose answer never came, as a single command would have it.
func unknown(ctx context.Context) Result {
	r := failed(&webdriver.Error{Code: webdriver.UnknownError, Message: lost(ctx) + ": whether the step was run is not known", Data: map[string]any{"outcome": Unknown}})
	r.Outcome = Unknown
	return r
}
