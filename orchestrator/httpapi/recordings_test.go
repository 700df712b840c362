package httpapi_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/recorder"
)

// TestRecordingURLs: what can be read has a URL for as long as was asked; what cannot says why, and whether to come back.
func TestRecordingURLs(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 10)
	_, err := r.client.PutAccount(t.Context(), "c", api.PutAccount{Recordings: "replicated"})
	must(t, err)
	s := r.running(t, api.CreateSession{Account: "c"})
	at := time.Now().Truncate(time.Microsecond)
	u := recorder.RecordingUpdate{ID: "rec", Session: s.ID, Account: "c", Term: s.Term, Placement: place.Replicated, Key: "recordings/c/rec.webm", Started: at, At: at,
		Copies: []recorder.Copy{{Region: place.EU, Bucket: "recordings-eu", State: recorder.CopyPending}, {Region: place.US, Bucket: "recordings-us", State: recorder.CopyPending}}}
	store := func(state recorder.State, cause recorder.Cause, eu, us recorder.CopyState) {
		t.Helper()
		u.State, u.Cause = state, cause
		for i, c := range []recorder.CopyState{eu, us} {
			if u.Copies[i].State = c; c == recorder.CopyVerified {
				u.Copies[i].Verified, u.Copies[i].ETag, u.Bytes, u.SHA256 = at, "abc", 9, strings.Repeat("0", 64)
			}
		}
		must(t, r.store.RecordingChanged(t.Context(), u))
	}
	refused := func(query string, status int, kind, says, after string) {
		t.Helper()
		resp, b := r.call(t, "GET", "/v1/recordings/rec/url"+query, "")
		p := decode[struct{ Type, Detail, State string }](t, b)
		if resp.StatusCode != status || p.Type != "urn:driftstack:problem:"+kind || !strings.Contains(p.Detail, says) || resp.Header.Get("Retry-After") != after ||
			(kind != "not-found" || says == "placement") && p.State == "" {
			t.Errorf("%s: %d, Retry-After %q, %s", query, resp.StatusCode, resp.Header.Get("Retry-After"), b)
		}
	}
	store(recorder.StateRecording, "", recorder.CopyPending, recorder.CopyPending)
	refused("", 409, "recording-not-stored", "it is recording", "5")
	store(recorder.StateAvailable, "", recorder.CopyVerified, recorder.CopyUploading)
	refused("?region=us", 409, "recording-not-stored", "its copy in us is uploading", "5")
	refused("?account=a", 404, "not-found", "", "")

	for query, life := range map[string]string{"": "3600", "?expires_in=60&account=c": "60"} {
		resp, b := r.call(t, "GET", "/v1/recordings/rec/url"+query, "")
		got := decode[api.RecordingURL](t, b)
		signed, err := url.Parse(got.URL)
		must(t, err)
		if resp.StatusCode != 200 || signed.Path != "/recordings-eu/recordings/c/rec.webm" || signed.Query().Get("X-Amz-Expires") != life || got.Region != "eu" || got.Bytes != 9 ||
			(time.Until(got.ExpiresAt).Seconds() > 60) != (life == "3600") {
			t.Errorf("%s: %d %s", query, resp.StatusCode, b)
		}
	}
	for _, query := range []string{"?expires_in=3601", "?expires_in=0", "?region=mars"} {
		if resp, b := r.call(t, "GET", "/v1/recordings/rec/url"+query, ""); resp.StatusCode != 422 {
			t.Errorf("%s: %d %s", query, resp.StatusCode, b)
		}
	}
	// It is the operator's way to have the US copies removed, and it says so.
	resp, b := r.call(t, "PUT", "/v1/accounts/c", `{"recordings":"eu","reason":"contract"}`, func(r *http.Request) { r.Header.Set("Driftstack-Operator", "ada") })
	if a := decode[api.Account](t, b); resp.StatusCode != 200 || a.Removing != 1 {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
	refused("?region=us", 410, "copy-removed", "region=eu", "")
	_, b = r.call(t, "GET", "/v1/audit", "")
	if l := decode[api.AuditList](t, b); len(l.Entries) == 0 || l.Entries[0].Action != "placement" || l.Entries[0].Actor != "ada" || l.Entries[0].Reason != "contract" {
		t.Errorf("audit %s", b)
	}
	rec, err := r.client.RecordingByID(t.Context(), "rec")
	if err != nil || rec.Placement != "eu" || len(rec.Copies) != 2 || rec.Copies[0].State != "verified" || rec.Copies[0].ETag != "abc" || rec.Copies[0].URL != "" || rec.Copies[1].State != "removing" {
		t.Errorf("%+v, %v", rec, err)
	}
	if rec, err = r.client.Recording(t.Context(), s.ID); err != nil || rec.Copies[0].URL == "" || rec.Copies[1].URL != "" {
		t.Errorf("%+v, %v", rec, err)
	}
	for want, query := range map[int]string{1: "?account=c&state=available&limit=1&session=" + s.ID + "&since=" + at.UTC().Format(time.RFC3339), 0: "?account=a"} {
		_, b := r.call(t, "GET", "/v1/recordings"+query, "")
		if l := decode[api.RecordingList](t, b); len(l.Recordings) != want {
			t.Errorf("%s: %s", query, b)
		}
	}
	if resp, b := r.call(t, "GET", "/v1/recordings?cursor=x", ""); resp.StatusCode != 422 {
		t.Errorf("%d %s", resp.StatusCode, b)
	}

	for i, c := range []struct {
		state  recorder.State
		cause  recorder.Cause
		region string
		status int
		kind   string
		says   string
	}{
		{recorder.StateAvailable, "", "us", 404, "not-found", "placement"},
		{recorder.StateEmpty, recorder.CauseLost, "eu", 404, "recording-empty", "source_lost"},
		{recorder.StateLost, recorder.CauseSpoolLost, "eu", 410, "recording-lost", "spool_lost"},
		{recorder.StateQuarantined, recorder.CauseCorrupt, "eu", 409, "recording-quarantined", "corrupt"},
	} {
		v := u
		queued, err := r.client.CreateSession(t.Context(), unrecorded(api.CreateSession{Account: "c"}))
		must(t, err)
		v.ID, v.Session, v.State, v.Cause, v.Term = fmt.Sprint("rec", i), queued.ID, c.state, c.cause, 1
		v.Copies = []recorder.Copy{{Region: place.EU, Bucket: "recordings-eu", State: recorder.CopyPending}}
		must(t, r.store.RecordingChanged(t.Context(), v))
		resp, b := r.call(t, "GET", "/v1/recordings/"+v.ID+"/url?region="+c.region, "")
		if p := decode[struct{ Type, Detail string }](t, b); resp.StatusCode != c.status || p.Type != "urn:driftstack:problem:"+c.kind || !strings.Contains(p.Detail, c.says) || resp.Header.Get("Retry-After") != "" {
			t.Errorf("%s: %d %s", c.state, resp.StatusCode, b)
		}
	}
}

