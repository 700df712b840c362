package profilestate

import (
	"bytes"
	"errors"
	"testing"
)

// TestText: sealed text opens for what it is about and for its account, with any epoch of the root key that is there, and as a whole only.
func TestText(t *testing.T) {
	f := newStore(t)
	text := []byte(`{"safari:note":"ada@example.com"}`)
	sealed, err := f.SealText("acme", "session-1", text)
	if err != nil || bytes.Contains(sealed, []byte("ada@")) {
		t.Fatalf("%q, %v", sealed, err)
	}
	opens := func(account, about string, sealed []byte) error {
		got, err := f.OpenText(account, about, sealed)
		if err == nil && !bytes.Equal(got, text) {
			t.Errorf("opened as %q", got)
		}
		return err
	}
	if err := opens("acme", "session-1", sealed); err != nil {
		t.Fatal(err)
	}
	if opens("acme", "session-2", sealed) == nil || opens("other", "session-1", sealed) == nil || opens("acmesession", "-1", sealed) == nil {
		t.Error("it opens for another")
	}
	for i := range sealed {
		other := bytes.Clone(sealed)
		other[i] ^= 1
		if opens("acme", "session-1", other) == nil || opens("acme", "session-1", sealed[:i]) == nil {
			t.Errorf("altered or cut short at byte %d, it opens", i)
		}
	}
	was := f.root.all()[0]
	if made, err := f.root.advance(); !made || err != nil {
		t.Fatal(made, err)
	}
	again, err := f.SealText("acme", "session-1", text)
	if err != nil || bytes.Equal(again[:10], sealed[:10]) {
		t.Errorf("sealed with the epoch before: %v", err)
	}
	if err := opens("acme", "session-1", sealed); err != nil {
		t.Errorf("after a rotation: %v", err)
	}
	if err := f.root.remove(was, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := opens("acme", "session-1", sealed); !errors.Is(err, ErrKey) {
		t.Errorf("without its epoch: %v", err)
	}
	if err := opens("acme", "session-1", again); err != nil {
		t.Error(err)
	}
}

func BenchmarkSealText(b *testing.B) {
	f := newStore(b)
	for b.Loop() {
		if _, err := f.SealText("acme", "session-1", []byte(`{"browserName":"safari"}`)); err != nil {
			b.Fatal(err)
		}
	}
}
