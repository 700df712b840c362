package profilestate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// Ref names a profile.
type Ref struct{ Account, Profile string }

func (r Ref) check() error {
	for _, id := range []string{r.Account, r.Profile} {
		if len(id) < 1 || len(id) > maxID {
			return fmt.Errorf("profile %q of account %q: ids have 1 to %d bytes", r.Profile, r.Account, maxID)
		}
		for _, c := range []byte(id) {
			if c <= ' ' || c > '~' {
				return fmt.Errorf("profile %q of account %q: ids are printable ASCII without spaces", r.Profile, r.Account)
			}
		}
	}
	return nil
}

// folder is the profile's place under the store's folder. Ids are opaque; their hashes are safe as file names on every
// file system and keep an account's files together.
func (r Ref) folder() string { return idName(r.Account) + "/" + idName(r.Profile) }

func idName(id string) string {
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:16])
}

// Generation is one sealed state of a profile. The zero Generation is that of a profile which has none yet.
// Generations are comparable with ==.
type Generation struct {
	Number int64
	File   string // slash-separated, below the store's folder
	SHA256 [sha256.Size]byte
	Bytes  int64
	Term   int64 // lease term of the session that made it
}

// Index knows which generation of a profile is the current one.
type Index interface {
	// Current returns the zero Generation for a profile without state.
	Current(ctx context.Context, ref Ref) (Generation, error)
	// Publish makes next current in one atomic step if prev still is, by Number and SHA256 (ErrConflict otherwise),
	// and the session still holds the profile under this term (ErrFenced otherwise).
	Publish(ctx context.Context, session string, term int64, ref Ref, prev, next Generation) error
}

// Errors of a Store.
var (
	// ErrTampered means that a file is missing or is not, byte for byte, the one that was published.
	ErrTampered = errors.New("the sealed profile is damaged")
	// ErrKey means that the profile's key is missing, or belongs to another root key, account, profile or region.
	ErrKey = errors.New("the profile's key is not available")
	// ErrConflict means that somebody else published a generation in the meantime. The profile keeps theirs.
	ErrConflict = errors.New("the profile has a newer generation")
	// ErrFenced means that the session does not hold its lease any more.
	ErrFenced = errors.New("the session does not hold the profile any more")

	errNoKey = fmt.Errorf("%w: it has none", ErrKey)
)

// DamageError says which generation cannot be opened and why. It is an ErrTampered.
type DamageError struct {
	Ref        Ref
	Generation int64
	File       string
	Reason     error
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("%v: profile %s generation %d in %s: %v", ErrTampered, e.Ref.Profile, e.Generation, e.File, e.Reason)
}

// Unwrap makes errors.Is see ErrTampered and the reason.
func (e *DamageError) Unwrap() []error { return []error{ErrTampered, e.Reason} }
