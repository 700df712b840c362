package httpapi_test

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
)

const findUser = `{"name":"user","method":"POST","path":"/element","body":{"using":"css selector","value":"#user"}}`

func TestBatch(t *testing.T) {
	r := newRig(t, 1, 10)
	s := r.running(t, api.CreateSession{})
	driver := <-r.drivers
	driver.Inject(drivertest.Fault{Route: webdriver.RouteFindElement, Effect: drivertest.Refuse, Error: &webdriver.Error{Code: webdriver.NoSuchElement}, Times: 3})
	request, err := new(batch.Builder).
		Post("/url", map[string]string{"url": "http://shop.example/login?secret"}).
		WaitFor("#user", 20*time.Second).As("user").
		Post("/element/{user}/click", nil).
		Get("/element/{user}/text").
		Get("/cookie/none").
		Get("/title").
		GoOn().
		Request()
	must(t, err)
	response, err := r.client.Batch(t.Context(), s.ID, request)
	must(t, err)
	var text string
	must(t, response.Results[3].Decode(&text))
	var w *webdriver.Error
	if err := response.Err(); response.OK || text != "text of #user" || !errors.As(err, &w) || w.Code != webdriver.NoSuchCookie || response.Results[5].Status != 200 {
		t.Errorf("%+v: %v", response, err)
	}

	// The same over the W3C routes and over the stream.
	text = `{"steps":[` + findUser + `,{"method":"GET","path":"/element/{user}/text"}]}`
	c, err := r.client.Stream(t.Context(), s.ID)
	must(t, err)
	defer c.Close()
	a, err := c.Do(t.Context(), webdriver.Command{Method: "POST", Path: "/driftstack/batch", Body: []byte(text)})
	must(t, err)
	answers := [][]byte{a.Body}
	for _, prefix := range []string{"", "/wd/hub"} {
		resp, b := r.call(t, "POST", prefix+"/session/"+s.ID+"/driftstack/batch", text)
		if resp.StatusCode != 200 {
			t.Errorf("%d %s", resp.StatusCode, b)
		}
		answers = append(answers, b)
	}
	for _, b := range answers {
		if v := decode[struct{ Value batch.Response }](t, b).Value; !v.OK || len(v.Results) != 2 || string(v.Results[1].Value) != `"text of #user"` {
			t.Errorf("%s", b)
		}
	}

	var log []string
	var lines []api.Event
	eventually(t, "the log is stored", func() bool {
		lines, err = r.client.Events(t.Context(), s.ID, 0)
		must(t, err)
		log = nil
		for _, e := range lines {
			if e.Kind == "command" {
				log = append(log, strings.ReplaceAll(e.Route, "/session/{session id}", ""))
			}
		}
		return len(log) >= 16
	})
	three := []string{"POST /element", "GET /element/{element id}/text", "POST /driftstack/batch"}
	want := slices.Concat([]string{"POST /url", "POST /element", "POST /element/{element id}/click", "GET /element/{element id}/text", "GET /cookie/{name}", "GET /title", "POST /driftstack/batch"},
		three, three, three)
	if !slices.Equal(log, want) {
		t.Errorf("log %q", log)
	}
}

// Bad batches are problems that say where, and nothing of them runs.
func TestBadBatches(t *testing.T) {
	r := newRig(t, 1, 10)
	live := r.running(t, api.CreateSession{})
	driver := <-r.drivers
	queued, err := r.client.CreateSession(t.Context(), unrecorded(api.CreateSession{}))
	must(t, err)
	path := func(id string) string { return "/v1/sessions/" + id + "/batch" }
	good := `{"steps":[` + findUser + `]}`
	for name, c := range map[string]struct {
		path, body string
		status     int
		says       string
	}{
		"no JSON":         {path(live.ID), `{`, 400, ""},
		"empty":           {path(live.ID), ``, 400, ""},
		"no steps":        {path(live.ID), `{"steps":[]}`, 400, "at least one"},
		"unknown field":   {path(live.ID), `{"steps":[` + findUser + `,{"method":"GET","path":"/url","colour":1}]}`, 400, "steps[1]"},
		"quit":            {path(live.ID), `{"steps":[` + findUser + `,{"name":"q","method":"DELETE"}]}`, 400, `steps[1] \"q\"`},
		"later reference": {path(live.ID), `{"steps":[{"method":"POST","path":"/element/{user}/click"},` + findUser + `]}`, 400, "steps[0]"},
		"too large":       {path(live.ID), `{"steps":[` + findUser + `]` + strings.Repeat(" ", batch.MaxBody) + `}`, 413, ""},
		"unknown session": {path("none"), good, 404, ""},
		"queued session":  {path(queued.ID), good, 409, "queued"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, b := r.call(t, "POST", c.path, c.body)
			if resp.StatusCode != c.status || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") {
				t.Fatalf("%d %s: %s", resp.StatusCode, resp.Header.Get("Content-Type"), b)
			}
			if p := decode[problem](t, b); p.Status != c.status || !strings.Contains(string(b), c.says) {
				t.Errorf("%s does not say %q", b, c.says)
			}
		})
	}
	for _, prefix := range []string{"", "/wd/hub"} {
		resp, b := r.call(t, "POST", prefix+"/session/"+live.ID+"/driftstack/batch", `{"steps":[{"method":"DELETE"}]}`)
		if v := decode[w3c](t, b); resp.StatusCode != 400 || v.Value.Error != "invalid argument" || !strings.Contains(v.Value.Message, "steps[0]") {
			t.Errorf("%d %s", resp.StatusCode, b)
		}
	}
	if n := len(driver.Executed()); n != 0 {
		t.Errorf("%d commands were executed", n)
	}
	must(t, second(r.client.Do(t.Context(), live.ID, webdriver.Command{Method: "DELETE"})))
	resp, b := r.call(t, "POST", path(live.ID), good)
	stream, _ := r.call(t, "GET", "/v1/sessions/"+live.ID+"/stream", "")
	if p := decode[problem](t, b); resp.StatusCode != stream.StatusCode || p.Type != "urn:driftstack:problem:session-ended" {
		t.Errorf("after the end %d %s, and the stream says %d", resp.StatusCode, b, stream.StatusCode)
	}
}

