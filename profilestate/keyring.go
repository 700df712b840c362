package profilestate

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/streamingaead"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/driftstack/fleet/orchestrator/place"
)

// Keyring makes, opens, rotates and destroys keys:
//
//	root key (an epoch of it)  wraps  account key (epoch n)  wraps  data keys of a profile  seal  its generations
//
// What wraps is bound to what is wrapped by associated data: region, account, profile and epoch. Unwrapped keys are kept
// for one use and no longer.
type Keyring struct {
	root   *RootKey
	store  KeyStore
	ledger Ledger // apart from the store
	region place.Region
}

// NewKeyring is a Keyring of the EU. ledger is not store's own.
func NewKeyring(at place.EULocation, root *RootKey, store KeyStore, ledger Ledger) (*Keyring, error) {
	if at.Country() == "" {
		return nil, errors.New("keyring: where it is was not declared, and keys of profiles are opened in the EU only")
	}
	if root == nil || store == nil || ledger == nil {
		return nil, errors.New("keyring: root key, store and ledger are all needed")
	}
	return &Keyring{root, store, ledger, place.EU}, nil
}

// dataKey is a profile's key; epoch is the id of the key that new files are sealed with.
type dataKey struct {
	stream tink.StreamingAEAD
	epoch  uint32
	known  map[uint32]bool
}

// open returns the profile's key. destroyed is what the ledger apart says of the account.
func (k *Keyring) open(ctx context.Context, ref Ref, destroyed int64) (dataKey, error) {
	w, err := k.store.Keys(ctx, ref)
	if err != nil {
		return dataKey{}, fmt.Errorf("wrapped key: %w", err)
	}
	dead := max(destroyed, w.Destroyed)
	switch {
	case w.Account.Epoch <= dead && dead > 0:
		return dataKey{}, ErrKeyDestroyed
	case w.Profile.Epoch <= dead && dead > 0:
		return dataKey{}, ErrKeyDestroyed
	case w.Account.Epoch == 0 || w.Profile.Epoch == 0:
		return dataKey{}, ErrNoKey
	case w.Profile.Epoch != w.Account.Epoch:
		return dataKey{}, fmt.Errorf("%w: it is wrapped with epoch %d of the account's key, which is at %d", ErrKey, w.Profile.Epoch, w.Account.Epoch)
	}
	a, err := k.account(w.Account)
	if err != nil {
		return dataKey{}, err
	}
	h, err := k.unwrapProfile(a, w.Profile)
	if err != nil {
		return dataKey{}, err
	}
	return newDataKey(h)
}

// openOrCreate is open that makes what keys are missing. Those that were destroyed get successors: what they opened stays closed.
func (k *Keyring) openOrCreate(ctx context.Context, ref Ref, destroyed int64) (dataKey, error) {
	for range 3 { // a rotation may come between
		key, err := k.open(ctx, ref, destroyed)
		if !errors.Is(err, ErrNoKey) && !errors.Is(err, ErrKeyDestroyed) {
			return key, err
		}
		err = k.create(ctx, ref, destroyed)
		if err != nil && !errors.Is(err, ErrConflict) {
			return dataKey{}, err
		}
	}
	return dataKey{}, fmt.Errorf("%w: it is being rotated; try again", ErrKey)
}

func (k *Keyring) create(ctx context.Context, ref Ref, destroyed int64) error {
	w, err := k.store.Keys(ctx, ref)
	if err != nil {
		return fmt.Errorf("wrapped key: %w", err)
	}
	dead := max(destroyed, w.Destroyed)
	account := w.Account
	if account.Epoch <= dead { // none, or one that must be forgotten
		fresh, _, err := k.newAccountKey(ref.Account, dead+1)
		if err != nil {
			return err
		}
		if account, err = k.store.PutAccountKey(ctx, fresh); err != nil {
			return fmt.Errorf("store account key: %w", err)
		}
	}
	a, err := k.account(account)
	if err != nil {
		return err
	}
	h, err := keyset.NewHandle(streamingaead.AES256GCMHKDF4KBKeyTemplate())
	if err != nil {
		return fmt.Errorf("make data key: %w", err)
	}
	fresh, err := k.wrapProfile(h, a, ref, account.Epoch)
	if err != nil {
		return err
	}
	if _, err = k.store.PutProfileKey(ctx, fresh); err != nil {
		return fmt.Errorf("store data key: %w", err)
	}
	return nil
}

// account opens an account's key.
func (k *Keyring) account(w AccountKey) (tink.AEAD, error) {
	h, err := k.unwrapAccount(w)
	if err != nil {
		return nil, err
	}
	a, err := aead.New(h)
	if err != nil {
		return nil, fmt.Errorf("%w: the account's wrapped key is of another kind", ErrKey)
	}
	return a, nil
}

func (k *Keyring) unwrapAccount(w AccountKey) (*keyset.Handle, error) {
	root, err := k.root.at(w.Root)
	if err != nil {
		return nil, err
	}
	h, err := keyset.ReadWithAssociatedData(keyset.NewBinaryReader(bytes.NewReader(w.Wrapped)), root, k.context("account", w.Account, "", w.Epoch))
	if err != nil {
		return nil, fmt.Errorf("%w: the account's wrapped key does not open with this root key", ErrKey)
	}
	return h, nil
}

func (k *Keyring) wrapAccount(h *keyset.Handle, account string, epoch int64) (AccountKey, error) {
	name, root, err := k.root.forWrapping()
	if err != nil {
		return AccountKey{}, err
	}
	b, err := wrap(h, root, k.context("account", account, "", epoch))
	return AccountKey{account, epoch, name, b}, err
}

func (k *Keyring) unwrapProfile(account tink.AEAD, w ProfileKey) (*keyset.Handle, error) {
	h, err := keyset.ReadWithAssociatedData(keyset.NewBinaryReader(bytes.NewReader(w.Wrapped)), account,
		k.context("profile", w.Account, w.Profile, w.Epoch))
	if err != nil {
		return nil, fmt.Errorf("%w: its wrapped key does not open with the account's key", ErrKey)
	}
	return h, nil
}

func (k *Keyring) wrapProfile(h *keyset.Handle, account tink.AEAD, ref Ref, epoch int64) (ProfileKey, error) {
	b, err := wrap(h, account, k.context("profile", ref.Account, ref.Profile, epoch))
	return ProfileKey{ref, epoch, b}, err
}

func wrap(h *keyset.Handle, with tink.AEAD, context []byte) ([]byte, error) {
	var b bytes.Buffer
	if err := h.WriteWithAssociatedData(keyset.NewBinaryWriter(&b), with, context); err != nil {
		return nil, fmt.Errorf("wrap key: %w", err)
	}
	return b.Bytes(), nil
}

func newDataKey(h *keyset.Handle) (dataKey, error) {
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

// context binds a wrapped key to its place, owner and epoch.
func (k *Keyring) context(kind, account, profile string, epoch int64) []byte {
	b := []byte("driftstack " + kind + " key 2\x00")
	for _, s := range []string{string(k.region), account, profile} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return binary.BigEndian.AppendUint64(b, uint64(epoch))
}
