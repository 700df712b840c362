package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
	"github.com/driftstack/fleet/profilestate"
)

type problem struct {
	Type   string `json:"type"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Errors []struct {
		Location string `json:"location"`
	} `json:"errors"`
}

type w3c struct {
	Value struct {
		Error      string          `json:"error"`
		Message    string          `json:"message"`
		Stacktrace *string         `json:"stacktrace"`
		SessionID  string          `json:"sessionId"`
		Data       map[string]any  `json:"data"`
		Caps       json.RawMessage `json:"capabilities"`
	} `json:"value"`
}

// Bad requests get a precise problem, and leave nothing behind.
func TestBadRequestsToTheControlPlane(t *testing.T) {
	r := newRig(t, 1, 10)
	p, err := r.client.CreateProfile(t.Context(), api.CreateProfile{Account: "a", Name: "p"})
	must(t, err)
	held := r.running(t, api.CreateSession{Profile: p.ID})
	before, err := r.client.Sessions(t.Context(), nil)
	must(t, err)
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		says               string
	}{
		"no JSON":              {"POST", "/v1/sessions", `{`, 400, ""},
		"empty body":           {"POST", "/v1/sessions", ``, 400, "body"},
		"unknown field":        {"POST", "/v1/sessions", `{"account":"a","colour":"red"}`, 422, ""},
		"name in another case": {"POST", "/v1/sessions", `{"account":"a","Name":"x"}`, 422, "unexpected property"},
		"required in another":  {"POST", "/v1/sessions", `{"Account":"a"}`, 422, "account"},
		"wrong type":           {"POST", "/v1/sessions", `{"account":7}`, 422, ""},
		"no account":           {"POST", "/v1/sessions", `{}`, 422, ""},
		"unknown account":      {"POST", "/v1/sessions", `{"account":"nobody"}`, 422, "PUT /v1/accounts"},
		"unknown profile":      {"POST", "/v1/sessions", `{"account":"a","profile":"none"}`, 422, "POST /v1/profiles"},
		"another's profile":    {"POST", "/v1/sessions", `{"account":"b","profile":"` + p.ID + `"}`, 422, "POST /v1/profiles"},
		"profile in use":       {"POST", "/v1/sessions", `{"account":"a","profile":"` + p.ID + `"}`, 409, held.ID},
		"no such device":       {"POST", "/v1/sessions", `{"account":"a","device":{"model":"Nokia 3310"}}`, 422, "the enrolled ones have iPhone 15"},
		"no such label":        {"POST", "/v1/sessions", `{"account":"a","device":{"labels":{"rack":"2"}}}`, 422, "the enrolled ones have rack=1"},
		"bad capability":       {"POST", "/v1/sessions", `{"account":"a","capabilities":{"pageLoadStrategy":"fast"}}`, 422, "pageLoadStrategy"},
		"another browser":      {"POST", "/v1/sessions", `{"account":"a","capabilities":{"browserName":"chrome"}}`, 422, "browserName"},
		"NUL":                  {"POST", "/v1/sessions", `{"account":"a","name":"\u0000"}`, 422, "U+0000"},
		"negative timeout":     {"POST", "/v1/sessions", `{"account":"a","timeouts":{"idle_seconds":-1}}`, 422, ""},
		"unknown session":      {"GET", "/v1/sessions/none", ``, 404, ""},
		"its events":           {"GET", "/v1/sessions/none/events", ``, 404, ""},
		"its events, followed": {"GET", "/v1/sessions/none/events?follow=true", ``, 404, ""},
		"its recording":        {"GET", "/v1/sessions/none/recording", ``, 404, ""},
		"its stream":           {"GET", "/v1/sessions/none/stream", ``, 404, ""},
		"its end":              {"DELETE", "/v1/sessions/none", ``, 404, ""},
		"bad wait":             {"GET", "/v1/sessions/" + held.ID + "?wait=forever", ``, 422, ""},
		"bad cursor":           {"GET", "/v1/sessions?cursor=x", ``, 422, "cursor"},
		"NUL in a filter":      {"GET", "/v1/sessions?account=%00", ``, 422, "U+0000"},
		"NUL in a path":        {"GET", "/v1/sessions/%00", ``, 422, "U+0000"},
		"no UTF-8 in a path":   {"GET", "/v1/sessions/%ff", ``, 422, "UTF-8"},
		"bad limit":            {"GET", "/v1/sessions?limit=0", ``, 422, ""},
		"bad account id":       {"PUT", "/v1/accounts/a%20b", `{"recordings":"eu"}`, 422, ""},
		"bad placement":        {"PUT", "/v1/accounts/c", `{"recordings":"mars"}`, 422, ""},
		"NUL in a profile":     {"POST", "/v1/profiles", `{"account":"a","name":"\u0000"}`, 422, "U+0000"},
		"bad host name":        {"POST", "/v1/hosts", `{"name":"UPPER case"}`, 422, ""},
		"no such host":         {"DELETE", "/v1/hosts/none", ``, 404, ""},
		"no such route":        {"GET", "/v2/anything", ``, 404, "/openapi.json"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, b := r.call(t, c.method, c.path, c.body)
			if resp.StatusCode != c.status || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") {
				t.Fatalf("%s %s: %d %s: %s", c.method, c.path, resp.StatusCode, resp.Header.Get("Content-Type"), b)
			}
			if p := decode[problem](t, b); p.Status != c.status || !strings.Contains(string(b), c.says) {
				t.Errorf("%s does not say %q", b, c.says)
			}
		})
	}
	after, err := r.client.Sessions(t.Context(), nil)
	must(t, err)
	if len(after.Sessions) != len(before.Sessions) {
		t.Errorf("%d sessions were made by refused requests", len(after.Sessions)-len(before.Sessions))
	}
}

func TestBadRequestsToTheDriverRoutes(t *testing.T) {
	r := newRig(t, 1, 10)
	p, err := r.client.CreateProfile(t.Context(), api.CreateProfile{Account: "a", Name: "p"})
	must(t, err)
	live := r.running(t, api.CreateSession{Profile: p.ID})
	options := func(o string) string {
		return `{"capabilities":{"alwaysMatch":{"driftstack:options":` + o + `}}}`
	}
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		code               webdriver.Code
		says               string
	}{
		"no JSON":         {"POST", "/session", `{`, 400, webdriver.InvalidArgument, ""},
		"no capabilities": {"POST", "/session", `{}`, 400, webdriver.InvalidArgument, ""},
		"legacy only":     {"POST", "/session", `{"desiredCapabilities":{}}`, 400, webdriver.InvalidArgument, ""},
		"no account":      {"POST", "/session", `{"capabilities":{}}`, 400, webdriver.InvalidArgument, "account"},
		"unknown option":  {"POST", "/session", options(`{"account":"a","colour":"red"}`), 400, webdriver.InvalidArgument, "colour"},
		"wrong type":      {"POST", "/session", options(`{"account":7}`), 400, webdriver.InvalidArgument, "account"},
		"unknown account": {"POST", "/session", options(`{"account":"nobody"}`), 400, webdriver.InvalidArgument, "account"},
		"no such device":  {"POST", "/session", options(`{"account":"a","device":{"model":"x"}}`), 500, webdriver.SessionNotCreated, "the enrolled ones have iPhone 15"},
		"profile in use":  {"POST", "/session", options(`{"account":"a","profile":"` + p.ID + `"}`), 500, webdriver.SessionNotCreated, live.ID},
		"another browser": {"POST", "/session", `{"capabilities":{"alwaysMatch":{"browserName":"chrome","driftstack:options":{"account":"a"}}}}`, 500, webdriver.SessionNotCreated, "browserName"},
		"BiDi":            {"POST", "/session", `{"capabilities":{"alwaysMatch":{"webSocketUrl":true,"driftstack:options":{"account":"a"}}}}`, 500, webdriver.SessionNotCreated, "webSocketUrl"},
		"unknown session": {"POST", "/session/none/url", `{"url":"http://x/"}`, 404, webdriver.InvalidSessionID, ""},
		"its end":         {"DELETE", "/session/none", ``, 404, webdriver.InvalidSessionID, ""},
		"NUL as session":  {"DELETE", "/session/%00", ``, 404, webdriver.InvalidSessionID, ""},
		"unknown command": {"POST", "/session/" + live.ID + "/nonsense", `{}`, 404, webdriver.UnknownCommand, ""},
		"unknown method":  {"DELETE", "/session/" + live.ID + "/url", ``, 405, webdriver.UnknownMethod, ""},
		"no New Session":  {"GET", "/session", ``, 405, webdriver.UnknownMethod, "POST"},
		"bad argument":    {"POST", "/session/" + live.ID + "/url", `{"url":7}`, 400, webdriver.InvalidArgument, ""},
	} {
		for _, prefix := range []string{"", "/wd/hub"} {
			t.Run(name+prefix, func(t *testing.T) {
				resp, b := r.call(t, c.method, prefix+c.path, c.body)
				v := decode[w3c](t, b)
				if resp.StatusCode != c.status || v.Value.Error != string(c.code) || v.Value.Stacktrace == nil || v.Value.Message == "" {
					t.Fatalf("%s %s: %d %s", c.method, prefix+c.path, resp.StatusCode, b)
				}
				if !strings.Contains(v.Value.Message, c.says) {
					t.Errorf("%s does not say %q", b, c.says)
				}
			})
		}
	}
}

func TestAuthentication(t *testing.T) {
	r := newRig(t, 1, 10)
	for name, c := range map[string]struct {
		set  func(*http.Request)
		pass bool
	}{
		"bearer":            {func(*http.Request) {}, true},
		"basic, any user":   {func(q *http.Request) { q.SetBasicAuth("grid", token) }, true},
		"nothing":           {func(q *http.Request) { q.Header.Del("Authorization") }, false},
		"another token":     {func(q *http.Request) { q.Header.Set("Authorization", "Bearer "+token+"x") }, false},
		"an empty token":    {func(q *http.Request) { q.Header.Set("Authorization", "Bearer ") }, false},
		"token as user":     {func(q *http.Request) { q.SetBasicAuth(token, "") }, false},
		"lower-case scheme": {func(q *http.Request) { q.Header.Set("Authorization", "bearer "+token) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			for path, code := range map[string]int{"/v1/hosts": 200, "/session/none/url": 404, "/wd/hub/session/none/url": 404, "/v1/sessions/none/stream": 404} {
				resp, b := r.call(t, "GET", path, "", c.set)
				if !c.pass {
					code = 401
				}
				if resp.StatusCode != code {
					t.Errorf("%s: %d %s", path, resp.StatusCode, b)
				}
				if !json.Valid(b) || !c.pass && resp.Header.Get("WWW-Authenticate") == "" {
					t.Errorf("%s: %s", path, b)
				}
			}
		})
	}
	for _, path := range []string{"/healthz", "/openapi.json", "/status", "/wd/hub/status"} {
		if resp, b := r.call(t, "GET", path, "", func(q *http.Request) { q.Header.Del("Authorization") }); resp.StatusCode != 200 {
			t.Errorf("%s: %d %s", path, resp.StatusCode, b)
		}
	}
}

func TestSessionOverTheDriverRoutes(t *testing.T) {
	r := newRig(t, 1, 10)
	for _, prefix := range []string{"", "/wd/hub"} {
		body := `{"capabilities":{"alwaysMatch":{"browserName":"safari","driftstack:options":{"account":"a","recording":false,"name":"x"}},"firstMatch":[{}]}}`
		resp, b := r.call(t, "POST", prefix+"/session", body)
		s := decode[w3c](t, b)
		if resp.StatusCode != 200 || s.Value.SessionID == "" || !strings.Contains(string(s.Value.Caps), `"browserName"`) {
			t.Fatalf("%d %s", resp.StatusCode, b)
		}
		at := prefix + "/session/" + s.Value.SessionID
		if resp, b := r.call(t, "POST", at+"/url", `{"url":"http://site.example/a"}`); resp.StatusCode != 200 {
			t.Fatalf("%d %s", resp.StatusCode, b)
		}
		if _, b := r.call(t, "GET", at+"/url", ""); !strings.Contains(string(b), "http://site.example/a") {
			t.Fatalf("%s", b)
		}
		if resp, b := r.call(t, "DELETE", at, ""); resp.StatusCode != 200 || string(b) != `{"value":null}` {
			t.Fatalf("%d %s", resp.StatusCode, b)
		}
		resp, b = r.call(t, "GET", at+"/url", "")
		if v := decode[w3c](t, b); resp.StatusCode != 404 || v.Value.Error != "invalid session id" || v.Value.Data["reason"] != "completed" {
			t.Fatalf("after the end: %d %s", resp.StatusCode, b)
		}
		v, err := r.client.Session(t.Context(), s.Value.SessionID)
		if err != nil || v.State != api.Ended || v.Reason != "completed" || v.Name != "x" {
			t.Fatalf("%+v, %v", v, err)
		}
	}
}

func TestFullQueue(t *testing.T) {
	r := newRig(t, 1, 1)
	r.running(t, api.CreateSession{})
	queued, err := r.client.CreateSession(t.Context(), unrecorded(api.CreateSession{}))
	must(t, err)
	for path, body := range map[string]string{
		"/v1/sessions": `{"account":"b"}`,
		"/session":     `{"capabilities":{"alwaysMatch":{"driftstack:options":{"account":"b"}}}}`,
	} {
		resp, b := r.call(t, "POST", path, body)
		if resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d, Retry-After %q: %s", path, resp.StatusCode, resp.Header.Get("Retry-After"), b)
		}
	}
	// The one that waited gets the device when it is free.
	must(t, second(r.client.Cancel(t.Context(), queued.ID)))
	v, err := r.client.Wait(t.Context(), queued.ID, api.Ended)
	if err != nil || v.Reason != "cancelled" {
		t.Fatalf("%+v, %v", v, err)
	}
}

func second[A any](_ A, err error) error { return err }

// A client that gives up while its New Session waits gets no device.
func TestClientThatLeavesTheQueue(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 10)
	busy := r.running(t, api.CreateSession{})
	<-r.drivers
	leave, left := r.leaving(t)
	var id string
	eventually(t, "it is queued", func() bool {
		l, err := r.client.Sessions(t.Context(), map[string][]string{"state": {"queued"}})
		if err == nil && len(l.Sessions) == 1 {
			id = l.Sessions[0].ID
		}
		return id != ""
	})
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	v, err := r.client.Wait(t.Context(), id, api.Ended)
	if err != nil || v.Reason != "cancelled" || v.Device != "" {
		t.Fatalf("%+v, %v", v, err)
	}
	must(t, second(r.client.Do(t.Context(), busy.ID, webdriver.Command{Method: "DELETE"})))
	r.stopHost()
	for len(r.drivers) > 0 { // of the device's next standby
		if _, ever := (<-r.drivers).Sessions(); ever != 0 {
			t.Fatal("a session was started for a client that had left")
		}
	}
}

func TestStream(t *testing.T) {
	r := newRig(t, 1, 10)
	s := r.running(t, api.CreateSession{})
	c, err := r.client.Stream(t.Context(), s.ID)
	must(t, err)
	defer c.Close()
	for i := range 20 {
		u := fmt.Sprintf("http://site.example/%d", i)
		a, err := c.Do(t.Context(), webdriver.Command{Method: "POST", Path: "/url", Body: []byte(`{"url":"` + u + `"}`)})
		if err != nil || a.Status != 200 {
			t.Fatalf("%d %s, %v", a.Status, a.Body, err)
		}
		var at string
		a, err = c.Do(t.Context(), webdriver.Command{Method: "GET", Path: "/url"})
		if err != nil || a.Value(&at) != nil || at != u {
			t.Fatalf("at %q, %v", at, err)
		}
	}
	a, err := c.Do(t.Context(), webdriver.Command{Method: "GET", Path: "/nonsense"})
	var w *webdriver.Error
	if err != nil || !errors.As(a.Err(), &w) || w.Code != webdriver.UnknownCommand {
		t.Fatalf("%s, %v", a.Body, err)
	}
	if a, err := c.Do(t.Context(), webdriver.Command{Method: "DELETE"}); err != nil || a.Status != 200 {
		t.Fatalf("quit: %s, %v", a.Body, err)
	}
	v, err := r.client.Session(t.Context(), s.ID)
	if err != nil || v.Reason != "completed" {
		t.Fatalf("%+v, %v", v, err)
	}
	var p *client.Problem
	if _, err := r.client.Stream(t.Context(), s.ID); !errors.As(err, &p) || p.Status != 410 || !strings.Contains(p.Detail, "completed") {
		t.Fatalf("a stream of a session that has ended: %v", err)
	}
}

func TestFollowResumes(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 10)
	s := r.running(t, api.CreateSession{})
	var seen []int64
	enough := errors.New("enough")
	err := r.client.Follow(t.Context(), s.ID, 0, func(e api.Event) error {
		seen = append(seen, e.Seq)
		if e.Kind == "running" {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Fatal(err)
	}
	must(t, second(r.client.Do(t.Context(), s.ID, webdriver.Command{Method: "POST", Path: "/url", Body: []byte(`{"url":"http://secret.example/token?x=1"}`)})))
	must(t, second(r.client.Do(t.Context(), s.ID, webdriver.Command{Method: "DELETE"})))
	var last api.Event
	must(t, r.client.Follow(t.Context(), s.ID, seen[len(seen)-1], func(e api.Event) error {
		seen = append(seen, e.Seq)
		last = e
		return nil
	}))
	if last.Kind != "ended" || last.Reason != "completed" {
		t.Errorf("the log ends with %+v", last)
	}
	// Who comes back to a log that is over is told so, and does not wait for more.
	resp, _ := r.call(t, "GET", "/v1/sessions/"+s.ID+"/events?follow=true", "", func(q *http.Request) { q.Header.Set("Last-Event-ID", fmt.Sprint(last.Seq)) })
	if resp.StatusCode != http.StatusNoContent {
		t.Errorf("after the end: %d", resp.StatusCode)
	}
	must(t, r.client.Follow(t.Context(), s.ID, last.Seq, func(api.Event) error { return errors.New("an event after the end") }))
	for i, seq := range seen {
		if seq != int64(i+1) {
			t.Fatalf("sequence %v: not one after the other", seen)
		}
	}
	all, err := r.client.Events(t.Context(), s.ID, 0)
	must(t, err)
	b, err := json.Marshal(all)
	must(t, err)
	if len(all) != len(seen) || strings.Contains(string(b), "secret") {
		t.Errorf("%d events, %d followed: %s", len(all), len(seen), b)
	}
}

func TestFollowSaysThatNobodyIsThere(t *testing.T) {
	c, err := client.New("http://127.0.0.1:1", token)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.Follow(ctx, "s", 0, func(api.Event) error { return nil }); err == nil || ctx.Err() != nil {
		t.Fatalf("got %v", err)
	}
}

// The driver gets a customer's capabilities as they were written, and they are not kept once it has them.
func TestCapabilitiesAreForTheDriver(t *testing.T) {
	r := newRig(t, 1, 10)
	const number = `9007199254740993`
	s := r.running(t, api.CreateSession{Capabilities: json.RawMessage(`{"vendor:number":` + number + `}`)})
	d := <-r.drivers
	if asked := string(d.Asked()); strings.Contains(asked, "vendor") && !strings.Contains(asked, number) {
		t.Errorf("the driver was asked for %s", asked)
	}
	must(t, second(r.client.Do(t.Context(), s.ID, webdriver.Command{Method: "DELETE"})))
	v, err := r.client.Session(t.Context(), s.ID)
	if err != nil || v.Capabilities != nil {
		t.Errorf("kept after the end: %v, %v", v.Capabilities, err)
	}
}

// A session that saw nothing of a profile's sites keeps them, and one whose profile changed under it changes nothing.
func TestSessionKeepsWhatItDidNotSee(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 10)
	p, err := r.client.CreateProfile(t.Context(), api.CreateProfile{Account: "a", Name: "p"})
	must(t, err)
	ref := profilestate.Ref{Account: "a", Profile: p.ID}
	s := r.running(t, api.CreateSession{Profile: p.ID})
	login := profilestate.Cookie{Name: "login", Value: "ada", Domain: "elsewhere.example", Path: "/", Expires: profilestate.SessionCookie, SameSite: "Lax"}
	_, err = r.profiles.Commit(t.Context(), ref, profilestate.Head{}, &profilestate.Snapshot{Cookies: []profilestate.Cookie{login}}, profilestate.Writer{Session: s.ID, Term: s.Term})
	must(t, err)
	must(t, second(r.client.Do(t.Context(), s.ID, webdriver.Command{Method: "DELETE"})))
	kinds := map[string]api.Event{}
	events, err := r.client.Events(t.Context(), s.ID, 0)
	must(t, err)
	for _, e := range events {
		kinds[e.Kind] = e
	}
	if e := kinds["profile_not_saved"]; e.Reason != "profile_conflict" {
		t.Errorf("a profile that changed under its session: %+v", events)
	}

	s = r.running(t, api.CreateSession{Profile: p.ID})
	must(t, second(r.client.Do(t.Context(), s.ID, webdriver.Command{Method: "DELETE"})))
	snapshot, head, err := r.profiles.Load(t.Context(), ref)
	must(t, err)
	if head.Current.Number != 2 || len(snapshot.Cookies) != 1 || snapshot.Cookies[0] != login {
		t.Fatalf("generation %d has %+v", head.Current.Number, snapshot.Cookies)
	}
}

func TestIdleSessionSavesItsProfileAndFreesItsDevice(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 10)
	s, err := r.client.CreateSession(t.Context(), unrecorded(api.CreateSession{Timeouts: api.Timeouts{IdleSeconds: 1}}))
	must(t, err)
	v, err := r.client.Wait(t.Context(), s.ID, api.Ended)
	if err != nil || v.Reason != "idle" {
		t.Fatalf("%+v, %v", v, err)
	}
	r.running(t, api.CreateSession{}) // the device is free again
}

func TestHostLost(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 10)
	s := r.running(t, api.CreateSession{})
	r.stopHost()
	v, err := r.client.Wait(t.Context(), s.ID, api.Ended)
	if err != nil || v.Reason != "host_lost" {
		t.Fatalf("%+v, %v", v, err)
	}
	resp, b := r.call(t, "GET", "/session/"+s.ID+"/url", "")
	if w := decode[w3c](t, b); resp.StatusCode != 404 || w.Value.Data["reason"] != "host_lost" {
		t.Fatalf("%d %s", resp.StatusCode, b)
	}
	// Its devices are still enrolled, so that a session may wait for them.
	q, err := r.client.CreateSession(t.Context(), unrecorded(api.CreateSession{Timeouts: api.Timeouts{QueueSeconds: 1}}))
	must(t, err)
	if v, err := r.client.Wait(t.Context(), q.ID, api.Ended); err != nil || v.Reason != "device_unavailable" {
		t.Fatalf("%+v, %v", v, err)
	}
}

// What runs goes on without the orchestrator, for another to adopt it. What is starting is started first.
func TestStoppedOrchestratorLeavesItsSessions(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2, 10)
	r.configure(func(d *drivertest.Driver) {
		d.Inject(drivertest.Fault{NewSession: true, Effect: drivertest.Delay, For: time.Second})
	})
	running := r.running(t, api.CreateSession{}).ID
	starting, err := r.client.CreateSession(t.Context(), unrecorded(api.CreateSession{}))
	must(t, err)
	eventually(t, "it starts", func() bool {
		v, err := r.client.Session(t.Context(), starting.ID)
		return err == nil && v.State != api.Queued
	})
	r.stop()
	for _, id := range []string{running, starting.ID} {
		v, err := r.store.Get(t.Context(), id)
		if err != nil || v.State != api.Running || v.Device == "" {
			t.Fatalf("%+v, %v", v, err)
		}
	}
	if n := r.openSessions(); n != 2 {
		t.Fatalf("%d sessions are open at their drivers", n)
	}
	if c, ok, err := r.store.Adopt(t.Context(), "other", []string{"mac-1"}, time.Minute); !ok || err != nil {
		t.Fatalf("%+v, %v, %v", c, ok, err)
	}
}

func TestCancelWhileRunning(t *testing.T) {
	r := newRig(t, 1, 10)
	s := r.running(t, api.CreateSession{})
	begin := time.Now()
	must(t, second(r.client.Cancel(t.Context(), s.ID)))
	v, err := r.client.Wait(t.Context(), s.ID, api.Ended)
	if err != nil || v.Reason != "cancelled" {
		t.Fatalf("%+v, %v, after %s", v, err, time.Since(begin))
	}
}

func TestOpenAPI(t *testing.T) {
	r := newRig(t, 1, 10)
	_, b := r.call(t, "GET", "/openapi.json", "")
	doc := decode[struct {
		OpenAPI string                                `json:"openapi"`
		Paths   map[string]map[string]json.RawMessage `json:"paths"`
	}](t, b)
	if !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Errorf("version %q", doc.OpenAPI)
	}
	var have []string
	for path, methods := range doc.Paths {
		for m := range methods {
			have = append(have, strings.ToUpper(m)+" "+path)
		}
	}
	for _, want := range []string{"POST /v1/sessions", "GET /v1/sessions", "GET /v1/sessions/{id}", "DELETE /v1/sessions/{id}", "GET /v1/sessions/{id}/events",
		"GET /v1/sessions/{id}/recording", "POST /v1/sessions/{id}/batch", "PUT /v1/accounts/{id}", "POST /v1/profiles", "POST /v1/hosts", "GET /v1/devices"} {
		if !slices.Contains(have, want) {
			t.Errorf("%s is not documented", want)
		}
	}
}
