package profilestate

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestLostLogins: what counts as a login that the profile reliably had.
func TestLostLogins(t *testing.T) {
	login := cookieOf("a.example", "/", "login", "1")
	login.HTTPOnly = true
	rotated, empty, plain, old, other := login, login, login, login, login
	rotated.Value, empty.Value, plain.HTTPOnly, other.Name = "2", "", false, "other"
	for _, tc := range []struct {
		name         string
		before, then []Cookie // generations; nil is none
		source       Source
		next         []Cookie
		want         int
	}{
		{"gone", []Cookie{login}, []Cookie{login}, FromSession, nil, 1},
		{"gone after it was rotated", []Cookie{rotated}, []Cookie{login}, FromSession, nil, 1},
		{"emptied", []Cookie{login}, []Cookie{login}, FromSession, []Cookie{empty}, 1},
		{"rotated", []Cookie{login}, []Cookie{login}, FromSession, []Cookie{rotated}, 0},
		{"two of them", []Cookie{login, other}, []Cookie{login, other}, FromSession, nil, 2},
		{"one of them new", []Cookie{login}, []Cookie{login, other}, FromSession, nil, 1},
		{"not stable: of the last session only", []Cookie{}, []Cookie{login}, FromSession, nil, 0},
		{"not stable: the first generation", nil, []Cookie{login}, FromSession, nil, 0},
		{"imported", nil, []Cookie{login}, FromImport, nil, 1},
		{"cloned", nil, []Cookie{login}, FromClone, nil, 1},
		{"scripts can read it", []Cookie{plain}, []Cookie{plain}, FromSession, nil, 0},
		{"it was empty", []Cookie{empty}, []Cookie{empty}, FromSession, nil, 0},
		{"lost before", []Cookie{login}, []Cookie{}, FromSession, nil, 0},
		{"expired", nil, nil, FromSession, nil, 0},
	} {
		f := newStore(t)
		if tc.name == "expired" {
			old.Expires = float64(f.clock.Unix() - 1)
			tc.before, tc.then = []Cookie{old}, []Cookie{old}
		}
		if tc.before != nil {
			commitCookies(t, f, tc.before, by)
		}
		w := by
		w.Source = tc.source
		commitCookies(t, f, tc.then, w)
		current, head, err := f.Load(t.Context(), testRef)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := f.LostLogins(t.Context(), testRef, head, current, &Snapshot{Cookies: tc.next}); n != tc.want || err != nil {
			t.Errorf("%s: %d lost, want %d; %v", tc.name, n, tc.want, err)
		}
	}
}

func commitCookies(t *testing.T, f *fixture, cookies []Cookie, w Writer) Generation {
	t.Helper()
	g, err := f.Commit(t.Context(), testRef, f.head(t, testRef), &Snapshot{Cookies: cookies}, w)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestCandidate: it waits beside the current generation, says why, and is no evidence for what is stable.
func TestCandidate(t *testing.T) {
	f := newStore(t)
	ctx := t.Context()
	login := cookieOf("a.example", "/", "login", "1")
	login.HTTPOnly = true
	first := commitCookies(t, f, []Cookie{login}, by)
	second := commitCookies(t, f, []Cookie{login}, by)
	w := by
	w.Candidate = "lost a login"
	third := commitCookies(t, f, nil, w)
	if h := f.head(t, testRef); h.Current.Number != second.Number || third.State != Candidate || third.Reason != w.Candidate {
		t.Fatalf("at %d; the candidate is %s (%s)", h.Current.Number, third.State, third.Reason)
	}
	current, head, err := f.Load(ctx, testRef)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := f.LostLogins(ctx, testRef, head, current, &Snapshot{}); n != 1 || err != nil {
		t.Errorf("after a candidate %d are lost, %v", n, err)
	}
	// A damaged generation is no evidence either; the one before it is.
	fourth := commitCookies(t, f, []Cookie{login}, by)
	if err := os.Truncate(f.path(second.File), 300); err != nil {
		t.Fatal(err)
	}
	if n, err := f.LostLogins(ctx, testRef, f.head(t, testRef), current, &Snapshot{}); n != 1 || err != nil {
		t.Errorf("past a damaged generation %d are lost, %v", n, err)
	}
	if err := os.Truncate(f.path(first.File), 300); err != nil {
		t.Fatal(err)
	}
	if n, err := f.LostLogins(ctx, testRef, f.head(t, testRef), current, &Snapshot{}); n != 0 || err != nil {
		t.Errorf("without any before generation %d, %d are lost, %v", fourth.Number, n, err)
	}
	f.world.hold(testRef, "", 0)
	if err := f.Promote(ctx, testRef, third.Number); err != nil {
		t.Fatal(err)
	}
	if c := f.head(t, testRef).Current; c.Number != third.Number || c.State != Good || c.Reason != "" {
		t.Errorf("promoted, it is %+v", c)
	}
}

// TestPublicSuffixes: a cookie that would reach the sites of strangers neither comes in nor goes out, and does not spoil what is stored.
func TestPublicSuffixes(t *testing.T) {
	for domain, public := range map[string]bool{
		".com": true, ".co.uk": true, ".github.io": true, ".localhost": true, ".127.0.0.1": true,
		".example.com": false, ".example.co.uk": false, ".me.github.io": false, ".site.localhost": false,
		"com": false, "co.uk": false, "localhost": false, "127.0.0.1": false, // host-only
	} {
		if c := cookieOf(domain, "/", "c", "v"); c.public() != public {
			t.Errorf("%s: public %v", domain, c.public())
		}
	}
	wide, fine := cookieOf(".co.uk", "/", "c", "v"), cookieOf(".shop.co.uk", "/", "c", "v")
	f := newStore(t)
	b, err := (&Snapshot{Cookies: []Cookie{wide, fine}}).Encode(Limits{})
	if err != nil {
		t.Fatal(err)
	}
	f.world.hold(testRef, "", 0)
	if _, err := f.Import(t.Context(), testRef, b); err == nil || !strings.Contains(err.Error(), "cookies[0]: its domain is a public suffix") {
		t.Errorf("import: %v", err)
	}
	// A suffix may be added to the list after it was stored.
	f.world.hold(testRef, by.Session, by.Term)
	commitCookies(t, f, []Cookie{wide, fine}, by)
	stored, _, err := f.Load(t.Context(), testRef)
	if err != nil || len(stored.Cookies) != 2 {
		t.Fatalf("%v, %v", stored, err)
	}
	o := &ocean{}
	report, err := Restore(t.Context(), o, &Snapshot{Cookies: []Cookie{wide}})
	if n := report.Counts(); err != nil || n.Unsupported != 1 || o.loads != 0 {
		t.Errorf("restore: %v, %v", report, err)
	}
	seen := observed{looks: []look{{page: at("https://shop.co.uk/"), cookies: []Cookie{wide, fine}}}}
	next, report := merge(&Snapshot{}, seen, Report{}, f.clock)
	if !slices.Equal(next.Cookies, []Cookie{fine}) || report.Counts().Unsupported != 1 {
		t.Errorf("capture: %v", report)
	}
	if next, _ := merge(stored, seen, Report{}, f.clock); len(next.Cookies) != 2 {
		t.Error("capture: what was stored is lost")
	}
}
