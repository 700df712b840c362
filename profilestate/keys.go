package profilestate

import (
	"context"
	"errors"
	"time"
)

// AccountKey is an account's key, wrapped by the root key. The zero AccountKey is none.
type AccountKey struct {
	Account string
	Epoch   int64  // counts the account's keys, from 1; no number is used again
	Root    string // epoch of the root key
	Wrapped []byte
}

// ProfileKey is a profile's data keys, wrapped by its account's key of this epoch. The zero ProfileKey is none.
type ProfileKey struct {
	Ref
	Epoch   int64
	Wrapped []byte
}

// WrappedKeys is what opens one profile, for whoever has the root key.
type WrappedKeys struct {
	Account   AccountKey
	Profile   ProfileKey
	Destroyed int64 // the account's keys up to this epoch, by this store's ledger
}

// Destroyed is a line of a ledger: the keys of an account, or of one profile of it, up to an epoch, must never open
// anything again, wherever a copy of them turns up. Lines are never removed.
type Destroyed struct {
	Account string    `json:"account"`
	Profile string    `json:"profile,omitempty"` // empty: all of the account's
	Epoch   int64     `json:"epoch"`
	At      time.Time `json:"at"`
}

// Ledger remembers what was destroyed.
type Ledger interface {
	Destroyed(ctx context.Context) ([]Destroyed, error)
	// RecordDestroyed is idempotent, and a higher epoch stays.
	RecordDestroyed(ctx context.Context, lines []Destroyed) error
}

// KeyStore keeps wrapped keys, in a database of their own. It never sees a key that could open anything. Its own ledger
// is as old as its last backup, which is why there is another one: a [Keyring] believes both.
type KeyStore interface {
	// Ledger: RecordDestroyed removes the keys in the same step.
	Ledger
	Keys(ctx context.Context, ref Ref) (WrappedKeys, error)
	// PutAccountKey stores a key unless the account has one of this epoch or a later one, and returns the one it has then.
	PutAccountKey(ctx context.Context, k AccountKey) (AccountKey, error)
	// PutProfileKey does the same for a profile's. ErrConflict when the account's key has another epoch.
	PutProfileKey(ctx context.Context, k ProfileKey) (ProfileKey, error)
	// Rewrap has f wrap up to limit account keys anew that another epoch of the root key wraps, and says how many it did.
	Rewrap(ctx context.Context, root string, limit int, f func(AccountKey) (AccountKey, error)) (int, error)
	// RotateAccount replaces an account's key and what it wraps in one step; ErrNoKey when it has none.
	RotateAccount(ctx context.Context, account string, f func(AccountKey, []ProfileKey) (AccountKey, []ProfileKey, error)) error
	// Count is how many keys each epoch of the root key wraps.
	Count(ctx context.Context) (KeyCount, error)
	// Export gives every key and the ledger, of one moment; Import adds what is missing and not destroyed, and says how many keys.
	Export(ctx context.Context) (KeyDump, error)
	Import(ctx context.Context, d KeyDump) (int, error)
}

// KeyCount counts a KeyStore's keys.
type KeyCount struct {
	AccountsByRoot map[string]int
	Profiles       int
	Destroyed      int // lines of the ledger
}

// KeyDump is all that a KeyStore has. Without the root key it opens nothing.
type KeyDump struct {
	Accounts  []AccountKey
	Profiles  []ProfileKey
	Destroyed []Destroyed
}

// Errors about keys.
var (
	// ErrKey means that the profile's key is missing, or belongs to another root key, account, profile or region.
	ErrKey = errors.New("the profile's key is not available")
	// ErrKeyDestroyed is an ErrKey that is final.
	ErrKeyDestroyed = &finalError{"the profile's key was destroyed, and nothing opens its state any more"}
	// ErrNoKey is an ErrKey: nothing has been sealed yet.
	ErrNoKey = &finalError{"there is no key yet"}
)

// finalError is an ErrKey with its own words.
type finalError struct{ text string }

func (e *finalError) Error() string { return e.text }
func (e *finalError) Unwrap() error { return ErrKey }
