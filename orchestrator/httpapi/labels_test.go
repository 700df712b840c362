package httpapi_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"github.com/driftstack/fleet/orchestrator/api"
)

// A session's labels come back with it and find it, whichever way it was asked for; nobody else is told them.
func TestLabels(t *testing.T) {
	r := newRig(t, 2, 10)
	secret := "run secret=7, a"
	one := r.running(t, api.CreateSession{Labels: api.Labels{"run": secret, "team": "a"}})
	_, b := r.call(t, "POST", "/session", `{"capabilities":{"alwaysMatch":{"driftstack:options":{"account":"a","recording":false,"labels":{"run":"`+secret+`","team":"b"}}}}}`)
	created := decode[w3c](t, b)
	if strings.Contains(string(b), "secret") || created.Value.SessionID == "" {
		t.Fatalf("%s", b)
	}
	for range 2 {
		d := <-r.drivers
		if asked := string(d.Asked()); strings.Contains(asked, "secret") || strings.Contains(asked, "driftstack") {
			t.Errorf("a driver was asked for %s", asked)
		}
	}
	for query, want := range map[string][]string{
		"label=" + url.QueryEscape("run="+secret): {created.Value.SessionID, one.ID},
		"label=team%3Da": {one.ID},
		"label=team=b&label=" + url.QueryEscape("run="+secret): {created.Value.SessionID},
		"label=team=c":              nil,
		"label=team=a&state=ended":  nil,
		"label=team=a&label=team=a": {one.ID},
		"account=a&label=team=b&label=team=b&state=running&x=y": {created.Value.SessionID},
	} {
		resp, b := r.call(t, "GET", "/v1/sessions?"+query, "")
		l := decode[api.SessionList](t, b)
		if resp.StatusCode != 200 || len(l.Sessions) != len(want) {
			t.Errorf("%s: %d %s", query, resp.StatusCode, b)
			continue
		}
		for i, s := range l.Sessions {
			if s.ID != want[i] || s.Labels["run"] != secret || len(s.Labels) != 2 {
				t.Errorf("%s: %s with %v", query, s.ID, s.Labels)
			}
		}
	}
	for _, query := range []string{"label=team", "label==x", "label=a=1&label=a=2", "label=%00=x", "label=" + strings.Repeat("label=a=1&label=", 33) + "a=1"} {
		if resp, b := r.call(t, "GET", "/v1/sessions?"+query, ""); resp.StatusCode != 422 {
			t.Errorf("%.30s: %d %s", query, resp.StatusCode, b)
		}
	}
	for path, status := range map[string]int{"/v1/sessions": 422, "/session": 400} {
		for _, labels := range []string{`{"a=b":"c"}`, `{"a":1}`, `["a"]`, `{"a":"\u0000"}`} {
			body := `{"account":"a","labels":` + labels + `}`
			if path == "/session" {
				body = `{"capabilities":{"alwaysMatch":{"driftstack:options":` + body + `}}}`
			}
			if resp, b := r.call(t, "POST", path, body); resp.StatusCode != status || !strings.Contains(string(b), "abel") && !strings.Contains(string(b), "U+0000") {
				t.Errorf("%s with %s: %d %s", path, labels, resp.StatusCode, b)
			}
		}
	}
	for _, id := range []string{one.ID, created.Value.SessionID} {
		if resp, b := r.call(t, "DELETE", "/session/"+id, ""); resp.StatusCode != 200 {
			t.Errorf("%d %s", resp.StatusCode, b)
		}
		events, err := r.client.Events(t.Context(), id, 0)
		must(t, err)
		if b, err := json.Marshal(events); err != nil || strings.Contains(string(b), "secret") || len(events) == 0 {
			t.Errorf("%s, %v", b, err)
		}
		if v, err := r.client.Session(t.Context(), id); err != nil || v.Labels["run"] != secret {
			t.Errorf("after the end: %v, %v", v.Labels, err)
		}
	}
}
