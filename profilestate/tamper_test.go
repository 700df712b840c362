package profilestate

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/driftstack/fleet/orchestrator/place"
)

func contains(b []byte, s string) bool { return bytes.Contains(b, []byte(s)) }

// TestTamper changes a published file in every way, once with the index knowing nothing of it and once with an index
// that was changed to match: then the encryption alone must notice.
func TestTamper(t *testing.T) {
	f := newStore(t)
	big := state("login")
	big.Origins[0].LocalStorage = append(big.Origins[0].LocalStorage, Entry{"big", JSString(strings.Repeat("x", 3*segmentSize))})
	old, err := f.Commit(t.Context(), testRef, Generation{}, big, "s", 1)
	if err != nil {
		t.Fatal(err)
	}
	g, err := f.Commit(t.Context(), testRef, old, big, "s", 1)
	if err != nil {
		t.Fatal(err)
	}
	neighbour, stranger := Ref{testRef.Account, "other-profile"}, Ref{"other-account", testRef.Profile}
	read := func(g Generation) []byte {
		b, err := os.ReadFile(f.path(g.File))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := read(g)
	changed := map[string][]byte{
		"empty":               {},
		"extended":            append(bytes.Clone(good), 0),
		"extended by itself":  append(bytes.Clone(good), good...),
		"older generation":    read(old),
		"another profile's":   read(f.commit(t, neighbour, Generation{}, "n")),
		"another account's":   read(f.commit(t, stranger, Generation{}, "s")),
		"segments exchanged":  append(append(append(bytes.Clone(good[:headerSize+segmentSize]), good[headerSize+2*segmentSize:headerSize+3*segmentSize]...), good[headerSize+segmentSize:headerSize+2*segmentSize]...), good[headerSize+3*segmentSize:]...),
		"last segment gone":   good[:headerSize+3*segmentSize],
		"old body, new head":  append(bytes.Clone(good[:headerSize]), read(old)[headerSize:]...),
		"only a header":       good[:headerSize],
		"stream without head": good[headerSize:],
	}
	for i := range headerSize {
		changed[fmt.Sprintf("header byte %d", i)] = flip(good, i)
	}
	for i := headerSize; i < len(good); i += 97 {
		changed[fmt.Sprintf("body byte %d", i)] = flip(good, i)
	}
	for i := range streamHead + 1 {
		changed[fmt.Sprintf("stream head byte %d", i)] = flip(good, headerSize+i)
	}
	changed["last byte"] = flip(good, len(good)-1)
	for n := 1; n < len(good); n += 211 {
		changed[fmt.Sprintf("cut to %d", n)] = good[:n]
	}
	changed["cut by one"] = good[:len(good)-1]

	for name, b := range changed {
		if err := os.WriteFile(f.path(g.File), b, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, forged := range []bool{false, true} {
			f.index.current[testRef] = g
			if forged {
				lie := g
				lie.Bytes, lie.SHA256 = int64(len(b)), sha256.Sum256(b)
				f.index.current[testRef] = lie
			}
			s, _, err := f.Load(t.Context(), testRef)
			var damage *DamageError
			if forged && errors.Is(err, ErrKey) {
				continue // the header names a key the profile does not have
			}
			if !errors.Is(err, ErrTampered) || !errors.As(err, &damage) || damage.Generation != g.Number || s != nil {
				t.Errorf("%s (index forged: %v): %v, %v", name, forged, s, err)
			}
		}
	}
	f.index.current[testRef] = g
	if err := os.WriteFile(f.path(g.File), good, 0o600); err != nil {
		t.Fatal(err)
	}
	if f.value(t, testRef) != "login" {
		t.Fatal("the untouched file does not open: the test proves nothing")
	}

	t.Run("index points elsewhere", func(t *testing.T) {
		for _, name := range []string{"/etc/passwd", "../x", "", neighbour.folder() + "/1-1-x.sealed", testRef.folder() + "/../../x"} {
			lie := g
			lie.File = name
			f.index.current[testRef] = lie
			if _, _, err := f.Load(t.Context(), testRef); !errors.Is(err, ErrTampered) {
				t.Errorf("%q: %v", name, err)
			}
		}
	})
	t.Run("index says another number or term", func(t *testing.T) {
		for _, lie := range []Generation{{3, g.File, g.SHA256, g.Bytes, g.Term}, {g.Number, g.File, g.SHA256, g.Bytes, 2}} {
			f.index.current[testRef] = lie
			if _, _, err := f.Load(t.Context(), testRef); !errors.Is(err, ErrTampered) {
				t.Error(err)
			}
		}
	})
	t.Run("older generation with its own index entry is an honest rollback", func(t *testing.T) {
		f.index.current[testRef] = old
		if _, _, err := f.Load(t.Context(), testRef); err != nil {
			t.Error(err)
		}
	})
	t.Run("file gone", func(t *testing.T) {
		f.index.current[testRef] = g
		if err := os.Remove(f.path(g.File)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := f.Load(t.Context(), testRef); !errors.Is(err, ErrTampered) || !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
}

func flip(b []byte, i int) []byte {
	c := bytes.Clone(b)
	c[i] ^= 1
	return c
}

func TestKeys(t *testing.T) {
	f := newStore(t)
	g := f.commit(t, testRef, Generation{}, "v")
	other := Ref{testRef.Account, "other"}
	f.commit(t, other, Generation{}, "o")

	t.Run("wrapped key swapped", func(t *testing.T) {
		own := f.index.keys[testRef]
		defer func() { f.index.keys[testRef] = own }()
		f.index.keys[testRef] = f.index.keys[other]
		if _, _, err := f.Load(t.Context(), testRef); !errors.Is(err, ErrKey) {
			t.Error(err)
		}
		if _, err := f.Commit(t.Context(), testRef, g, state("x"), "s", 1); !errors.Is(err, ErrKey) {
			t.Error(err)
		}
	})
	t.Run("wrapped key changed or gone", func(t *testing.T) {
		own := f.index.keys[testRef]
		defer func() { f.index.keys[testRef] = own }()
		for i := range own {
			f.index.keys[testRef] = flip(own, i)
			if _, _, err := f.Load(t.Context(), testRef); !errors.Is(err, ErrKey) {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
		f.index.keys[testRef] = nil
		if _, _, err := f.Load(t.Context(), testRef); !errors.Is(err, ErrKey) {
			t.Error(err)
		}
	})
	t.Run("another root key", func(t *testing.T) {
		f2 := newStore(t)
		s, err := Open(Config{Dir: f.dir, Region: place.EU, Root: f2.keys.root, Keys: f.index, Index: f.index})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Load(t.Context(), testRef); !errors.Is(err, ErrKey) {
			t.Error(err)
		}
	})
	if f.value(t, testRef) != "v" {
		t.Error("the profile does not open with its own key")
	}
}

func TestRootKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	if _, err := ReadRootKey(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := CreateRootKey(path); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	before, _ := os.ReadFile(path)
	if err := CreateRootKey(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("a root key was replaced: %v", err)
	}
	after, _ := os.ReadFile(path)
	if !bytes.Equal(before, after) {
		t.Error("the root key changed")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	k, err := ReadRootKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprintf("%v %+v %#v", *k, k, *k); strings.Contains(s, "aead") {
		t.Errorf("the key prints as %s", s)
	}
	if _, err := ParseRootKey(base64Of(before)); err != nil {
		t.Errorf("base64, for the environment: %v", err)
	}
	for _, bad := range []string{"", "{}", "secret-not-a-key", `{"primaryKeyId":1,"key":[{"secret":"secret"}]}`} {
		if _, err := ParseRootKey(bad); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRootKey(path); err == nil {
		t.Error("a root key that others can read was used")
	}
}

// FuzzHeader: what parses is exactly what marshal writes.
func FuzzHeader(f *testing.F) {
	h := header{region: place.EU, ref: testRef, generation: 7, epoch: 9, term: 3, previous: sha256.Sum256(nil)}
	f.Add(h.marshal())
	f.Add(flip(h.marshal(), 20))
	f.Add(flip(h.marshal(), 207))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b)
		if err != nil {
			return
		}
		if !bytes.Equal(h.marshal(), b[:headerSize]) {
			t.Fatalf("%+v does not give its bytes back", h)
		}
	})
}
