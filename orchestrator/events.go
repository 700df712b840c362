package orchestrator

import (
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// EventKind is what an event tells. Stored and sent: append-only.
type EventKind string

// Event kinds.
const (
	EventQueued           EventKind = "queued"
	EventStarting         EventKind = "starting"          // claimed: Term
	EventRequeued         EventKind = "requeued"          // the device was taken after all
	EventHandedOver       EventKind = "handed_over"       // its orchestrator was stopped, or lost the lease: the session goes on
	EventAdopted          EventKind = "adopted"           // another orchestrator goes on with it: Term
	EventRecording        EventKind = "recording"         // the host records, for Took already
	EventDriverStarted    EventKind = "driver_started"    // Took
	EventProfileRestored  EventKind = "profile_restored"  // Generation, Took, counts
	EventRunning          EventKind = "running"           // commands are taken from now on
	EventCommand          EventKind = "command"           // Route, Status, Took, Driver, sizes
	EventBiDiOpened       EventKind = "bidi_opened"       // a WebDriver BiDi connection, after Took
	EventBiDiClosed       EventKind = "bidi_closed"       // Status is the code that it was closed with; Took, sizes
	EventFinishing        EventKind = "finishing"         // Reason
	EventRecordingSealed  EventKind = "recording_sealed"  // BytesOut, Took is its duration, Partial
	EventRecordingFailed  EventKind = "recording_failed"  // the session went on without it
	EventProfileSaved     EventKind = "profile_saved"     // Generation, BytesOut, Took, counts
	EventProfileCandidate EventKind = "profile_candidate" // as profile_saved, but beside the current generation: it lost a login
	EventProfileNotSaved  EventKind = "profile_not_saved" // Reason; the generation before it stays
	EventDeviceWiped      EventKind = "device_wiped"      // of the sites that the session was at: Removed verified, Dropped not verified, Kept with something left
	EventDeviceNotCleaned EventKind = "device_not_cleaned"
	EventEnded            EventKind = "ended" // Reason
)

// Event is one line of a session's log. No field can carry a payload.
type Event struct {
	Kind              EventKind
	Route             webdriver.Route
	Reason            Reason
	Status            int
	Took, Driver      time.Duration
	BytesIn, BytesOut int64
	Generation        int64
	Restored, Altered int
	Dropped           int
	Captured, Kept    int
	Removed           int
	Partial           bool
	Seq               int64     // set by the journal
	At                time.Time // set by the journal
	Session           string    // set by the journal
	Term              int64     // set by the journal
}
