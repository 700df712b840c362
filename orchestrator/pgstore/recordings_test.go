package pgstore_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/recorder"
)

// recorded stores a recording of a new session of an account, stored in both regions unless change says otherwise.
func recorded(t *testing.T, s *pgstore.Store, id, account string, started time.Time, change ...func(*recorder.RecordingUpdate)) recorder.RecordingUpdate {
	t.Helper()
	n := wish(account)
	mustCreate(t, s, n)
	verified := func(r place.Region) recorder.Copy {
		return recorder.Copy{Region: r, Bucket: "b-" + string(r), State: recorder.CopyVerified, ETag: "e", Verified: started}
	}
	u := recorder.RecordingUpdate{ID: id, Session: n.ID, Account: account, Term: 1, Placement: place.Replicated, State: recorder.StateReplicated,
		Key: "recordings/" + id, Started: started, At: started, Bytes: 9, SHA256: strings.Repeat("0", 64), Copies: []recorder.Copy{verified(place.EU), verified(place.US)}}
	for _, c := range change {
		c(&u)
	}
	must(t, s.RecordingChanged(t.Context(), u))
	return u
}

func TestRecordingsList(t *testing.T) {
	s := open(t, 1)
	at := time.Now().Truncate(time.Microsecond)
	var want []string // newest first
	for i := range 7 {
		id := fmt.Sprintf("r%d", i)
		recorded(t, s, id, "a", at.Add(time.Duration(i/2)*time.Minute)) // two of each moment
		want = append([]string{id}, want...)
	}
	other := recorded(t, s, "other", "b", at, func(u *recorder.RecordingUpdate) {
		u.Placement, u.State, u.Copies = place.EUOnly, recorder.StateAvailable, u.Copies[:1]
	})
	ids := func(f pgstore.RecordingFilter) (got []string) {
		t.Helper()
		for pages := 0; ; pages++ {
			l, err := s.Recordings(t.Context(), f)
			if err != nil || len(l.Recordings) > f.Limit || pages > 9 {
				t.Fatalf("page %d: %+v, %v", pages, l, err)
			}
			for _, r := range l.Recordings {
				got = append(got, r.ID)
				if n := len(r.Copies); n == 0 || r.Copies[0].Region != "eu" || r.Copies[0].Bytes != 9 || (r.ID == "other") != (n == 1) {
					t.Errorf("copies of %s: %+v", r.ID, r.Copies)
				}
			}
			if l.Next == "" {
				return got
			}
			f.Cursor = l.Next
		}
	}
	for name, c := range map[string]struct {
		f    pgstore.RecordingFilter
		want []string
	}{
		"of an account": {pgstore.RecordingFilter{Account: "a", Limit: 3}, want},
		"of nobody":     {pgstore.RecordingFilter{Account: "c", Limit: 3}, nil},
		"of a session":  {pgstore.RecordingFilter{Session: other.Session, Limit: 3}, []string{"other"}},
		"by state":      {pgstore.RecordingFilter{State: "available", Limit: 3}, []string{"other"}},
		"by time":       {pgstore.RecordingFilter{Since: at.Add(time.Minute), Before: at.Add(3 * time.Minute), Limit: 3}, []string{"r5", "r4", "r3", "r2"}},
	} {
		if got := ids(c.f); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	if got := ids(pgstore.RecordingFilter{Limit: 5}); len(got) != 8 || !slices.Contains(got, "other") {
		t.Errorf("all: %v", got)
	}
	if _, _, err := s.RecordingByID(t.Context(), "other", "a"); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("another account's: %v", err)
	}
	if r, key, err := s.RecordingByID(t.Context(), "other", "b"); err != nil || key != other.Key || r.Account != "b" {
		t.Errorf("%+v, %q, %v", r, key, err)
	}
}

