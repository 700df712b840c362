package httpapi_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
)

// phones are two of one kind and one of another.
func phones() []host.Device {
	return []host.Device{
		{Name: "phone-a", Kind: host.KindFake, Model: "iPhone 15", PlatformName: "iOS", PlatformVersion: "17.4"},
		{Name: "phone-b", Kind: host.KindFake, Model: "iPhone 15", PlatformName: "iOS", PlatformVersion: "17.5", Labels: map[string]string{"pool": "x"}},
		{Name: "pad", Kind: host.KindFake, Model: "iPad", PlatformName: "iPadOS", PlatformVersion: "16.1"},
	}
}

func (r *rig) explain(t *testing.T, body string) api.Explanation {
	t.Helper()
	resp, b := r.call(t, "POST", "/v1/sessions:explain", body)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %s", body, resp.StatusCode, b)
	}
	return decode[api.Explanation](t, b)
}

// told is a device's reasons as KEY WANTED/HAS.
func told(v api.Explanation, device string) string {
	for _, d := range v.Devices {
		if d.Device == device {
			var parts []string
			for _, r := range d.Reasons {
				parts = append(parts, string(r.Key)+" "+r.Wanted+"/"+r.Has)
			}
			return strings.Join(parts, "; ")
		}
	}
	return "not listed"
}

func TestExplain(t *testing.T) {
	r := newRigOf(t, phones(), 1)
	v := r.explain(t, `{"account":"a","device":{"os_version":">=17","labels":{"pool":"x"}}}`)
	if v.Verdict != api.VerdictStart || v.Host != "mac-1" || v.Device != "phone-b" || v.Enrolled != 3 || v.Fit != 1 || v.Free != 1 || v.Says != "It would start now, on mac-1/phone-b." || !v.Devices[0].Chosen {
		t.Errorf("%+v", v)
	}
	for device, want := range map[string]string{"phone-b": "", "phone-a": "labels pool=x/no pool", "pad": "os_version >=17/16.1; labels pool=x/no pool"} {
		if got := told(v, device); got != want {
			t.Errorf("%s: %q, want %q", device, got, want)
		}
	}
	if v := r.explain(t, `{"account":"a","capabilities":{"platformName":"ipados"}}`); v.Device != "pad" || told(v, "phone-a") != "platform ipados/iOS" {
		t.Errorf("by capabilities: %+v", v)
	}

	// What it says happens.
	s := r.running(t, api.CreateSession{Device: api.DeviceWant{Labels: map[string]string{"pool": "x"}}})
	must(t, r.client.CordonDevice(t.Context(), "mac-1", "phone-a", "cracked screen"))
	v = r.explain(t, `{"account":"a","device":{"model":"iPhone 15"}}`)
	if v.Verdict != api.VerdictQueue || v.Queue == nil || v.Queue.Position != 1 || v.Queue.Devices != 1 || v.Queue.ExpectedWaitSeconds != nil || v.Fit != 2 || v.Free != 0 || v.Device != "" {
		t.Errorf("%+v, %+v", v, v.Queue)
	}
	for device, want := range map[string]string{"phone-a": "device_state /cordoned: cracked screen", "phone-b": "device_state /busy: session " + s.ID, "pad": "model iPhone 15/iPad"} {
		if got := told(v, device); got != want {
			t.Errorf("%s: %q, want %q", device, got, want)
		}
	}
	if c := v.Reasons; len(c) != 2 || c[0] != (api.KeyCount{Key: api.KeyModel, Devices: 1}) || c[1] != (api.KeyCount{Key: api.KeyDeviceState, Devices: 2}) {
		t.Errorf("%+v", c)
	}
	e, err := r.client.Explain(t.Context(), api.CreateSession{Account: "a"}, 1)
	if must(t, err); len(e.Devices) != 1 || e.More != 2 || !e.Devices[0].Chosen || e.Devices[0].Device != "pad" {
		t.Errorf("%+v", e)
	}

	// Refusals, by key.
	waits, err := r.client.CreateSession(t.Context(), unrecorded(api.CreateSession{Device: api.DeviceWant{Model: "iPhone 15"}}))
	must(t, err)
	for _, c := range []struct {
		body string
		key  api.Key
		says string
	}{
		{`{"account":"a","device":{"os_version":">=18"}}`, api.KeyOSVersion, "no enrolled device has os_version >=18; the enrolled ones have 16.1, 17.4, 17.5"},
		{`{"account":"a","capabilities":{"browserName":"chrome"}}`, api.KeyCapabilities, `browserName "chrome"`},
		{`{"account":"a"}`, api.KeyQueue, "1 sessions are queued already"},
	} {
		v := r.explain(t, c.body)
		if v.Verdict != api.VerdictRefused || len(v.Refused) != 1 || v.Refused[0].Key != c.key || !strings.Contains(v.Refused[0].Says, c.says) || !strings.Contains(v.Says, c.says) || v.Queue != nil || v.Device != "" {
			t.Errorf("%s: %+v", c.body, v)
		}
	}
	if v := r.explain(t, `{"account":"a","capabilities":{"browserName":"chrome"}}`); v.Fit != 0 || told(v, "pad") != "capabilities /browserName safari, platformName iPadOS, no WebDriver BiDi" {
		t.Errorf("%+v", v)
	}
	must(t, second(r.client.Cancel(t.Context(), waits.ID)))
	for body, says := range map[string]string{`{"account":"nobody"}`: "no such account", `{"account":"a","device":{"os_version":"new"}}`: "os_version", `{"account":"a","profile":"p"}`: "no such profile", `{}`: "account"} {
		if resp, b := r.call(t, "POST", "/v1/sessions:explain", body); resp.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(string(b), says) {
			t.Errorf("%s: %d %s", body, resp.StatusCode, b)
		}
	}
	if l, err := r.client.Sessions(t.Context(), nil); err != nil || len(l.Sessions) != 2 {
		t.Errorf("explaining made sessions: %+v, %v", l, err)
	}
	if resp, _ := r.call(t, "GET", "/v1/sessions:explain", ""); resp.StatusCode != http.StatusMethodNotAllowed && resp.StatusCode != http.StatusNotFound {
		t.Errorf("GET: %d", resp.StatusCode)
	}
	// The host goes: so do its devices, for a reason that says what to do.
	r.stopHost()
	eventually(t, "the host is down", func() bool {
		v := r.explain(t, `{"account":"a","device":{"model":"iPad"}}`)
		return v.Verdict == api.VerdictQueue && v.Fit == 1 && v.Queue.Devices == 0 && strings.HasPrefix(told(v, "pad"), "host_state /registered: ")
	})
}

