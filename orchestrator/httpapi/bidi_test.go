package httpapi_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator/api"
)

const bidiLimit = 60 * time.Second // above what anything takes on a busy machine

// newBiDiRig is a rig with a phone, and one whose fake driver offers BiDi.
func newBiDiRig(t *testing.T, serve func(*websocket.Conn)) *rig {
	t.Helper()
	r := newRigOf(t, []host.Device{
		{Name: "phone-a", Kind: host.KindFake, Model: "iPhone 15", PlatformName: "iOS"},
		{Name: "phone-b", Kind: host.KindFake, Model: "iPhone 99", PlatformName: "iOS", BiDi: true},
	}, 10)
	r.configure(func(d *drivertest.Driver) { d.OfferBiDi(serve) })
	return r
}

// started is a session that was started over the W3C routes.
type started struct {
	id   string
	caps map[string]any
}

func (s started) socket(t *testing.T) string {
	t.Helper()
	u, ok := s.caps["webSocketUrl"].(string)
	if !ok {
		t.Fatalf("no webSocketUrl in %v", s.caps)
	}
	return u
}

// start starts a session over the W3C routes.
func (r *rig) start(t *testing.T, prefix, capabilities string, change ...func(*http.Request)) started {
	t.Helper()
	body := `{"capabilities":{"alwaysMatch":{` + capabilities + `,"driftstack:options":{"account":"a","recording":false}}}}`
	resp, b := r.call(t, "POST", prefix+"/session", body, change...)
	v := decode[w3c](t, b)
	if resp.StatusCode != 200 {
		t.Fatalf("New Session: %d %s", resp.StatusCode, b)
	}
	return started{v.Value.SessionID, decode[map[string]any](t, v.Value.Caps)}
}

// bidi is a client's BiDi connection, opened with the URL alone.
type bidi struct{ *websocket.Conn }

func dialBiDi(t *testing.T, at string) bidi {
	t.Helper()
	ws, resp, err := websocket.DefaultDialer.Dial(at, nil)
	if err != nil {
		t.Fatalf("%v %v", err, resp)
	}
	t.Cleanup(func() { _ = ws.Close() })
	_ = ws.SetReadDeadline(time.Now().Add(bidiLimit))
	return bidi{ws}
}

// turnedAway is the W3C error of a connection that is not let in.
func turnedAway(t *testing.T, at string, header http.Header) (status int, code, message string) {
	t.Helper()
	ws, resp, err := websocket.DefaultDialer.Dial(at, header)
	if err == nil {
		_ = ws.Close()
		t.Fatalf("%s was let in", at)
	}
	if resp == nil {
		t.Fatalf("%s: %v", at, err)
	}
	var b bytes.Buffer
	_, _ = b.ReadFrom(resp.Body) // what the client library kept of it
	v := decode[w3c](t, b.Bytes())
	return resp.StatusCode, v.Value.Error, v.Value.Message
}

// closed reads until the connection is closed.
func (c bidi) closed(t *testing.T) (code int, reason string) {
	t.Helper()
	for {
		_, _, err := c.ReadMessage()
		var e *websocket.CloseError
		if errors.As(err, &e) {
			return e.Code, e.Text
		}
		if err != nil {
			t.Fatalf("no goodbye: %v", err)
		}
	}
}

func (c bidi) echoes(t *testing.T, text string) {
	t.Helper()
	must(t, c.WriteMessage(websocket.TextMessage, []byte(text)))
	kind, b, err := c.ReadMessage()
	if err != nil || kind != websocket.TextMessage || string(b) != text {
		t.Fatalf("kind %d, %d of %d bytes, %v", kind, len(b), len(text), err)
	}
}

