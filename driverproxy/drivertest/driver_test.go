package drivertest

import (
	"bytes"
	"image/png"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

func call(t *testing.T, url, method, path, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	a, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer a.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(a.Body); err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, b.String()
}

func TestDriver(t *testing.T) {
	d := New()
	d.Late("#late", 1)
	server := httptest.NewServer(d)
	defer server.Close()
	for _, step := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/status", "", 200, `"ready":true`},
		{"GET", "/session/fake-1/url", "", 404, "invalid session id"},
		{"POST", "/session", `{"capabilities":{"alwaysMatch":{"a:b":1}}}`, 200, `"a:b":1`},
		{"POST", "/session", `{"capabilities":{}}`, 500, "already paired"},
		{"POST", "/session/fake-1/url", `{"url":"http://a/"}`, 200, ""},
		{"POST", "/session/fake-1/url", `{"url":"http://b/"}`, 200, ""},
		{"POST", "/session/fake-1/back", `{}`, 200, ""},
		{"GET", "/session/fake-1/url", "", 200, `"http://a/"`},
		{"POST", "/session/fake-1/forward", `{}`, 200, ""},
		{"GET", "/session/fake-1/url", "", 200, `"http://b/"`},
		{"POST", "/session/fake-1/url", `{"url":1}`, 400, "invalid argument"},
		{"POST", "/session/fake-1/execute/sync", `{"script":"","args":[{"x":[1]}]}`, 200, `{"value":{"x":[1]}}`},
		{"POST", "/session/fake-1/cookie", `{"cookie":{"name":"n","value":"v"}}`, 200, ""},
		{"GET", "/session/fake-1/cookie/n", "", 200, `"value":"v"`},
		{"DELETE", "/session/fake-1/cookie/n", "", 200, ""},
		{"GET", "/session/fake-1/cookie/n", "", 404, "no such cookie"},
		{"GET", "/session/fake-1/element/%23a%20b/text", "", 200, `"text of #a b"`},
		{"POST", "/session/fake-1/element", `{"using":"css selector","value":"#late"}`, 404, "no such element"},
		{"POST", "/session/fake-1/element", `{"using":"css selector","value":"#late"}`, 200, "#late"},
		{"GET", "/session/fake-1/nonsense", "", 404, "unknown command"},
		{"POST", "/session/fake-1/driftstack/batch", `{"steps":[]}`, 404, "unknown command"},
		{"DELETE", "/session/fake-1", "", 200, "null"},
		{"GET", "/session/fake-1/url", "", 404, "invalid session id"},
	} {
		if status, body := call(t, server.URL, step.method, step.path, step.body); status != step.status || !strings.Contains(body, step.says) {
			t.Errorf("%s %s: %d %s, want %d and %s", step.method, step.path, status, body, step.status, step.says)
		}
	}
	if e := d.Executed(); len(e) == 0 || e[0].Route != webdriver.RouteNavigateTo || e[0].Body != `{"url":"http://a/"}` {
		t.Errorf("executed %+v", e)
	}
	if _, err := png.Decode(bytes.NewReader(Pixel())); err != nil {
		t.Errorf("the screenshot is no PNG: %v", err)
	}
}

func TestFaults(t *testing.T) {
	d := New()
	server := httptest.NewServer(d)
	defer server.Close()
	call(t, server.URL, "POST", "/session", `{"capabilities":{}}`)
	d.Inject(Fault{Route: webdriver.RouteGetTitle, Effect: ServerError, Times: 2})
	d.Inject(Fault{Effect: Garbage})
	d.Inject(Fault{Route: webdriver.RouteGetTitle, Effect: Die})
	for _, want := range []int{500, 500, 200, 0, 0} { // 0: no answer
		if status, body := call(t, server.URL, "GET", "/session/fake-1/title", ""); status != want {
			t.Errorf("%d %s, want %d", status, body, want)
		}
	}
	select {
	case <-d.Dead():
	default:
		t.Error("it has not died")
	}
	if d.Pending() != 0 || len(d.Executed()) != 0 {
		t.Errorf("%d faults left, %d executed", d.Pending(), len(d.Executed()))
	}
}
