package api

import "time"

// Verdict is what would become of a session that is created now.
type Verdict string

// Verdicts.
const (
	VerdictStart   Verdict = "start"   // a device is free for it
	VerdictQueue   Verdict = "queue"   // it would wait
	VerdictRefused Verdict = "refused" // there would be no session
)

// Key is what a device, or a request, is judged by. Those of a want are named as the fields of DeviceWant.
type Key string

// Keys.
const (
	KeyKind      Key = "kind"
	KeyModel     Key = "model"
	KeyPlatform  Key = "platform"
	KeyOSVersion Key = "os_version"
	KeyLabels    Key = "labels"
	KeyHost      Key = "host"
	KeyCountry   Key = "country"
	KeyBrowser   Key = "browser" // browserName of the capabilities
	KeyBiDi      Key = "bidi"    // webSocketUrl of the capabilities

	KeyExecution    Key = "profile_execution" // of the account
	KeyCapabilities Key = "capabilities"      // no candidate of them is met
	KeyProfile      Key = "profile"           // its files are not where the device is reached from, or another session holds it
	KeyHostState    Key = "host_state"        // its host is closed, or not connected
	KeyDeviceState  Key = "device_state"      // it is busy, closed or broken

	KeyQuota Key = "quota" // of the account
	KeyQueue Key = "queue" // is full
)

// Keys are all of them, in the order in which they are told.
func Keys() []Key {
	return []Key{KeyHost, KeyKind, KeyModel, KeyPlatform, KeyOSVersion, KeyLabels, KeyCountry, KeyBrowser, KeyBiDi, KeyExecution, KeyCapabilities,
		KeyProfile, KeyHostState, KeyDeviceState, KeyQuota, KeyQueue}
}

// Explanation says what would become of a session that is created now, and why.
type Explanation struct {
	At      time.Time   `json:"at"`
	Verdict Verdict     `json:"verdict" enum:"start,queue,refused"`
	Says    string      `json:"says" doc:"The verdict in a sentence."`
	Host    string      `json:"host,omitempty" doc:"Of a start: the host of the device that it would get."`
	Device  string      `json:"device,omitempty" doc:"Of a start: the device that it would get."`
	Queue   *QueuePlace `json:"queue,omitempty" doc:"Of a queue: where it would wait."`
	Refused []Refusal   `json:"refused,omitempty" doc:"Of a refused: why, by key."`

	Enrolled int           `json:"enrolled" doc:"Devices of hosts that were not removed."`
	Fit      int           `json:"fit" doc:"How many of them are what is wanted, free or not."`
	Free     int           `json:"free" doc:"How many of those could take it now."`
	Reasons  []KeyCount    `json:"reasons" doc:"How many of the enrolled devices have each reason not to take it now."`
	Devices  []DeviceMatch `json:"devices" doc:"The first ones, at most as many as limit says: the free ones, then those with the fewest reasons."`
	More     int           `json:"more,omitempty" doc:"How many devices are not listed."`
}

// Refusal is why there would be no session.
type Refusal struct {
	Key    Key      `json:"key" doc:"A field of device, or profile_execution, capabilities, profile, quota or queue."`
	Wanted string   `json:"wanted,omitempty"`
	Has    []string `json:"has,omitempty" doc:"What the enrolled devices have of it instead, at most eight."`
	More   int      `json:"more,omitempty" doc:"How many further values they have."`
	Says   string   `json:"says"`
}

// KeyCount is how many devices have a reason.
type KeyCount struct {
	Key     Key `json:"key"`
	Devices int `json:"devices"`
}

// DeviceMatch is whether a device could take a session now.
type DeviceMatch struct {
	Host    string         `json:"host"`
	Device  string         `json:"device"`
	Chosen  bool           `json:"chosen" doc:"It is the one that would be taken."`
	Fits    bool           `json:"fits" doc:"It is what is wanted, free or not."`
	Reasons []DeviceReason `json:"reasons" doc:"Why it could not take the session now; empty: it could."`
	Says    string         `json:"says"`
}

// DeviceReason is one reason why a device cannot take a session now.
type DeviceReason struct {
	Key    Key    `json:"key"`
	Wanted string `json:"wanted,omitempty"`
	Has    string `json:"has,omitempty"`
}

// What a queued session waits for.
const (
	WaitsForDevice = "device" // the next one that fits
	WaitsForQuota  = "quota"  // a session of its account to end
)

// QueuePlace is where a session waits. It is an estimate: others come, leave, and end when they do.
type QueuePlace struct {
	Position            int    `json:"position" doc:"1: it is next, among the sessions that compete with it for devices, in the order in which accounts take turns. At most 1000."`
	OrMore              bool   `json:"or_more,omitempty" doc:"It is further back than position says."`
	WaitsFor            string `json:"waits_for" enum:"device,quota" doc:"quota: its account has as many sessions at once as it may."`
	Devices             int    `json:"devices" doc:"Devices that fit and take sessions, free or busy."`
	ExpectedWaitSeconds *int64 `json:"expected_wait_seconds,omitempty" doc:"From how long sessions have had their devices lately; absent where that is not known."`
}