func TestBiDi(t *testing.T) {
	r := newBiDiRig(t, nil)
	for _, prefix := range []string{"", "/wd/hub"} {
		s := r.start(t, prefix, `"webSocketUrl":true`)
		at := s.socket(t)
		u, err := url.Parse(at)
		must(t, err)
		if want := strings.TrimPrefix(r.url, "http://"); u.Scheme != "ws" || u.Host != want || u.Path != prefix+"/session/"+s.id+"/bidi" || u.User != nil {
			t.Errorf("webSocketUrl %s does not point at %s", at, want)
		}
		a, b := dialBiDi(t, at), dialBiDi(t, at) // more than one is allowed
		a.echoes(t, "first")
		b.echoes(t, strings.Repeat("0123456789abcdef", 2<<20/16))
		a.echoes(t, "again")
		if resp, b := r.call(t, "GET", prefix+"/session/"+s.id+"/url", ""); resp.StatusCode != 200 { // commands go on beside it
			t.Errorf("%d %s", resp.StatusCode, b)
		}
		// What the control plane shows is the same place; the database does not know the secret.
		v, err := r.client.Session(t.Context(), s.id)
		must(t, err)
		if shown := v.Capabilities.(map[string]any)["webSocketUrl"]; shown != strings.Replace(at, "/wd/hub", "", 1) || v.Device != "phone-b" {
			t.Errorf("shown is %v on %s", shown, v.Device)
		}
		stored, err := r.store.Get(t.Context(), s.id)
		must(t, err)
		if raw, _ := json.Marshal(stored.Capabilities); strings.Contains(string(raw), "token") || strings.Contains(string(raw), "ws://") {
			t.Errorf("stored is %s", raw)
		}
		// The session's end closes both, and says why.
		if resp, b := r.call(t, "DELETE", prefix+"/session/"+s.id, ""); resp.StatusCode != 200 {
			t.Fatalf("%d %s", resp.StatusCode, b)
		}
		for _, c := range []bidi{a, b} {
			if code, reason := c.closed(t); code != websocket.CloseNormalClosure || reason != "the session has ended: completed" {
				t.Errorf("closed with %d %q", code, reason)
			}
		}
		if status, code, message := turnedAway(t, at, nil); status != 404 || code != "invalid session id" || !strings.Contains(message, "completed") {
			t.Errorf("after the end: %d %s: %s", status, code, message)
		}
		var opened, closed int
		events, err := r.client.Events(t.Context(), s.id, 0)
		must(t, err)
		for _, e := range events {
			switch e.Kind {
			case "bidi_opened":
				opened++
			case "bidi_closed":
				closed++
				if e.Status != websocket.CloseNormalClosure || e.BytesIn == 0 || e.BytesIn != e.BytesOut {
					t.Errorf("%+v", e)
				}
			case "finishing":
				if opened != 2 || closed != 2 {
					t.Errorf("%d opened and %d closed when the session finishes", opened, closed)
				}
			}
		}
	}
}

// TestBiDiURLBehindTLS has TLS end in front of the orchestrator.
func TestBiDiURLBehindTLS(t *testing.T) {
	r := newBiDiRig(t, nil)
	s := r.start(t, "", `"webSocketUrl":true`, func(q *http.Request) {
		q.Host = "fleet.example"
		q.Header.Set("X-Forwarded-Proto", "https")
	})
	if at := s.socket(t); !strings.HasPrefix(at, "wss://fleet.example/session/") {
		t.Errorf("webSocketUrl %s", at)
	}
	_, b := r.call(t, "GET", "/v1/sessions", "", func(q *http.Request) {
		q.Host = "fleet.example"
		q.Header.Set("X-Forwarded-Proto", "https")
	})
	if !strings.Contains(string(b), s.socket(t)) {
		t.Errorf("listed is %s", b)
	}
}

