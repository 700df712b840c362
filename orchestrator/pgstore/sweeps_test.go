package pgstore_test

import (
	"slices"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/recorder"
)

// TestUselessUploads: an upload is useless only once somebody has said so of its recording.
func TestUselessUploads(t *testing.T) {
	s := open(t, 1)
	ctx := t.Context()
	at := time.Now().Truncate(time.Microsecond)
	copies := func(eu, us recorder.CopyState) func(*recorder.RecordingUpdate) {
		return func(u *recorder.RecordingUpdate) {
			u.State, u.Copies[0].State, u.Copies[1].State = recorder.StateUploading, eu, us
		}
	}
	half := recorded(t, s, "half", "a", at, copies(recorder.CopyVerified, recorder.CopyUploading))
	live := recorded(t, s, "live", "a", at, copies(recorder.CopyUploading, recorder.CopyPending))
	empty := recorded(t, s, "empty", "a", at, copies(recorder.CopyPending, recorder.CopyPending), func(u *recorder.RecordingUpdate) { u.State = recorder.StateEmpty })
	one := recorded(t, s, "one", "a", at, copies(recorder.CopyUploading, recorder.CopyUploading))
	two := one
	two.ID, two.Term = "two", 2
	must(t, s.RecordingChanged(ctx, two)) // one is superseded
	mended := recorded(t, s, "mended", "a", at)
	_, err := s.CopyFound(ctx, recorder.CheckedCopy{Of: mended, Region: place.EU}, recorder.FindingMissing, "", at, time.Hour)
	must(t, err)
	for name, c := range map[string]struct {
		region      place.Region
		session, id string
		want        bool
	}{
		"of a verified copy":               {place.EU, half.Session, "half", true},
		"of the other region":              {place.US, half.Session, "half", false},
		"of a recording that goes on":      {place.EU, live.Session, "live", false},
		"of an empty one":                  {place.EU, empty.Session, "empty", true},
		"of a superseded one":              {place.EU, one.Session, "one", true},
		"of its successor":                 {place.EU, one.Session, "two", false},
		"of a copy that is being repaired": {place.EU, mended.Session, "mended", false},
		"of nobody":                        {place.EU, "another fleet's", "another fleet's", false},
		"under another session's name":     {place.EU, half.Session, "live", false},
	} {
		if got, err := s.Useless(ctx, c.region, c.session, c.id); err != nil || got != c.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestCopiesAreChecked: which copies are looked at, and what becomes of them.
func TestCopiesAreChecked(t *testing.T) {
	s := open(t, 1)
	ctx := t.Context()
	at := time.Now().Truncate(time.Microsecond)
	const day = 24 * time.Hour
	due := func(region place.Region, abandoned time.Duration) (ids []string, list []recorder.CheckedCopy) {
		t.Helper()
		list, err := s.CopiesToCheck(ctx, region, "b-"+string(region), abandoned, time.Hour, 100)
		must(t, err)
		for _, c := range list {
			ids = append(ids, c.Of.ID)
		}
		slices.Sort(ids)
		return ids, list
	}
	eu := func(u *recorder.RecordingUpdate) {
		u.Placement, u.State, u.Copies = place.EUOnly, recorder.StateAvailable, u.Copies[:1]
	}
	open := func(u *recorder.RecordingUpdate) { // nothing is verified
		u.State = recorder.StateUploading
		for i := range u.Copies {
			u.Copies[i].State, u.Copies[i].Verified, u.Copies[i].ETag = recorder.CopyUploading, time.Time{}, ""
		}
	}
	old := at.Add(-10 * day)
	whole := recorded(t, s, "whole", "a", at)
	recorded(t, s, "eu-only", "a", at, eu)
	half := recorded(t, s, "half", "a", old, func(u *recorder.RecordingUpdate) {
		u.State, u.Copies[1].State, u.Copies[1].Verified, u.Copies[1].ETag = recorder.StateAvailable, recorder.CopyPending, time.Time{}, ""
	})
	recorded(t, s, "going on", "a", old, open)
	lost := recorded(t, s, "lost", "a", old, open)
	recorded(t, s, "lost lately", "a", at, open)
	for _, id := range []string{"lost", "lost lately"} {
		s.EndSessionOf(t, id)
	}
	if ids, _ := due(place.EU, 5*day); ids != nil {
		t.Errorf("due at once: %v", ids)
	}
	s.AllCopiesDue(t)
	ids, list := due(place.EU, 5*day)
	if want := []string{"eu-only", "half", "lost", "whole"}; !slices.Equal(ids, want) {
		t.Errorf("in the EU: %v, want %v", ids, want)
	}
	for _, c := range list {
		if c.Abandoned != (c.Of.ID == lost.ID) || c.Of.ID == "whole" && (c.ETag != "e" || c.Healthy != "e" || c.Of.Key != whole.Key || c.Of.Bytes != 9 || c.Of.SHA256 != whole.SHA256 || c.Of.Session != whole.Session) {
			t.Errorf("%+v", c)
		}
	}
	if ids, _ := due(place.EU, 5*day); ids != nil {
		t.Errorf("taken twice: %v", ids)
	}
	ids, list = due(place.US, 5*day)
	if want := []string{"half", "whole"}; !slices.Equal(ids, want) {
		t.Errorf("in the US: %v, want %v", ids, want)
	}
	for _, c := range list {
		if c.Of.ID == half.ID && (c.Healthy != "e" || c.ETag != "" || c.Abandoned) {
			t.Errorf("%+v", c)
		}
	}
	s.AllCopiesDue(t)
	if ids, _ := due(place.US, 30*day); !slices.Equal(ids, []string{"whole"}) {
		t.Errorf("not abandoned for long enough: %v", ids)
	}

	find := func(u recorder.RecordingUpdate, region place.Region, f recorder.Finding, etag string) bool {
		t.Helper()
		wanted, err := s.CopyFound(ctx, recorder.CheckedCopy{Of: u, Region: region}, f, etag, at, time.Hour)
		must(t, err)
		return wanted
	}
	shown := func(id string) api.Recording {
		t.Helper()
		r, _, err := s.RecordingByID(ctx, id, "a")
		must(t, err)
		return r
	}
	if !find(whole, place.EU, recorder.FindingAltered, "") {
		t.Error("a copy is not wanted")
	}
	must(t, s.RecordingChanged(ctx, whole)) // delivered again
	if c := shown("whole").Copies[0]; c.State != "repairing" || c.Damage != "altered" || c.DamagedAt == nil || c.CheckedAt == nil || c.ETag != "e" {
		t.Errorf("while it is repaired: %+v", c)
	}
	find(whole, place.EU, recorder.FindingRepaired, "new")
	if c := shown("whole").Copies[0]; c.State != "verified" || c.Damage != "altered" || c.Repairs != 1 || c.ETag != "new" {
		t.Errorf("once it is: %+v", c)
	}
	find(half, place.US, recorder.FindingRepaired, "e")
	if r := shown("half"); r.State != "replicated" || r.Copies[1].State != "verified" {
		t.Errorf("with a copy of the other region's: %+v", r)
	}

	// Its account is changed: from then on nothing is put back in the US, and what is removed stays so.
	find(whole, place.US, recorder.FindingMissing, "")
	_, err := s.PutAccount(ctx, "a", api.PutAccount{Recordings: "eu"}, orchestrator.Act{By: "ada", Reason: "contract"})
	must(t, err)
	s.AllCopiesDue(t)
	if ids, _ := due(place.US, 0); ids != nil {
		t.Errorf("after the change: %v", ids)
	}
	if find(whole, place.US, recorder.FindingMissing, "") || find(whole, place.US, recorder.FindingRepaired, "e") {
		t.Error("a copy that is to be removed is wanted")
	}
	if c := shown("whole").Copies[1]; c.State != "removing" {
		t.Errorf("%+v", c)
	}
	if !find(whole, place.EU, recorder.FindingSound, "new") {
		t.Error("the EU copy is not wanted")
	}
	if list, err := s.CopiesToRemove(ctx, place.US, time.Hour, 10); err != nil || len(list) != 2 {
		t.Errorf("to be removed: %v, %v", list, err)
	}
}
