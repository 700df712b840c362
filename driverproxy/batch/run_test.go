package batch_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// driver answers what a test has it answer, and remembers what it was asked.
type driver struct {
	asked  []string
	answer func(n int, c webdriver.Command) (webdriver.Answer, error) // n counts from 0
}

func (d *driver) do(_ context.Context, c webdriver.Command) (webdriver.Answer, error) {
	d.asked = append(d.asked, strings.TrimSpace(c.Method+" "+c.Path+" "+string(c.Body)))
	return d.answer(len(d.asked)-1, c)
}

func (d *driver) run(ctx context.Context, b *batch.Batch) batch.Response {
	return b.Run(ctx, batch.Driver{Do: d.do, Now: time.Now})
}

// says is a driver that answers each command with the next of these: a JSON value, or "!code" for an error.
func says(list ...string) *driver {
	return &driver{answer: func(n int, _ webdriver.Command) (webdriver.Answer, error) {
		v := list[min(n, len(list)-1)]
		if code, is := strings.CutPrefix(v, "!"); is {
			return (&webdriver.Error{Code: webdriver.Code(code), Message: "as told"}).Answer(), nil
		}
		return webdriver.Answer{Status: 200, Body: []byte(`{"value":` + v + `}`)}, nil
	}}
}

func code(r batch.Result) webdriver.Code {
	var e *webdriver.Error
	if !errors.As(r.Err(), &e) {
		return ""
	}
	return e.Code
}

// outcomes is the response in short: a status, or an outcome, for each step.
func outcomes(r batch.Response) string {
	var list []string
	for _, v := range r.Results {
		switch v.Outcome {
		case "":
			list = append(list, fmt.Sprint(v.Status))
		default:
			list = append(list, string(v.Outcome))
		}
	}
	return strings.Join(list, " ")
}

func TestRun(t *testing.T) {
	b := parse(t, `{"steps":[`+find+`,
		{"name":"links","method":"POST","path":"/elements","body":{"using":"css selector","value":"a"}},
		{"method":"POST","path":"/element/{links#/1}/click"},
		{"method":"POST","path":"/execute/sync","body":{"script":"s","args":[{"$ref":"a"},{"$ref":"links#/0"}]}},
		{"method":"GET","path":"/title"}]}`)
	e := func(id string) string { return `{"element-6066-11e4-a52e-4f735466cecf":"` + id + `"}` }
	d := says(e("e0"), "["+e("e1")+","+e("e2")+"]", "null", "null", `"<ready>"`)
	r := d.run(t.Context(), b)
	want := []string{
		`POST /element {"using":"css selector","value":"#a"}`, `POST /elements {"using":"css selector","value":"a"}`, `POST /element/e2/click {}`,
		`POST /execute/sync {"script":"s","args":[` + e("e0") + `,` + e("e1") + `]}`, `GET /title`,
	}
	if !slices.Equal(d.asked, want) {
		t.Errorf("the driver was asked\n%s", strings.Join(d.asked, "\n"))
	}
	if !r.OK || r.Err() != nil || outcomes(r) != "200 200 200 200 200" || string(r.Results[4].Value) != `"<ready>"` {
		t.Errorf("%+v", r)
	}
}

