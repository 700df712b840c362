package profilestate

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

// index is an Index and KeyStore with the contract's semantics, in memory, and faults to order.
type index struct {
	mu      sync.Mutex
	current map[Ref]Generation
	keys    map[Ref][]byte
	holder  map[Ref]string // session that may publish
	term    int64

	before func() error // runs before a Publish; an error is its answer
	after  func() error // runs after a Publish that took effect; an error is its answer
}

func newIndex() *index {
	return &index{current: make(map[Ref]Generation), keys: make(map[Ref][]byte), holder: make(map[Ref]string), term: 1}
}

func (x *index) Current(_ context.Context, ref Ref) (Generation, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.current[ref], nil
}

func (x *index) Publish(_ context.Context, session string, term int64, ref Ref, prev, next Generation) error {
	if x.before != nil {
		if err := x.before(); err != nil {
			return err
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if term != x.term {
		return ErrFenced
	}
	if c := x.current[ref]; c.Number != prev.Number || c.SHA256 != prev.SHA256 {
		return ErrConflict
	}
	x.current[ref] = next
	if x.after != nil {
		return x.after()
	}
	return nil
}

func (x *index) WrappedKey(_ context.Context, account, profile string) ([]byte, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.keys[Ref{account, profile}], nil
}

func (x *index) PutWrappedKey(_ context.Context, account, profile string, wrapped []byte) ([]byte, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if k := x.keys[Ref{account, profile}]; k != nil {
		return k, nil
	}
	x.keys[Ref{account, profile}] = wrapped
	return wrapped, nil
}

type fixture struct {
	*Store
	index *index
	clock time.Time
}

var testRef = Ref{"acct_1", "3f0e9a52-0b0f-4f0e-8f55-6d6c1a2b3c4d"}

func newStore(t testing.TB) *fixture {
	t.Helper()
	dir := t.TempDir()
	if err := CreateRootKey(filepath.Join(dir, "root.key")); err != nil {
		t.Fatal(err)
	}
	root, err := ReadRootKey(filepath.Join(dir, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{index: newIndex(), clock: time.Now()}
	f.Store, err = Open(Config{Dir: filepath.Join(dir, "profiles"), Region: place.EU, Root: root, Keys: f.index, Index: f.index,
		Now: func() time.Time { return f.clock }})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func state(value string) *Snapshot {
	return &Snapshot{
		Cookies: []Cookie{{Name: "sid", Value: value, Domain: "example.com", Path: "/", Expires: SessionCookie, SameSite: Lax}},
		Origins: []Origin{{"https://example.com", []Entry{{"k", "\xed\xa0\x80"}}}},
	}
}

func (f *fixture) commit(t testing.TB, ref Ref, prev Generation, value string) Generation {
	t.Helper()
	g, err := f.Commit(t.Context(), ref, prev, state(value), "s", f.index.term)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func (f *fixture) value(t testing.TB, ref Ref) string {
	t.Helper()
	s, _, err := f.Load(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Cookies) == 0 {
		return ""
	}
	return s.Cookies[0].Value
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
	if s, g, err := f.Load(t.Context(), testRef); err != nil || g != (Generation{}) || len(s.Cookies)+len(s.Origins) != 0 {
		t.Fatalf("a new profile: %v, %v, %v", s, g, err)
	}
	one := f.commit(t, testRef, Generation{}, "one-secret")
	two := f.commit(t, testRef, one, "two-secret")
	if two.Number != 2 || f.value(t, testRef) != "two-secret" {
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
	empty, err := f.Commit(t.Context(), testRef, two, &Snapshot{}, "s", 1)
	if err != nil || f.value(t, testRef) != "" {
		t.Fatalf("an empty snapshot: %v, %v", empty.Number, err)
	}
}

func TestOpenRefusesOtherRegions(t *testing.T) {
	f := newStore(t)
	for _, region := range []place.Region{place.US, "", "EU"} {
		if _, err := Open(Config{Dir: f.dir, Region: region, Root: f.keys.root, Keys: f.index, Index: f.index}); err == nil {
			t.Errorf("a store in region %q was opened", region)
		}
	}
}

func TestIDsAreNotPaths(t *testing.T) {
	f := newStore(t)
	for _, id := range []string{"../../etc", "a/b", "..", `c:\x`, "con", "A", "a"} {
		f.commit(t, Ref{id, id}, Generation{}, id)
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
		if _, err := f.Commit(t.Context(), Ref{"a", id}, Generation{}, state("x"), "s", 1); err == nil {
			t.Errorf("profile %q was taken", id)
		}
	}
}

func TestFailedPublish(t *testing.T) {
	f := newStore(t)
	one := f.commit(t, testRef, Generation{}, "one")
	lost := errors.New("connection lost")

	t.Run("before the swap", func(t *testing.T) {
		f.index.before = func() error { return lost }
		defer func() { f.index.before = nil }()
		if _, err := f.Commit(t.Context(), testRef, one, state("two"), "s", 1); !errors.Is(err, lost) {
			t.Fatal(err)
		}
		if f.value(t, testRef) != "one" {
			t.Fatal("the old generation is gone")
		}
	})
	var two Generation
	t.Run("a leftover of the same number does not block the next", func(t *testing.T) {
		if n := len(f.files(t)); n != 2 {
			t.Fatalf("%d files, want the generation and the leftover", n)
		}
		two = f.commit(t, testRef, one, "two")
	})
	t.Run("after the swap", func(t *testing.T) {
		f.index.after = func() error { return lost }
		defer func() { f.index.after = nil }()
		g, err := f.Commit(t.Context(), testRef, two, state("three"), "s", 1)
		if err != nil || g.Number != 3 || f.value(t, testRef) != "three" {
			t.Fatalf("the swap was made but Commit says %v", err)
		}
		two = g
	})
	n := len(f.files(t))
	t.Run("conflict", func(t *testing.T) {
		if _, err := f.Commit(t.Context(), testRef, one, state("x"), "s", 1); !errors.Is(err, ErrConflict) {
			t.Fatal(err)
		}
	})
	t.Run("fenced", func(t *testing.T) {
		if _, err := f.Commit(t.Context(), testRef, two, state("x"), "s", 0); !errors.Is(err, ErrFenced) {
			t.Fatal(err)
		}
	})
	if f.value(t, testRef) != "three" || len(f.files(t)) != n {
		t.Errorf("a refused commit left something: %d files, had %d", len(f.files(t)), n)
	}
	t.Run("limit", func(t *testing.T) {
		f.limits.Bytes = 10
		var limit *LimitError
		if _, err := f.Commit(t.Context(), testRef, two, state("x"), "s", 1); !errors.As(err, &limit) {
			t.Fatal(err)
		}
		if f.value(t, testRef) != "three" {
			t.Error("state that was accepted once is unreadable under a lower limit")
		}
	})
}

func TestWritersRace(t *testing.T) {
	f := newStore(t)
	one := f.commit(t, testRef, Generation{}, "one")
	const writers = 8
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			_, errs[i] = f.Commit(t.Context(), testRef, one, state(string(rune('a'+i))), "s", 1)
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
	for range 8 {
		wg.Go(func() { _, _ = f.Commit(t.Context(), testRef, Generation{}, state("v"), "s", 1) })
	}
	wg.Wait()
	if f.value(t, testRef) != "v" {
		t.Error("the winner's file does not open with the key that won")
	}
}
