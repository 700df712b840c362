package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Control is one message of the control socket: exactly one field is set.
type Control struct {
	Hello         *Hello         `json:"hello,omitempty"`          // host, first message
	Welcome       *Welcome       `json:"welcome,omitempty"`        // orchestrator, answers hello
	Heartbeat     *Heartbeat     `json:"heartbeat,omitempty"`      // host; the orchestrator sends it back with its epoch
	Assign        *Assign        `json:"assign,omitempty"`         // orchestrator
	Adopt         *Adopt         `json:"adopt,omitempty"`          // orchestrator
	Assigned      *Assigned      `json:"assigned,omitempty"`       // host, answers assign and adopt
	StopRecording *StopRecording `json:"stop_recording,omitempty"` // orchestrator
	Release       *Release       `json:"release,omitempty"`        // orchestrator
	Released      *Released      `json:"released,omitempty"`       // host, answers release
	Ended         *Ended         `json:"ended,omitempty"`          // host, a session ended by itself
	Device        *Device        `json:"device,omitempty"`         // host, a device changed
	OpenBiDi      *OpenBiDi      `json:"open_bidi,omitempty"`      // orchestrator
	Probe         *Probe         `json:"probe,omitempty"`          // orchestrator
	Probed        *Probed        `json:"probed,omitempty"`         // host, answers probe
}

// Hello introduces a host. Devices lists all of them; Boot changes with each start of the agent, and Dial counts its control sockets
// to this orchestrator. Sessions are those that
// run, whoever assigned them; Ended are the latest that ended by themselves, in case nobody was connected to hear of it.
type Hello struct {
	Protocol int      `json:"protocol"`
	Host     string   `json:"host"`
	Agent    string   `json:"agent"` // version of the agent
	Boot     string   `json:"boot"`
	Dial     uint64   `json:"dial"`
	Devices  []Device `json:"devices"`
	Sessions []Hosted `json:"sessions,omitempty"`
	Ended    []Ended  `json:"ended,omitempty"`
}

// Hosted is a session that runs on a host, and the epoch of the orchestrator that has it.
type Hosted struct {
	Session string `json:"session"`
	Term    int64  `json:"term"`
	Epoch   string `json:"epoch"`
}

// Welcome accepts a host.
type Welcome struct {
	Protocol       int           `json:"protocol"`
	Orchestrator   string        `json:"orchestrator"`
	Epoch          string        `json:"epoch"` // changes with each start of the orchestrator
	HeartbeatEvery time.Duration `json:"heartbeat_every_ns"`
	HeartbeatLimit time.Duration `json:"heartbeat_limit_ns"` // silence after which either end hangs up
}

// Heartbeat is answered with the same Seq.
type Heartbeat struct {
	Seq       uint64        `json:"seq"`
	Epoch     string        `json:"epoch,omitempty"`         // in the answer
	RoundTrip time.Duration `json:"round_trip_ns,omitempty"` // of the last one answered, or the time one waits for its answer; 0: not known
}

// DeviceState says whether a device can take a session.
type DeviceState string

// Device states, as the host sees them.
const (
	DeviceReady       DeviceState = "ready"
	DeviceBusy        DeviceState = "busy"        // a session has it, or it is being checked
	DeviceQuarantined DeviceState = "quarantined" // not usable; Reason says why, and what to do. The host readmits it by itself
)

// Device is one phone, or one stand-in, of a host. Name is unique on its host.
type Device struct {
	Name            string            `json:"name"`
	Kind            string            `json:"kind"`              // driver kind: safaridriver, webkitgtk, chromedriver, fake
	Browser         string            `json:"browser,omitempty"` // W3C browserName of what it drives: safari (also when absent), chrome
	BiDi            bool              `json:"bidi,omitempty"`    // its driver offers WebDriver BiDi
	Model           string            `json:"model"`
	PlatformName    string            `json:"platform_name"`
	PlatformVersion string            `json:"platform_version"`
	Country         string            `json:"country,omitempty"` // ISO 3166 alpha-2, where it is
	Labels          map[string]string `json:"labels,omitempty"`
	State           DeviceState       `json:"state"`
	Reason          string            `json:"reason,omitempty"`
}

// Probe asks a host for its devices: each that waits for a session has its driver asked for its status.
type Probe struct {
	Seq uint64 `json:"seq"` // 1, 2, …
}

// Probed is what the probe of this Seq found, of all devices; an answer to one stands for those before it.
type Probed struct {
	Seq     uint64         `json:"seq"`
	Devices []ProbedDevice `json:"devices"`
}

// ProbedDevice is a device after a probe. It is ready only if its driver has answered since the host got the probe.
type ProbedDevice struct {
	Name   string        `json:"name"`
	State  DeviceState   `json:"state"`
	Reason string        `json:"reason,omitempty"`
	Took   time.Duration `json:"took_ns,omitempty"` // of the driver's last answer
}