// What goes over the wire is what a client decodes.
func TestAnswer(t *testing.T) {
	r := batch.Response{Results: []batch.Result{
		{Status: 200, Value: json.RawMessage(`{"<":[1e999]}`), TookUS: 7}, {Status: 200, Value: json.RawMessage(`null`)},
		{Status: 500, Value: json.RawMessage(`{"error":"unknown error","message":"","stacktrace":""}`), Outcome: batch.Unknown}, {Outcome: batch.NotRun, Reason: `"<"`},
	}}
	a := r.Answer()
	want := `{"value":{"results":[{"value":{"<":[1e999]},"status":200,"took_us":7},{"value":null,"status":200},` +
		`{"value":{"error":"unknown error","message":"","stacktrace":""},"status":500,"outcome":"unknown"},{"outcome":"not_run","reason":"\"\u003c\""}],"ok":false}}`
	if a.Status != 200 || string(a.Body) != want {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	var back batch.Response
	if err := a.Value(&back); err != nil || outcomes(back) != "200 200 unknown not_run" || string(back.Results[1].Value) != "null" {
		t.Errorf("%+v, %v", back, err)
	}
	if err := back.Err(); err == nil || !strings.HasPrefix(err.Error(), "steps[2]: unknown error") {
		t.Errorf("error %v", err)
	}
	var v map[string]any
	if err := back.Results[3].Decode(&v); err == nil || !strings.Contains(err.Error(), `not run: "<"`) {
		t.Errorf("error %v", err)
	}
	if b := (batch.Response{}).Answer().Body; !json.Valid(b) {
		t.Errorf("%s", b)
	}
}

const dependent = find + `,{"name":"b","method":"POST","path":"/element/{a}/element","body":{"using":"xpath","value":"b"}},
	{"method":"GET","path":"/url"},{"method":"POST","path":"/element/{b}/click"},{"method":"POST","path":"/url","body":{"url":{"$ref":"a#/x"}}}`

func TestErrorStopsTheBatch(t *testing.T) {
	for _, set := range []string{"", `,"stop_on_error":true`} {
		d := says(`{"element-6066-11e4-a52e-4f735466cecf":"e"}`, "!no such element")
		r := d.run(t.Context(), parse(t, `{"steps":[`+dependent+`]`+set+`}`))
		if outcomes(r) != "200 404 not_run not_run not_run" || r.OK || len(d.asked) != 2 || code(r.Results[1]) != webdriver.NoSuchElement {
			t.Errorf("%+v", r)
		}
		if why := r.Results[4].Reason; !strings.Contains(why, `steps[1] "b" failed`) {
			t.Errorf("reason %q", why)
		}
	}
}

// A step that needs the value of one that failed is not run, nor is one that needs a step that was not run.
func TestGoingOnAfterAnError(t *testing.T) {
	d := says("!no such element", `"here"`)
	r := d.run(t.Context(), parse(t, `{"steps":[`+dependent+`],"stop_on_error":false}`))
	if outcomes(r) != "404 not_run 200 not_run not_run" || r.OK || len(d.asked) != 2 {
		t.Errorf("%+v", r)
	}
	for i, why := range map[int]string{1: `refers to steps[0] "a", which failed`, 3: `refers to steps[1] "b", which was not run`, 4: `refers to steps[0] "a", which failed`} {
		if !strings.Contains(r.Results[i].Reason, why) {
			t.Errorf("steps[%d]: %q", i, r.Results[i].Reason)
		}
	}
}

// A reference that finds nothing is its step's error, and the driver does not see the step.
func TestReferenceThatFindsNothing(t *testing.T) {
	list := `{"name":"l","method":"POST","path":"/elements","body":{"using":"xpath","value":"//a"}},{"method":"POST","path":"/element/{l#/0}/click"},{"method":"GET","path":"/url"}`
	for stop, want := range map[string]string{"true": "200 400 not_run", "false": "200 400 200"} {
		d := says("[]", "null")
		r := d.run(t.Context(), parse(t, `{"steps":[`+list+`],"stop_on_error":`+stop+`}`))
		if outcomes(r) != want || code(r.Results[1]) != webdriver.InvalidArgument || slices.Contains(d.asked, "POST /element//click {}") || r.OK {
			t.Errorf("%+v, asked %q", r, d.asked)
		}
	}
}

func TestDriverIsLost(t *testing.T) {
	for want, lost := range map[string]error{"200 unknown not_run": errors.New("reset"), "200 not_run not_run": fmt.Errorf("refused: %w", batch.ErrNotRun)} {
		d := says(`"kept"`)
		answer := d.answer
		d.answer = func(n int, c webdriver.Command) (webdriver.Answer, error) {
			if n == 1 {
				return webdriver.Answer{}, lost
			}
			return answer(n, c)
		}
		get := `{"method":"GET","path":"/url"}`
		r := d.run(t.Context(), parse(t, `{"steps":[`+get+`,`+get+`,`+get+`],"stop_on_error":false}`)) // it goes on after errors, not without a driver
		if outcomes(r) != want || r.OK || len(d.asked) != 2 || string(r.Results[0].Value) != `"kept"` || r.Results[2].Reason == "" {
			t.Errorf("%+v", r)
		}
		if v := r.Results[1]; v.Outcome == batch.Unknown && (code(v) != webdriver.UnknownError || !strings.Contains(string(v.Value), `"outcome":"unknown"`)) {
			t.Errorf("%s", v.Value)
		}
	}
}

func TestAnswersThatAreNoJSON(t *testing.T) {
	for _, body := range []string{"", "<html>", "{}", `{"value":`, "[]", `{"value":1}}`} {
		d := &driver{answer: func(int, webdriver.Command) (webdriver.Answer, error) {
			return webdriver.Answer{Status: 200, Body: []byte(body)}, nil
		}}
		r := d.run(t.Context(), parse(t, `{"steps":[{"method":"GET","path":"/url"}]}`))
		if code(r.Results[0]) != webdriver.UnknownError || !json.Valid(r.Answer().Body) {
			t.Errorf("%q became %+v", body, r)
		}
	}
}

// Closing the last window quits a session, so a batch does not.
func TestLastWindowStays(t *testing.T) {
	closes := `{"steps":[{"method":"DELETE","path":"/window"}]}`
	for name, c := range map[string]struct {
		driver *driver
		status string
		closed bool
	}{
		"one of two":        {says(`["w1","w2"]`, `["w2"]`), "200", true},
		"the last":          {says(`["w1"]`, `"w1"`, `[]`), "500", false},
		"closed already":    {says(`["w1"]`, "!no such window", "!no such window"), "404", true},
		"closed, by handle": {says(`["w1"]`, `"w2"`, "!no such window"), "404", true},
		"unclear":           {says(`["w1"]`, "!unknown error", `[]`), "500", false},
		"handles fail":      {says("!unknown error", `[]`), "500", false},
		"handles are none":  {says(`7`, `[]`), "500", false},
	} {
		r := c.driver.run(t.Context(), parse(t, closes))
		if outcomes(r) != c.status || slices.Contains(c.driver.asked, "DELETE /window") != c.closed {
			t.Errorf("%s: %s, asked %q", name, outcomes(r), c.driver.asked)
		}
		if name == "the last" && (code(r.Results[0]) != webdriver.UnsupportedOperation || !strings.Contains(string(r.Results[0].Value), "DELETE of the session")) {
			t.Errorf("%s", r.Results[0].Value)
		}
	}
	lost := &driver{answer: func(int, webdriver.Command) (webdriver.Answer, error) { return webdriver.Answer{}, errors.New("reset") }}
	if r := lost.run(t.Context(), parse(t, closes)); outcomes(r) != "not_run" { // what was lost is a question about windows
		t.Errorf("%s", outcomes(r))
	}
}

func TestWaitForAnElement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const none = "!no such element"
		d := says(none, none, none, `{"element-6066-11e4-a52e-4f735466cecf":"e"}`, "null")
		begin := time.Now()
		r := d.run(t.Context(), parse(t, `{"steps":[{"name":"w","wait":{"element":{"using":"css selector","value":"#w"},"every_ms":200}},{"method":"POST","path":"/element/{w}/click"}]}`))
		if outcomes(r) != "200 200" || len(d.asked) != 5 || d.asked[4] != "POST /element/e/click {}" || d.asked[0] != `POST /element {"using":"css selector","value":"#w"}` {
			t.Errorf("%+v, asked %q", r, d.asked)
		}
		if took := time.Since(begin); took != 600*time.Millisecond || r.Results[0].TookUS != 600_000 {
			t.Errorf("took %v, and says %d µs", took, r.Results[0].TookUS)
		}
	})
}

