package pgstore_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/profilestate"
)

// profile makes one of account a.
func profile(t *testing.T, s *pgstore.Store) profilestate.Ref {
	t.Helper()
	p, err := s.CreateProfile(t.Context(), uuid.NewString(), api.CreateProfile{Account: "a", Name: "p"})
	if err != nil {
		t.Fatal(err)
	}
	return profilestate.Ref{Account: "a", Profile: p.ID}
}

// holds claims a session that uses the profile.
func holds(t *testing.T, s *pgstore.Store, ref profilestate.Ref, mode api.ProfileMode) orchestrator.Claim {
	t.Helper()
	n := wish(ref.Account)
	n.Profile, n.Mode = ref.Profile, mode
	mustCreate(t, s, n)
	has(t, s, "v")
	return mustClaim(t, s)
}

// has says that the orchestrator that claims has a volume.
func has(t *testing.T, s *pgstore.Store, volume string) {
	t.Helper()
	if _, err := s.AnnounceReplica(t.Context(), orchestrator.Replica{ID: "test", Volume: volume}); err != nil {
		t.Fatal(err)
	}
}

func TestProfileIsClaimedWhereItIs(t *testing.T) {
	for _, mode := range []api.ProfileMode{api.ProfileExclusive, api.ProfileReadonly, api.ProfileFork} {
		s := open(t, 1)
		ref := profile(t, s)
		if err := s.Publish(t.Context(), profilestate.Writer{}, ref, head(t, s, ref), generation(1, 0, "", "one")); err != nil {
			t.Fatal(err)
		}
		n := wish(ref.Account)
		if n.Profile, n.Mode = ref.Profile, mode; mode == api.ProfileFork {
			n.Profile, n.ForkOf = "of its own", ref.Profile
		}
		mustCreate(t, s, n)
		for _, volume := range []string{"", "another"} {
			has(t, s, volume)
			if c, ok, err := claim(t.Context(), s, "test", []string{"mac-1"}, time.Minute); ok || err != nil {
				t.Fatalf("%s on volume %q: %+v, %v", mode, volume, c, err)
			}
		}
		has(t, s, "v")
		mustClaim(t, s)
	}
}

func writer(c orchestrator.Claim) profilestate.Writer {
	return profilestate.Writer{Session: c.Session, Term: c.Term}
}

func generation(number, term int64, session, of string) profilestate.Generation {
	return profilestate.Generation{Number: number, File: of, Volume: "v", Digest: sha256.Sum256([]byte(of)), Bytes: 7, Term: term, Session: session,
		Previous: number - 1, Source: profilestate.FromSession, State: profilestate.Good, At: time.Now().UTC().Truncate(time.Microsecond)}
}

