package tunnel

import (
	"crypto/hkdf"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// The preshared key of a host's tunnel is made by two parties that have one already:
//
//	host                                          registry
//	seed made and stored ── key, encapsulation key ──▶ shared, ciphertext = Encapsulate(encapsulation key)
//	shared = Decapsulate(seed, ciphertext) ◀── ciphertext, confirmation ──
//
//	new PSK      = HKDF-SHA256(IKM: old PSK ‖ shared, info: label ‖ SHA-256(key ‖ encapsulation key) ‖ SHA-256(ciphertext))
//	confirmation = HKDF-SHA256(IKM: new PSK, info: label)
//
// The old PSK is the token's when a host joins and the host's own when it rotates, so that every key depends on all
// before it. Both inputs have a fixed length, so the new PSK is unpredictable to whoever lacks either (NIST SP 800-56C
// rev. 2, section 2, permits this form; hashing the ciphertext in keeps a KEM combiner secure against chosen
// ciphertexts: Giacon, Heuer, Poettering, "KEM Combiners", PKC 2018). WireGuard mixes it into a handshake of X25519
// (Noise IKpsk2): recorded traffic stays closed as long as one of X25519 and ML-KEM-768 holds. The registry holds the
// present preshared keys: a copy of it enrols nobody and reads nothing, but leaves X25519 alone to protect what was
// recorded under those keys.
//
// ML-KEM answers a damaged ciphertext with a random secret instead of an error. The confirmation tells the host so
// before it drops the key that works.

const seedSize = mlkem.SeedSize

// ErrOffer is wrapped by errors about an offer that no host of ours makes.
var ErrOffer = errors.New("tunnel: this is not an offer of a key")

// ErrConfirmation: both ends derived different preshared keys.
var ErrConfirmation = errors.New("tunnel: the gateway's answer does not fit the key that was offered: the preshared key would differ at both ends; " +
	"it was damaged on the way, or made for another host")

// Offer is what a host offers to be known by from now on. It holds no secret.
type Offer struct {
	PublicKey        Key
	EncapsulationKey []byte // ML-KEM-768
	Replaces         Key    // the host's present key; none when it joins. Not part of the digest.
	Through          Key    // the join key whose tunnel it came through; none: not known. Not part of the digest.
}

// Digest tells offers apart.
func (o Offer) Digest() [sha256.Size]byte {
	return sha256.Sum256(append(o.PublicKey[:], o.EncapsulationKey...))
}

// Answer is what a registry keeps of an offer, so that the same offer gets the same answer. The ciphertext is public.
type Answer struct {
	PresharedKey PresharedKey
	Ciphertext   []byte
}

// Answer makes the next preshared key out of the one both ends have. Errors wrap ErrOffer.
func (o Offer) Answer(old PresharedKey) (Answer, error) {
	ek, err := o.check()
	if err != nil {
		return Answer{}, err
	}
	shared, ciphertext := ek.Encapsulate()
	psk, err := combine(old, shared, o, ciphertext)
	return Answer{psk, ciphertext}, err
}

// Confirmation is what the host compares with its own.
func (a Answer) Confirmation() ([]byte, error) {
	b, err := hkdf.Key(sha256.New, a.PresharedKey[:], nil, "driftstack tunnel v2 confirmation", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("tunnel: confirm a preshared key: %w", err)
	}
	return b, nil
}

// Joined is the answer of a join, for host name at its own address.
func (a Answer) Joined(host, addr string) (wire.Joined, error) {
	c, err := a.Confirmation()
	return wire.Joined{Host: host, Address: addr, Ciphertext: a.Ciphertext, Confirmation: c}, err
}

// Rekeyed is the answer of a rotation.
func (a Answer) Rekeyed() (wire.Rekeyed, error) {
	c, err := a.Confirmation()
	return wire.Rekeyed{Ciphertext: a.Ciphertext, Confirmation: c}, err
}

func (o Offer) check() (*mlkem.EncapsulationKey768, error) {
	if o.PublicKey == (Key{}) {
		return nil, fmt.Errorf("%w: it has no public key", ErrOffer)
	}
	if o.PublicKey == o.Replaces {
		return nil, fmt.Errorf("%w: its public key is the present one", ErrOffer)
	}
	ek, err := mlkem.NewEncapsulationKey768(o.EncapsulationKey)
	if err != nil {
		return nil, fmt.Errorf("%w: its ML-KEM-768 encapsulation key of %d bytes is malformed", ErrOffer, len(o.EncapsulationKey))
	}
	return ek, nil
}

func combine(old PresharedKey, shared []byte, o Offer, ciphertext []byte) (psk PresharedKey, err error) {
	offer, answer := o.Digest(), sha256.Sum256(ciphertext)
	info := "driftstack tunnel v2 hybrid preshared key" + string(offer[:]) + string(answer[:])
	b, err := hkdf.Key(sha256.New, append(old[:], shared...), nil, info, len(psk))
	if err != nil {
		return psk, fmt.Errorf("tunnel: derive a preshared key: %w", err)
	}
	return PresharedKey(b), nil
}

// kemSeed is an ML-KEM-768 decapsulation key. It prints as "[redacted]", like a private key.
type kemSeed [seedSize]byte

// Format implements fmt.Formatter, so that no verb reveals the seed.
func (k kemSeed) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// MarshalText implements encoding.TextMarshaler, and with it JSON.
func (k kemSeed) MarshalText() ([]byte, error) { return []byte(redacted), nil }

func decodeSeed(s string) (k kemSeed, err error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	switch {
	case err != nil:
		return k, errors.New("not base64")
	case len(b) != len(k):
		return k, fmt.Errorf("%d bytes instead of %d", len(b), len(k))
	case kemSeed(b) == kemSeed{}:
		return k, errors.New("all zero")
	}
	return kemSeed(b), nil
}

// candidate is a key that a host has made and may have offered, with what it takes to read the answer.
type candidate struct {
	PrivateKey PrivateKey
	Seed       kemSeed
}

// Format implements fmt.Formatter: behind a pointer in another struct some verbs print without the fields' methods.
func (c candidate) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

func newCandidate() (candidate, error) {
	key, err := NewPrivateKey()
	if err != nil {
		return candidate{}, err
	}
	seed, err := newSeed()
	return candidate{key, seed}, err
}

func newSeed() (k kemSeed, err error) {
	if _, err := rand.Read(k[:]); err != nil {
		return k, fmt.Errorf("tunnel: ML-KEM seed: %w", err)
	}
	return k, nil
}

func (c candidate) decapsulation() (*mlkem.DecapsulationKey768, error) {
	dk, err := mlkem.NewDecapsulationKey768(c.Seed[:])
	if err != nil {
		return nil, errors.New("tunnel: the ML-KEM seed is not usable") // the cause could quote it
	}
	return dk, nil
}

// offer is what the candidate shows of itself; replaces is none for a join.
func (c candidate) offer(replaces Key) (Offer, error) {
	dk, err := c.decapsulation()
	if err != nil {
		return Offer{}, err
	}
	return Offer{PublicKey: c.PrivateKey.Public(), EncapsulationKey: dk.EncapsulationKey().Bytes(), Replaces: replaces}, nil
}

// accept is the preshared key that the answer to the candidate's offer makes of the old one. ErrConfirmation.
func (c candidate) accept(old PresharedKey, ciphertext, confirmation []byte) (PresharedKey, error) {
	dk, err := c.decapsulation()
	if err != nil {
		return PresharedKey{}, err
	}
	o, err := c.offer(Key{})
	if err != nil {
		return PresharedKey{}, err
	}
	shared, err := dk.Decapsulate(ciphertext)
	if err != nil {
		return PresharedKey{}, fmt.Errorf("%w (a ciphertext of %d bytes)", ErrConfirmation, len(ciphertext))
	}
	psk, err := combine(old, shared, o, ciphertext)
	if err != nil {
		return PresharedKey{}, err
	}
	want, err := Answer{psk, ciphertext}.Confirmation()
	if err != nil {
		return PresharedKey{}, err
	}
	if subtle.ConstantTimeCompare(want, confirmation) != 1 {
		return PresharedKey{}, ErrConfirmation
	}
	return psk, nil
}
