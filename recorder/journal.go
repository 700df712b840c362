package recorder

import (
	"context"
	"errors"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

// State is where a recording is in its life. Stored, so append-only.
//
//	recording ──▶ sealed ──▶ uploading ──▶ available ──▶ replicated
//	    │            └──────────────┬──────────┘
//	    ├──▶ empty                  ▼
//	    └────────────────────▶ quarantined
//
// A recording whose spool is lost goes from any state before available to that, as partial, with what had been uploaded; or to lost, which is an
// end unless the spool is found after all.
// A recording of placement eu ends in available, one of placement replicated in replicated. empty and quarantined are
// ends as well. RecordingUpdate.Partial is a flag beside the state, not a state.
type State string

// States.
const (
	StateRecording   State = "recording"   // bytes arrive; full parts may already be on their way to storage
	StateSealed      State = "sealed"      // the local file is final: a complete, seekable WebM on the EU spool
	StateUploading   State = "uploading"   // the final object is being put together in storage
	StateAvailable   State = "available"   // the EU object is verified
	StateReplicated  State = "replicated"  // the US object is verified too
	StateEmpty       State = "empty"       // not one complete frame arrived: there is no object and never will be
	StateLost        State = "lost"        // its spool is gone, and nothing of it had been uploaded
	StateQuarantined State = "quarantined" // the spool cannot be trusted and was moved aside for a person to look at
)

// Final says whether no further update follows for a recording of this placement.
func (s State) Final(p place.Placement) bool {
	switch s {
	case StateReplicated, StateEmpty, StateLost, StateQuarantined:
		return true
	case StateAvailable:
		return p == place.EUOnly
	}
	return false
}

// Cause says why a recording is partial, empty, lost or quarantined. Stored, so append-only; "" means nothing went wrong.
type Cause string

// Causes.
const (
	CauseNone      Cause = ""
	CauseLost      Cause = "source_lost"    // the host or its socket went away before the end
	CauseEncoder   Cause = "encoder_failed" // the host said that its encoder died
	CauseOverflow  Cause = "overflow"       // the host had to stop because too much was unacknowledged
	CauseMalformed Cause = "malformed"      // what arrived is no WebM, or not in order
	CauseTooLarge  Cause = "too_large"      // the recording reached the largest size an object can have
	CauseSpool     Cause = "spool_failed"   // the spool volume refused a write (full, broken)
	CauseCrash     Cause = "crash"          // the orchestrator died while recording; sealed by the next one
	CauseCorrupt   Cause = "corrupt"        // quarantined: the spool's bytes are not the ones that were acknowledged
	CauseSpoolLost Cause = "spool_lost"     // its spool is gone: what had been uploaded until then was kept, if anything had
	CauseSpoolFull Cause = "spool_full"     // the spool's volume had no room: not begun (empty), or held until the session was over (partial)
	CauseConflict  Cause = "conflict"       // quarantined: another object already has the key
)

// CopyState is where one copy in object storage is in its life.
type CopyState string

// Copy states.
const (
	CopyPending   CopyState = "pending"   // nothing final is there yet
	CopyUploading CopyState = "uploading" // parts, or the whole object, are on their way
	CopyVerified  CopyState = "verified"  // size and ETag, read back, are those of the spool
)

// Copy is one object of a recording. The key is the same in every region.
type Copy struct {
	Region   place.Region
	Bucket   string
	State    CopyState
	ETag     string    // once verified, as the storage gave it, without quotes
	Verified time.Time // zero until verified
}

// RecordingUpdate is everything known of a recording at one moment. Each carries the whole picture, so storing one is an
// idempotent upsert by ID; updates of one recording are delivered in order, at least once, and the next only after
// the journal took the one before. After a restart the current one is delivered again.
type RecordingUpdate struct {
	ID        string // also the name of the spool folder
	Session   string
	Account   string
	Term      int64 // of the lease under which it was begun
	Placement place.Placement
	State     State
	Partial   bool  // something at the end, or the index, is missing; what is there plays
	Cause     Cause // why it is partial, empty, lost or quarantined
	Key       string
	Started   time.Time // as given to Begin
	At        time.Time // of this update, by the orchestrator's clock

	// Known from sealed on, zero before (and for empty, lost and quarantined).
	Bytes    int64
	Duration time.Duration
	SHA256   string // lower-case hex, of the whole object

	Copies []Copy // one a region of the placement, the EU first; nil for quarantined spools that cannot be read
}

// ErrFenced is for a [Journal] to return (wrapped) when the recording belongs to somebody else by now: the recorder lets
// go of it, leaves the spool where it is and sends no more updates.
var ErrFenced = errors.New("recorder: the recording belongs to a newer holder")

// Journal stores the state of recordings. Any error but [ErrFenced] is retried with a capped backoff for as long as the
// recorder runs; each call has a deadline.
//
// A quarantined spool that cannot be read is reported with ID, State, Cause and At only: keep what is stored already.
//
// Of one session the recording of the highest term counts: once that is stored, those before it are forgotten, and an update of
// theirs is ErrFenced.
type Journal interface {
	RecordingChanged(ctx context.Context, u RecordingUpdate) error
	// Outlook says what may still become of a recording that nobody works on.
	Outlook(ctx context.Context, id, session string, term int64) (Outlook, error)
	// Latest is the recording of the session's highest term; ok is false when there is none.
	Latest(ctx context.Context, session string) (id string, ok bool, err error)
}

// Outlook is what may still become of a recording.
type Outlook int

// Outlooks.
const (
	Over       Outlook = iota // its session has ended: nothing will be added
	Continues                 // its session has not ended: whoever adopts that goes on with it
	Superseded                // another one goes on with what it has
)