func TestWaitForAScript(t *testing.T) {
	for _, falsy := range []string{"null", "false", `""`, "0", "-0", "0.0e5", "1e-999"} {
		for _, truthy := range []string{"true", `"0"`, "[]", "{}", "-1", "1e999", `" "`} {
			synctest.Test(t, func(t *testing.T) {
				d := says(falsy, "!javascript error", truthy)
				r := d.run(t.Context(), parse(t, `{"steps":[{"wait":{"script":"return x"}}]}`))
				if outcomes(r) != "200" || len(d.asked) != 3 || string(r.Results[0].Value) != truthy || d.asked[0] != `POST /execute/sync {"script":"return x","args":[]}` {
					t.Errorf("%s, then %s: %+v, asked %q", falsy, truthy, r, d.asked)
				}
				if r.Results[0].TookUS != (2 * batch.DefaultEvery).Microseconds() {
					t.Errorf("took %d µs", r.Results[0].TookUS)
				}
			})
		}
	}
}

func TestWaitTimesOut(t *testing.T) {
	for text, c := range map[string]struct {
		answer, says string
		asked        int
		took         time.Duration
	}{
		`{"element":{"using":"css selector","value":"#w"},"timeout_ms":1000,"every_ms":300}`: {"!no such element", `no element "#w" by css selector within 1s`, 5, time.Second}, // at 0, 300, 600, 900, 1000
		`{"script":"x","timeout_ms":1,"every_ms":5000}`:                                      {"!javascript error", "javascript error: as told", 2, time.Millisecond},
		`{"script":"x"}`: {"null", "nothing truthy within 10s", 201, batch.DefaultWait},
	} {
		synctest.Test(t, func(t *testing.T) {
			d := says(c.answer)
			begin := time.Now()
			r := d.run(t.Context(), parse(t, `{"steps":[{"wait":`+text+`},{"method":"GET","path":"/url"}]}`))
			if outcomes(r) != "500 not_run" || code(r.Results[0]) != webdriver.Timeout || !strings.Contains(string(r.Results[0].Value), c.says[:5]) || !strings.Contains(r.Err().Error(), c.says) {
				t.Errorf("%s: %+v, %v", text, r, r.Err())
			}
			if took := time.Since(begin); took != c.took || len(d.asked) != c.asked {
				t.Errorf("%s: took %v, asked %d times", text, took, len(d.asked))
			}
		})
	}
}

