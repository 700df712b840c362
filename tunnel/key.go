package tunnel

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
)

// Key is a WireGuard public key. As text it is standard base64, like everywhere in WireGuard.
type Key [32]byte

// ParseKey parses a public key from base64. The zero key is refused: WireGuard takes it for "no key".
func ParseKey(s string) (Key, error) {
	b, err := decodeKey(s)
	if err != nil {
		return Key{}, fmt.Errorf("tunnel: public key: %w", err)
	}
	return Key(b), nil
}

// String is the key in base64.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText implements encoding.TextMarshaler.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *Key) UnmarshalText(b []byte) (err error) {
	*k, err = ParseKey(string(b))
	return err
}

// PrivateKey is a WireGuard private key. It prints as "[redacted]" with every verb and in every encoding; only this
// package writes it, to files of mode 0600 and to devices.
type PrivateKey [32]byte

// PresharedKey is the symmetric key a host shares with the gateways. It prints as "[redacted]", like a private key;
// who stores it takes the bytes.
type PresharedKey [32]byte

const redacted = "[redacted]"

// NewPrivateKey makes a private key.
func NewPrivateKey() (PrivateKey, error) {
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return PrivateKey{}, fmt.Errorf("tunnel: private key: %w", err)
	}
	return clamp(b), nil
}

// clamp gives the bytes the form that WireGuard reads back, so that equality of keys is equality of bytes.
func clamp(b [32]byte) PrivateKey {
	b[0] &= 248
	b[31] = b[31]&127 | 64
	return b
}

// Public is the public key of k.
func (k PrivateKey) Public() Key {
	p, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		return Key{} // only a key of another length is an error, and the type excludes that
	}
	return Key(p.PublicKey().Bytes())
}

// IsZero says whether no key was set.
func (k PrivateKey) IsZero() bool { return k == PrivateKey{} }

// Format implements fmt.Formatter, so that no verb reveals the key.
func (k PrivateKey) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// String implements fmt.Stringer.
func (k PrivateKey) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (k PrivateKey) GoString() string { return redacted }

// MarshalText implements encoding.TextMarshaler, and with it JSON.
func (k PrivateKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Format implements fmt.Formatter, so that no verb reveals the key.
func (k PresharedKey) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// String implements fmt.Stringer.
func (k PresharedKey) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (k PresharedKey) GoString() string { return redacted }

// MarshalText implements encoding.TextMarshaler, and with it JSON.
func (k PresharedKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// reveal is the private key in base64, for key files.
func reveal(k [32]byte) string { return revealBytes(k[:]) }

func revealBytes(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func decodeKey(s string) ([32]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return [32]byte{}, errors.New("not base64") // the decoder's error quotes nothing useful, and a key may be secret
	}
	if len(b) != 32 {
		return [32]byte{}, fmt.Errorf("%d bytes instead of 32", len(b))
	}
	if [32]byte(b) == ([32]byte{}) {
		return [32]byte{}, errors.New("all zero")
	}
	return [32]byte(b), nil
}
