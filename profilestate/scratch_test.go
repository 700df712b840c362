package profilestate

import (
	"bytes"
	"slices"
	"testing"
)

// TestScratchKeepsNothing: memory that is lent again has nothing of what was in it, also beyond what is in use; and what is lent to two is not the same.
func TestScratchKeepsNothing(t *testing.T) {
	var s scratch
	for range 100 { // a pool may drop what it is given
		a, b := s.take(4096), s.take(4096)
		for _, buffer := range []*bytes.Buffer{a, b} {
			if all := buffer.Bytes()[:buffer.Cap()]; slices.ContainsFunc(all, func(c byte) bool { return c != 0 }) {
				t.Fatalf("there is still something in it: %q", bytes.Trim(all, "\x00"))
			}
		}
		a.WriteString("a secret")
		b.WriteString("another one")
		if a.String() != "a secret" {
			t.Fatalf("somebody else wrote %q", a)
		}
		s.wipe(a)
		s.wipe(b)
	}
}

// TestScratchIsRoomEnough: neither sealing nor opening outgrows what it was lent, which would leave a copy behind.
func TestScratchIsRoomEnough(t *testing.T) {
	p, err := NewProbe()
	if err != nil {
		t.Fatal(err)
	}
	h := header{ref: Ref{"account", "profile"}, generation: 1, epoch: p.key.epoch}
	for _, n := range []int{0, 1, 3800, 4080, 4096, 8160, 1 << 16, 1<<20 + 1} {
		var sealed, opened bytes.Buffer
		sealed.Grow(sealedSize(n))
		was := sealed.Cap()
		if err := seal(&sealed, p.key, h, make([]byte, n)); err != nil || sealed.Cap() != was || sealed.Len() > sealedSize(n) {
			t.Errorf("%d bytes: %d of %d, then %d, %v", n, sealed.Len(), was, sealed.Cap(), err)
		}
		opened.Grow(openedSize(sealed.Len()))
		was = opened.Cap()
		if err := decryptBody(&opened, p.key, sealed.Bytes()); err != nil || opened.Cap() != was || opened.Len() != n {
			t.Errorf("%d bytes: %d of %d, then %d, %v", n, opened.Len(), was, opened.Cap(), err)
		}
	}
}
