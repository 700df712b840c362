package profilestate

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

type fixture struct {
	*Store
	world *world
	root  *RootKey
	clock time.Time
}

var testRef = Ref{"acct_1", "3f0e9a52-0b0f-4f0e-8f55-6d6c1a2b3c4d"}

// by is the session that holds every profile of a fixture unless a test says otherwise.
var by = Writer{Session: "s", Term: 1}

func newStore(t testing.TB) *fixture {
	t.Helper()
	dir := t.TempDir()
	if err := CreateRootKey(filepath.Join(dir, "root.key")); err != nil {
		t.Fatal(err)
	}
	return newStoreAt(t, dir, newWorld(), osDisk{})
}

func germany() place.EULocation {
	at, err := place.InEU("DE")
	if err != nil {
		panic(err)
	}
	return at
}

// newStoreAt is a store in dir, which has a root key.
func newStoreAt(t testing.TB, dir string, w *world, d disk) *fixture {
	t.Helper()
	root, err := ReadRootKey(filepath.Join(dir, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := NewKeyring(germany(), root, w.keys(), w.index())
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{world: w, root: root, clock: time.Now()}
	f.Store, err = Open(Config{Dir: filepath.Join(dir, "profiles"), At: germany(), Keys: keys, Index: w.index(), disk: d,
		Now: func() time.Time { return f.clock }})
	if err != nil {
		t.Fatal(err)
	}
	f.world.hold(testRef, by.Session, by.Term)
	return f
}

func state(value string) *Snapshot {
	return &Snapshot{
		Cookies: []Cookie{{Name: "sid", Value: value, Domain: "example.com", Path: "/", Expires: SessionCookie, SameSite: Lax}},
		Origins: []Origin{{"https://example.com", []Entry{{"k", "\xed\xa0\x80"}}}},
	}
}

func (f *fixture) head(t testing.TB, ref Ref) Head {
	t.Helper()
	h, err := f.world.index().Head(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// commit publishes what comes after the head.
func (f *fixture) commit(t testing.TB, ref Ref, value string) Generation {
	t.Helper()
	_ = f.world.do(func(s *worldState) error {
		if p := s.make(ref); p.Holder == "" {
			p.Holder, p.Term = by.Session, by.Term
		}
		return nil
	})
	g, err := f.Commit(t.Context(), ref, f.head(t, ref), state(value), by)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func valueOf(s *Snapshot) string {
	if s == nil || len(s.Cookies) == 0 {
		return ""
	}
	return s.Cookies[0].Value
}

func (f *fixture) value(t testing.TB, ref Ref) string {
	t.Helper()
	s, _, err := f.Load(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return valueOf(s)
}

func (f *fixture) files(t testing.TB) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(f.dir, "*", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestCommitAndLoad(t *testing.T) {
	f := newStore(t)
	if s, h, err := f.Load(t.Context(), testRef); err != nil || h != (Head{}) || len(s.Cookies)+len(s.Origins) != 0 {
		t.Fatalf("a new profile: %v, %v, %v", s, h, err)
	}
	f.commit(t, testRef, "one-secret")
	two := f.commit(t, testRef, "two-secret")
	if two.Number != 2 || two.Previous != 1 || f.value(t, testRef) != "two-secret" {
		t.Fatalf("generation %d", two.Number)
	}
	for _, name := range f.files(t) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{"secret", "example.com", "localStorage", "sid"} {
			if contains(b, secret) {
				t.Errorf("%s is readable in %s", secret, filepath.Base(name))
			}
		}
		if info, _ := os.Stat(name); info.Mode().Perm() != 0o600 || int64(len(b)) != info.Size() {
			t.Errorf("mode %v", info.Mode())
		}
	}
	empty, err := f.Commit(t.Context(), testRef, f.head(t, testRef), &Snapshot{}, by)
	if err != nil || f.value(t, testRef) != "" {
		t.Fatalf("an empty snapshot: %v, %v", empty.Number, err)
	}
}

func TestOnlyInTheEU(t *testing.T) {
	f := newStore(t)
	if _, err := Open(Config{Dir: f.dir, Keys: f.keys, Index: f.world.index()}); err == nil {
		t.Error("a store was opened of which nobody says where it is")
	}
	if _, err := NewKeyring(place.EULocation{}, f.root, f.world.keys(), f.world.index()); err == nil {
		t.Error("keys of which nobody says where they are opened")
	}
}

func TestIDsAreNotPaths(t *testing.T) {
	f := newStore(t)
	for _, id := range []string{"../../etc", "a/b", "..", `c:\x`, "con", "A", "a"} {
		f.commit(t, Ref{id, id}, id)
	}
	for _, name := range f.files(t) {
		if rel, err := filepath.Rel(f.dir, name); err != nil || !filepath.IsLocal(rel) {
			t.Errorf("%s is outside the store", name)
		}
	}
	if f.value(t, Ref{"A", "A"}) != "A" || f.value(t, Ref{"a", "a"}) != "a" {
		t.Error("ids that differ in case share state")
	}
	for _, id := range []string{"", "a b", "a\x00", "é", string(make([]byte, 65))} {
		if _, err := f.Commit(t.Context(), Ref{"a", id}, Head{}, state("x"), by); err == nil {
			t.Errorf("profile %q was taken", id)
		}
	}
}

func TestFailedPublish(t *testing.T) {
	f := newStore(t)
	f.commit(t, testRef, "one")
	one := f.head(t, testRef)
	lost := errors.New("connection lost")

	t.Run("before the swap", func(t *testing.T) {
		f.world.before = func() error { return lost }
		defer func() { f.world.before = nil }()
		if _, err := f.Commit(t.Context(), testRef, one, state("two"), by); !errors.Is(err, lost) {
			t.Fatal(err)
		}
		if f.value(t, testRef) != "one" {
			t.Fatal("the old generation is gone")
		}
	})
	t.Run("a leftover of the same number does not block the next", func(t *testing.T) {
		if n := len(f.files(t)); n != 2 {
			t.Fatalf("%d files, want the generation and the leftover", n)
		}
		f.commit(t, testRef, "two")
	})
	two := f.head(t, testRef)
	t.Run("after the swap", func(t *testing.T) {
		f.world.after = func() error { return lost }
		defer func() { f.world.after = nil }()
		g, err := f.Commit(t.Context(), testRef, two, state("three"), by)
		if err != nil || g.Number != 3 || f.value(t, testRef) != "three" {
			t.Fatalf("the swap was made but Commit says %v", err)
		}
	})
	n := len(f.files(t))
	t.Run("repeated after an answer that was lost", func(t *testing.T) {
		g, err := f.Commit(t.Context(), testRef, two, state("three"), by)
		if err != nil || g.Number != 3 || f.head(t, testRef).Last != 3 {
			t.Fatalf("generation %d, %v", g.Number, err)
		}
	})
	t.Run("conflict", func(t *testing.T) {
		f.world.hold(testRef, "another", 7)
		defer f.world.hold(testRef, by.Session, by.Term)
		if _, err := f.Commit(t.Context(), testRef, one, state("x"), Writer{Session: "another", Term: 7}); !errors.Is(err, ErrConflict) {
			t.Fatal(err)
		}
	})
	t.Run("fenced", func(t *testing.T) {
		for _, w := range []Writer{{Session: "s", Term: 0}, {Session: "t", Term: 1}} {
			if _, err := f.Commit(t.Context(), testRef, f.head(t, testRef), state("x"), w); !errors.Is(err, ErrFenced) {
				t.Fatal(err)
			}
		}
	})
	t.Run("the control plane, while a session holds it", func(t *testing.T) {
		if _, err := f.Commit(t.Context(), testRef, f.head(t, testRef), state("x"), Writer{}); !errors.Is(err, errHeld) {
			t.Fatal(err)
		}
	})
	if f.value(t, testRef) != "three" || len(f.files(t)) != n+1 { // what the control plane left is unclear, and for Sweep
		t.Errorf("a refused commit left something: %d files, had %d", len(f.files(t)), n)
	}
	t.Run("limit", func(t *testing.T) {
		f.limits.Bytes = 10
		var limit *LimitError
		if _, err := f.Commit(t.Context(), testRef, f.head(t, testRef), state("x"), by); !errors.As(err, &limit) {
			t.Fatal(err)
		}
		if f.value(t, testRef) != "three" {
			t.Error("state that was accepted once is unreadable under a lower limit")
		}
	})
}

func TestWritersRace(t *testing.T) {
	f := newStore(t)
	f.commit(t, testRef, "one")
	one := f.head(t, testRef)
	f.world.hold(testRef, "", 0)
	const writers = 8
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			_, errs[i] = f.Commit(t.Context(), testRef, one, state(string(rune('a'+i))), Writer{Source: FromImport})
		})
	}
	wg.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner < 0:
			winner = i
		case err == nil:
			t.Error("two writers won")
		case !errors.Is(err, ErrConflict):
			t.Error(err)
		}
	}
	if winner < 0 || f.value(t, testRef) != string(rune('a'+winner)) {
		t.Errorf("winner %d", winner)
	}
	if n := len(f.files(t)); n != 2 {
		t.Errorf("%d files, want both generations", n)
	}
}

func TestFirstKeysRace(t *testing.T) {
	f := newStore(t)
	var wg sync.WaitGroup
	for i := range 8 {
		ref := Ref{testRef.Account, string(rune('a' + i))}
		f.world.hold(ref, by.Session, by.Term)
		wg.Go(func() {
			for range 2 {
				if _, err := f.Commit(t.Context(), ref, Head{}, state("v"), by); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i := range 8 {
		if f.value(t, Ref{testRef.Account, string(rune('a' + i))}) != "v" {
			t.Error("the winner's file does not open with the key that won")
		}
	}
}

// TestAnotherVolumeIsNotDamage: a folder that is not mounted must not look as if everything in it had been removed.
func TestAnotherVolumeIsNotDamage(t *testing.T) {
	f := newStore(t)
	g := f.commit(t, testRef, "one")
	other := newStore(t)
	other.Store.index, other.Store.keys = f.index, f.Store.keys
	if _, _, err := other.Load(t.Context(), testRef); !errors.Is(err, ErrVolume) || errors.Is(err, ErrTampered) {
		t.Fatal(err)
	}
	if now := f.head(t, testRef).Current; now.State != Good || now.Number != g.Number || f.value(t, testRef) != "one" {
		t.Fatalf("%+v", now)
	}
	again, err := Open(Config{Dir: f.dir, At: germany(), Keys: f.Store.keys, Index: f.index})
	if err != nil || again.volume != f.volume {
		t.Fatalf("opened again it is volume %s, not %s: %v", again.volume, f.volume, err)
	}
}
