package api

import "time"

// CordonState is what an operator's cordon comes to.
type CordonState string

// Cordon states.
const (
	Cordoned CordonState = "cordoned" // takes no new session; those on it go on
	Draining CordonState = "draining" // likewise, until a deadline
	Drained  CordonState = "drained"  // was drained, and no session is on it any more
)

// Cordon says that a host or device takes no new session, because an operator said so.
type Cordon struct {
	State  CordonState `json:"state" enum:"cordoned,draining,drained"`
	Since  time.Time   `json:"since"`
	By     string      `json:"by" doc:"Who did it, as they said."`
	Reason string      `json:"reason,omitempty"`
	Until  *time.Time  `json:"until,omitempty" doc:"Of a drain: when what still runs on the host ends as drained."`
}

// Operate is the body of what an operator does to a host or device.
type Operate struct {
	Reason string `json:"reason,omitempty" maxLength:"256" doc:"Why; it is shown with the host and goes into the audit log. Nothing of a customer belongs here."`
}

// Drain is the body of POST /v1/hosts/{name}/drain.
type Drain struct {
	Operate
	DeadlineSeconds int `json:"deadline_seconds,omitempty" minimum:"1" maximum:"86400" doc:"How long the sessions on the host have to end by themselves; then they end as drained. Default 600."`
}

// ForceRelease is the body of POST /v1/hosts/{name}/devices/{device}/release.
type ForceRelease struct {
	Reason string `json:"reason" minLength:"1" maxLength:"256" doc:"Why; it goes into the audit log. Nothing of a customer belongs here."`
}

// Released is the answer to a ForceRelease.
type Released struct {
	Session string `json:"session" doc:"It ends as force_released, without saving its profile. The device is free once its host says that nothing of the session is left."`
}

// AuditEntry is one thing that was done to the fleet.
type AuditEntry struct {
	ID      int64     `json:"id"`
	At      time.Time `json:"at"`
	Actor   string    `json:"actor" doc:"Who did it, as they said; driftstack: it followed by itself."`
	Action  string    `json:"action" doc:"cordon, uncordon, drain, end-drained, force-release, remove, quota or placement."`
	Host    string    `json:"host"`
	Device  string    `json:"device,omitempty"`
	Session string    `json:"session,omitempty"`
	Reason  string    `json:"reason,omitempty" doc:"As they gave it."`
	Detail  string    `json:"detail,omitempty"`
	Account string    `json:"account,omitempty" doc:"Of a quota or a placement, which have no host."`
}

// Fleet is what there is, and what it does, as of one moment.
type Fleet struct {
	At       time.Time      `json:"at"`
	Hosts    map[string]int `json:"hosts" doc:"How many are in each state; every state is there."`
	Closed   map[string]int `json:"closed" doc:"How many hosts that were not removed take no new session: cordoned, draining, drained, damped."`
	Devices  map[string]int `json:"devices" doc:"How many are in each state, and cordoned: how many of all are, themselves or by their host."`
	Sessions map[string]int `json:"sessions" doc:"How many are in each state but ended."`
	Queue    FleetQueue     `json:"queue"`
}

// FleetQueue is who waits for a device.
type FleetQueue struct {
	OldestSeconds int64          `json:"oldest_seconds" doc:"How long the oldest queued session has waited."`
	Accounts      []AccountQueue `json:"accounts" doc:"The accounts with the most queued sessions, at most 50."`
	More          int            `json:"more,omitempty" doc:"How many further accounts have queued sessions."`
}

// AccountQueue is what an account has.
type AccountQueue struct {
	Account       string `json:"account"`
	Queued        int    `json:"queued"`
	Active        int    `json:"active" doc:"Starting, running or finishing."`
	OldestSeconds int64  `json:"oldest_seconds"`
}

// DeviceStates are all states of a device, in order.
func DeviceStates() []string { return []string{"ready", "busy", "quarantined", "offline"} }

// ActiveStates are the states of a session that has not ended, in order.
func ActiveStates() []SessionState { return []SessionState{Queued, Starting, Running, Finishing} }

// ClosedStates are why a host takes no new session, in order.
func ClosedStates() []string {
	return []string{string(Cordoned), string(Draining), string(Drained), "damped"}
}

// AuditList is one page of the audit log, newest first.
type AuditList struct {
	Entries []AuditEntry `json:"entries"`
	Next    int64        `json:"next,omitempty" doc:"Pass as before for the next page; absent on the last."`
}
