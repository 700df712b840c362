package webdriver

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"
)

func TestRoutes(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Routes() {
		e := routes[r]
		if e.method == "" || seen[r.String()] {
			t.Errorf("route %d %q is empty or there twice", r, r)
		}
		seen[r.String()] = true
		path := strings.NewReplacer("{element id}", "e%201", "{shadow id}", "s1", "{name}", "n", "{property name}", "p").Replace(e.path)
		if got, ok := Match(e.method, path); !ok || got != r {
			t.Errorf("Match(%s %s) = %v %v, want %v", e.method, path, got, ok, r)
		}
		if !slices.Contains(Methods(path), routes[r].method) {
			t.Errorf("Methods(%s) = %v", path, Methods(path))
		}
		if !strings.HasPrefix(r.String(), e.method+" /session/{session id}") {
			t.Errorf("String() = %s", r)
		}
	}
	if len(Routes()) < 60 {
		t.Errorf("%d routes: WebDriver has about 60 endpoints below a session", len(Routes()))
	}
}

func TestUnknownCommandsTellNothing(t *testing.T) {
	for _, c := range [][2]string{
		{"GET", ""}, {"POST", "/url/"}, {"POST", "url"}, {"GET", "//"}, {"GET", "/"}, {"GET", "/element//text"}, {"GET", "/element/secret"},
		{"PUT", "/url"}, {"GET", "/cookie/"}, {"GET", "/cookie/a/b"}, {"GET", "/secret"}, {"GET", "/element/x/text/more"}, {"GET", "/{name}"},
	} {
		r, ok := Match(c[0], c[1])
		if ok || r != RouteUnknown || r.String() != "unknown command" {
			t.Errorf("Match(%q) = %v %v, want unknown", c, r, ok)
		}
	}
	if Route(250).String() != "unknown command" {
		t.Error("a route outside of the table has a name")
	}
	if r, _ := Match("GET", "/element/active"); r != RouteGetActiveElement {
		t.Errorf("/element/active is %v", r)
	}
	if n := testing.AllocsPerRun(100, func() { Match("POST", "/element/e1/value") }); n != 0 {
		t.Errorf("Match allocates %v times", n)
	}
}

func TestEndpoint(t *testing.T) {
	for c, want := range map[[2]string]Code{
		{"GET", "/url"}: "", {"DELETE", ""}: "", {"POST", "/element/active"}: UnknownMethod, {"GET", ""}: UnknownMethod, {"PUT", "/url"}: UnknownMethod,
		{"GET", "/nonsense"}: UnknownCommand, {"PUT", "/nonsense"}: UnknownCommand, {"GET", "/url/"}: UnknownCommand, {"GET", "/"}: UnknownCommand,
	} {
		r, err := Command{Method: c[0], Path: c[1]}.Endpoint()
		if want == "" && (err != nil || r == RouteUnknown) || want != "" && (err == nil || err.Code != want || r != RouteUnknown) {
			t.Errorf("%s %s: %v %v, want %q", c[0], c[1], r, err, want)
		}
	}
}

func TestParameters(t *testing.T) {
	long := `{"file":"` + strings.Repeat("x", 1<<20) + `"}`
	for _, body := range []string{`{}`, " {}\r\n", `{"a":[1,{"b":null}]}`, long} {
		if err := (Command{Method: "POST", Body: []byte(body)}).Parameters(); err != nil {
			t.Errorf("%.20s: %v", body, err)
		}
	}
	for _, body := range []string{``, ` `, `{`, `}`, `null`, `[]`, `"{}"`, `{}{}`, `{"a"}`, `{]}`, "\xef\xbb\xbf{", long[1:], long[:len(long)-1]} {
		if err := (Command{Method: "POST", Body: []byte(body)}).Parameters(); err == nil || err.Code != InvalidArgument {
			t.Errorf("%.20s: %v, want invalid argument", body, err)
		}
	}
	if err := (Command{Method: "GET", Body: []byte("no JSON")}).Parameters(); err != nil {
		t.Errorf("a GET has no parameters: %v", err)
	}
}