// What is not "not yet" ends a wait at once.
func TestWaitEndsAtOtherErrors(t *testing.T) {
	for answer, text := range map[string]string{
		"!no such window": `{"element":{"using":"css selector","value":"#w"}}`, "!javascript error": `{"element":{"using":"css selector","value":"#w"}}`,
		"!no such element": `{"script":"x"}`, "!stale element reference": `{"script":"x"}`, "!invalid selector": `{"element":{"using":"css selector","value":"#"}}`,
	} {
		synctest.Test(t, func(t *testing.T) {
			d := says(answer)
			r := d.run(t.Context(), parse(t, `{"steps":[{"wait":`+text+`}]}`))
			if "!"+string(code(r.Results[0])) != answer || len(d.asked) != 1 {
				t.Errorf("%s: %+v, asked %d times", answer, r, len(d.asked))
			}
		})
	}
}

// A driver that takes longer than the timeout is waited for: its answer counts.
func TestWaitForASlowAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := says("7")
		answer := d.answer
		d.answer = func(n int, c webdriver.Command) (webdriver.Answer, error) {
			time.Sleep(time.Minute) // of the bubble
			return answer(n, c)
		}
		if r := d.run(t.Context(), parse(t, `{"steps":[{"wait":{"script":"x","timeout_ms":1000}}]}`)); outcomes(r) != "200" {
			t.Errorf("%+v", r)
		}
	})
}

func TestWaitIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		d := says("null")
		begin := time.Now()
		r := d.run(ctx, parse(t, `{"steps":[{"wait":{"script":"x"}},{"method":"GET","path":"/url"}],"stop_on_error":false}`))
		if outcomes(r) != "unknown not_run" || time.Since(begin) != 3*time.Second {
			t.Errorf("%+v after %v", r, time.Since(begin))
		}
		if said := string(r.Results[0].Value) + r.Results[1].Reason; strings.Count(said, "the batch's time was up") != 2 || strings.Contains(said, "driver was lost") {
			t.Errorf("it says %s", said)
		}
	})
	synctest.Test(t, func(t *testing.T) { // the driver is gone at the second try: the script ran before
		d := says("null")
		answer := d.answer
		d.answer = func(n int, c webdriver.Command) (webdriver.Answer, error) {
			if n == 1 {
				return webdriver.Answer{}, batch.ErrNotRun
			}
			return answer(n, c)
		}
		if r := d.run(t.Context(), parse(t, `{"steps":[{"wait":{"script":"x"}}]}`)); outcomes(r) != "unknown" {
			t.Errorf("%+v", r)
		}
	})
}

// TestWithin: a step that takes long is waited for, and none is begun after it.
func TestWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const steps = `{"method":"GET","path":"/url"},{"method":"GET","path":"/url"},{"method":"GET","path":"/url"}`
		slow := func() *driver {
			return &driver{answer: func(int, webdriver.Command) (webdriver.Answer, error) {
				time.Sleep(time.Second)
				return webdriver.Answer{Status: 200, Body: []byte(`{"value":""}`)}, nil
			}}
		}
		for within, want := range map[string]string{
			``: "200 200 200", `,"within_ms":3600000`: "200 200 200", `,"within_ms":1500`: "200 200 not_run", `,"within_ms":1`: "200 not_run not_run",
			`,"within_ms":1,"stop_on_error":false`: "200 not_run not_run",
		} {
			r := slow().run(t.Context(), parse(t, `{"steps":[`+steps+`]`+within+`}`))
			if outcomes(r) != want || r.OK != (want == "200 200 200") {
				t.Errorf("%s: %s, ok %v", within, outcomes(r), r.OK)
			}
		}
		for _, within := range []string{"-1", "3600001", "1.5", `"1"`} {
			if _, refused := batch.Parse([]byte(`{"steps":[` + steps + `],"within_ms":` + within + `}`)); refused == nil || !strings.Contains(refused.Message, "within_ms") {
				t.Errorf("%s: %v", within, refused)
			}
		}
	})
}