// A want that no device can ever meet is refused with the keys that nothing meets, or with those of the nearest device.
func TestRefusalNamesTheKeys(t *testing.T) {
	r := newRigOf(t, phones(), 10)
	for _, c := range []struct{ device, keys, says string }{
		{`{"os_version":">=18"}`, "device.os_version", "no enrolled device has os_version >=18; the enrolled ones have 16.1, 17.4, 17.5"},
		{`{"model":"iPhone 3","country":"FR"}`, "device.model device.country", "no enrolled device has model iPhone 3; the enrolled ones have iPad, iPhone 15; no enrolled device has country FR; the enrolled ones have none"},
		{`{"model":"iPad","os_version":"17"}`, "device.os_version", "no enrolled device has all that is wanted at once; the nearest has os_version 16.1, wanted is 17"},
		{`{"host":"mac-9"}`, "device.host", "no enrolled device has host mac-9; the enrolled ones have mac-1"},
		{`{"host":"mac-1","kind":"x"}`, "device.kind", "no device of host mac-1 has kind x; its devices have fake"},
		{`{"labels":{"pool":"y"}}`, "device.labels", "no enrolled device has labels pool=y; the enrolled ones have no pool, pool=x"},
	} {
		resp, b := r.call(t, "POST", "/v1/sessions", `{"account":"a","device":`+c.device+`}`)
		p := decode[problem](t, b)
		var at []string
		for _, e := range p.Errors {
			at = append(at, e.Location)
		}
		if resp.StatusCode != 422 || p.Detail != c.says || strings.Join(at, " ") != c.keys || !strings.HasSuffix(p.Type, "no-such-device") {
			t.Errorf("%s: %d %s", c.device, resp.StatusCode, b)
		}
		resp, b = r.call(t, "POST", "/session", `{"capabilities":{"alwaysMatch":{"driftstack:options":{"account":"a","device":`+c.device+`}}}}`)
		if m := wantW3C(t, resp, b, 500, webdriver.SessionNotCreated); m != c.says {
			t.Errorf("%s: %s", c.device, m)
		}
	}
}

// A queued session says where it waits, and how long about, once that is known; one that runs does not, nor does a list.
func TestQueuedSessionSaysWhereItWaits(t *testing.T) {
	r := newRig(t, 1, 10)
	quit := func(s api.Session) {
		t.Helper()
		if _, err := r.client.Do(t.Context(), s.ID, webdriver.Command{Method: http.MethodDelete}); err != nil {
			t.Fatal(err)
		}
	}
	s := r.running(t, api.CreateSession{})
	var queued []api.Session
	for range 2 {
		q, err := r.client.CreateSession(t.Context(), unrecorded(api.CreateSession{}))
		must(t, err)
		queued = append(queued, q)
	}
	v, err := r.client.Session(t.Context(), queued[1].ID)
	if must(t, err); v.Queue == nil || v.Queue.Position != 2 || v.Queue.Devices != 1 || v.Queue.WaitsFor != api.WaitsForDevice || v.Queue.ExpectedWaitSeconds != nil {
		t.Errorf("before any session has ended: %+v", v.Queue)
	}
	quit(s)
	first, err := r.client.Wait(t.Context(), queued[0].ID, api.Running)
	if must(t, err); first.State != api.Running || first.Queue != nil {
		t.Errorf("%+v", first)
	}
	v, err = r.client.Session(t.Context(), queued[1].ID)
	if must(t, err); v.Queue == nil || v.Queue.Position != 1 || v.Queue.ExpectedWaitSeconds == nil || *v.Queue.ExpectedWaitSeconds > 20 {
		t.Errorf("after one has ended: %+v", v.Queue)
	}
	l, err := r.client.Sessions(t.Context(), nil)
	if must(t, err); len(l.Sessions) != 3 || l.Sessions[0].Queue != nil {
		t.Errorf("%+v", l)
	}
}