func TestErrors(t *testing.T) {
	status := map[Code]int{NoSuchElement: 404, InvalidArgument: 400, UnknownMethod: 405, Timeout: 500, SessionNotCreated: 500, StaleElementReference: 404, UnexpectedAlertOpen: 500, "made up": 500}
	for code, want := range status {
		if got := code.HTTPStatus(); got != want {
			t.Errorf("%s has status %d, want %d", code, got, want)
		}
	}
	if len(Codes()) != 28 {
		t.Errorf("%d codes", len(Codes()))
	}
	for _, code := range Codes() {
		in := &Error{Code: code, Message: "m", Stacktrace: "s", Data: map[string]any{"outcome": "unknown"}}
		a := in.Answer()
		var out *Error
		if !errors.As(a.Err(), &out) || out.Code != code || out.Message != "m" || out.Stacktrace != "s" || out.Data["outcome"] != "unknown" || a.Status != code.HTTPStatus() {
			t.Errorf("%s came back as %+v with %d", code, out, a.Status)
		}
	}
	if a := (&Error{Code: Timeout, Data: map[string]any{"f": func() {}}}).Answer(); a.Err() == nil || !json.Valid(a.Body) {
		t.Errorf("an error whose data is no JSON renders as %s", a.Body)
	}
	for _, body := range []string{"", "<html>secret</html>", `{"value":null}`, `{"value":"x"}`, `{"value":{}}`, `[]`} {
		var e *Error
		if err := (Answer{Status: 502, Body: []byte(body)}).Err(); !errors.As(err, &e) || e.Code != UnknownError || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q is %v, want an unknown error", body, err)
		}
	}
	if err := (Answer{Status: 200}).Err(); err != nil {
		t.Errorf("200 is %v", err)
	}
}

func TestValue(t *testing.T) {
	var s string
	if err := (Answer{Body: []byte(`{"value":"x"}`)}).Value(&s); err != nil || s != "x" {
		t.Errorf("%q %v", s, err)
	}
	var p *string
	if err := (Answer{Body: []byte(`{"value":null}`)}).Value(&p); err != nil || p != nil {
		t.Errorf("null: %v %v", p, err)
	}
	for _, body := range []string{"", "{}", "[]", `{"value":1}`} {
		if err := (Answer{Body: []byte(body)}).Value(&s); err == nil {
			t.Errorf("%q: no error", body)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, path := range []string{"", "/url", "/element/a%20b/attribute/x", "/cookie/a.b", "/cookie/..."} {
		if err := (Command{Method: "GET", Path: path}).Validate(); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{"url", "/../status", "/a/./b", "/%2e%2e/x", "/%2E./x", "/a%2f..%2fb", "/a?b", "/a#b", "/a b", "/a\r\nX: y", "/é", "/%zz", `/"`, "/{a}", "/a|b", "/<a>", "/^", "/`", `/a\b`, "/" + strings.Repeat("a", 1<<16)} {
		if err := (Command{Method: "GET", Path: path}).Validate(); err == nil || err.Code != InvalidArgument {
			t.Errorf("%.20q: %v, want invalid argument", path, err)
		}
	}
	if err := (Command{Method: "PATCH"}).Validate(); err == nil || err.Code != UnknownMethod {
		t.Errorf("PATCH: %v", err)
	}
}

// FuzzCommand takes what a client may send: what passes is a request below its session, and its parameters are an object.
func FuzzCommand(f *testing.F) {
	f.Add("POST", "/element/a%20b/value", []byte(`{"text":"x"}`))
	f.Add("GET", "/cookie/%2e%2e", []byte(nil))
	f.Add("DELETE", "", []byte("{}"))
	f.Add("POST", `/"`, []byte("0"))
	f.Fuzz(func(t *testing.T, method, where string, body []byte) {
		c := Command{Method: method, Path: where, Body: body}
		if err := c.Parameters(); err == nil && method == "POST" && len(body) <= 64<<10 {
			var object map[string]any
			if json.Unmarshal(body, &object) != nil || object == nil {
				t.Fatalf("%q are taken for parameters", body)
			}
		}
		if _, err := c.Endpoint(); err != nil && !json.Valid(err.Answer().Body) {
			t.Fatalf("%s", err.Answer().Body)
		}
		if c.Validate() != nil {
			return
		}
		u, err := url.ParseRequestURI("/session/s" + where)
		if err != nil || u.RawQuery != "" || u.EscapedPath() != "/session/s"+where || where != "" && !strings.HasPrefix(path.Clean(u.Path)+"/", "/session/s/") {
			t.Fatalf("%q leaves its session: %v %v", where, u, err)
		}
	})
}

// FuzzAnswer takes what a driver may answer.
func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"value":{"a":[null]}}`))
	f.Add(404, []byte(`{"value":{"error":"no such element","message":"m","stacktrace":"","data":{"text":1}}}`))
	f.Add(500, []byte(`<html>`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		a := Answer{Status: status, Body: body}
		var v any
		if err := a.Value(&v); err == nil && !json.Valid(body) {
			t.Fatalf("%q has the value %v", body, v)
		}
		var e *Error
		if err := a.Err(); (err == nil) != (status < 400) || err != nil && (!errors.As(err, &e) || e.Code == "") {
			t.Fatalf("%d %q: %v", status, body, err)
		}
		if e == nil {
			return
		}
		again := e.Answer() // as it goes on to a client
		var out *Error
		if !errors.As(again.Err(), &out) || out.Code != e.Code || out.Message != e.Message || !json.Valid(again.Body) || bytes.Contains(again.Body, []byte("<html>")) {
			t.Fatalf("%+v became %d %s", e, again.Status, again.Body)
		}
	})
}