// Assign starts a session on a device.
type Assign struct {
	Session      string          `json:"session"`
	Term         int64           `json:"term"`
	Device       string          `json:"device"`
	Capabilities json.RawMessage `json:"capabilities,omitempty"` // one W3C capability object for the driver
	Record       bool            `json:"record"`
}

// Adopt takes over a session that runs on the host, at a higher term. The host forgets the former orchestrator, dials a command
// socket to the one that adopts, and answers as for an assign.
type Adopt struct {
	Session string `json:"session"`
	Term    int64  `json:"term"`
}

// Assigned says that the driver runs, or why it does not.
type Assigned struct {
	Session      string          `json:"session"`
	Term         int64           `json:"term"`
	Capabilities json.RawMessage `json:"capabilities,omitempty"` // what the driver matched
	Visited      []string        `json:"visited,omitempty"`      // after an adopt: pages that the session was at, without their query
	Failure      *Failure        `json:"failure,omitempty"`
}

// MaxBiDi is how many BiDi connections a session may have at once. The orchestrator asks for no more.
const MaxBiDi = 8

// OpenBiDi asks for one more connection to the BiDi endpoint of a session's driver. The host dials a socket with the same ID. On
// it, as a goodbye, it also says why there is no connection. For a session that it does not have it does nothing: the
// session's end is on its way.
type OpenBiDi struct {
	Session string `json:"session"`
	Term    int64  `json:"term"`
	ID      uint64 `json:"id"` // tells it from others that are being opened
}

// StopRecording ends the recording and leaves the driver running.
type StopRecording struct {
	Session string `json:"session"`
	Term    int64  `json:"term"`
}

// Release ends a session: driver, display and recording.
type Release struct {
	Session string `json:"session"`
	Term    int64  `json:"term"`
}

// Released says that nothing of the session runs any more. It is also the answer for a session the host does not have.
type Released struct {
	Session string   `json:"session"`
	Term    int64    `json:"term"`
	Failure *Failure `json:"failure,omitempty"` // what could not be cleaned up; the device is quarantined then
	Wiped   *Wiped   `json:"wiped,omitempty"`   // nil: the session was nowhere
}

// Wiped counts the origins that a session was at, by what became of what its browser had stored for them.
type Wiped struct {
	Origins    int `json:"origins"`
	Verified   int `json:"verified"`             // deleted, and looked at again
	Unverified int `json:"unverified,omitempty"` // the site did not answer, or there was no browser to look with
	Left       int `json:"left,omitempty"`       // something is still there; the device is quarantined
}

// Ended says that a session ended on the host without a Release.
type Ended struct {
	Session string  `json:"session"`
	Term    int64   `json:"term"`
	Failure Failure `json:"failure"`
}

// FailureCode classifies what went wrong on a host. Append-only.
type FailureCode string

// Failure codes.
const (
	FailureDriver       FailureCode = "driver_failed"      // the driver or browser did not start, or died
	FailureDevice       FailureCode = "device_unavailable" // the device is busy, unknown or quarantined
	FailureStaleTerm    FailureCode = "stale_term"
	FailureCapabilities FailureCode = "capabilities_refused" // the driver refused the capabilities
	FailureCleanup      FailureCode = "cleanup_failed"
	FailureShutdown     FailureCode = "host_shutdown"
	FailureGone         FailureCode = "session_gone"    // the host does not have the session that is to be adopted
	FailureOverflow     FailureCode = "stream_overflow" // more is unacknowledged than MaxOutstanding or MaxKept
)

// Failure is a reason with words for a person. Message never quotes customer data.
type Failure struct {
	Code    FailureCode `json:"code"`
	Message string      `json:"message"`
}

// Error implements error.
func (f *Failure) Error() string { return string(f.Code) + ": " + f.Message }

// MaxControl is the largest control message, in bytes.
const MaxControl = 1 << 20

var errOneOf = errors.New("wire: a control message sets exactly one field")

// DecodeControl parses one message of the control socket; words in it are [Text]. Unknown fields are errors: versions are
// negotiated, not guessed.
func DecodeControl(b []byte) (Control, error) {
	var c Control
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Control{}, fmt.Errorf("wire: control message: %w", err)
	}
	if _, err := d.Token(); err != io.EOF { // unlike More it sees a stray bracket
		return Control{}, errors.New("wire: control message: data after the message")
	}
	c.clean()
	return c, c.check()
}

// Encode renders the message.
func (c Control) Encode() ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	return json.Marshal(c)
}

func (c Control) check() error {
	set := 0
	for _, there := range []bool{
		c.Hello != nil, c.Welcome != nil, c.Heartbeat != nil, c.Assign != nil, c.Adopt != nil, c.Assigned != nil, c.StopRecording != nil,
		c.Release != nil, c.Released != nil, c.Ended != nil, c.Device != nil, c.OpenBiDi != nil, c.Probe != nil, c.Probed != nil,
	} {
		if there {
			set++
		}
	}
	if set != 1 {
		return errOneOf
	}
	return nil
}
