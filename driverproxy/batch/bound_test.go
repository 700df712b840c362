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
