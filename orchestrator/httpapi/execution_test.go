package httpapi_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
)

// TestProfileExecution: an account whose profiles may be used in the EU alone is refused where there is no device, and told what to do.
func TestProfileExecution(t *testing.T) {
	r := newRigOf(t, []host.Device{{Name: "phone-us", Kind: host.KindFake, Model: "iPhone 15", PlatformName: "iOS", PlatformVersion: "17.0", Country: "US"}}, 10)
	p := r.profile(t)
	v, err := r.client.As("ada").PutProfileExecution(t.Context(), "a", api.PutProfileExecution{ProfileExecution: api.ExecutionEU, Reason: "contract"})
	if must(t, err); v.Account != "a" || v.ProfileExecution != api.ExecutionEU {
		t.Errorf("%+v", v)
	}
	if v, err = r.client.ProfileExecution(t.Context(), "a"); err != nil || v.ProfileExecution != api.ExecutionEU {
		t.Errorf("%+v, %v", v, err)
	}
	for _, mode := range []string{"exclusive", "readonly", "fork"} {
		request := `{"account":"a","recording":false,"profile":"` + p.ID + `","profile_mode":"` + mode + `"}`
		resp, b := r.call(t, http.MethodPost, "/v1/sessions", request)
		if said := string(b); resp.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(said, "profile_execution eu") || !strings.Contains(said, "country US") ||
			!strings.Contains(said, "driftctl accounts profile-execution") {
			t.Errorf("%s: %d %s", mode, resp.StatusCode, said)
		}
		e := r.explain(t, request)
		if e.Verdict != api.VerdictRefused || len(e.Refused) != 1 || e.Refused[0].Key != api.KeyExecution || e.Refused[0].Wanted != "eu" || told(e, "phone-us") != "profile_execution eu/US" {
			t.Errorf("%s: %+v, %s", mode, e, told(e, "phone-us"))
		}
	}
	s := r.running(t, api.CreateSession{}) // without a profile
	if s = r.quit(t, s.ID); s.Reason != "completed" {
		t.Errorf("%+v", s)
	}
	if resp, b := r.call(t, http.MethodPut, "/v1/accounts/a/profile-execution", `{"profile_execution":"us"}`); resp.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
	_, err = r.client.PutProfileExecution(t.Context(), "a", api.PutProfileExecution{ProfileExecution: api.ExecutionAny})
	must(t, err)
	s = r.running(t, api.CreateSession{Profile: p.ID})
	if s = r.quit(t, s.ID); s.Reason != "completed" {
		t.Errorf("%+v", s)
	}
}

// TestNewSessionMatchesWhereProfilesMayBe: the first capabilities that a device can meet on which the account may use its profiles.
func TestNewSessionMatchesWhereProfilesMayBe(t *testing.T) {
	r := newRigOf(t, []host.Device{
		{Name: "phone-us", Kind: host.KindFake, Model: "iPhone 15", PlatformName: "iOS", PlatformVersion: "17.0", Country: "US"},
		{Name: "other-de", Kind: host.KindFake, Model: "other", PlatformName: "linux", Country: "DE"},
	}, 10)
	p := r.profile(t)
	_, err := r.client.PutProfileExecution(t.Context(), "a", api.PutProfileExecution{ProfileExecution: api.ExecutionEU})
	must(t, err)
	const first = `"firstMatch":[{"platformName":"ios"},{"platformName":"linux"}]`
	for _, c := range []struct{ options, platform string }{
		{`"account":"a","recording":false`, "iOS"},
		{`"account":"a","recording":false,"profile":"` + p.ID + `"`, "linux"},
		{`"account":"a","recording":false,"profile":"` + p.ID + `","profile_mode":"readonly"`, "linux"},
		{`"account":"a","recording":false,"profile":"` + p.ID + `","profile_mode":"fork"`, "linux"},
	} {
		_, b := r.call(t, http.MethodPost, "/session", `{"capabilities":{"alwaysMatch":{"driftstack:options":{`+c.options+`}},`+first+`}}`)
		s := decode[w3c](t, b)
		if s.Value.SessionID == "" {
			t.Fatalf("%s: %s", c.options, b)
		}
		if told := decode[map[string]any](t, s.Value.Caps); told["platformName"] != c.platform {
			t.Errorf("%s: the client is told %v, want %s", c.options, told, c.platform)
		}
		r.quit(t, s.Value.SessionID)
	}
	resp, b := r.call(t, http.MethodPost, "/session", `{"capabilities":{"alwaysMatch":{"platformName":"ios","driftstack:options":{"account":"a","recording":false,"profile":"`+p.ID+`"}}}}`)
	if m := wantW3C(t, resp, b, 500, webdriver.SessionNotCreated); !strings.Contains(m, `platformName "ios": there is linux`) {
		t.Errorf("%s", m)
	}
}
