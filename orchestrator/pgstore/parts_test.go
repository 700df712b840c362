package pgstore_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/recorder"
)

func TestRecordingUpdates(t *testing.T) {
	s := open(t, 1)
	ctx := t.Context()
	n := wish("a")
	mustCreate(t, s, n)
	c := mustClaim(t, s)
	at := time.Now().Truncate(time.Microsecond)
	u := recorder.RecordingUpdate{ID: "r", Session: c.Session, Account: "a", Term: c.Term, Placement: place.Replicated, State: recorder.StateRecording,
		Key: "recordings/a/r.webm", Started: at, At: at,
		Copies: []recorder.Copy{{Region: place.EU, Bucket: "b-eu", State: recorder.CopyPending}, {Region: place.US, Bucket: "b-us", State: recorder.CopyPending}}}
	for range 2 { // delivered at least once
		if err := s.RecordingChanged(ctx, u); err != nil {
			t.Fatal(err)
		}
	}
	u.State, u.Bytes, u.Duration, u.SHA256 = recorder.StateAvailable, 9, 1500*time.Millisecond, strings.Repeat("0", 64)
	u.Copies[0].State, u.Copies[0].Verified = recorder.CopyVerified, at
	if err := s.RecordingChanged(ctx, u); err != nil {
		t.Fatal(err)
	}
	old := u
	old.Term, old.State = c.Term-1, recorder.StateQuarantined
	if err := s.RecordingChanged(ctx, old); !errors.Is(err, recorder.ErrFenced) {
		t.Fatalf("an older term: %v", err)
	}
	r, key, err := s.Recording(ctx, c.Session)
	if err != nil || key != u.Key || r.State != "available" || r.DurationMS != 1500 || len(r.Copies) != 2 || r.Copies[0].VerifiedAt == nil || r.Copies[1].VerifiedAt != nil {
		t.Fatalf("%+v, %q, %v", r, key, err)
	}
	// A spool that cannot be read says no more than its name.
	if err := s.RecordingChanged(ctx, recorder.RecordingUpdate{ID: "r", State: recorder.StateQuarantined, Cause: recorder.CauseCorrupt, At: at}); err != nil {
		t.Fatal(err)
	}
	if r, _, err = s.Recording(ctx, c.Session); err != nil || r.State != "quarantined" || r.Bytes != 9 {
		t.Fatalf("%+v, %v", r, err)
	}
}
