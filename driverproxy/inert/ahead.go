package inert

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/driftstack/fleet/driverproxy/batch"
)

// Command is a W3C command that has not been sent.
type Command struct {
	Method, Path string
	Body         any
}

// answered is a command that was run ahead of its time, and what came of it.
type answered struct {
	method, path string
	body         []byte
	value        json.RawMessage
	err          error
}

const (
	// BatchPath is that of a batch.
	BatchPath  = "/driftstack/batch"
	aheadPages = 12      // of one batch: what a host that hangs takes with it
	aheadBytes = 4 << 20 // of one batch; what is larger is as well sent alone
)

// errAstray is a defect: the browser has gone further than what the restore or capture does next, and is on another page.
var errAstray = errors.New("the commands that were run ahead are not those that are needed")

// Ahead runs commands that are about to be needed beside the driver, in one round trip; Do answers with what came of them. Each list is
// what is done on one page, if all goes well. The batch ends at the first command that does not go well, so that the browser is where Do left
// it whenever its answers are used up: from there on commands are sent one by one, and can look at what is wrong.
// No page is begun that may not be done by then, however slow it is.
func (b *Browser) Ahead(ctx context.Context, until time.Time, pages iter.Seq[[]Command]) error {
	if len(b.ready) > 0 {
		return nil
	}
	var r batch.Request
	if !until.IsZero() {
		if r.WithinMS = int((time.Until(until) - b.Limits.Page).Milliseconds()); r.WithinMS <= 0 {
			return nil
		}
	}
	size, opened := 0, 0
	for page := range pages {
		if opened++; opened > aheadPages || len(r.Steps)+len(page) > batch.MaxSteps {
			break
		}
		list, n, err := stepsOf(page)
		if err != nil {
			return err
		}
		if size += n; size > aheadBytes {
			break
		}
		r.Steps = append(r.Steps, list...)
	}
	if len(r.Steps) < 2 {
		return nil
	}
	var response batch.Response
	if err := b.send(ctx, "POST", BatchPath, r, &response); Fatal(err) {
		return err
	} else if err != nil || len(response.Results) != len(r.Steps) {
		return nil // the host has none of it, and none of it was run
	}
	for i, s := range r.Steps {
		v := response.Results[i]
		if v.Outcome == batch.NotRun {
			break
		}
		b.ready = append(b.ready, answered{s.Method, s.Path, s.Body, v.Value, v.Err()})
	}
	return nil
}

func stepsOf(page []Command) (steps []batch.Step, size int, err error) {
	for _, c := range page {
		s := batch.Step{Method: c.Method, Path: c.Path}
		if c.Body != nil {
			if s.Body, err = json.Marshal(c.Body); err != nil {
				return nil, 0, err
			}
		}
		steps = append(steps, s)
		size += len(s.Body)
	}
	return steps, size, nil
}

// IsAhead says whether there are answers of commands that were run ahead.
func (b *Browser) IsAhead() bool { return len(b.ready) > 0 }

// Forget passes over what was run ahead, for who does something else.
func (b *Browser) Forget() { b.ready = nil }

// next answers a command that was run ahead.
func (b *Browser) next(method, path string, body []byte) (json.RawMessage, error) {
	a := b.ready[0]
	if a.method != method || a.path != path || !slices.Equal(a.body, body) {
		return nil, errAstray
	}
	b.ready = b.ready[1:]
	return a.value, a.err
}

// Opening is what Open does where all goes well.
func Opening(origin, dir string, job Job) ([]Command, error) {
	target := targets(origin, dir)[0]
	look, err := ScriptCommand(LookScript, lookArguments(origin, job, false, target))
	return []Command{{"POST", "/url", map[string]string{"url": target}}, look}, err
}
