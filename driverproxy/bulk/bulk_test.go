package bulk

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/iotest"
)

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 >> 3)
	}
	return b
}

func TestRead(t *testing.T) {
	for _, n := range []int{0, 1, smallest - 1, smallest, smallest + 1, trusted - 1, trusted, trusted + 1, growth * trusted, 3<<20 + 17} {
		want := pattern(n)
		for _, says := range []int64{-1, 0, 1, int64(n) - 1, int64(n), int64(n) + 1, 10 * int64(n), 1 << 40} {
			for name, r := range map[string]io.Reader{
				"whole": bytes.NewReader(want), "half": iotest.HalfReader(bytes.NewReader(want)), "data with EOF": iotest.DataErrReader(bytes.NewReader(want)),
			} {
				got, err := Read(r, says, 4<<20)
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%d bytes that were announced as %d, %s: got %d, %v", n, says, name, len(got), err)
				}
			}
		}
	}
}

func TestTooLong(t *testing.T) {
	for _, says := range []int64{0, 10, 1000, 1 << 40} {
		for n, want := range map[int]error{999: nil, 1000: nil, 1001: ErrTooLong, 100_000: ErrTooLong} {
			if _, err := Read(bytes.NewReader(pattern(n)), says, 1000); !errors.Is(err, want) {
				t.Errorf("%d bytes of at most 1000, announced as %d: %v, want %v", n, says, err, want)
			}
		}
	}
}

func TestBrokenReader(t *testing.T) {
	broke := errors.New("it broke")
	for _, says := range []int64{0, 10, 1 << 20} {
		if b, err := Read(io.MultiReader(bytes.NewReader(pattern(5000)), iotest.ErrReader(broke)), says, 1<<20); !errors.Is(err, broke) || b != nil {
			t.Errorf("%d bytes and %v, want the reader's error", len(b), err)
		}
	}
}

// allocated is what f allocates, which is at least what it held at its peak.
func allocated(f func()) uint64 {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// zeros reads as so many of them, in pieces of a packet.
type zeros struct{ left int }

func (z *zeros) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), z.left, 1400)
	z.left -= n
	return n, nil
}

func TestMemory(t *testing.T) {
	const n = 100 << 20
	for name, c := range map[string]struct {
		sent int
		says int64
		most float64 // MiB
	}{
		"announced":                    {n, n, 108},
		"a little more than announced": {n, n - n/10, 220}, // as if nothing was announced
		"not announced":                {n, 0, 215},
		"announced and not sent":       {1 << 20, n, 8},
		"a small one":                  {100, 100, 0.1},
	} {
		got := allocated(func() {
			if b, err := Read(&zeros{c.sent}, c.says, 1<<30); err != nil || len(b) != c.sent {
				t.Errorf("%s: %d bytes, %v", name, len(b), err)
			}
		})
		if mib := float64(got) / (1 << 20); mib > c.most {
			t.Errorf("%s: %.1f MiB for %.1f MiB, want at most %.1f", name, mib, float64(c.sent)/(1<<20), c.most)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(uint32(0), int64(0), uint64(1))
	f.Add(uint32(100_000), int64(1_000_000), uint64(2))
	f.Add(uint32(300_000), int64(70_000), uint64(3))
	f.Fuzz(func(t *testing.T, n uint32, says int64, seed uint64) {
		want := pattern(int(n % (2 << 20)))
		most := int64(1 << 20)
		got, err := Read(&uneven{want, rand.New(rand.NewPCG(seed, 0))}, says, most)
		switch {
		case int64(len(want)) > most:
			if !errors.Is(err, ErrTooLong) {
				t.Fatalf("%d bytes: %v", len(want), err)
			}
		case err != nil || !bytes.Equal(got, want):
			t.Fatalf("%d bytes that were announced as %d came as %d, %v", len(want), says, len(got), err)
		}
	})
}

// uneven reads a random number of bytes at a time.
type uneven struct {
	left []byte
	r    *rand.Rand
}

func (u *uneven) Read(p []byte) (int, error) {
	n := min(u.r.IntN(len(p)+1), len(u.left))
	copy(p, u.left[:n])
	u.left = u.left[n:]
	if len(u.left) == 0 {
		return n, io.EOF
	}
	return n, nil
}