// TestPlacementChange: from replicated to eu, every US copy goes: those that are there, those that are being made, and those that a session which was
// created before makes later; and none before the EU has one.
func TestPlacementChange(t *testing.T) {
	s := open(t, 1)
	ctx := t.Context()
	at := time.Now().Truncate(time.Microsecond)
	whole := recorded(t, s, "whole", "a", at)
	pending := func(region place.Region) func(*recorder.RecordingUpdate) {
		return func(u *recorder.RecordingUpdate) {
			u.State = recorder.StateUploading
			for i := range u.Copies {
				if u.Copies[i].Region == region {
					u.Copies[i].State, u.Copies[i].Verified = recorder.CopyUploading, time.Time{}
				}
			}
		}
	}
	early := recorded(t, s, "early", "a", at, pending(place.US))
	lone := recorded(t, s, "lone", "a", at, pending(place.EU)) // the EU is down
	by := orchestrator.Act{By: "ada", Reason: "contract"}
	must(t, second(s.PutAccount(ctx, "c", api.PutAccount{Recordings: "replicated"}, by)))
	theirs := recorded(t, s, "theirs", "c", at)
	a, err := s.PutAccount(ctx, "a", api.PutAccount{Recordings: "eu"}, by)
	if err != nil || a.Recordings != "eu" || a.Removing != 3 {
		t.Fatalf("%+v, %v", a, err)
	}
	must(t, second(s.PutAccount(ctx, "a", api.PutAccount{Recordings: "eu"}, by))) // again: nothing to tell of
	list, err := s.Audit(ctx, pgstore.AuditFilter{Limit: 10})
	if err != nil || len(list.Entries) != 1 || list.Entries[0].Action != "placement" || list.Entries[0].Account != "a" || list.Entries[0].Actor != "ada" ||
		list.Entries[0].Detail != "replicated to eu; US copies to remove: 3" {
		t.Errorf("audit %+v, %v", list, err)
	}
	late := recorded(t, s, "late", "a", at) // begun by a session that was created before
	must(t, s.RecordingChanged(ctx, whole)) // delivered again

	due := func(again time.Duration) (ids []string) {
		t.Helper()
		list, err := s.CopiesToRemove(ctx, place.US, time.Hour, again, 10)
		must(t, err)
		for _, c := range list {
			if c.Bucket != "b-us" || c.Key != "recordings/"+c.Recording || c.Region != place.US {
				t.Errorf("%+v", c)
			}
			ids = append(ids, c.Recording)
		}
		slices.Sort(ids)
		return ids
	}
	if got := due(time.Hour); !slices.Equal(got, []string{late.ID, whole.ID}) {
		t.Errorf("to be removed first: %v", got)
	}
	if got := due(time.Hour); got != nil {
		t.Errorf("%v are taken twice", got)
	}
	if got := due(0); !slices.Equal(got, []string{late.ID, whole.ID}) {
		t.Errorf("tried again: %v", got)
	}
	if got, err := s.CopiesToRemove(ctx, place.EU, time.Hour, 0, 10); err != nil || len(got) != 0 {
		t.Errorf("in the EU: %v, %v", got, err)
	}
	for _, u := range []recorder.RecordingUpdate{early, lone} {
		u.State = recorder.StateReplicated
		for i := range u.Copies {
			u.Copies[i].State, u.Copies[i].Verified = recorder.CopyVerified, at
		}
		must(t, s.RecordingChanged(ctx, u))
	}
	if got := due(time.Hour); !slices.Equal(got, []string{early.ID, lone.ID}) {
		t.Errorf("once stored: %v", got)
	}
	us := func(id string) (api.Recording, api.RecordingCopy) {
		t.Helper()
		r, _, err := s.RecordingByID(ctx, id, "a")
		must(t, err)
		return r, r.Copies[1]
	}
	if r, c := us(whole.ID); c.State != "removing" || r.State != "available" || r.Placement != "eu" || r.Copies[0].State != "verified" {
		t.Errorf("while it is removed: %+v", r)
	}
	gone := recorder.StoredCopy{Recording: whole.ID, Region: place.US}
	must(t, s.CopyRemoved(ctx, gone, at))
	must(t, s.RecordingChanged(ctx, whole)) // and again
	if r, c := us(whole.ID); c.State != "removed" || c.RemovedAt == nil || !c.RemovedAt.Equal(at) || r.State != "available" {
		t.Errorf("once it is removed: %+v", r)
	}
	if l, err := s.Recordings(ctx, pgstore.RecordingFilter{Account: "a", State: "replicated", Limit: 10}); err != nil || len(l.Recordings) != 0 {
		t.Errorf("still said to be replicated: %+v, %v", l, err)
	}
	// Changed back, what was to be removed still is, and what comes is kept.
	a, err = s.PutAccount(ctx, "a", api.PutAccount{Recordings: "replicated"}, by)
	if err != nil || a.Removing != 3 {
		t.Errorf("%+v, %v", a, err)
	}
	recorded(t, s, "new", "a", at)
	if r, c := us("new"); c.State != "verified" || r.State != "replicated" {
		t.Errorf("%+v", r)
	}
	if r, _, err := s.RecordingByID(ctx, theirs.ID, "c"); err != nil || r.State != "replicated" || r.Placement != "replicated" || r.Copies[1].State != "verified" {
		t.Errorf("another account's: %+v, %v", r, err)
	}
}