func TestBiDiNeedsItsToken(t *testing.T) {
	r := newBiDiRig(t, nil)
	s := r.start(t, "", `"webSocketUrl":true`)
	at := s.socket(t)
	bare, secret, _ := strings.Cut(at, "?token=")
	if len(secret) < 40 {
		t.Errorf("the token %q is short", secret)
	}
	other := strings.Replace(at, s.id, "another", 1)
	for name, c := range map[string]struct {
		at string
		h  http.Header
	}{
		"no token":                  {bare, nil},
		"an empty token":            {bare + "?token=", nil},
		"another token":             {bare + "?token=" + strings.Repeat("A", len(secret)), nil},
		"a token of another":        {other, nil},
		"the token for more":        {strings.Replace(at, "/bidi?", "/bidi/x?", 1), nil},
		"the token for a command":   {strings.Replace(at, "/bidi?", "/url?", 1), nil},
		"the token for the session": {strings.Replace(at, "/bidi?", "?", 1), nil},
		"another service token":     {bare, http.Header{"Authorization": {"Bearer " + token + "x"}}},
	} {
		if status, code, message := turnedAway(t, c.at, c.h); status != 401 || code != "unknown error" || strings.Contains(message, secret) {
			t.Errorf("%s: %d %s: %s", name, status, code, message)
		}
	}
	for _, path := range []string{"/v1/sessions?token=" + secret, "/session/" + s.id + "/url?token=" + secret} {
		if resp, b := r.call(t, "GET", path, "", func(q *http.Request) { q.Header.Del("Authorization") }); resp.StatusCode != 401 {
			t.Errorf("%s: %d %s", path, resp.StatusCode, b)
		}
	}
	basic := strings.Replace(at, "ws://", "", 1)
	for name, h := range map[string]http.Header{"bearer": {"Authorization": {"Bearer " + token}}, "basic": basicAuth(token)} {
		ws, _, err := websocket.DefaultDialer.Dial(bare, h)
		if err != nil {
			t.Errorf("%s %s: %v", name, basic, err)
			continue
		}
		_ = ws.Close()
	}
	if status, code, _ := turnedAway(t, at, http.Header{"Origin": {"https://page.example"}}); status != 403 || code != "invalid argument" {
		t.Errorf("a web page: %d %s", status, code)
	}
	if resp, b := r.call(t, "GET", strings.TrimPrefix(at, "ws"+strings.TrimPrefix(r.url, "http")), ""); resp.StatusCode != 400 || decode[w3c](t, b).Value.Error != "invalid argument" {
		t.Errorf("a plain request: %d %s", resp.StatusCode, b)
	}
}

func basicAuth(password string) http.Header {
	q := httptest.NewRequest("GET", "/", nil)
	q.SetBasicAuth("any", password)
	return q.Header
}

