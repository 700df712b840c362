package orchestrator

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// hosted is a device that runs batches as a driver host does; do runs each command.
func hosted(do func(ctx context.Context, c webdriver.Command) (webdriver.Answer, error)) *scripted {
	return &scripted{answer: func(ctx context.Context, c webdriver.Command) (webdriver.Answer, error) {
		if c.Path != "/driftstack/batch" {
			return do(ctx, c)
		}
		b, refused := batch.Parse(c.Body)
		if refused != nil {
			return refused.Answer(), nil
		}
		if a := b.Run(ctx, batch.Driver{Do: do, Now: time.Now}).Answer(); ctx.Err() == nil {
			return a, nil
		}
		return (&webdriver.Error{Code: webdriver.UnknownError}).Answer(), ctx.Err()
	}}
}

const batchPath = "/driftstack/batch"

// Each step that ran is a line of its own before the batch's, without what it sent or got; and its pages are known.
func TestStepsOfABatch(t *testing.T) {
	d := hosted(func(_ context.Context, c webdriver.Command) (webdriver.Answer, error) {
		time.Sleep(time.Second) // of the bubble
		switch {
		case c.Path == "/execute/sync":
			return webdriver.ValueAnswer(map[string]string{"next": "https://b.example/found?secret"})
		case c.Method == "GET":
			return webdriver.ValueAnswer("https://c.example/at")
		case strings.Contains(string(c.Body), "refused"):
			return (&webdriver.Error{Code: webdriver.UnknownError}).Answer(), nil
		}
		return null(), nil
	})
	var l *live
	const body = `{"steps":[{"method":"POST","path":"/url","body":{"url":"https://a.example/x?y"}},
		{"name":"s","method":"POST","path":"/execute/sync","body":{"script":"secret","args":[]}},
		{"method":"POST","path":"/url","body":{"url":{"$ref":"s#/next"}}},
		{"method":"GET","path":"/url"},
		{"wait":{"script":"return 1"}},
		{"method":"POST","path":"/url","body":{"url":"https://refused.example/"}},
		{"method":"POST","path":"/url","body":{"url":"https://notrun.example/"}}]}`
	_, events := served(t, d, func(ctx context.Context, at *live) {
		l = at
		if a := l.do(ctx, post(batchPath, body)); a.Status != 200 || !strings.Contains(string(a.Body), `"ok":false`) {
			t.Errorf("%d %s", a.Status, a.Body)
		}
	})
	if got := l.pages(); !slices.Equal(got, []string{"https://a.example/x", "https://b.example/found", "https://c.example/at"}) {
		t.Errorf("pages %q", got)
	}
	var routes []webdriver.Route
	for _, e := range events {
		routes = append(routes, e.Route)
		if last := e.Route == webdriver.RouteBatch; e.Kind != EventCommand || !last && (e.Driver != time.Second || e.Took != 0) || last && e.Took != 6*time.Second {
			t.Errorf("%+v", e)
		}
	}
	if want := []webdriver.Route{webdriver.RouteNavigateTo, webdriver.RouteExecuteScript, webdriver.RouteNavigateTo, webdriver.RouteGetCurrentURL,
		webdriver.RouteExecuteScript, webdriver.RouteNavigateTo, webdriver.RouteBatch}; !slices.Equal(routes, want) {
		t.Fatalf("log %v", routes)
	}
	if e := events[1]; e.Status != 200 || e.BytesIn != int64(len(`{"script":"secret","args":[]}`)) || e.BytesOut != int64(len(`{"next":"https://b.example/found?secret"}`)) {
		t.Errorf("%+v", e)
	}
	if e := events[5]; e.Status != 500 {
		t.Errorf("%+v", e)
	}
	if e := events[6]; e.Status != 200 || e.BytesIn != int64(len(body)) || e.BytesOut == 0 {
		t.Errorf("%+v", e)
	}
}

// A malformed batch costs no round trip, and is no command of the log.
func TestMalformedBatchStaysHere(t *testing.T) {
	d := &scripted{answer: func(context.Context, webdriver.Command) (webdriver.Answer, error) {
		t.Error("the host was asked")
		return null(), nil
	}}
	_, events := served(t, d, func(ctx context.Context, l *live) {
		var w *webdriver.Error
		if a := l.do(ctx, post(batchPath, `{"steps":[{"method":"DELETE"}]}`)); a.Status != 400 || !errors.As(a.Err(), &w) || w.Code != webdriver.InvalidArgument || !strings.Contains(w.Message, "steps[0]") {
			t.Errorf("%d %s", a.Status, a.Body)
		}
		if a := l.do(ctx, webdriver.Command{Method: "GET", Path: batchPath}); a.Status != 405 {
			t.Errorf("%d %s", a.Status, a.Body)
		}
	})
	if len(events) != 0 {
		t.Errorf("log %+v", events)
	}
}

// The session of these tests has 25 s for a command, 10 s of idleness and a minute in all.
func TestDeadlineOfABatch(t *testing.T) {
	never := hosted(func(context.Context, webdriver.Command) (webdriver.Answer, error) { return null(), nil }) // falsy for ever
	waits := func(ms string) string {
		return `{"steps":[{"wait":{"script":"x","timeout_ms":` + ms + `}},{"wait":{"script":"x","timeout_ms":` + ms + `}},{"method":"GET","path":"/title"}],"stop_on_error":false}`
	}
	end, _ := served(t, never, func(ctx context.Context, l *live) { // longer than idleness and than a command
		begin := time.Now()
		if a := l.do(ctx, post(batchPath, waits("20000"))); a.Status != 200 || strings.Count(string(a.Body), `"error":"timeout"`) != 2 || time.Since(begin) != 40*time.Second {
			t.Errorf("%d %s after %v", a.Status, a.Body, time.Since(begin))
		}
	})
	if end.Reason != Idle {
		t.Errorf("ended with %s", end.Reason)
	}

	var begin time.Time
	hangs := hosted(func(ctx context.Context, c webdriver.Command) (webdriver.Answer, error) {
		if c.Path == "/title" {
			<-ctx.Done()
			return webdriver.Answer{}, ctx.Err()
		}
		return webdriver.ValueAnswer(true)
	})
	var took time.Duration
	end, _ = served(t, hangs, func(ctx context.Context, l *live) {
		begin = time.Now()
		if a := l.do(ctx, post(batchPath, waits("5000"))); a.Status < 400 {
			t.Errorf("%d %s", a.Status, a.Body)
		}
		took = time.Since(begin)
	})
	if end.Reason != CommandDeadline || took != 35*time.Second { // 25 s and twice 5 s
		t.Errorf("ended with %s after %v", end.Reason, took)
	}

	end, _ = served(t, hangs, func(ctx context.Context, l *live) { // asks for longer than the session lasts
		begin = time.Now()
		l.do(ctx, post(batchPath, waits("300000")))
		took = time.Since(begin)
	})
	if end.Reason != Deadline && end.Reason != CommandDeadline || took > time.Minute {
		t.Errorf("ended with %s after %v", end.Reason, took)
	}
}