// TestSessionWithoutRoomForItsRecording runs, and says why it is not recorded.
func TestSessionWithoutRoomForItsRecording(t *testing.T) {
	t.Parallel()
	var dialled atomic.Bool // before its driver starts
	r := newTappedRig(t, fakePhones(1), 10, taps{
		spool: func(c *recorder.Config) { c.Free, c.BeginAbove = func(string) (int64, error) { return 99, nil }, 100 },
		fleet: func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == wire.PathRecording {
					dialled.Store(true)
				}
				h.ServeHTTP(w, r)
			})
		},
	})
	s, err := r.client.CreateSession(t.Context(), api.CreateSession{Account: "a"})
	must(t, err)
	_, err = r.client.Wait(t.Context(), s.ID, api.Running)
	must(t, err)
	if dialled.Load() {
		t.Error("its host records it")
	}
	resp, b := r.call(t, "GET", "/v1/recordings?session="+s.ID, "")
	list := decode[api.RecordingList](t, b).Recordings
	if resp.StatusCode != 200 || len(list) != 1 || list[0].State != "empty" || list[0].Cause != "spool_full" || list[0].Partial || len(list[0].Copies) != 0 {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
	eventually(t, "its log says so", func() bool {
		events, err := r.client.Events(t.Context(), s.ID, 0)
		must(t, err)
		said := func(kind orchestrator.EventKind) bool {
			return slices.ContainsFunc(events, func(e api.Event) bool { return e.Kind == string(kind) })
		}
		return said(orchestrator.EventRecordingFailed) && !said(orchestrator.EventRecording)
	})
	if resp, b := r.call(t, "GET", "/healthz", ""); resp.StatusCode != 200 || string(b) != "ok\nroom for recordings: low, 99 bytes free\n" {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
}
