package profilestate

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/driftstack/fleet/orchestrator/place"
)

func contains(b []byte, s string) bool { return bytes.Contains(b, []byte(s)) }

// TestTamper changes a published file in every way, once with the index knowing nothing of it and once with an index
// that was changed to match: then the encryption alone must notice. Each time the generation is quarantined and the one before offered.
func TestTamper(t *testing.T) {
	f := newStore(t)
	big := state("login")
	big.Origins[0].LocalStorage = append(big.Origins[0].LocalStorage, Entry{"big", JSString(strings.Repeat("x", 3*segmentSize))})
	commit := func() Generation {
		g, err := f.Commit(t.Context(), testRef, f.head(t, testRef), big, by)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	old, g := commit(), commit()
	neighbour, stranger := Ref{testRef.Account, "other-profile"}, Ref{"other-account", testRef.Profile}
	read := func(g Generation) []byte {
		b, err := os.ReadFile(f.path(g.File))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := read(g)
	const at = headerSize + segmentSize
	changed := map[string][]byte{
		"empty":               {},
		"extended":            append(bytes.Clone(good), 0),
		"extended by itself":  append(bytes.Clone(good), good...),
		"older generation":    read(old),
		"another profile's":   read(f.commit(t, neighbour, "n")),
		"another account's":   read(f.commit(t, stranger, "s")),
		"segments exchanged":  slices.Concat(good[:at], good[at+segmentSize:at+2*segmentSize], good[at:at+segmentSize], good[at+2*segmentSize:]),
		"last segment gone":   good[:headerSize+3*segmentSize],
		"a segment twice":     slices.Concat(good[:at], good[headerSize:at], good[at:]),
		"old body, new head":  slices.Concat(good[:headerSize], read(old)[headerSize:]),
		"new body, old head":  slices.Concat(read(old)[:headerSize], good[headerSize:]),
		"only a header":       good[:headerSize],
		"stream without head": good[headerSize:],
		"zeros of its length": make([]byte, len(good)),
	}
	for name, change := range map[string]func(*header){
		"region":          func(h *header) { h.region = place.US },
		"account":         func(h *header) { h.ref.Account = stranger.Account },
		"profile":         func(h *header) { h.ref.Profile = neighbour.Profile },
		"generation up":   func(h *header) { h.generation++ },
		"generation down": func(h *header) { h.generation-- },
		"key epoch":       func(h *header) { h.epoch++ },
		"term up":         func(h *header) { h.term++ },
		"term down":       func(h *header) { h.term-- },
		"previous":        func(h *header) { h.previous[0] ^= 1 },
		"no previous":     func(h *header) { h.previous = Digest{} },
	} {
		h, err := parseHeader(good)
		if err != nil {
			t.Fatal(err)
		}
		change(&h)
		changed["header's "+name] = append(h.marshal(), good[headerSize:]...)
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

	published := func(g Generation) {
		_ = f.world.do(func(s *worldState) error { s.make(testRef).Generations[2] = g; return nil })
	}
	for name, b := range changed {
		if err := os.WriteFile(f.path(g.File), b, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, forged := range []bool{false, true} {
			lie := g
			if forged {
				lie.Bytes, lie.Digest = int64(len(b)), digest(b)
			}
			published(lie)
			s, _, err := f.Load(t.Context(), testRef)
			var damage *DamageError
			var i int
			_, _ = fmt.Sscanf(name, "header byte %d", &i)
			if forged && (name == "header's key epoch" || i >= 158 && i < 162) && errors.Is(err, ErrKey) && s == nil {
				continue // the header names a key that the profile does not have, which is no word about the file
			}
			if !errors.Is(err, ErrTampered) || !errors.As(err, &damage) || damage.Generation != 2 || s != nil {
				t.Errorf("%s (index forged: %v): %v, %v", name, forged, s, err)
				continue
			}
			if now := f.head(t, testRef).Current; now.State != Quarantined || now.Reason == "" || damage.Offer != 1 {
				t.Errorf("%s (index forged: %v): %+v, offered generation %d", name, forged, now, damage.Offer)
			}
		}
	}
	t.Run("quarantined it stays, whole or not, and the offer is good", func(t *testing.T) {
		if err := os.WriteFile(f.path(g.File), good, 0o600); err != nil {
			t.Fatal(err)
		}
		lie := g
		lie.State = Quarantined
		published(lie)
		if _, _, err := f.Load(t.Context(), testRef); !errors.Is(err, ErrTampered) || !strings.Contains(err.Error(), "generation 1 opens") {
			t.Error(err)
		}
		f.world.hold(testRef, "", 0)
		defer f.world.hold(testRef, by.Session, by.Term)
		if err := f.Promote(t.Context(), testRef, 2); !errors.Is(err, ErrTampered) {
			t.Error(err)
		}
		if n, err := f.Rollback(t.Context(), testRef); err != nil || n != 1 || f.value(t, testRef) != "login" {
			t.Errorf("rolled back to %d, %v", n, err)
		}
		_ = f.world.do(func(s *worldState) error { s.make(testRef).Current = 2; return nil })
	})
	published(g)
	if f.value(t, testRef) != "login" {
		t.Fatal("the untouched file does not open: the test proves nothing")
	}
	t.Run("index points elsewhere", func(t *testing.T) {
		for _, name := range []string{"/etc/passwd", "../x", "", neighbour.folder() + "/1-1-x.sealed", testRef.folder() + "/../../x"} {
			lie := g
			lie.File = name
			published(lie)
			if _, _, err := f.Load(t.Context(), testRef); !errors.Is(err, ErrTampered) {
				t.Errorf("%q: %v", name, err)
			}
		}
	})
	t.Run("index says another number or term", func(t *testing.T) {
		number, term := g, g
		number.Number, term.Term = 3, 2
		for _, lie := range []Generation{number, term} {
			published(lie)
			if _, _, err := f.Load(t.Context(), testRef); !errors.Is(err, ErrTampered) {
				t.Error(err)
			}
		}
	})
	t.Run("file gone", func(t *testing.T) {
		published(g)
		if err := os.Remove(f.path(g.File)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := f.Load(t.Context(), testRef); !errors.Is(err, ErrTampered) || !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
	t.Run("nothing left to offer", func(t *testing.T) {
		published(g)
		if err := os.Truncate(f.path(old.File), 10); err != nil {
			t.Fatal(err)
		}
		var damage *DamageError
		if _, _, err := f.Load(t.Context(), testRef); !errors.As(err, &damage) || damage.Offer != 0 {
			t.Error(err)
		}
	})
	t.Run("a disk that fails is not damage", func(t *testing.T) {
		one := f.commit(t, neighbour, "m")
		if err := os.Remove(f.path(one.File)); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(f.path(one.File), 0o700); err != nil { // it opens and cannot be read
			t.Fatal(err)
		}
		if _, _, err := f.Load(t.Context(), neighbour); err == nil || errors.Is(err, ErrTampered) {
			t.Error(err)
		}
		if now := f.head(t, neighbour).Current; now.State != Good {
			t.Errorf("%+v", now)
		}
	})
}

// TestAnotherKeyOfTheProfile: a header that names another of the profile's own data keys is another header.
func TestAnotherKeyOfTheProfile(t *testing.T) {
	f := newStore(t)
	one := f.commit(t, testRef, "one")
	if _, err := f.Store.keys.RotateAccount(t.Context(), testRef.Account); err != nil {
		t.Fatal(err)
	}
	key, err := f.Store.keys.open(t.Context(), testRef, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.path(one.File))
	if err != nil {
		t.Fatal(err)
	}
	h, err := parseHeader(b)
	if err != nil || h.epoch == key.epoch || f.value(t, testRef) != "one" {
		t.Fatalf("key %d of %d, %v", h.epoch, key.epoch, err)
	}
	h.epoch = key.epoch
	forged := append(h.marshal(), b[headerSize:]...)
	if err := os.WriteFile(f.path(one.File), forged, 0o600); err != nil {
		t.Fatal(err)
	}
	_ = f.world.do(func(s *worldState) error {
		one.Digest = digest(forged)
		s.make(testRef).Generations[1] = one
		return nil
	})
	if _, _, err := f.Load(t.Context(), testRef); !errors.Is(err, ErrTampered) {
		t.Error(err)
	}
}

// TestDigest is another for every other length, header, head of the stream and tag.
func TestDigest(t *testing.T) {
	file := bytes.Repeat([]byte{7}, headerSize+2*segmentSize+100)
	seen := map[Digest]string{digest(file): "the file"}
	see := func(name string, b []byte) {
		d := digest(b)
		if was, ok := seen[d]; ok {
			t.Errorf("%s has the digest of %s", name, was)
		}
		seen[d] = name
	}
	for i := range headerSize + streamHead {
		see(fmt.Sprintf("byte %d", i), flip(file, i))
	}
	for _, end := range []int{headerSize + segmentSize, headerSize + 2*segmentSize, len(file)} {
		for i := end - segmentTag; i < end; i++ {
			see(fmt.Sprintf("byte %d of a tag", i), flip(file, i))
		}
	}
	see("one cut by a byte", file[:len(file)-1])
	see("one longer by a byte", append(bytes.Clone(file), 7))
}

func flip(b []byte, i int) []byte {
	c := bytes.Clone(b)
	c[i] ^= 1
	return c
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
	if s := fmt.Sprintf("%v %+v %#v", k, k, k); strings.Contains(s, "epochs") || strings.Contains(s, "0x") {
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
