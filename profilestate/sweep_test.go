package profilestate

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func TestSweep(t *testing.T) {
	f := newStore(t)
	var g Generation
	for _, v := range []string{"one", "two", "three"} {
		g = f.commit(t, testRef, g, v)
	}
	f.index.before = func() error { return errors.New("the process died here") }
	if _, err := f.Commit(t.Context(), testRef, g, state("never"), "s", 1); err == nil {
		t.Fatal("published")
	}
	f.index.before = nil
	strange := filepath.Join(f.dir, "x", "y")
	if err := os.MkdirAll(strange, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(strange, "z.sealed"), []byte("not ours"), 0o600); err != nil {
		t.Fatal(err)
	}

	if got, err := f.Sweep(t.Context(), time.Hour); err != nil || got.Removed != 0 || got.Kept != 5 {
		t.Fatalf("young files: %+v, %v", got, err)
	}
	f.clock = f.clock.Add(2 * time.Hour)
	got, err := f.Sweep(t.Context(), time.Hour)
	if err != nil || got.Removed != 2 || got.Kept != 3 || got.Bytes == 0 {
		t.Fatalf("old files: %+v, %v; want the leftover and generation 1 removed", got, err)
	}
	if f.value(t, testRef) != "three" {
		t.Fatal("the current generation is gone")
	}
	if again, err := f.Sweep(t.Context(), time.Hour); err != nil || again.Removed != 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
}

// TestSweepDuringCommit sweeps while a writer has been asleep, for much longer than the sweep waits, between having
// written its file and publishing it.
func TestSweepDuringCommit(t *testing.T) {
	f := newStore(t)
	one := f.commit(t, testRef, Generation{}, "one")
	f.clock = f.clock.Add(1000 * time.Hour)
	f.index.before = func() error {
		got, err := f.Sweep(t.Context(), time.Hour)
		if err != nil || got.Removed != 0 {
			t.Errorf("sweep: %+v, %v", got, err)
		}
		return nil
	}
	two, err := f.Commit(t.Context(), testRef, one, state("two"), "s", 1)
	if err != nil || f.value(t, testRef) != "two" {
		t.Fatalf("generation %d, %v", two.Number, err)
	}
}

func TestSweepLeavesADamagedProfileAlone(t *testing.T) {
	f := newStore(t)
	g := f.commit(t, testRef, f.commit(t, testRef, f.commit(t, testRef, Generation{}, "1"), "2"), "3")
	if err := os.Truncate(f.path(g.File), 10); err != nil {
		t.Fatal(err)
	}
	f.clock = f.clock.Add(2 * time.Hour)
	if got, err := f.Sweep(t.Context(), time.Hour); err == nil || got.Removed != 0 {
		t.Errorf("%+v, %v: the older generations may be all that is left", got, err)
	}
}

func TestCreateLeavesNothingOnFailure(t *testing.T) {
	f := newStore(t)
	if err := os.WriteFile(filepath.Join(f.dir, idName(testRef.Account)), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Commit(t.Context(), testRef, Generation{}, state("x"), "s", 1); err == nil {
		t.Fatal("a file stands where the folder must be, and nobody noticed")
	}
	if g, _ := f.index.Current(t.Context(), testRef); g != (Generation{}) {
		t.Error("published without a file")
	}
}

// BenchmarkSealOpen is to be compared with BenchmarkRawGCM of the same size.
func BenchmarkSealOpen(b *testing.B) {
	f := newStore(b)
	key, err := f.keys.openOrCreate(b.Context(), testRef)
	if err != nil {
		b.Fatal(err)
	}
	h := header{region: f.region, ref: testRef, generation: 1, epoch: key.epoch, term: 1}
	sizes(b, func(b *testing.B, plaintext []byte) {
		for b.Loop() {
			file, err := seal(key, h, plaintext)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := decryptBody(key, file); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRawGCM(b *testing.B) {
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		b.Fatal(err)
	}
	nonce := make([]byte, gcm.NonceSize())
	sizes(b, func(b *testing.B, plaintext []byte) {
		for b.Loop() {
			if _, err := gcm.Open(nil, nonce, gcm.Seal(nil, nonce, plaintext, nil), nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func sizes(b *testing.B, run func(*testing.B, []byte)) {
	for _, s := range []struct {
		name string
		n    int
	}{{"64KiB", 64 << 10}, {"1MiB", 1 << 20}} {
		plaintext := make([]byte, s.n)
		rand.Read(plaintext)
		b.Run(s.name, func(b *testing.B) {
			b.SetBytes(int64(s.n))
			b.ReportAllocs()
			run(b, plaintext)
		})
	}
}
