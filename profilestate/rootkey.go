package profilestate

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/core/registry"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// RootKey wraps the keys of all accounts. It stays in the EU, apart from the wrapped keys and from the files. It has
// epochs: one wraps, and the others open what was wrapped before. It is safe for concurrent use.
type RootKey struct {
	path string // of its file; "" when it came from elsewhere

	mu     sync.Mutex // guards what follows
	epochs map[string]tink.AEAD
	latest string
}

// String does not show the key.
func (*RootKey) String() string { return "root key" }

// GoString is String.
func (*RootKey) GoString() string { return "root key" }

// CreateRootKey makes a root key in a new file that only its owner can read. It never replaces a file: losing a root key
// is losing every profile. The error is fs.ErrExist when there is one.
func CreateRootKey(path string) error {
	h, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return fmt.Errorf("make root key: %w", err)
	}
	// Written beside and then linked: a crash leaves either no key or a whole one, never an empty file in its place.
	if err := writeKeyset(path, h, os.Link); err != nil {
		return fmt.Errorf("create root key: %w", err)
	}
	return nil
}

// writeKeyset writes a durable file beside path and has place put it there.
func writeKeyset(path string, h *keyset.Handle, place func(from, to string) error) error {
	var text bytes.Buffer
	if err := insecurecleartextkeyset.Write(h, keyset.NewJSONWriter(&text)); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".root-key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text.Bytes())
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := place(f.Name(), path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// ReadRootKey reads a root key's file and refuses one that others may read.
func ReadRootKey(path string) (*RootKey, error) {
	h, err := readKeyset(path)
	if err != nil {
		return nil, err
	}
	k := &RootKey{path: path}
	return k, k.take(h)
}

func readKeyset(path string) (*keyset.Handle, error) {
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
	return parseKeyset(text.String())
}

// ParseRootKey reads a root key from text: the contents of a root key file, or the same in base64, as it fits into an
// environment variable.
func ParseRootKey(text string) (*RootKey, error) {
	h, err := parseKeyset(text)
	if err != nil {
		return nil, err
	}
	k := &RootKey{}
	return k, k.take(h)
}

func parseKeyset(text string) (*keyset.Handle, error) {
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
	return h, nil
}

// RootKeyFromKMS is a root key that never leaves a key management service. Each URI is an epoch, the last one wraps.
// A service that is asked in the EU only is for its operator to choose.
func RootKeyFromKMS(client registry.KMSClient, uris ...string) (*RootKey, error) {
	if len(uris) == 0 {
		return nil, errors.New("root key: name a key of the key management service")
	}
	k := &RootKey{epochs: make(map[string]tink.AEAD), latest: uris[len(uris)-1]}
	for _, uri := range uris {
		if !client.Supported(uri) {
			return nil, fmt.Errorf("root key: the key management service does not serve %s", uri)
		}
		a, err := client.GetAEAD(uri)
		if err != nil {
			return nil, fmt.Errorf("root key %s: %w", uri, err)
		}
		k.epochs[uri] = a
	}
	return k, nil
}

// take makes the keyset's keys the epochs.
func (k *RootKey) take(h *keyset.Handle) error {
	a, err := aead.New(h)
	if err != nil {
		return errors.New("root key: the keyset is not one for AEAD")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	info := h.KeysetInfo()
	k.epochs, k.latest = make(map[string]tink.AEAD), epochName(info.GetPrimaryKeyId())
	for _, i := range info.GetKeyInfo() {
		k.epochs[epochName(i.GetKeyId())] = a
	}
	return nil
}

func epochName(id uint32) string { return fmt.Sprintf("%08x", id) }

// reload reads the file again, which another process may have rotated.
func (k *RootKey) reload() error {
	if k.path == "" {
		return nil
	}
	h, err := readKeyset(k.path)
	if err != nil {
		return err
	}
	return k.take(h)
}

// forWrapping is the newest epoch. The file is read for it: nothing may be wrapped with an epoch that was retired.
func (k *RootKey) forWrapping() (string, tink.AEAD, error) {
	if err := k.reload(); err != nil {
		return "", nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.latest, k.epochs[k.latest], nil
}

// at is the epoch that something was wrapped with.
func (k *RootKey) at(epoch string) (tink.AEAD, error) {
	for again := false; ; again = true {
		k.mu.Lock()
		a := k.epochs[epoch]
		k.mu.Unlock()
		if a != nil {
			return a, nil
		}
		if again {
			return nil, fmt.Errorf("%w: it is wrapped with epoch %s of the root key, which is not there", ErrKey, epoch)
		}
		if err := k.reload(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrKey, err)
		}
	}
}

// all are the epochs, the newest last.
func (k *RootKey) all() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for e := range k.epochs {
		if e != k.latest {
			names = append(names, e)
		}
	}
	slices.Sort(names)
	return append(names, k.latest)
}

// advance adds an epoch to the root key's file. made is false where there is no file: then its owner adds one.
func (k *RootKey) advance() (made bool, err error) {
	if k.path == "" {
		return false, nil
	}
	return true, k.alone(func() error {
		return k.rewrite(func(m *keyset.Manager) error {
			id, err := m.Add(aead.AES256GCMKeyTemplate())
			if err != nil {
				return err
			}
			return m.SetPrimary(id)
		})
	})
}

const lockSuffix = ".lock"

// ErrRootBusy means that somebody else changes the root key at this moment.
var ErrRootBusy = errors.New("the root key is being rotated, or an epoch of it retired, by somebody else; try again")

// alone has nobody else change the file meanwhile, in this process or another: of two who did so at once, one would lose the other's epoch, and
// with it the keys that are wrapped by then. ErrRootBusy.
func (k *RootKey) alone(change func() error) error {
	// A file of its own: that of the key is replaced, and NFS locks only what is open for writing, which a folder never is. It stays, so that all lock the same.
	lock, err := os.OpenFile(k.path+lockSuffix, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("root key: %w", err)
	}
	defer lock.Close()
	switch err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return ErrRootBusy
	case err != nil:
		return fmt.Errorf("root key: %w", err)
	}
	return change()
}

// rewrite changes the file in one step and takes it over.
func (k *RootKey) rewrite(change func(*keyset.Manager) error) error {
	h, err := readKeyset(k.path)
	if err != nil {
		return err
	}
	m := keyset.NewManagerFromHandle(h)
	if err := change(m); err != nil {
		return fmt.Errorf("root key: %w", err)
	}
	if h, err = m.Handle(); err != nil {
		return fmt.Errorf("root key: %w", err)
	}
	if err := writeKeyset(k.path, h, os.Rename); err != nil {
		return fmt.Errorf("root key: %w", err)
	}
	return k.take(h)
}

// remove takes an epoch out of the file, and puts it back when used says afterwards that it must not go.
func (k *RootKey) remove(epoch string, used func() error) error {
	return k.alone(func() error { return k.removeAlone(epoch, used) })
}

func (k *RootKey) removeAlone(epoch string, used func() error) error {
	h, err := readKeyset(k.path)
	if err != nil {
		return err
	}
	for _, i := range h.KeysetInfo().GetKeyInfo() {
		if epochName(i.GetKeyId()) != epoch {
			continue
		}
		if err := k.rewrite(func(m *keyset.Manager) error { return m.Delete(i.GetKeyId()) }); err != nil {
			return err
		}
		if why := used(); why != nil {
			return errors.Join(why, writeKeyset(k.path, h, os.Rename), k.take(h))
		}
		return nil
	}
	return &InUseError{epoch, "there is no such epoch; `driftctl keys status` lists them"}
}