// TestBiDiIsMatched: a session that wants BiDi gets a device that offers it, or is refused at once, clearly.
func TestBiDiIsMatched(t *testing.T) {
	r := newBiDiRig(t, nil)
	devices, err := r.client.Devices(t.Context())
	must(t, err)
	if len(devices) != 2 || devices[0].BiDi || !devices[1].BiDi || devices[0].Browser != "safari" {
		t.Errorf("devices %+v", devices)
	}
	// The other device is free, and of no use.
	first := r.running(t, api.CreateSession{Capabilities: json.RawMessage(`{"webSocketUrl":true}`)})
	waits, err := r.client.CreateSession(t.Context(), unrecorded(api.CreateSession{Capabilities: json.RawMessage(`{"webSocketUrl":true}`)}))
	must(t, err)
	plain := r.running(t, api.CreateSession{})
	if first.Device != "phone-b" || plain.Device != "phone-a" {
		t.Errorf("BiDi on %s, without on %s", first.Device, plain.Device)
	}
	if v, err := r.client.Session(t.Context(), waits.ID); err != nil || v.State != api.Queued {
		t.Errorf("the second that wants BiDi is %s, %v", v.State, err)
	}
	if status, code, message := turnedAway(t, r.bidiOf(t, first, plain), http.Header{"Authorization": {"Bearer " + token}}); status != 400 || code != "invalid argument" || !strings.Contains(message, "webSocketUrl: true") {
		t.Errorf("a session without BiDi: %d %s: %s", status, code, message)
	}
	must(t, second(r.client.Do(t.Context(), first.ID, webdriver.Command{Method: "DELETE"})))
	v, err := r.client.Wait(t.Context(), waits.ID, api.Running)
	if err != nil || v.Device != "phone-b" {
		t.Errorf("%+v, %v", v, err)
	}
	const says = "Safari has no WebDriver BiDi"
	want := `"webSocketUrl":true,"browserName":"safari"`
	for name, c := range map[string]struct {
		path, body string
		status     int
	}{
		"W3C":           {"/session", `{"capabilities":{"alwaysMatch":{` + want + `,"driftstack:options":{"account":"a","device":{"model":"iPhone 15"}}}}}`, 500},
		"Selenium":      {"/wd/hub/session", `{"capabilities":{"alwaysMatch":{` + want + `,"driftstack:options":{"account":"a","device":{"model":"iPhone 15"}}}}}`, 500},
		"control plane": {"/v1/sessions", `{"account":"a","capabilities":{` + want + `},"device":{"model":"iPhone 15"}}`, 422},
	} {
		begin := time.Now()
		resp, b := r.call(t, "POST", c.path, c.body)
		if resp.StatusCode != c.status || !strings.Contains(string(b), says) || !strings.Contains(string(b), "no enrolled device") {
			t.Errorf("%s: %d %s", name, resp.StatusCode, b)
		}
		if c.status == 500 && decode[w3c](t, b).Value.Error != string(webdriver.SessionNotCreated) {
			t.Errorf("%s: %s", name, b)
		}
		if c.status == 422 && !strings.HasSuffix(decode[problem](t, b).Type, "no-such-device") {
			t.Errorf("%s: %s", name, b)
		}
		if took := time.Since(begin); took > bidiLimit { // it is not queued
			t.Errorf("%s: refused after %v", name, took)
		}
	}
	// A client that can do without says so, and gets the next best.
	resp, b := r.call(t, "POST", "/session", `{"capabilities":{"alwaysMatch":{"driftstack:options":{"account":"a","device":{"model":"iPhone 15"},"timeouts":{"queue_seconds":1}}},
		"firstMatch":[{"webSocketUrl":true},{}]}}`)
	if resp.StatusCode == 500 && strings.Contains(string(b), says) {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
}

// bidiOf is where a session's BiDi would be, from where another's is.
func (r *rig) bidiOf(t *testing.T, has, of api.Session) string {
	t.Helper()
	at, ok := has.Capabilities.(map[string]any)["webSocketUrl"].(string)
	if !ok {
		t.Fatalf("no webSocketUrl in %v", has.Capabilities)
	}
	return strings.Replace(at, has.ID, of.ID, 1)
}

func TestSessionsDoNotBeginWithAWebsocket(t *testing.T) {
	r := newBiDiRig(t, nil)
	auth := http.Header{"Authorization": {"Bearer " + token}}
	for _, prefix := range []string{"", "/wd/hub"} {
		at := "ws" + strings.TrimPrefix(r.url, "http") + prefix + "/session"
		status, code, message := turnedAway(t, at, auth)
		if status != 404 || code != "unknown command" || !strings.Contains(message, "POST "+prefix+"/session") || !strings.Contains(message, "webSocketUrl") {
			t.Errorf("%d %s: %s", status, code, message)
		}
	}
}

func TestBiDiCloses(t *testing.T) {
	var mu sync.Mutex
	var lastWords []string // of each socket, in whatever order they end
	r := newBiDiRig(t, func(ws *websocket.Conn) {
		for {
			_, b, err := ws.ReadMessage()
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				lastWords = append(lastWords, err.Error())
				return
			}
			if string(b) == "leave" {
				_ = ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4002, "the driver says"), time.Now().Add(time.Second))
			}
			if string(b) == "break" {
				_ = ws.UnderlyingConn().Close()
			}
		}
	})
	s := r.start(t, "", `"webSocketUrl":true`)
	c := dialBiDi(t, s.socket(t))
	must(t, c.WriteMessage(websocket.TextMessage, []byte("leave")))
	if code, reason := c.closed(t); code != 4002 || reason != "the driver says" {
		t.Errorf("the driver's goodbye: %d %q", code, reason)
	}
	c = dialBiDi(t, s.socket(t))
	must(t, c.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(4001, "the client says"), time.Now().Add(time.Second)))
	eventually(t, "the driver hears the client's goodbye", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.ContainsFunc(lastWords, func(w string) bool { return strings.Contains(w, "4001") && strings.Contains(w, "the client says") })
	})
	c = dialBiDi(t, s.socket(t))
	must(t, c.WriteMessage(websocket.TextMessage, []byte("break")))
	if code, _ := c.closed(t); code != websocket.CloseInternalServerErr {
		t.Errorf("the driver breaks off: %d", code)
	}
	c = dialBiDi(t, s.socket(t)) // and the session goes on
	must(t, second(r.client.Cancel(t.Context(), s.id)))
	if code, reason := c.closed(t); code != websocket.CloseGoingAway || reason != "the session has ended: cancelled" {
		t.Errorf("the session is cancelled: %d %q", code, reason)
	}
}

