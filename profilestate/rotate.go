package profilestate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/streamingaead"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// KeyStatus is what can be told of the keys.
type KeyStatus struct {
	Roots     []RootStatus // the newest last
	Profiles  int          // data keys
	Destroyed int          // lines of the ledger
}

// RootStatus is an epoch of the root key.
type RootStatus struct {
	Epoch    string
	Wraps    bool // new keys
	Missing  bool // it is needed and not there: what it wraps cannot be opened
	Accounts int  // keys that it wraps
}

// Status counts keys.
func (k *Keyring) Status(ctx context.Context) (KeyStatus, error) {
	n, err := k.store.Count(ctx)
	if err != nil {
		return KeyStatus{}, fmt.Errorf("key status: %w", err)
	}
	if err := k.root.reload(); err != nil {
		return KeyStatus{}, err
	}
	v := KeyStatus{Profiles: n.Profiles, Destroyed: n.Destroyed}
	epochs := k.root.all()
	for i, e := range epochs {
		v.Roots = append(v.Roots, RootStatus{Epoch: e, Wraps: i == len(epochs)-1, Accounts: n.AccountsByRoot[e]})
		delete(n.AccountsByRoot, e)
	}
	for e, count := range n.AccountsByRoot {
		v.Roots = append([]RootStatus{{Epoch: e, Missing: true, Accounts: count}}, v.Roots...)
	}
	return v, nil
}

// Rotated says what a rotation did.
type Rotated struct {
	Root    string // epoch that now wraps every account's key
	NewRoot bool   // it was made for this; false where the root key is not a file
	Rewraps int    // account keys
}

// rewrapPage is how many keys are wrapped anew in one transaction.
const rewrapPage = 100

// Rotate begins a new epoch of the root key, where that is a file, and wraps every account's key with the newest one.
// It may be repeated when it was interrupted. No sealed file is touched.
func (k *Keyring) Rotate(ctx context.Context) (r Rotated, err error) {
	if r.NewRoot, err = k.root.advance(); err != nil {
		return r, err
	}
	if r.Root, _, err = k.root.forWrapping(); err != nil {
		return r, err
	}
	for {
		n, err := k.store.Rewrap(ctx, r.Root, rewrapPage, func(w AccountKey) (AccountKey, error) {
			h, err := k.unwrapAccount(w)
			if err != nil {
				return AccountKey{}, fmt.Errorf("account %s: %w", w.Account, err)
			}
			return k.wrapAccount(h, w.Account, w.Epoch)
		})
		r.Rewraps += n
		if err != nil {
			return r, fmt.Errorf("rotate root key: %w", err)
		}
		if n < rewrapPage {
			return r, nil
		}
	}
}

// RotateAccount gives an account a new key, and each of its profiles a new data key for generations to come, and says how
// many profiles there are. The data keys so far stay, wrapped anew: no sealed file is touched. ErrNoKey.
func (k *Keyring) RotateAccount(ctx context.Context, account string) (profiles int, err error) {
	// A key that a backup brought back must not get a number that no ledger has.
	if err := k.Reconcile(ctx); err != nil {
		return 0, err
	}
	err = k.store.RotateAccount(ctx, account, func(was AccountKey, list []ProfileKey) (AccountKey, []ProfileKey, error) {
		old, err := k.account(was)
		if err != nil {
			return AccountKey{}, nil, err
		}
		next, a, err := k.newAccountKey(account, was.Epoch+1)
		if err != nil {
			return AccountKey{}, nil, err
		}
		out := make([]ProfileKey, 0, len(list))
		for _, w := range list {
			h, err := k.unwrapProfile(old, w)
			if err != nil {
				return AccountKey{}, nil, fmt.Errorf("profile %s: %w", w.Profile, err)
			}
			if h, err = withNewDataKey(h); err != nil {
				return AccountKey{}, nil, err
			}
			p, err := k.wrapProfile(h, a, w.Ref, next.Epoch)
			if err != nil {
				return AccountKey{}, nil, err
			}
			out = append(out, p)
		}
		profiles = len(out)
		return next, out, nil
	})
	if err != nil {
		return 0, fmt.Errorf("rotate the key of account %s: %w", account, err)
	}
	return profiles, nil
}

