package tunnel

import (
	"bytes"
	"crypto/mlkem/mlkemtest"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"testing"

	"github.com/driftstack/fleet/driverproxy/wire"
)

func testOffer(t testing.TB) Offer {
	t.Helper()
	c, err := newCandidate()
	if err != nil {
		t.Fatal(err)
	}
	o, err := c.offer(Key{})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func joinBody(t testing.TB, o Offer) string {
	t.Helper()
	b, err := json.Marshal(wire.Join{PublicKey: o.PublicKey.String(), EncapsulationKey: o.EncapsulationKey})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestAgreement: both ends come to the same key, which depends on everything that goes in.
func TestAgreement(t *testing.T) {
	c, err := newCandidate()
	if err != nil {
		t.Fatal(err)
	}
	o, err := c.offer(Key{9})
	if err != nil {
		t.Fatal(err)
	}
	if len(o.EncapsulationKey) != wire.EncapsulationKeySize {
		t.Fatalf("an encapsulation key of %d bytes", len(o.EncapsulationKey))
	}
	old := PresharedKey{1, 2, 3}
	a, err := o.Answer(old)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Ciphertext) != wire.CiphertextSize {
		t.Fatalf("a ciphertext of %d bytes", len(a.Ciphertext))
	}
	confirmation, err := a.Confirmation()
	if err != nil {
		t.Fatal(err)
	}
	psk, err := c.accept(old, a.Ciphertext, confirmation)
	if err != nil || psk != a.PresharedKey || psk == old {
		t.Fatalf("same key %t, %v", psk == a.PresharedKey, err)
	}
	if bytes.Equal(confirmation, psk[:]) {
		t.Error("the confirmation is the key")
	}
	again, err := o.Answer(old)
	if err != nil || again.PresharedKey == a.PresharedKey {
		t.Errorf("two answers have one key: %v", err)
	}

	other, err := newCandidate()
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(a.Ciphertext)
	damaged[700] ^= 0x10
	for name, try := range map[string]func() (PresharedKey, error){
		"another preshared key": func() (PresharedKey, error) { return c.accept(PresharedKey{1}, a.Ciphertext, confirmation) },
		"another seed": func() (PresharedKey, error) {
			return candidate{c.PrivateKey, other.Seed}.accept(old, a.Ciphertext, confirmation)
		},
		"another key": func() (PresharedKey, error) {
			return candidate{other.PrivateKey, c.Seed}.accept(old, a.Ciphertext, confirmation)
		},
		"a damaged ciphertext": func() (PresharedKey, error) { return c.accept(old, damaged, confirmation) },
		"a cut ciphertext":     func() (PresharedKey, error) { return c.accept(old, a.Ciphertext[1:], confirmation) },
		"no ciphertext":        func() (PresharedKey, error) { return c.accept(old, nil, confirmation) },
		"no confirmation":      func() (PresharedKey, error) { return c.accept(old, a.Ciphertext, nil) },
	} {
		if psk, err := try(); !errors.Is(err, ErrConfirmation) || psk != (PresharedKey{}) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestKnownAnswer holds the derivation as it is: another one cuts off every host that rotates during an update. The
// values were computed with Python's hmac and hashlib from RFC 5869.
func TestKnownAnswer(t *testing.T) {
	var old PresharedKey
	for i := range old {
		old[i] = byte(i)
	}
	o := Offer{PublicKey: Key{1}, EncapsulationKey: bytes.Repeat([]byte{2}, wire.EncapsulationKeySize)}
	ciphertext := bytes.Repeat([]byte{4}, wire.CiphertextSize)
	psk, err := combine(old, bytes.Repeat([]byte{3}, 32), o, ciphertext)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Answer{psk, ciphertext}.Confirmation()
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(psk[:]); got != "1aaff75d15bea4f9d13d9c315cd4c3755f4b97d27b15a6f32115a84c64724e12" {
		t.Errorf("preshared key %s", got)
	}
	if got := hex.EncodeToString(c); got != "d3ee609dd72965b75d8d16a3d1be6d6f742bffc18bf42f4a52e8a2dcd48240f8" {
		t.Errorf("confirmation %s", got)
	}
}

func TestOfferRefused(t *testing.T) {
	good := testOffer(t)
	if good.Digest() != sha256.Sum256(append(bytes.Clone(good.PublicKey[:]), good.EncapsulationKey...)) {
		t.Error("the digest is not of the public key and the encapsulation key")
	}
	overflow := bytes.Repeat([]byte{0xff}, wire.EncapsulationKeySize) // its coefficients are not reduced
	for name, o := range map[string]Offer{
		"no key":               {EncapsulationKey: good.EncapsulationKey},
		"no encapsulation key": {PublicKey: good.PublicKey},
		"short":                {PublicKey: good.PublicKey, EncapsulationKey: good.EncapsulationKey[1:]},
		"not reduced":          {PublicKey: good.PublicKey, EncapsulationKey: overflow},
		"the present key":      {PublicKey: good.PublicKey, EncapsulationKey: good.EncapsulationKey, Replaces: good.PublicKey},
	} {
		if _, err := o.Answer(PresharedKey{1}); !errors.Is(err, ErrOffer) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReadOffer(f *testing.F) {
	o, err := candidate{clamp([32]byte{1}), kemSeed{2}}.offer(Key{}) // the same in every process that fuzzes
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(joinBody(f, o)))
	b, err := json.Marshal(wire.Rekey{PublicKey: o.PublicKey.String(), EncapsulationKey: o.EncapsulationKey, Replaces: Key{1}.String()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := readJoin(bytes.NewReader(b)); err == nil {
			if _, err := o.Answer(PresharedKey{1}); err != nil || o.Replaces != (Key{}) {
				t.Fatalf("%+v is accepted and cannot be answered: %v", o, err)
			}
		}
		if o, err := readRekey(bytes.NewReader(b)); err == nil {
			if _, err := o.Answer(PresharedKey{1}); err != nil || o.Replaces == (Key{}) {
				t.Fatalf("%+v is accepted and cannot be answered: %v", o, err)
			}
		}
	})
}

// FuzzAccept: whatever a gateway answers, only its true answer is taken.
func FuzzAccept(f *testing.F) {
	c := candidate{clamp([32]byte{1}), kemSeed{2}}
	o, err := c.offer(Key{})
	if err != nil {
		f.Fatal(err)
	}
	ek, err := o.check()
	if err != nil {
		f.Fatal(err)
	}
	shared, ciphertext, err := mlkemtest.Encapsulate768(ek, make([]byte, 32)) // the same in every process that fuzzes
	if err != nil {
		f.Fatal(err)
	}
	psk, err := combine(PresharedKey{3}, shared, o, ciphertext)
	if err != nil {
		f.Fatal(err)
	}
	a := Answer{psk, ciphertext}
	confirmation, err := a.Confirmation()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(a.Ciphertext, confirmation)
	f.Add([]byte{}, confirmation)
	f.Add(append([]byte{a.Ciphertext[0] ^ 1}, a.Ciphertext[1:]...), confirmation)
	f.Add(a.Ciphertext, confirmation[1:])
	f.Fuzz(func(t *testing.T, ciphertext, given []byte) {
		psk, err := c.accept(PresharedKey{3}, ciphertext, given)
		if its := bytes.Equal(ciphertext, a.Ciphertext) && bytes.Equal(given, confirmation); its != (err == nil) || its && psk != a.PresharedKey {
			t.Fatalf("%x %x: %v", ciphertext, given, err)
		}
	})
}