func TestBiDiConnectionsAreBounded(t *testing.T) {
	r := newBiDiRig(t, nil)
	s := r.start(t, "", `"webSocketUrl":true`)
	var open []bidi
	for range wire.MaxBiDi {
		open = append(open, dialBiDi(t, s.socket(t)))
	}
	if status, code, message := turnedAway(t, s.socket(t), nil); status != 429 || code != "unknown error" || !strings.Contains(message, fmt.Sprint(wire.MaxBiDi)) {
		t.Errorf("one more: %d %s: %s", status, code, message)
	}
	for i, c := range open {
		c.echoes(t, fmt.Sprint(i))
	}
	_ = open[0].Close()
	eventually(t, "there is room again", func() bool {
		ws, _, err := websocket.DefaultDialer.Dial(s.socket(t), nil)
		if err == nil {
			_ = ws.Close()
		}
		return err == nil
	})
}

// TestBiDiIsNotIdleness: what a client sends over BiDi keeps its session, and what it hears does not.
func TestBiDiIsNotIdleness(t *testing.T) {
	t.Parallel()
	const idle, message = 6 * time.Second, 3 * time.Second
	r := newBiDiRig(t, nil)
	s := r.running(t, api.CreateSession{Capabilities: json.RawMessage(`{"webSocketUrl":true}`), Timeouts: api.Timeouts{IdleSeconds: int(idle.Seconds())}})
	c := dialBiDi(t, r.bidiOf(t, s, s))
	<-time.After(message) // the time is what is tested
	said := time.Now()
	c.echoes(t, "x")
	v, err := r.client.Wait(t.Context(), s.ID, api.Ended)
	if err != nil || v.Reason != "idle" || v.EndedAt.Sub(said) < idle {
		t.Errorf("ended as %s %v after the last message, %v", v.Reason, v.EndedAt.Sub(said), err)
	}
	if code, reason := c.closed(t); code != websocket.CloseGoingAway || reason != "the session has ended: idle" {
		t.Errorf("closed with %d %q", code, reason)
	}
}

func TestBiDiOfALostHost(t *testing.T) {
	t.Parallel()
	r := newBiDiRig(t, nil)
	s := r.start(t, "", `"webSocketUrl":true`)
	c := dialBiDi(t, s.socket(t))
	r.stopHost()
	if code, reason := c.closed(t); code != websocket.CloseGoingAway {
		t.Errorf("closed with %d %q", code, reason)
	}
	v, err := r.client.Wait(t.Context(), s.id, api.Ended)
	if err != nil || v.Reason != "host_lost" {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestBiDiComesAgain: the connection does not outlive the orchestrator, and its URL does.
func TestBiDiComesAgain(t *testing.T) {
	t.Parallel()
	r := newSeveral(t, 10*time.Minute, 0, "eu-1", "eu-2") // nobody can have waited for that
	one, two := r.all[0], r.all[1]
	s, d := r.running(t, api.CreateSession{Capabilities: json.RawMessage(`{"webSocketUrl":true}`)})
	at := (&rig{}).bidiOf(t, s, s)
	c := dialBiDi(t, at)
	c.echoes(t, "one")
	one.stop()
	if code, reason := c.closed(t); code != websocket.CloseServiceRestart || !strings.Contains(reason, "connect again") {
		t.Errorf("closed with %d %q", code, reason)
	}
	dialBiDi(t, strings.Replace(at, strings.TrimPrefix(one.url, "http"), strings.TrimPrefix(two.url, "http"), 1)).echoes(t, "two")
	log := []string{"queued", "starting", "driver_started", "running", "bidi_opened", "bidi_closed", "handed_over", "adopted", "bidi_opened"}
	eventually(t, "the log tells it", func() bool { return slices.Equal(kinds(t, two, s.ID), log) })
	if open, ever := d.Sessions(); open != 1 || ever != 1 {
		t.Errorf("%d of %d driver sessions are open", open, ever)
	}
}