func (k *Keyring) newAccountKey(account string, epoch int64) (AccountKey, tink.AEAD, error) {
	h, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return AccountKey{}, nil, fmt.Errorf("make account key: %w", err)
	}
	w, err := k.wrapAccount(h, account, epoch)
	if err != nil {
		return AccountKey{}, nil, err
	}
	a, err := k.account(w)
	return w, a, err
}

func withNewDataKey(h *keyset.Handle) (*keyset.Handle, error) {
	m := keyset.NewManagerFromHandle(h)
	id, err := m.Add(streamingaead.AES256GCMHKDF4KBKeyTemplate())
	if err == nil {
		err = m.SetPrimary(id)
	}
	if err != nil {
		return nil, fmt.Errorf("make data key: %w", err)
	}
	return m.Handle()
}

// DestroyAccount makes every generation of every profile of an account unreadable, wherever a copy of it is. It cannot be
// undone. The ledger apart comes first: from then on a key that was missed opens nothing. destroyed is false when there was no key.
func (k *Keyring) DestroyAccount(ctx context.Context, account string, now time.Time) (destroyed bool, err error) {
	for { // a rotation may come between, whose key is of the next epoch
		w, err := k.store.Keys(ctx, Ref{Account: account})
		if err != nil {
			return destroyed, fmt.Errorf("destroy the keys of account %s: %w", account, err)
		}
		if w.Account.Epoch == 0 {
			return destroyed, nil
		}
		line := []Destroyed{{Account: account, Epoch: w.Account.Epoch, At: now}}
		if err := k.ledger.RecordDestroyed(ctx, line); err != nil {
			return destroyed, fmt.Errorf("destroy the keys of account %s: %w", account, err)
		}
		if err := k.store.RecordDestroyed(ctx, line); err != nil {
			return destroyed, fmt.Errorf("destroy the keys of account %s: they are refused from now on, but still stored; try again: %w", account, err)
		}
		destroyed = true
	}
}

// destroyProfile does the same for one profile, which is never used again. Its line in the ledger apart was written when it was
// deleted.
func (k *Keyring) destroyProfile(ctx context.Context, ref Ref, epoch int64, now time.Time) error {
	return k.store.RecordDestroyed(ctx, []Destroyed{{Account: ref.Account, Profile: ref.Profile, Epoch: epoch, At: now}})
}

// accountEpoch is the epoch of the account's key; 0 when it has none.
func (k *Keyring) accountEpoch(ctx context.Context, ref Ref) (int64, error) {
	w, err := k.store.Keys(ctx, ref)
	return max(w.Account.Epoch, w.Profile.Epoch), err
}

// Reconcile gives both ledgers what only one of them has, so that a database that came out of a backup forgets again what
// was destroyed since.
func (k *Keyring) Reconcile(ctx context.Context) error {
	apart, err := k.ledger.Destroyed(ctx)
	if err != nil {
		return fmt.Errorf("ledger of destroyed keys: %w", err)
	}
	own, err := k.store.Destroyed(ctx)
	if err != nil {
		return fmt.Errorf("ledger of destroyed keys: %w", err)
	}
	return errors.Join(record(ctx, k.store, lacking(own, apart)), record(ctx, k.ledger, lacking(apart, own)))
}

func record(ctx context.Context, l Ledger, lines []Destroyed) error {
	if len(lines) == 0 {
		return nil
	}
	return l.RecordDestroyed(ctx, lines)
}

// lacking is what of all a ledger does not have.
func lacking(ledger, all []Destroyed) (lines []Destroyed) {
	type key struct{ account, profile string }
	has := make(map[key]int64, len(ledger))
	for _, d := range ledger {
		has[key{d.Account, d.Profile}] = d.Epoch
	}
	for _, d := range all {
		if has[key{d.Account, d.Profile}] < d.Epoch {
			lines = append(lines, d)
		}
	}
	return lines
}
