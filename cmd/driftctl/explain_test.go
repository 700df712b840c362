package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
)

func wait(seconds int64) *int64 { return &seconds }

func explanations() []api.Explanation {
	devices := []api.DeviceMatch{
		{Host: "mac-1", Device: "phone-1", Chosen: true, Fits: true, Says: "free, and idle for longest of those that fit: it would be taken"},
		{Host: "mac-1", Device: "phone-2", Fits: true, Says: "free as well; mac-1/phone-1 has been idle for longer"},
		{Host: "mac-2", Device: "phone-1", Fits: true, Reasons: []api.DeviceReason{{Key: api.KeyHostState, Has: "draining: new macOS"}}},
		{Host: "mac-2", Device: "phone-2", Reasons: []api.DeviceReason{{Key: api.KeyOSVersion, Wanted: ">=17.4", Has: "16.7"}, {Key: api.KeyLabels, Wanted: "pool=x", Has: "no pool"},
			{Key: api.KeyDeviceState, Has: "quarantined: " + strings.Repeat("the device is locked; ", 9)}}},
	}
	start := api.Explanation{Verdict: api.VerdictStart, Says: "It would start now, on mac-1/phone-1.", Host: "mac-1", Device: "phone-1", Enrolled: 31, Fit: 3, Free: 2, Devices: devices, More: 27,
		Reasons: []api.KeyCount{{Key: api.KeyOSVersion, Devices: 28}, {Key: api.KeyHostState, Devices: 1}}}
	queue := api.Explanation{Verdict: api.VerdictQueue, Says: "It would be queued, at position 4: 3 that fit take sessions, and it would wait about 95 s.", Enrolled: 3, Fit: 3,
		Queue: &api.QueuePlace{Position: 4, WaitsFor: api.WaitsForDevice, Devices: 3, ExpectedWaitSeconds: wait(95)}, Reasons: []api.KeyCount{{Key: api.KeyDeviceState, Devices: 3}},
		Devices: []api.DeviceMatch{{Host: "mac-1", Device: "phone-1", Fits: true, Reasons: []api.DeviceReason{{Key: api.KeyDeviceState, Has: "busy: session 714f84b6"}}}}, More: 2}
	refused := api.Explanation{Verdict: api.VerdictRefused, Says: "It would be refused: no enrolled device has model iPhone 3; the enrolled ones have iPad.", Enrolled: 1,
		Refused: []api.Refusal{{Key: api.KeyModel, Says: "no enrolled device has model iPhone 3; the enrolled ones have iPad"}, {Key: api.KeyCountry, Says: "no enrolled device has country FR; the enrolled ones have none"}}}
	return []api.Explanation{start, queue, refused}
}

func TestExplanationForPeople(t *testing.T) {
	var b bytes.Buffer
	p := printer{out: &b, now: func() time.Time { return now }}
	for _, e := range explanations() {
		if err := p.explanation(e); err != nil {
			t.Fatal(err)
		}
		b.WriteString("\n")
	}
	for _, q := range []api.QueuePlace{{Position: 4, WaitsFor: api.WaitsForDevice, Devices: 3, ExpectedWaitSeconds: wait(95)}, {Position: 1000, OrMore: true, WaitsFor: api.WaitsForDevice, Devices: 3},
		{Position: 1, WaitsFor: api.WaitsForQuota, Devices: 3, ExpectedWaitSeconds: wait(600)}, {Position: 1, WaitsFor: api.WaitsForDevice}, {Position: 2, WaitsFor: api.WaitsForDevice, Devices: 1}} {
		b.WriteString(queuePlace(&q) + "\n")
	}
	golden(t, "explain.txt", b.String())
}

// What is asked for is the file's body, and the flags over it.
func TestExplainOverHTTP(t *testing.T) {
	var asked string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body api.CreateSession
		_ = json.NewDecoder(r.Body).Decode(&body)
		b, _ := json.Marshal(body)
		asked = r.Method + " " + r.URL.String() + " " + string(b)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(explanations()[0])
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "body.json")
	if err := os.WriteFile(file, []byte(`{"account":"a","device":{"model":"iPhone 14","labels":{"rack":"7"}},"recording":false}`), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := runAt(t, server.URL, "sessions", "explain", "--body", file, "--model", "iPhone 15", "--os-version", ">=17.4 <18", "--label", "pool=x", "--label", "a=b;c", "--devices", "3")
	want := `POST /v1/sessions:explain?limit=3 {"account":"a","device":{"model":"iPhone 15","labels":{"a":"b;c","pool":"x","rack":"7"},"os_version":"\u003e=17.4 \u003c18"},"recording":false,"timeouts":{}}`
	if err != nil || asked != want || !strings.HasPrefix(out, "It would start now, on mac-1/phone-1.\n") {
		t.Errorf("%v\n%s\n%s", err, asked, out)
	}
	for says, args := range map[string][]string{"--account": {"sessions", "explain"}, "no such file": {"sessions", "explain", "--body", file + "x"}} {
		if _, err := runAt(t, server.URL, args...); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
