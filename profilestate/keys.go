package profilestate

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/streamingaead"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/driftstack/fleet/orchestrator/place"
)

// KeyStore keeps the wrapped data key of each profile. It never sees a key that could open anything.
type KeyStore interface {
	// WrappedKey returns nil when the profile has no key yet.
	WrappedKey(ctx context.Context, account, profile string) ([]byte, error)
	// PutWrappedKey stores the profile's first key and returns the one that won when two are stored at once.
	PutWrappedKey(ctx context.Context, account, profile string, wrapped []byte) ([]byte, error)
}

// RootKey wraps the data keys of all profiles. It stays in the EU, apart from the wrapped keys and from the files.
type RootKey struct{ aead tink.AEAD }

// String does not show the key.
func (RootKey) String() string { return "root key" }

// GoString is String.
func (k RootKey) GoString() string { return k.String() }

// CreateRootKey makes a root key in a new file that only its owner can read. It never replaces a file: losing a root key
// is losing every profile. The error is fs.ErrExist when there is one.
func CreateRootKey(path string) error {
	h, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return fmt.Errorf("make root key: %w", err)
	}
	var text bytes.Buffer
	if err := insecurecleartextkeyset.Write(h, keyset.NewJSONWriter(&text)); err != nil {
		return fmt.Errorf("make root key: %w", err)
	}
	// Written beside and then linked: a crash leaves either no key or a whole one, never an empty file in its place.
	f, err := os.CreateTemp(filepath.Dir(path), ".root-key-*") // mode 0600
	if err != nil {
		return fmt.Errorf("create root key: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text.Bytes())
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write root key: %w", err)
	}
	if err := os.Link(f.Name(), path); err != nil {
		return fmt.Errorf("create root key: %w", err)
	}
	return syncFolder(filepath.Dir(path))
}

// ReadRootKey reads a root key's file and refuses one that others may read.
func ReadRootKey(path string) (*RootKey, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("root key: %w: create one, or restore it from its backup if there are profiles already", err)
	}
	if err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("root key %s: mode is %v: make it a file that only its owner can read (chmod 600)", path, info.Mode())
	}
	var text bytes.Buffer
	if _, err := text.ReadFrom(f); err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	return ParseRootKey(text.String())
}

// ParseRootKey reads a root key from text: the contents of a root key file, or the same in base64, as it fits into an
// environment variable.
func ParseRootKey(text string) (*RootKey, error) {
	raw := []byte(strings.TrimSpace(text))
	if len(raw) > 0 && raw[0] != '{' {
		b, err := base64.StdEncoding.DecodeString(string(raw))
		if err != nil {
			return nil, errors.New("root key: not a Tink keyset in JSON, nor the base64 of one")
		}
		raw = b
	}
	// Tink's own errors are not passed on: they may quote what they could not parse.
	h, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(raw)))
	if err != nil {
		return nil, errors.New("root key: not a Tink keyset in JSON, nor the base64 of one")
	}
	a, err := aead.New(h)
	if err != nil {
		return nil, errors.New("root key: the keyset is not one for AEAD")
	}
	return &RootKey{a}, nil
}

// dataKey is a profile's key; epoch is the id of the key that new files are sealed with.
type dataKey struct {
	stream tink.StreamingAEAD
	epoch  uint32
	known  map[uint32]bool
}

// keyring unwraps data keys.
type keyring struct {
	root   *RootKey
	store  KeyStore
	region place.Region
}

// open returns the profile's key; errNoKey when it has none.
func (k keyring) open(ctx context.Context, ref Ref) (dataKey, error) {
	wrapped, err := k.store.WrappedKey(ctx, ref.Account, ref.Profile)
	if err != nil {
		return dataKey{}, fmt.Errorf("wrapped key: %w", err)
	}
	if len(wrapped) == 0 {
		return dataKey{}, errNoKey
	}
	return k.unwrap(ref, wrapped)
}

// openOrCreate is open that makes the key of a new profile.
func (k keyring) openOrCreate(ctx context.Context, ref Ref) (dataKey, error) {
	key, err := k.open(ctx, ref)
	if !errors.Is(err, errNoKey) {
		return key, err
	}
	h, err := keyset.NewHandle(streamingaead.AES256GCMHKDF4KBKeyTemplate())
	if err != nil {
		return dataKey{}, fmt.Errorf("make data key: %w", err)
	}
	var b bytes.Buffer
	if err := h.WriteWithAssociatedData(keyset.NewBinaryWriter(&b), k.root.aead, k.context(ref)); err != nil {
		return dataKey{}, fmt.Errorf("wrap data key: %w", err)
	}
	won, err := k.store.PutWrappedKey(ctx, ref.Account, ref.Profile, b.Bytes())
	if err != nil {
		return dataKey{}, fmt.Errorf("store wrapped key: %w", err)
	}
	return k.unwrap(ref, won)
}

func (k keyring) unwrap(ref Ref, wrapped []byte) (dataKey, error) {
	h, err := keyset.ReadWithAssociatedData(keyset.NewBinaryReader(bytes.NewReader(wrapped)), k.root.aead, k.context(ref))
	if err != nil {
		return dataKey{}, fmt.Errorf("%w: its wrapped key does not open with this root key", ErrKey)
	}
	s, err := streamingaead.New(h)
	if err != nil {
		return dataKey{}, fmt.Errorf("%w: its wrapped key is of another kind", ErrKey)
	}
	info := h.KeysetInfo()
	key := dataKey{stream: s, epoch: info.GetPrimaryKeyId(), known: make(map[uint32]bool)}
	for _, i := range info.GetKeyInfo() {
		key.known[i.GetKeyId()] = true
	}
	return key, nil
}

// context binds a wrapped key to its place and owner.
func (k keyring) context(ref Ref) []byte {
	b := []byte("driftstack profile key 1\x00")
	for _, s := range []string{string(k.region), ref.Account, ref.Profile} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return b
}
