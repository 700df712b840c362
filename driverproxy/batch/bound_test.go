package batch

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// Values that are too large together cost the step that went over, and whatever needs it.
func TestResultsAreBounded(t *testing.T) {
	const value, room = `"0123456789"`, 30
	d := Driver{Now: time.Now, Do: func(_ context.Context, c webdriver.Command) (webdriver.Answer, error) {
		if c.Path == "/title" {
			return webdriver.Answer{Status: 200, Body: []byte(`{"value":"t"}`)}, nil
		}
		return webdriver.Answer{Status: 200, Body: []byte(`{"value":` + value + `}`)}, nil
	}}
	for stop, want := range map[string][]int{"false": {200, 200, 500, 200, 0}, "true": {200, 200, 500, 0, 0}} {
		b, refused := Parse([]byte(`{"steps":[{"method":"GET","path":"/source"},{"method":"GET","path":"/source"},{"name":"s","method":"GET","path":"/source"},
			{"method":"GET","path":"/title"},{"method":"POST","path":"/url","body":{"url":{"$ref":"s"}}}],"stop_on_error":` + stop + `}`))
		if refused != nil {
			t.Fatal(refused)
		}
		r := b.runWithin(t.Context(), d, room)
		for i, v := range r.Results {
			if v.Status != want[i] || (v.Status == 0) != (v.Outcome == NotRun) {
				t.Errorf("stop_on_error %s: steps[%d] came to %+v", stop, i, v)
			}
		}
		var e *webdriver.Error
		if err := r.Results[2].Err(); r.OK || !errors.As(err, &e) || e.Code != webdriver.UnknownError || !strings.Contains(e.Message, "was run, but") {
			t.Errorf("%v", err)
		}
	}
}

// A name comes back with each result that waits for its step.
func TestNamesAreBounded(t *testing.T) {
	for n, good := range map[int]bool{maxName: true, maxName + 1: false} {
		_, refused := Parse([]byte(`{"steps":[{"name":"` + strings.Repeat("n", n) + `","method":"GET","path":"/title"}]}`))
		if good != (refused == nil) {
			t.Errorf("a name of %d bytes: %v", n, refused)
		}
	}
}

// Pointers into something that is nested deeply read it again and again.
func TestPointersAreBounded(t *testing.T) {
	const depth = 200
	deep := strings.Repeat("[", depth) + `"` + strings.Repeat("x", MaxLook-2*depth-2) + `"` + strings.Repeat("]", depth)
	b, refused := Parse([]byte(`{"steps":[{"name":"a","method":"GET","path":"/title"},
		{"method":"POST","path":"/execute/sync","body":{"script":"","args":[{"$ref":"a#` + strings.Repeat("/0", depth) + `"}]}}]}`))
	if refused != nil {
		t.Fatal(refused)
	}
	_, why := b.Command(1, []Result{{Status: 200, Value: []byte(deep)}, {}})
	if why == nil || !strings.Contains(why.Message, "look through") {
		t.Errorf("%d levels of %d bytes: %v", depth, len(deep), why)
	}
}
