package profilestate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
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

// State is what a generation is good for.
type State string

// States of a generation. They are stored, so rows are only ever added.
const (
	Good        State = "good"        // it is, or was, or can be the current one
	Candidate   State = "candidate"   // sealed, and never the current one unless somebody promotes it
	Quarantined State = "quarantined" // its file is not the one that was published; nothing opens it
)

// Source is where a generation came from.
type Source string

// Sources of a generation. They are stored, so rows are only ever added.
const (
	FromSession Source = "session"
	FromImport  Source = "import"
	FromClone   Source = "clone"
)

// Generation is one sealed state of a profile. The zero Generation is that of a profile which has none yet.
type Generation struct {
	Number   int64  // from 1; no number is given twice
	File     string // slash-separated, below the store's folder
	Volume   string // id of the store's folder
	Digest   Digest
	Bytes    int64
	Term     int64  // lease term of the session that made it; 0 where none did
	Session  string // that made it, or ""
	Previous int64  // the generation it came after
	Source   Source
	State    State
	Reason   string // why it is quarantined, or only a candidate
	At       time.Time
}

// Digest tells one sealed file from every other: see digest.
type Digest [sha256.Size]byte

// Head is what a profile is at.
type Head struct {
	Current   Generation
	Last      int64 // highest number ever given
	Destroyed int64 // the ledger's epoch for the account's keys
}

// Writer is who publishes a generation.
type Writer struct {
	Session   string // that holds the profile under Term; "" for the control plane, which may write while nobody holds it
	Term      int64
	Source    Source // "" is FromSession
	Candidate string // why it is published beside the current one, not as it; "": it becomes the current one
}

// Index knows the generations of profiles. A profile that does not exist, or was deleted, is an error of the
// implementation's, which passes through a Store.
type Index interface {
	Head(ctx context.Context, ref Ref) (Head, error)
	// Publish adds next in one atomic step, and makes it current unless it is a candidate, if the profile is still at head, by
	// the current generation's number and digest and by Last (ErrConflict otherwise), and the writer still holds the profile (ErrFenced
	// for a session, the implementation's own error for the control plane when a session holds it). ErrKeyDestroyed when the ledger's
	// epoch is not the head's any more.
	Publish(ctx context.Context, w Writer, ref Ref, head Head, next Generation) error
	// Generations lists a profile's, newest first.
	Generations(ctx context.Context, ref Ref) ([]Generation, error)
	// Quarantine says that a generation cannot be opened.
	Quarantine(ctx context.Context, ref Ref, number int64, reason string) error
	// MakeCurrent makes a generation current that is not quarantined, if the profile is still at head and no session holds it.
	MakeCurrent(ctx context.Context, ref Ref, head Head, number int64) error
	// Forget removes a generation that is not current. ErrNoGeneration.
	Forget(ctx context.Context, ref Ref, number int64) error
	// DeleteProfile removes the profile, unless a session holds it, and writes the ledger's line for its keys in the same step.
	DeleteProfile(ctx context.Context, ref Ref, epoch int64) error
	// Files are those of all generations; of a deleted profile there are none.
	Files(ctx context.Context, ref Ref) ([]string, error)
	// Prune forgets generations of before that time which are neither current nor among the newest keep good ones of their profile.
	Prune(ctx context.Context, keep int, before time.Time) (int, error)
}

// Errors of a Store.
var (
	// ErrTampered means that a file is missing or is not the one that was published.
	ErrTampered = errors.New("the sealed profile is damaged")
	// ErrVolume means that a generation is on another volume than the one that this store has.
	ErrVolume = errors.New("the sealed profile is on another volume")
	// ErrConflict means that somebody else published a generation in the meantime. The profile keeps theirs.
	ErrConflict = errors.New("the profile has a newer generation")
	// ErrFenced means that the session does not hold its lease any more.
	ErrFenced = errors.New("the session does not hold the profile any more")
	// ErrNoGeneration means that the profile has no such generation, or none to go back to.
	ErrNoGeneration = errors.New("the profile has no such generation")
	// ErrCurrent means that the current generation cannot be removed.
	ErrCurrent = errors.New("it is the current generation; promote another first, or delete the profile")
)

// DamageError says which generation cannot be opened and why, and which one can. It is an ErrTampered. The generation is
// quarantined; the profile stays at it until another is promoted.
type DamageError struct {
	Ref        Ref
	Generation int64
	File       string
	Reason     error
	Offer      int64 // the newest older generation that opens; 0 when there is none
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("%v: profile %s %s in %s: %v", ErrTampered, e.Ref.Profile, e.Advice(), e.File, e.Reason)
}

// Advice is for the profile's owner: what happened and what to do.
func (e *DamageError) Advice() string {
	if e.Offer == 0 {
		return fmt.Sprintf("generation %d is damaged and quarantined, and no older one opens: import the state again", e.Generation)
	}
	return fmt.Sprintf("generation %d is damaged and quarantined; generation %d opens: go back to it with POST /v1/profiles/{id}/rollback or `driftctl profiles rollback`",
		e.Generation, e.Offer)
}

// Unwrap makes errors.Is see ErrTampered and the reason.
func (e *DamageError) Unwrap() []error { return []error{ErrTampered, e.Reason} }
