package httpapi_test

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
)

func number(n int) *int { return &n }

// TestQuotas: an operator's quota holds at once for what comes, what waits for room gets it once it is raised, and who did it is known.
func TestQuotas(t *testing.T) {
	r := newRig(t, 1, 10)
	put := func(q api.Quota) api.AccountQuota {
		t.Helper()
		v, err := r.client.As("ada").PutQuota(t.Context(), "a", api.PutQuota{Quota: q, Reason: "contract"})
		must(t, err)
		return v
	}
	create := func() (api.Session, error) {
		return r.client.CreateSession(t.Context(), unrecorded(api.CreateSession{}))
	}
	if v := put(api.Quota{Concurrent: number(0), Queued: number(1), Weight: 3}); *v.Concurrent != 0 || *v.Queued != 1 || v.CreatesPerMinute != nil || v.Weight != 3 {
		t.Errorf("%+v", v)
	}
	s, err := create()
	must(t, err)
	eventually(t, "it waits for the quota", func() bool {
		v, err := r.client.Session(t.Context(), s.ID)
		return err == nil && v.State == api.Queued && v.Queue.WaitsFor == api.WaitsForQuota
	})
	over := func(which string) {
		t.Helper()
		resp, b := r.call(t, "POST", "/v1/sessions", `{"account":"a","recording":false}`)
		after, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if resp.StatusCode != http.StatusTooManyRequests || err != nil || after < 1 || after > 65 || !strings.Contains(string(b), "over the quota "+which) {
			t.Errorf("%s: %d, Retry-After %q, %s", which, resp.StatusCode, resp.Header.Get("Retry-After"), b)
		}
		if v := r.explain(t, `{"account":"a"}`); v.Verdict != api.VerdictRefused || v.Refused[0].Key != api.KeyQuota || v.Refused[0].Wanted != which {
			t.Errorf("explained: %+v", v.Refused)
		}
	}
	over("queued")
	put(api.Quota{CreatesPerMinute: number(1)})
	if v, err := r.client.Wait(t.Context(), s.ID, api.Running); err != nil || v.State != api.Running {
		t.Errorf("once there is room: %+v, %v", v, err)
	}
	over("creates_per_minute")
	v, err := r.client.Quota(t.Context(), "a")
	if must(t, err); v.Active != 1 || v.QueuedNow != 0 || v.CreatedLately != 1 || v.Concurrent != nil || v.Weight != 1 {
		t.Errorf("%+v", v)
	}
	l, err := r.client.Audit(t.Context(), "", 10, 0)
	if must(t, err); len(l.Entries) != 2 || l.Entries[0].Account != "a" || l.Entries[0].Actor != "ada" || l.Entries[0].Reason != "contract" ||
		l.Entries[0].Detail != "concurrent default, queued default, creates per minute 1, weight 1; before: concurrent 0, queued 1, creates per minute default, weight 3" {
		t.Errorf("%+v", l.Entries)
	}
	var p *client.Problem
	if _, err := r.client.Quota(t.Context(), "nobody"); !errors.As(err, &p) || p.Status != http.StatusNotFound {
		t.Errorf("of no account: %v", err)
	}
	if resp, b := r.call(t, "PUT", "/v1/accounts/a/quota", `{"weight":1001}`); resp.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
}

// TestIdempotencyKeyOverHTTP: the same request gives the same session, another one 409.
func TestIdempotencyKeyOverHTTP(t *testing.T) {
	r := newRig(t, 1, 10)
	post := func(key, body string) (int, string, string) {
		t.Helper()
		resp, b := r.call(t, "POST", "/v1/sessions", body, func(q *http.Request) { q.Header.Set("Idempotency-Key", key) })
		return resp.StatusCode, decode[api.Session](t, b).ID, string(b)
	}
	const body = `{"account":"a","recording":false,"name":"one"}`
	status, first, said := post("k-1", body)
	if status != http.StatusCreated || first == "" {
		t.Fatalf("%d %s", status, said)
	}
	for _, again := range []string{body, `{"name":"one", "recording":false, "account":"a"}`} { // the same, written otherwise
		if status, id, said := post(`"k-1"`, again); status != http.StatusCreated || id != first {
			t.Errorf("again: %d %s", status, said)
		}
	}
	if status, _, said := post("k-1", strings.Replace(body, "one", "two", 1)); status != http.StatusConflict || !strings.Contains(said, "a new request needs a new key") {
		t.Errorf("another request: %d %s", status, said)
	}
	if status, id, said := post("k-2", body); status != http.StatusCreated || id == first {
		t.Errorf("another key: %d %s", status, said)
	}
	capable := func(caps string) string { return `{"account":"a","recording":false,"capabilities":` + caps + `}` }
	_, first, _ = post("k-3", capable(`{"pageLoadStrategy":"eager","timeouts":{"script":1000}}`))
	if status, id, said := post("k-3", capable(`{"timeouts":{"script":1e3}, "pageLoadStrategy":"eager"}`)); status != http.StatusCreated || id != first {
		t.Errorf("the same capabilities: %d %s", status, said)
	}
	must(t, r.store.Revoke(t.Context(), "mac-1", 0, orchestrator.Act{By: "test"}))
	if status, id, said := post("k-3", capable(`{"pageLoadStrategy":"eager","timeouts":{"script":1000}}`)); status != http.StatusCreated || id != first {
		t.Errorf("again, without a device: %d %s", status, said)
	}
	if status, _, said := post("k-3", capable(`{"pageLoadStrategy":"none"}`)); status != http.StatusConflict {
		t.Errorf("another request, without a device: %d %s", status, said)
	}
	if status, _, said := post("käse", body); status != http.StatusUnprocessableEntity {
		t.Errorf("a key that is none: %d %s", status, said)
	}
}
