package batch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// wait asks until the condition of the step holds, its time is over, or something else is wrong.
func (r *run) wait(ctx context.Context, s *step, c webdriver.Command) (result Result, alive bool) {
	end := r.driver.Now().Add(s.limit)
	for first := true; ; first = false {
		result, alive = r.do(ctx, c)
		if !alive {
			if result.Outcome == NotRun && !first {
				return unknown(ctx), false // a script may have done something before
			}
			return result, false
		}
		again := s.asksAgain(result)
		if !again {
			return result, true
		}
		left := end.Sub(r.driver.Now())
		if left <= 0 {
			return s.timedOut(result), true
		}
		if !pause(ctx, min(s.every, left)) {
			return unknown(ctx), false
		}
	}
}

// asksAgain says whether the answer means that the condition does not hold yet.
func (s *step) asksAgain(r Result) bool {
	if r.ok() {
		return s.wait.Element == nil && !truthy(r.Value)
	}
	not := webdriver.NoSuchElement
	if s.wait.Element == nil {
		not = webdriver.JavascriptError
	}
	var e *webdriver.Error
	return errors.As(r.Err(), &e) && e.Code == not
}

func (s *step) timedOut(last Result) Result {
	text := fmt.Sprintf("%s: the script returned nothing truthy within %v", s.label, s.limit)
	if s.wait.Element != nil {
		text = fmt.Sprintf("%s: no element %q by %s within %v", s.label, s.wait.Element.Value, s.wait.Element.Using, s.limit)
	} else if err := last.Err(); err != nil {
		text += "; its last answer was " + err.Error()
	}
	return failed(&webdriver.Error{Code: webdriver.Timeout, Message: text})
}

// truthy is JavaScript's ToBoolean of a JSON value.
func truthy(v json.RawMessage) bool {
	v = bytes.TrimSpace(v)
	switch string(v) {
	case "null", "false", `""`, "":
		return false
	}
	if v[0] != '-' && (v[0] < '0' || v[0] > '9') {
		return true
	}
	f, err := strconv.ParseFloat(string(v), 64)
	return err != nil || f != 0 // out of range is infinity; too small is 0, as in JavaScript
}

// pause waits, and is false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
