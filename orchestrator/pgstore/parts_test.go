package pgstore_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/profilestate"
	"github.com/driftstack/fleet/recorder"
)

func TestPublishIsOneSwapUnderTheTerm(t *testing.T) {
	s := open(t, 1)
	ctx := t.Context()
	p, err := s.CreateProfile(ctx, uuid.NewString(), api.CreateProfile{Account: "a", Name: "p"})
	if err != nil {
		t.Fatal(err)
	}
	n := wish("a")
	n.Profile = p.ID
	mustCreate(t, s, n)
	c := mustClaim(t, s)
	ref := profilestate.Ref{Account: "a", Profile: p.ID}
	generation := func(number int64, of string) profilestate.Generation {
		return profilestate.Generation{Number: number, File: of, SHA256: sha256.Sum256([]byte(of)), Bytes: 7, Term: c.Term}
	}
	empty, err := s.Current(ctx, ref)
	if err != nil || empty != (profilestate.Generation{}) {
		t.Fatalf("a new profile has %+v, %v", empty, err)
	}
	// Of many writers with the same idea of what is current, one wins.
	var mu sync.Mutex
	var winner profilestate.Generation
	var group sync.WaitGroup
	for _, name := range []string{"one", "two", "three", "four"} {
		group.Go(func() {
			next := generation(1, name)
			err := s.Publish(context.Background(), c.Session, c.Term, ref, empty, next)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && winner.Number == 0:
				winner = next
			case !errors.Is(err, profilestate.ErrConflict):
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	group.Wait()
	if now, err := s.Current(ctx, ref); err != nil || now != winner {
		t.Fatalf("current is %+v, %v; want %+v", now, err, winner)
	}
	for name, err := range map[string]error{
		"older term":       s.Publish(ctx, c.Session, c.Term-1, ref, winner, generation(2, "x")),
		"another session":  s.Publish(ctx, "none", c.Term, ref, winner, generation(2, "x")),
		"another account":  s.Publish(ctx, c.Session, c.Term, profilestate.Ref{Account: "b", Profile: p.ID}, winner, generation(2, "x")),
		"after its ending": errors.Join(finish(s, c, orchestrator.Completed), s.Publish(ctx, c.Session, c.Term, ref, winner, generation(2, "x"))),
	} {
		if !errors.Is(err, profilestate.ErrFenced) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if now, err := s.Current(ctx, ref); err != nil || now != winner {
		t.Fatalf("a fenced writer changed it to %+v, %v", now, err)
	}
}

func TestFirstWrappedKeyWins(t *testing.T) {
	s := open(t, 0)
	ctx := t.Context()
	p, err := s.CreateProfile(ctx, uuid.NewString(), api.CreateProfile{Account: "a", Name: "p"})
	if err != nil {
		t.Fatal(err)
	}
	if has, err := s.HasWrappedKeys(ctx); has || err != nil {
		t.Fatal(has, err)
	}
	if k, err := s.WrappedKey(ctx, "a", p.ID); k != nil || err != nil {
		t.Fatal(k, err)
	}
	for range 2 {
		for _, mine := range []string{"first", "second"} {
			if k, err := s.PutWrappedKey(ctx, "a", p.ID, []byte(mine)); string(k) != "first" || err != nil {
				t.Fatalf("%q, %v", k, err)
			}
		}
	}
	if _, err := s.WrappedKey(ctx, "b", p.ID); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Fatalf("another account's: %v", err)
	}
	if has, err := s.HasWrappedKeys(ctx); !has || err != nil {
		t.Fatal(has, err)
	}
}

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
