package pgstore_test

import (
	"maps"
	"slices"
	"strings"
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
	_, err := s.CopyFound(ctx, recorder.CheckedCopy{Of: mended, Region: place.EU, ETag: "e"}, recorder.FindingMissing, "", at, time.Hour)
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
		if gone := c.Of.ID == lost.ID; c.Abandoned.IsZero() == gone || c.Noticed != gone || c.Elsewhere == (c.Of.ID == "eu-only") || c.Of.ID == "whole" && (c.ETag != "e" || c.Healthy != "e" || c.Of.Key != whole.Key || c.Of.Bytes != 9 || c.Of.SHA256 != whole.SHA256 || c.Of.Session != whole.Session) {
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
		if c.Of.ID == half.ID && (c.Healthy != "e" || c.ETag != "" || !c.Abandoned.IsZero() || !c.Elsewhere) {
			t.Errorf("%+v", c)
		}
	}
	s.AllCopiesDue(t)
	if ids, _ := due(place.US, 30*day); !slices.Equal(ids, []string{"whole"}) {
		t.Errorf("not abandoned for long enough: %v", ids)
	}

	find := func(u recorder.RecordingUpdate, region place.Region, f recorder.Finding, etag string) bool {
		t.Helper()
		r, _, err := s.RecordingByID(ctx, u.ID, "a")
		must(t, err)
		c := recorder.CheckedCopy{Of: u, Region: region}
		for _, is := range r.Copies {
			if is.Region == string(region) {
				c.ETag = is.ETag
			}
		}
		wanted, err := s.CopyFound(ctx, c, f, etag, at, time.Hour)
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
	// What was looked at is not what is there by now.
	for what, c := range map[string]recorder.CheckedCopy{
		"another object":    {Of: whole, Region: place.EU, ETag: "e"},
		"another recording": {Of: recorder.RecordingUpdate{ID: whole.ID, SHA256: strings.Repeat("1", 64)}, Region: place.EU, ETag: "new"},
	} {
		for _, f := range []recorder.Finding{recorder.FindingSound, recorder.FindingMissing, recorder.FindingRepaired} {
			if wanted, err := s.CopyFound(ctx, c, f, "old", at, time.Hour); wanted || err != nil {
				t.Errorf("%s, %s: %v, %v", what, f, wanted, err)
			}
		}
	}
	if c := shown("whole").Copies[0]; c.State != "verified" || c.ETag != "new" || c.Repairs != 1 {
		t.Errorf("after a look at another: %+v", c)
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
	// The EU's can be put back from it meanwhile, and it stays until that has happened.
	if !find(whole, place.EU, recorder.FindingMissing, "") {
		t.Error("the EU copy is not wanted")
	}
	s.AllCopiesDue(t)
	_, list = due(place.EU, 5*day)
	if i := slices.IndexFunc(list, func(c recorder.CheckedCopy) bool { return c.Of.ID == "whole" }); i < 0 || list[i].Healthy != "e" || list[i].Of.Placement != place.EUOnly {
		t.Errorf("to put it back from: %+v", list)
	}
	leaves := func(abandoned, again time.Duration) map[string]string {
		t.Helper()
		list, err := s.CopiesToRemove(ctx, place.US, abandoned, again, 10)
		must(t, err)
		got := map[string]string{}
		for _, c := range list {
			got[c.Recording] = c.EU
		}
		return got
	}
	if got := leaves(day, time.Hour); !maps.Equal(got, map[string]string{"half": "e"}) {
		t.Errorf("to be removed: %v", got)
	}
	find(whole, place.EU, recorder.FindingRepaired, "newer")
	if got := leaves(day, time.Hour); !maps.Equal(got, map[string]string{"whole": "newer"}) {
		t.Errorf("to be removed once the EU's is put back: %v", got)
	}
}

// TestNeverUploadedCopyIsRemoved: of a US copy that nobody brought there, and that is not wanted any more, nothing is waited for in the end; and if it is
// brought there after all it is removed again.
func TestNeverUploadedCopyIsRemoved(t *testing.T) {
	s := open(t, 1)
	ctx := t.Context()
	at := time.Now().Truncate(time.Microsecond)
	const day = 24 * time.Hour
	half := func(u *recorder.RecordingUpdate) {
		u.State, u.Copies[1].State, u.Copies[1].Verified, u.Copies[1].ETag = recorder.StateAvailable, recorder.CopyUploading, time.Time{}, ""
	}
	none := func(state recorder.State) func(*recorder.RecordingUpdate) {
		return func(u *recorder.RecordingUpdate) {
			u.State = state
			for i := range u.Copies {
				u.Copies[i].State, u.Copies[i].Verified, u.Copies[i].ETag = recorder.CopyPending, time.Time{}, ""
			}
		}
	}
	old := recorded(t, s, "old", "a", at.Add(-10*day), half)
	recorded(t, s, "on its way", "a", at, half)
	recorded(t, s, "only one", "a", at.Add(-10*day), none(recorder.StateSealed))
	recorded(t, s, "empty", "a", at, none(recorder.StateEmpty))
	recorded(t, s, "lost", "a", at, none(recorder.StateLost))
	recorded(t, s, "corrupt", "a", at, none(recorder.StateQuarantined))
	_, err := s.PutAccount(ctx, "a", api.PutAccount{Recordings: "eu"}, orchestrator.Act{By: "ada", Reason: "contract"})
	must(t, err)
	leaves := func() (got []string) {
		t.Helper()
		list, err := s.CopiesToRemove(ctx, place.US, 5*day, 0, 10)
		must(t, err)
		for _, c := range list {
			got = append(got, c.Recording)
		}
		slices.Sort(got)
		return got
	}
	if got := leaves(); !slices.Equal(got, []string{"corrupt", "empty", "lost", "old"}) {
		t.Errorf("to be removed: %v", got)
	}
	for _, id := range leaves() {
		must(t, s.CopyRemoved(ctx, recorder.StoredCopy{Recording: id, Region: place.US}, at))
	}
	if got := leaves(); got != nil {
		t.Errorf("again: %v", got)
	}
	old.Copies[1].State, old.Copies[1].ETag, old.Copies[1].Verified = recorder.CopyVerified, "e", at.Add(time.Second)
	must(t, s.RecordingChanged(ctx, old))
	if got := leaves(); !slices.Equal(got, []string{"old"}) {
		t.Errorf("brought there after all: %v", got)
	}
	must(t, s.CopyRemoved(ctx, recorder.StoredCopy{Recording: "old", Region: place.US}, at.Add(2*time.Second)))
	must(t, s.RecordingChanged(ctx, old)) // delivered again
	if got := leaves(); got != nil {
		t.Errorf("what was removed since: %v", got)
	}
}

// TestSalvageIsFenced: what is made of an abandoned recording is taken unless anybody has said anything of it, and is what counts then.
func TestSalvageIsFenced(t *testing.T) {
	s := open(t, 1)
	ctx := t.Context()
	at := time.Now().Truncate(time.Microsecond)
	const day = 24 * time.Hour
	look := func(id string) recorder.CheckedCopy {
		t.Helper()
		s.AllCopiesDue(t)
		list, err := s.CopiesToCheck(ctx, place.EU, "b-eu", 5*day, time.Hour, 100)
		must(t, err)
		for _, c := range list {
			if c.Of.ID == id {
				return c
			}
		}
		return recorder.CheckedCopy{}
	}
	began := func(id string) recorder.RecordingUpdate {
		u := recorded(t, s, id, "a", at.Add(-10*day), func(u *recorder.RecordingUpdate) {
			u.Placement, u.State, u.Copies = place.EUOnly, recorder.StateUploading, u.Copies[:1]
			u.Copies[0].State, u.Copies[0].Verified, u.Copies[0].ETag = recorder.CopyUploading, time.Time{}, ""
		})
		s.EndSessionOf(t, id)
		if c := look(id); c.Abandoned.IsZero() || !c.Noticed {
			t.Fatalf("%+v", c)
		}
		return u
	}
	salvaged := func(c recorder.CheckedCopy) recorder.RecordingUpdate {
		u := c.Of
		u.State, u.Partial, u.Cause, u.At, u.SHA256 = recorder.StateAvailable, true, recorder.CauseSpoolLost, at, strings.Repeat("2", 64)
		u.Copies = []recorder.Copy{{Region: place.EU, Bucket: "b-eu", State: recorder.CopyVerified, ETag: "s", Verified: at}}
		return u
	}
	want := func(c recorder.CheckedCopy, still, taken bool) {
		t.Helper()
		if got, err := s.StillAbandoned(ctx, c); err != nil || got != still {
			t.Errorf("still abandoned: %v, %v", got, err)
		}
		if got, err := s.Salvaged(ctx, c, salvaged(c)); err != nil || got != taken {
			t.Errorf("taken: %v, %v", got, err)
		}
	}

	began("gone")
	c := look("gone")
	if c.Abandoned.IsZero() || c.Noticed {
		t.Fatalf("the next look: %+v", c)
	}
	want(c, true, true)
	if r, _, err := s.RecordingByID(ctx, "gone", "a"); err != nil || r.State != "available" || !r.Partial || r.Copies[0].ETag != "s" {
		t.Errorf("%+v, %v", r, err)
	}
	want(c, false, false) // twice
	if c := look("gone"); !c.Abandoned.IsZero() {
		t.Errorf("afterwards: %+v", c)
	}

	// He was only down, and comes back: at whichever moment.
	u := began("back")
	c = look("back")
	u.At = at
	must(t, s.RecordingChanged(ctx, u)) // as it was
	want(c, false, false)
	if c := look("back"); c.Of.ID != "" {
		t.Errorf("due: %+v", c)
	}
	u.State = recorder.StateAvailable
	u.Copies[0].State, u.Copies[0].ETag, u.Copies[0].Verified = recorder.CopyVerified, "w", at
	must(t, s.RecordingChanged(ctx, u))
	want(c, false, false)
	if r, _, err := s.RecordingByID(ctx, "back", "a"); err != nil || r.Partial || r.Copies[0].ETag != "w" || r.SHA256 != u.SHA256 {
		t.Errorf("%+v, %v", r, err)
	}

	began("corrupt")
	c = look("corrupt")
	must(t, s.RecordingChanged(ctx, recorder.RecordingUpdate{ID: "corrupt", State: recorder.StateQuarantined, Cause: recorder.CauseCorrupt, At: at}))
	want(c, false, false)

	began("lost")
	c = look("lost")
	nothing := c.Of
	nothing.State, nothing.Cause, nothing.At = recorder.StateLost, recorder.CauseSpoolLost, at
	if taken, err := s.Salvaged(ctx, c, nothing); err != nil || !taken {
		t.Errorf("%v, %v", taken, err)
	}
	if c := look("lost"); c.Of.ID != "" {
		t.Errorf("it is looked for again: %+v", c)
	}
}
