package orchestrator

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator/api"
)

// Reason is why a session ended. It is stored and sent, so rows are only ever added.
type Reason string

// Reasons.
const (
	Completed         Reason = "completed"          // the client quit
	Cancelled         Reason = "cancelled"          // DELETE /v1/sessions/{id}, or the client of a New Session left
	Idle              Reason = "idle"               // no command for idle_seconds
	Deadline          Reason = "deadline"           // ran for max_seconds
	CommandDeadline   Reason = "command_deadline"   // one command took longer than command_seconds
	DeviceUnavailable Reason = "device_unavailable" // no device was free for queue_seconds, or the device refused
	HostLost          Reason = "host_lost"          // the driver host, or the way to it, is gone
	DriverFailed      Reason = "driver_failed"      // the driver or the browser did not start, or died
	LeaseLost         Reason = "lease_lost"         // the orchestrator that ran it is gone, and no other could go on with it
	ProfileHeld       Reason = "profile_held"       // another session uses the profile
	ProfileConflict   Reason = "profile_conflict"   // the profile changed, or cannot be opened
	RecordingFailed   Reason = "recording_failed"   // a recording was asked for and could not be opened
	Quota             Reason = "quota"              // its account had as many sessions as it may have at once, for queue_seconds
	Drained           Reason = "drained"            // the orchestrator was stopped before the session had started, or its host's drain was over
	Internal          Reason = "internal"           // a defect of ours
	StreamOverflow    Reason = "stream_overflow"    // too many commands or answers are not acknowledged
	ForceReleased     Reason = "force_released"     // an operator took the device from it
)

// Ending is a row of the table of endings.
type Ending struct {
	HTTP  int            // status of a control-plane answer for it
	W3C   webdriver.Code // error of a driver command that comes after it
	Retry bool           // whether the same request can be expected to work later
	Text  string         // for a person; says what to do where something can be done
}

// Endings is the table: one row a [Reason].
func Endings() map[Reason]Ending {
	return map[Reason]Ending{
		Completed:         {http.StatusGone, webdriver.InvalidSessionID, false, "the session was quit by its client"},
		Cancelled:         {http.StatusGone, webdriver.InvalidSessionID, false, "the session was cancelled"},
		Idle:              {http.StatusGone, webdriver.InvalidSessionID, false, "no command came for idle_seconds; raise timeouts.idle_seconds if that is normal for you"},
		Deadline:          {http.StatusGone, webdriver.InvalidSessionID, false, "the session reached max_seconds; raise timeouts.max_seconds if it needs longer"},
		CommandDeadline:   {http.StatusGatewayTimeout, webdriver.InvalidSessionID, false, "a command took longer than command_seconds"},
		DeviceUnavailable: {http.StatusServiceUnavailable, webdriver.SessionNotCreated, true, "no matching device was free in time; try again later or raise timeouts.queue_seconds"},
		HostLost:          {http.StatusBadGateway, webdriver.InvalidSessionID, true, "the driver host was lost; start a new session"},
		DriverFailed:      {http.StatusBadGateway, webdriver.InvalidSessionID, true, "the browser or its driver failed; start a new session"},
		LeaseLost:         {http.StatusBadGateway, webdriver.InvalidSessionID, true, "the orchestrator that ran the session is gone, and no other could go on with it in time; start a new session"},
		ProfileHeld:       {http.StatusConflict, webdriver.SessionNotCreated, true, "another session uses the profile; wait until it has ended, or use it readonly or as a fork"},
		ProfileConflict:   {http.StatusConflict, webdriver.SessionNotCreated, false, "the profile's saved state changed or cannot be opened; it was left as it is"},
		RecordingFailed:   {http.StatusServiceUnavailable, webdriver.SessionNotCreated, true, "the recording could not be started; try again, or set recording to false"},
		Quota:             {http.StatusTooManyRequests, webdriver.SessionNotCreated, true, "over the account's quota; end sessions of it, try again later, or have the quota raised"},
		Drained:           {http.StatusServiceUnavailable, webdriver.InvalidSessionID, true, "the session's host, or the orchestrator before it had started, was taken out of use for maintenance; start a new session"},
		ForceReleased:     {http.StatusGone, webdriver.InvalidSessionID, true, "an operator took the device from the session; its profile was not saved. Start a new session"},
		Internal:          {http.StatusInternalServerError, webdriver.UnknownError, true, "a defect of ours; start a new session and tell us the session id"},
		StreamOverflow:    {http.StatusGone, webdriver.InvalidSessionID, false, fmt.Sprintf("more than %d commands, or more than %d MiB of answers, were not acknowledged; take the answers before you send more", wire.MaxOutstanding, wire.MaxKept>>20)},
	}
}

