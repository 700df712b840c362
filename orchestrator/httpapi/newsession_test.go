package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// The first capabilities that a device can meet are the ones that its driver is asked for, less what is ours to choose.
func TestNewSessionMatches(t *testing.T) {
	r := newRig(t, 1, 10)
	const always = `"alwaysMatch":{"driftstack:options":{"account":"a","recording":false,"name":"matched"},"acceptInsecureCerts":true,"pageLoadStrategy":null}`
	_, b := r.call(t, "POST", "/wd/hub/session", `{"capabilities":{`+always+`,"firstMatch":[{"platformName":"android"},{"browserName":"chrome"},
		{"browserName":"Safari","platformName":"IOS","timeouts":{"implicit":7,"script":null},"unhandledPromptBehavior":{"default":"accept"},"safari:automaticInspection":true},{}]}}`)
	s := decode[w3c](t, b)
	if s.Value.SessionID == "" {
		t.Fatalf("%s", b)
	}
	told := decode[map[string]any](t, s.Value.Caps)
	if told["browserName"] != "safari" || told["platformName"] != "iOS" {
		t.Errorf("the client is told %v", told)
	}
	want := `{"acceptInsecureCerts":true,"safari:automaticInspection":true,"timeouts":{"implicit":7,"script":null},"unhandledPromptBehavior":{"default":"accept"}}`
	var asked any
	must(t, json.Unmarshal((<-r.drivers).Asked(), &asked))
	if b, err := json.Marshal(asked); err != nil || string(b) != want {
		t.Errorf("the driver was asked for %s, %v, want %s", b, err, want)
	}
	v, err := r.client.Session(t.Context(), s.Value.SessionID)
	if err != nil || v.Want.Platform != "IOS" || v.Name != "matched" {
		t.Errorf("%+v, %v", v, err)
	}
	for _, c := range []struct{ first, says string }{
		{`{"platformName":"android"}`, `platformName "android": there is iOS`},
		{`{"browserName":"chrome"},{"platformName":"mac"}`, `firstMatch[1]: platformName "mac": there is iOS`},
		{`{"webSocketUrl":true}`, "webSocketUrl"},
	} {
		resp, b := r.call(t, "POST", "/session", `{"capabilities":{`+always+`,"firstMatch":[`+c.first+`]}}`)
		if m := wantW3C(t, resp, b, 500, webdriver.SessionNotCreated); !strings.Contains(m, c.says) {
			t.Errorf("%s: %s, want one that says %q", c.first, m, c.says)
		}
	}
	if l, err := r.client.Sessions(t.Context(), nil); err != nil || len(l.Sessions) != 1 {
		t.Errorf("%+v, %v", l, err)
	}
}

// leaving starts a New Session whose client leaves when it is told to.
func (r *rig) leaving(t *testing.T) (leave func(), left <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", r.url+"/session", strings.NewReader(`{"capabilities":{"alwaysMatch":{"driftstack:options":{"account":"a","recording":false,"name":"impatient"}}}}`))
	must(t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	done := make(chan error, 1)
	go func() {
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			err = fmt.Errorf("answered with %d", resp.StatusCode)
			_ = resp.Body.Close()
		}
		done <- err
	}()
	return cancel, done
}

// A client that gives up while its session starts leaves no driver behind, and the next one gets the device.
func TestClientThatLeavesWhileItsSessionStarts(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 10)
	var first sync.Once
	r.configure(func(d *drivertest.Driver) {
		first.Do(func() { d.Inject(drivertest.Fault{NewSession: true, Effect: drivertest.Hang}) })
	})
	leave, left := r.leaving(t)
	driver := <-r.drivers
	eventually(t, "the driver starts its browser", func() bool { return driver.Pending() == 0 })
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	l, err := r.client.Sessions(t.Context(), nil)
	if err != nil || len(l.Sessions) != 1 {
		t.Fatalf("%+v, %v", l, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	v, err := r.client.Wait(ctx, l.Sessions[0].ID, api.Ended)
	if err != nil || v.Reason != "cancelled" || v.RunningAt != nil {
		t.Fatalf("%+v, %v", v, err)
	}
	r.running(t, api.CreateSession{})
	if open, ever := driver.Sessions(); open != 0 || ever != 0 {
		t.Errorf("the driver has %d sessions of %d", open, ever)
	}
}

// lostAnswers is a store that queues sessions and does not say so.
type lostAnswers struct{ orchestrator.SessionStore }

func (s lostAnswers) Create(ctx context.Context, n orchestrator.NewSession) (time.Time, error) {
	if at, err := s.SessionStore.Create(ctx, n); n.Name != "lost" || err != nil {
		return at, err
	}
	return time.Time{}, orchestrator.ErrUnavailable
}

// A session that was queued while its client was told that there is none is ended by itself, and costs no device.
func TestSessionWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	r := newTappedRig(t, []host.Device{{Name: "phone-a", Kind: host.KindFake, PlatformName: "iOS"}}, 10, taps{
		sessions: func(s orchestrator.SessionStore) orchestrator.SessionStore { return lostAnswers{s} }})
	r.running(t, api.CreateSession{}) // the others are queued
	resp, b := r.call(t, "POST", "/session", `{"capabilities":{"alwaysMatch":{"driftstack:options":{"account":"a","recording":false,"name":"lost"}}}}`)
	wantW3C(t, resp, b, 500, webdriver.SessionNotCreated)
	if resp, b := r.call(t, "POST", "/v1/sessions", `{"account":"a","name":"lost","recording":false}`); resp.StatusCode != 503 {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
	eventually(t, "nobody's sessions have ended", func() bool {
		l, err := r.client.Sessions(t.Context(), nil)
		must(t, err)
		ended := 0
		for _, s := range l.Sessions {
			if s.Name == "lost" && s.State == api.Ended && s.Reason == "cancelled" && s.StartedAt == nil {
				ended++
			}
		}
		return len(l.Sessions) == 3 && ended == 2
	})
}