// A batch that hangs is ended by the session's command deadline; how far it came is not known.
func TestBatchThatHangs(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 10)
	s := r.running(t, api.CreateSession{Timeouts: api.Timeouts{CommandSeconds: 1}})
	(<-r.drivers).Inject(drivertest.Fault{Route: webdriver.RouteGetTitle, Effect: drivertest.Hang})
	request, err := new(batch.Builder).Get("/title").Request()
	must(t, err)
	_, err = r.client.Batch(t.Context(), s.ID, request)
	var p *client.Problem
	if !errors.As(err, &p) || p.Status != http.StatusBadGateway || p.Type != "urn:driftstack:problem:outcome-unknown" {
		t.Fatalf("%v", err)
	}
	v, err := r.client.Wait(t.Context(), s.ID, api.Ended)
	if err != nil || v.Reason != "command_deadline" {
		t.Fatalf("%+v, %v", v, err)
	}
}

// The wait of a batch may be longer than a command may take.
func TestBatchWaitsLongerThanACommand(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 10)
	s := r.running(t, api.CreateSession{Timeouts: api.Timeouts{CommandSeconds: 1, IdleSeconds: 1}})
	(<-r.drivers).Inject(drivertest.Fault{Route: webdriver.RouteFindElement, Effect: drivertest.Refuse, Error: &webdriver.Error{Code: webdriver.NoSuchElement}, Times: 3})
	request := batch.Request{Steps: []batch.Step{{Wait: &batch.Wait{Element: &batch.Locator{Using: "css selector", Value: "#late"}, TimeoutMS: 60_000, EveryMS: 700}}}}
	response, err := r.client.Batch(t.Context(), s.ID, request)
	if err != nil || !response.OK || response.Results[0].TookUS < 2_000_000 {
		t.Fatalf("%+v, %v", response, err)
	}
}

// timed is an answer's writer that notes the deadline under which the answer was written, and the last one.
type timed struct {
	http.ResponseWriter
	until, wrote time.Time
}

func (w *timed) SetWriteDeadline(at time.Time) error {
	w.until = at
	return http.NewResponseController(w.ResponseWriter).SetWriteDeadline(at)
}

func (w *timed) SetReadDeadline(at time.Time) error {
	return http.NewResponseController(w.ResponseWriter).SetReadDeadline(at)
}

func (w *timed) Write(b []byte) (int, error) {
	w.wrote = w.until
	return w.ResponseWriter.Write(b)
}

// TestBatchAnswerIsBounded: a client that does not take a batch's answer does not hold it for ever, and what comes next on its
// connection has no deadline of the batch's.
func TestBatchAnswerIsBounded(t *testing.T) {
	answers := make(chan *timed, 4)
	r := newTappedRig(t, []host.Device{{Name: "phone-a", Kind: host.KindFake, PlatformName: "iOS"}}, 10, taps{public: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/batch") {
				t := &timed{ResponseWriter: w}
				defer func() { answers <- t }()
				w = t
			}
			next.ServeHTTP(w, r)
		})
	}})
	s := r.running(t, api.CreateSession{})
	begin := time.Now()
	_, err := r.client.Batch(t.Context(), s.ID, batch.Request{Steps: []batch.Step{{Method: "GET", Path: "/title"}}})
	must(t, err)
	if w := <-answers; w.wrote.Before(begin.Add(time.Minute)) || w.wrote.After(time.Now().Add(10*time.Minute)) || !w.until.IsZero() {
		t.Errorf("the answer was written with the deadline %v, and %v was left", w.wrote, w.until)
	}
}