// EndError says that a session has ended, or ended the call that returns it.
type EndError struct {
	Reason Reason
	Detail string // may be empty
	cause  error
	again  bool // the session may be queued again: nothing of it has happened yet
	left   bool // the session goes on, without this orchestrator
}

func (e *EndError) Error() string {
	s := string(e.Reason) + ": " + Endings()[e.Reason].Text
	if e.Detail != "" {
		s += " (" + e.Detail + ")"
	}
	return s
}

// with is the error with more detail; who has the error itself may be reading it.
func (e *EndError) with(detail string) *EndError {
	more := *e
	if more.Detail != "" {
		detail = more.Detail + "; " + detail
	}
	more.Detail = detail
	return &more
}

func (e *EndError) Unwrap() error { return e.cause }

// Ended is why a session that has ended takes no more commands.
func Ended(s api.Session) *EndError { return &EndError{Reason: Reason(s.Reason), Detail: s.Detail} }

func endWith(r Reason, cause error) *EndError {
	e := &EndError{Reason: r, cause: cause}
	if cause != nil {
		e.Detail = cause.Error()
	}
	return e
}

// Errors of the control plane. The HTTP layer maps each to a problem type.
var (
	ErrNotFound     = errors.New("not found")
	ErrNoSuchDevice = errors.New("no enrolled device could ever match")
	ErrLeaseLost    = errors.New("the session's lease is lost")
	ErrUnavailable  = errors.New("the database cannot be reached")
	ErrRemoved      = errors.New("the host was removed")
)

// InvalidError is a request that can never work as it is. Field says where, as a JSON path.
type InvalidError struct{ Field, Problem string }

func (e *InvalidError) Error() string { return e.Field + ": " + e.Problem }

// NoDeviceError is an ErrNoSuchDevice that says why: which keys of what is wanted no enrolled device has.
type NoDeviceError struct {
	Keys    []api.Refusal // empty: no device is enrolled
	Nearest bool          // each is met by some device: they are what the nearest one misses
}

func (e *NoDeviceError) Error() string {
	if len(e.Keys) == 0 {
		return "no device is enrolled; `driftctl hosts add NAME` invites a host"
	}
	var says []string
	for _, k := range e.Keys {
		says = append(says, k.Says)
	}
	return strings.Join(says, "; ")
}

// Unwrap gives ErrNoSuchDevice.
func (e *NoDeviceError) Unwrap() error { return ErrNoSuchDevice }

// UnmatchedError is an ErrNoSuchDevice that says why: no enrolled device can meet the capabilities.
type UnmatchedError struct{ Why *webdriver.Error }

func (e *UnmatchedError) Error() string { return e.Why.Message }

// Unwrap gives the W3C error and ErrNoSuchDevice.
func (e *UnmatchedError) Unwrap() []error { return []error{e.Why, ErrNoSuchDevice} }

// ProfileHeldError says which session holds a profile, and until when unless it renews that. Both are empty when it has just ended.
type ProfileHeldError struct {
	Profile, Holder string
	Until           time.Time
}

func (e *ProfileHeldError) Error() string {
	if e.Holder == "" {
		return fmt.Sprintf("profile %s was in use until a moment ago; try again", e.Profile)
	}
	return fmt.Sprintf("profile %s is in use by session %s; wait until that has ended, or use it readonly or as a fork", e.Profile, e.Holder)
}

// QueueFullError says that the queue is at its limit and when to come back.
type QueueFullError struct {
	Limit      int
	RetryAfter time.Duration
}

func (e *QueueFullError) Error() string {
	return fmt.Sprintf("%d sessions are queued already; try again in %s", e.Limit, e.RetryAfter)
}

// QuotaError is a request beyond a quota of the account.
type QuotaError struct {
	Quota      string // queued or creates_per_minute
	Limit      int
	RetryAfter time.Duration
}

func (e *QuotaError) Error() string {
	what := fmt.Sprintf("the account may have %d sessions queued at once; wait until some have started or cancel some", e.Limit)
	if e.Quota == QuotaCreates {
		what = fmt.Sprintf("the account may create %d sessions within 60 s; create them more slowly", e.Limit)
	}
	return fmt.Sprintf("over the quota %s: %s, or have the quota raised; try again in %s", e.Quota, what, e.RetryAfter)
}

// Quotas that a request can be beyond; the one of concurrent sessions has sessions wait in the queue.
const (
	QuotaQueued  = "queued"
	QuotaCreates = "creates_per_minute"
)

// RepeatedError is the same request again, under the same idempotency key: it is the session's that there is.
type RepeatedError struct{ Session string }

func (e *RepeatedError) Error() string {
	return "the request was made before, and made session " + e.Session
}

// ConflictError is a request that contradicts what is there.
type ConflictError struct{ Problem string }

func (e *ConflictError) Error() string { return e.Problem }