func head(t *testing.T, s *pgstore.Store, ref profilestate.Ref) profilestate.Head {
	t.Helper()
	h, err := s.Head(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	h.Current.At = h.Current.At.UTC()
	return h
}

func TestPublishIsOneSwapUnderTheTerm(t *testing.T) {
	s := open(t, 1)
	ctx := t.Context()
	ref := profile(t, s)
	c := holds(t, s, ref, "")
	empty := head(t, s, ref)
	if empty.Current.Number != 0 || empty.Last != 0 {
		t.Fatalf("a new profile has %+v", empty)
	}
	// Of many writers with the same idea of what is current, one wins.
	var mu sync.Mutex
	var winner profilestate.Generation
	var group sync.WaitGroup
	for _, name := range []string{"one", "two", "three", "four"} {
		group.Go(func() {
			next := generation(1, c.Term, c.Session, name)
			err := s.Publish(context.Background(), writer(c), ref, empty, next)
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
	now := head(t, s, ref)
	if now.Current != winner || now.Last != 1 {
		t.Fatalf("current is %+v; want %+v", now.Current, winner)
	}
	next := generation(2, c.Term, c.Session, "x")
	stale, skips := now, next
	stale.Current.Digest[0] ^= 1
	skips.Number = 3
	for name, err := range map[string]error{
		"another digest":    s.Publish(ctx, writer(c), ref, stale, next),
		"a number too high": s.Publish(ctx, writer(c), ref, now, skips),
	} {
		if !errors.Is(err, profilestate.ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	late := writer(c)
	late.Term--
	for name, err := range map[string]error{
		"older term":       s.Publish(ctx, late, ref, now, generation(2, late.Term, c.Session, "x")),
		"another session":  s.Publish(ctx, profilestate.Writer{Session: "none", Term: c.Term}, ref, now, generation(2, c.Term, "none", "x")),
		"another account":  s.Publish(ctx, writer(c), profilestate.Ref{Account: "b", Profile: ref.Profile}, now, next),
		"after its ending": errors.Join(finish(s, c, orchestrator.Completed), s.Publish(ctx, writer(c), ref, now, next)),
	} {
		if !errors.Is(err, profilestate.ErrFenced) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if h := head(t, s, ref); h != now {
		t.Fatalf("a fenced writer changed it to %+v", h)
	}
}

func TestGenerations(t *testing.T) {
	s := open(t, 1)
	ctx := t.Context()
	ref := profile(t, s)
	add := func(number int64, candidate string) {
		t.Helper()
		g := generation(number, 0, "", uuid.NewString())
		if candidate != "" {
			g.State, g.Reason = profilestate.Candidate, candidate
		}
		if err := s.Publish(ctx, profilestate.Writer{Candidate: candidate}, ref, head(t, s, ref), g); err != nil {
			t.Fatal(err)
		}
	}
	for n := range int64(4) {
		add(n+1, "")
	}
	add(5, "lost a login")
	if h := head(t, s, ref); h.Current.Number != 4 || h.Last != 5 {
		t.Fatalf("a candidate became current: %+v", h)
	}
	h := head(t, s, ref)
	if err := s.Quarantine(ctx, ref, 3, "why"); err != nil {
		t.Fatal(err)
	}
	for _, number := range []int64{3, 9} {
		if err := s.MakeCurrent(ctx, ref, h, number); !errors.Is(err, profilestate.ErrConflict) {
			t.Errorf("generation %d: %v", number, err)
		}
	}
	stale := h
	stale.Current.Number = 2
	if err := s.MakeCurrent(ctx, ref, stale, 5); !errors.Is(err, profilestate.ErrConflict) {
		t.Error(err)
	}
	list, err := s.Generations(ctx, ref)
	if err != nil || len(list) != 5 || list[0].State != profilestate.Candidate || list[0].Reason != "lost a login" || list[2].State != profilestate.Quarantined || list[2].Reason != "why" {
		t.Fatalf("%+v, %v", list, err)
	}
	if err := s.MakeCurrent(ctx, ref, h, 5); err != nil {
		t.Fatal(err)
	}
	if now := head(t, s, ref).Current; now.Number != 5 || now.State != profilestate.Good || now.Reason != "" {
		t.Errorf("%+v", now)
	}
	for number, want := range map[int64]error{5: profilestate.ErrCurrent, 9: profilestate.ErrNoGeneration, 1: nil} {
		if err := s.Forget(ctx, ref, number); !errors.Is(err, want) {
			t.Errorf("forget %d: %v", number, err)
		}
	}
	if n, err := s.Prune(ctx, 1, time.Now().Add(-time.Hour)); n != 0 || err != nil {
		t.Errorf("young ones were pruned: %d, %v", n, err)
	}
	if n, err := s.Prune(ctx, 2, time.Now().Add(time.Hour)); n != 2 || err != nil { // 2 and 3: 5 and 4 are the newest good ones
		t.Errorf("pruned %d, %v", n, err)
	}
	if files, err := s.Files(ctx, ref); err != nil || len(files) != 2 {
		t.Errorf("%v, %v", files, err)
	}
	if _, err := s.Files(ctx, profilestate.Ref{Account: "a", Profile: "none"}); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Error(err)
	}
}

// TestPruneWhileAGenerationIsPromoted: what becomes current while others are pruned is not among them.
func TestPruneWhileAGenerationIsPromoted(t *testing.T) {
	s := open(t, 1)
	ref := profile(t, s)
	for n := int64(1); n <= 4; n++ {
		if err := s.Publish(t.Context(), profilestate.Writer{}, ref, head(t, s, ref), generation(n, 0, "", fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
	}
	pruned := make(chan error, 1)
	s.Promoting(t, ref.Profile, 1, func() {
		go func() {
			_, err := s.Prune(t.Context(), 1, time.Now().Add(time.Hour))
			pruned <- err
		}()
		for len(pruned) == 0 && s.Waiting(t) == 0 { // it decides what to prune, or waits to
			if t.Context().Err() != nil {
				t.Fatal("neither")
			}
		}
	})
	if err := <-pruned; err != nil {
		t.Fatal(err)
	}
	if h := head(t, s, ref); h.Current.Number != 1 || h.Current.File == "" {
		t.Errorf("the current generation was pruned: %+v", h)
	}
	if n, err := s.Prune(t.Context(), 1, time.Now().Add(time.Hour)); err != nil || n != 2 {
		t.Errorf("afterwards %d were, %v", n, err)
	}
}

// TestControlPlaneWaitsForSessions: what changes a profile without a session does so only while none holds it, also when one begins
// at that moment.
func TestControlPlaneWaitsForSessions(t *testing.T) {
	s := open(t, 2)
	ctx := t.Context()
	ref := profile(t, s)
	if err := s.Publish(ctx, profilestate.Writer{}, ref, head(t, s, ref), generation(1, 0, "", "one")); err != nil {
		t.Fatal(err)
	}
	reader := holds(t, s, ref, api.ProfileReadonly)
	if err := s.Publish(ctx, writer(reader), ref, head(t, s, ref), generation(2, reader.Term, reader.Session, "r")); !errors.Is(err, profilestate.ErrFenced) {
		t.Errorf("a readonly session published: %v", err)
	}
	if err := s.Publish(ctx, profilestate.Writer{}, ref, head(t, s, ref), generation(2, 0, "", "two")); err != nil {
		t.Errorf("a readonly session holds it: %v", err)
	}
	c := holds(t, s, ref, api.ProfileExclusive)
	h := head(t, s, ref)
	for name, err := range map[string]error{
		"publish": s.Publish(ctx, profilestate.Writer{}, ref, h, generation(3, 0, "", "x")),
		"promote": s.MakeCurrent(ctx, ref, h, 1),
		"delete":  s.DeleteProfile(ctx, ref, 1),
	} {
		var held *orchestrator.ProfileHeldError
		if !errors.As(err, &held) || held.Holder != c.Session || held.Until.Before(time.Now()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := finish(s, c, orchestrator.Completed); err != nil {
		t.Fatal(err)
	}
	// Imports and sessions at once: whatever an import changed, the session that came after it has seen.
	for range 10 {
		h := head(t, s, ref)
		n := wish("a")
		n.Profile = ref.Profile
		var imported, created error
		var group sync.WaitGroup
		group.Go(func() {
			imported = s.Publish(context.Background(), profilestate.Writer{}, ref, h, generation(h.Last+1, 0, "", uuid.NewString()))
		})
		group.Go(func() { _, created = s.Create(context.Background(), n) })
		group.Wait()
		var held *orchestrator.ProfileHeldError
		if created != nil || imported != nil && !errors.As(imported, &held) {
			t.Fatalf("%v, %v", created, imported)
		}
		if err := s.Cancel(ctx, n.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.DeleteProfile(ctx, ref, 7); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"head":   second(s.Head(ctx, ref)),
		"ref":    second(s.ProfileRef(ctx, ref.Profile)),
		"again":  s.DeleteProfile(ctx, ref, 7),
		"change": s.ChangeProfile(ctx, ref.Profile, api.ChangeProfile{}),
	} {
		if !errors.Is(err, orchestrator.ErrNotFound) {
			t.Errorf("%s of a deleted profile: %v", name, err)
		}
	}
	if files, err := s.Files(ctx, ref); err != nil || len(files) != 0 {
		t.Errorf("%v, %v", files, err)
	}
	lines, err := s.Destroyed(ctx)
	if err != nil || len(lines) != 1 || lines[0].Profile != ref.Profile || lines[0].Epoch != 7 {
		t.Errorf("ledger: %+v, %v", lines, err)
	}
}

// TestPublishAsksTheLedger: a key that was destroyed since it was opened publishes nothing.
func TestPublishAsksTheLedger(t *testing.T) {
	s := open(t, 1)
	ref := profile(t, s)
	c := holds(t, s, ref, "")
	h := head(t, s, ref)
	for _, epoch := range []int64{3, 2} { // a lower epoch takes nothing back
		if err := s.RecordDestroyed(t.Context(), []profilestate.Destroyed{{Account: "a", Epoch: epoch, At: time.Now()}}); err != nil {
			t.Fatal(err)
		}
	}
	next := generation(1, c.Term, c.Session, "x")
	if err := s.Publish(t.Context(), writer(c), ref, h, next); !errors.Is(err, profilestate.ErrKeyDestroyed) {
		t.Fatal(err)
	}
	if h = head(t, s, ref); h.Destroyed != 3 || h.Last != 0 {
		t.Fatalf("%+v", h)
	}
	if err := s.Publish(t.Context(), writer(c), ref, h, next); err != nil {
		t.Error(err)
	}
}

func TestProfileModes(t *testing.T) {
	s := open(t, 4)
	ctx := t.Context()
	ref := profile(t, s)
	first := holds(t, s, ref, api.ProfileExclusive)
	for range 2 {
		c := holds(t, s, ref, api.ProfileReadonly)
		if c.Mode != api.ProfileReadonly || c.Profile != ref.Profile {
			t.Errorf("%+v", c)
		}
		if err := s.Publish(ctx, writer(c), ref, head(t, s, ref), generation(1, c.Term, c.Session, "x")); !errors.Is(err, profilestate.ErrFenced) {
			t.Errorf("a readonly session publishes: %v", err)
		}
	}
	n := wish("a")
	n.Profile, n.Mode, n.ForkOf = uuid.NewString(), api.ProfileFork, ref.Profile
	mustCreate(t, s, n)
	c := mustClaim(t, s)
	if err := s.Publish(ctx, writer(c), ref, head(t, s, ref), generation(1, c.Term, c.Session, "x")); !errors.Is(err, profilestate.ErrFenced) {
		t.Errorf("a fork publishes to what it was forked from: %v", err)
	}
	if c.Mode != api.ProfileFork || c.Profile != n.Profile || c.ForkOf != ref.Profile {
		t.Errorf("%+v", c)
	}
	v, err := s.Get(ctx, c.Session)
	if err != nil || v.ProfileMode != api.ProfileFork || v.ForkedFrom != ref.Profile || v.Profile != n.Profile {
		t.Errorf("%+v, %v", v, err)
	}
	list, err := s.Profiles(ctx, "a", n.Profile)
	if err != nil || len(list) != 1 || list[0].Name != "p (fork)" || list[0].HeldBy != c.Session {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err = s.Profiles(ctx, "a", ref.Profile); err != nil || len(list) != 1 || list[0].HeldBy != first.Session {
		t.Errorf("readonly sessions multiply it: %+v, %v", list, err)
	}
	var invalid *orchestrator.InvalidError
	n.ID, n.Profile, n.ForkOf = uuid.NewString(), uuid.NewString(), "none"
	if _, err := s.Create(ctx, n); !errors.As(err, &invalid) || invalid.Field != "profile" {
		t.Errorf("a fork of nothing: %v", err)
	}
	if list, err := s.Profiles(ctx, "a", ""); err != nil || len(list) != 2 {
		t.Errorf("a refused fork left a profile: %+v, %v", list, err)
	}
}

// TestPublishAfterAPromotion: what is made from a generation is not swapped in once another one is current, although none has been added.
func TestPublishAfterAPromotion(t *testing.T) {
	s := open(t, 1)
	ctx, ref := t.Context(), profile(t, s)
	for n := range int64(2) {
		must(t, s.Publish(ctx, profilestate.Writer{}, ref, head(t, s, ref), generation(n+1, 0, "", fmt.Sprint(n))))
	}
	before := head(t, s, ref)
	must(t, s.MakeCurrent(ctx, ref, before, 1))
	if err := s.Publish(ctx, profilestate.Writer{}, ref, before, generation(3, 0, "", "x")); !errors.Is(err, profilestate.ErrConflict) {
		t.Errorf("it was swapped in: %v", err)
	}
	must(t, s.Publish(ctx, profilestate.Writer{}, ref, head(t, s, ref), generation(3, 0, "", "x")))
}
