// Package api holds the messages of the control plane: what /v1 takes and returns, in JSON.
//
// Durations are whole seconds or milliseconds and say so in their names; times are RFC 3339; identifiers are opaque
// strings. The struct tags are the validation rules and the OpenAPI document at once (huma's tag names).
//
// Out of scope: routes and status codes (package httpapi), W3C WebDriver messages (package webdriver).
package api

import (
	"encoding/json"
	"time"
)

// SessionState is where a session is in its life; see the diagram in package orchestrator.
type SessionState string

// Session states, in order.
const (
	Queued    SessionState = "queued"
	Starting  SessionState = "starting"
	Running   SessionState = "running"
	Finishing SessionState = "finishing"
	Ended     SessionState = "ended"
)

// Session is one session as the control plane shows it.
type Session struct {
	ID           string       `json:"id"`
	Account      string       `json:"account"`
	Profile      string       `json:"profile,omitempty" doc:"Profile that it uses; of a fork the new one."`
	ProfileMode  ProfileMode  `json:"profile_mode,omitempty" enum:"exclusive,readonly,fork"`
	ForkedFrom   string       `json:"forked_from,omitempty" doc:"Profile whose state a fork began with."`
	Name         string       `json:"name,omitempty"`
	Labels       Labels       `json:"labels,omitempty"`
	State        SessionState `json:"state" enum:"queued,starting,running,finishing,ended"`
	Reason       string       `json:"reason,omitempty" doc:"Why it ended; set when state is ended."`
	Detail       string       `json:"detail,omitempty" doc:"Words for a person about the reason."`
	Host         string       `json:"host,omitempty"`
	Device       string       `json:"device,omitempty"`
	Term         int64        `json:"term" doc:"Fencing term; rises on every claim."`
	Want         DeviceWant   `json:"want"`
	Recording    bool         `json:"recording"`
	Timeouts     Timeouts     `json:"timeouts"`
	Priority     int          `json:"priority,omitempty" doc:"Among the account's own queued sessions."`
	Queue        *QueuePlace  `json:"queue,omitempty" doc:"Where it waits; of one queued session, not in lists."`
	Generation   int64        `json:"profile_generation,omitempty" doc:"Generation of the profile that this session published."`
	CreatedAt    time.Time    `json:"created_at"`
	StartedAt    *time.Time   `json:"started_at,omitempty" doc:"When a device was claimed."`
	RunningAt    *time.Time   `json:"running_at,omitempty" doc:"When it took its first command."`
	EndedAt      *time.Time   `json:"ended_at,omitempty"`
	Capabilities any          `json:"capabilities,omitempty" doc:"What the driver matched. webSocketUrl, where there is one, opens this session's WebDriver BiDi to whoever has it."`
}

// Labels are a customer's own names for a session, to find it by. They are in no log, and no driver or host is told them.
type Labels map[string]string

// Bounds of Labels, in characters.
const (
	MaxLabels     = 32
	MaxLabelKey   = 64
	MaxLabelValue = 256
)

// DeviceWant says which devices a session may run on. An absent field fits every device.
type DeviceWant struct {
	Kind   string            `json:"kind,omitempty" maxLength:"64" doc:"Driver kind, for example safaridriver."`
	Model  string            `json:"model,omitempty" maxLength:"64" doc:"Device model, for example iPhone 15."`
	Host   string            `json:"host,omitempty" maxLength:"63"`
	Labels map[string]string `json:"labels,omitempty" maxProperties:"32" doc:"Labels that the device must carry with these values."`

	OSVersion string `json:"os_version,omitempty" maxLength:"64" doc:"Bounds of the OS version, all of which must be met: >=17.4 <18, or one version, as 17, for all that begin with it."`
	Country   string `json:"country,omitempty" maxLength:"2" doc:"Country that the device is in, ISO 3166 alpha-2, for example US."`

	Platform string `json:"platform,omitempty" maxLength:"64" doc:"Platform name in any case, for example iOS; the capability platformName says the same."`
}

// Timeouts of one session. Zero or absent means the default.
type Timeouts struct {
	IdleSeconds    int `json:"idle_seconds,omitempty" minimum:"0" maximum:"86400" doc:"End after this long without a command in flight; default 300."`
	MaxSeconds     int `json:"max_seconds,omitempty" minimum:"0" maximum:"86400" doc:"End this long after it began to run; default 3600."`
	CommandSeconds int `json:"command_seconds,omitempty" minimum:"0" maximum:"86400" doc:"End when one command takes longer; default 330."`
	QueueSeconds   int `json:"queue_seconds,omitempty" minimum:"0" maximum:"86400" doc:"End when no device was free for this long; default 300."`
}

// CreateSession asks for a session.
type CreateSession struct {
	Account      string          `json:"account" minLength:"1" maxLength:"128" doc:"Account the session belongs to."`
	Profile      string          `json:"profile,omitempty" maxLength:"128" doc:"Profile whose cookies and localStorage the session starts with and saves at its end."`
	ProfileMode  ProfileMode     `json:"profile_mode,omitempty" enum:"exclusive,readonly,fork" doc:"exclusive (default): the session is the profile's only writer, and saves it. readonly: any number at once, and nothing is saved. fork: it begins with the profile's state and saves to a new profile, which its answer names."`
	Name         string          `json:"name,omitempty" maxLength:"256"`
	Labels       Labels          `json:"labels,omitempty" maxProperties:"32" doc:"Names of your own, to find the session by: GET /v1/sessions?label=KEY=VALUE. A key has 1 to 64 characters and no =, a value up to 256."`
	Device       DeviceWant      `json:"device,omitempty"`
	Recording    *bool           `json:"recording,omitempty" doc:"Record the screen; default true."`
	Timeouts     Timeouts        `json:"timeouts,omitempty"`
	Priority     int             `json:"priority,omitempty" minimum:"-100" maximum:"100" doc:"Which of the account's own queued sessions goes first: the highest. Other accounts' sessions wait no longer for it."`
	Capabilities json.RawMessage `json:"capabilities,omitempty" doc:"One W3C capability object for the driver; it is not kept once the session runs."`
}

// SessionList is one page of sessions, newest first.
type SessionList struct {
	Sessions []Session `json:"sessions"`
	Next     string    `json:"next,omitempty" doc:"Pass as cursor for the next page; absent on the last."`
}

// Account is what the orchestrator must know of an account.
type Account struct {
	ID         string    `json:"id"`
	Recordings string    `json:"recordings" enum:"eu,replicated" doc:"Where its recordings are kept: in the EU only, or in the EU and the US."`
	Removing   int       `json:"removing,omitempty" doc:"How many US copies of its recordings are still to be removed, because it was changed to eu."`
	CreatedAt  time.Time `json:"created_at"`
}

// PutAccount creates or changes an account.
type PutAccount struct {
	Recordings string `json:"recordings" enum:"eu,replicated" doc:"From replicated to eu, the US copies of all its recordings are removed, in the background. From eu to replicated, sessions that are created from then on have two copies."`
	Reason     string `json:"reason,omitempty" maxLength:"256" doc:"Why, for the audit log."`
}

// CreateHost invites a driver host.
type CreateHost struct {
	Name string `json:"name" pattern:"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" patternDescription:"lower-case letters, digits and dashes, at most 63" doc:"Name of the host, a DNS label."`
}

// JoinToken is what a new host starts with. It is shown once.
type JoinToken struct {
	Name      string    `json:"name"`
	Token     string    `json:"join_token"`
	ExpiresAt time.Time `json:"expires_at"`
}

// HostState is how a host is: its enrolment first, then its links. Every state but up comes with a reason.
type HostState string

// Host states.
const (
	HostInvited    HostState = "invited"    // has a token, has not joined
	HostRegistered HostState = "registered" // has joined; its agent was never connected, or was stopped
	HostUp         HostState = "up"         // a live heartbeat to every orchestrator
	HostDegraded   HostState = "degraded"   // works, and something is not as it should be
	HostStale      HostState = "stale"      // was connected, and is silent
	HostRevoked    HostState = "revoked"    // removed; its key is refused
)

// HostStates are all of them, in order.
func HostStates() []HostState {
	return []HostState{HostInvited, HostRegistered, HostUp, HostDegraded, HostStale, HostRevoked}
}

// Host is a driver host.
type Host struct {
	Name        string     `json:"name"`
	State       HostState  `json:"state" enum:"invited,registered,up,degraded,stale,revoked"`
	Reason      string     `json:"reason,omitempty" doc:"Why it is in its state, and, unless it is up, what to do."`
	Address     string     `json:"address,omitempty" doc:"Its address in the tunnel; a revoked host has none."`
	Devices     int        `json:"devices"`
	Sessions    int        `json:"sessions" doc:"On its devices now."`
	Cordon      *Cordon    `json:"cordon,omitempty" doc:"An operator's word that it takes no new session."`
	DampedUntil *time.Time `json:"damped_until,omitempty" doc:"It lost its connections too often, and takes no new session before; by itself."`
	RoundTripUS int64      `json:"round_trip_us,omitempty" doc:"Microseconds that a heartbeat takes there and back, on the slowest of its links."`
	SeenAt      *time.Time `json:"seen_at,omitempty" doc:"When any orchestrator last heard of it."`
	CreatedAt   time.Time  `json:"created_at"`
}

// HostDetail is all that is known of a driver host.
type HostDetail struct {
	Host
	PublicKey      string     `json:"public_key,omitempty" doc:"WireGuard key, base64."`
	KeySince       *time.Time `json:"key_since,omitempty" doc:"When it took this key."`
	NextPublicKey  string     `json:"next_public_key,omitempty" doc:"Key that takes its place with its first handshake."`
	TokenExpiresAt *time.Time `json:"token_expires_at,omitempty" doc:"Until when it may redeem its join token."`
	RevokedAt      *time.Time `json:"revoked_at,omitempty"`
	Links          []HostLink `json:"links" doc:"One for each orchestrator that has, or had, a link to it."`
	DeviceList     []Device   `json:"device_list"`
}

// HostLink is what one orchestrator knows of its link to a host.
type HostLink struct {
	Orchestrator   string     `json:"orchestrator"`
	Up             bool       `json:"up"`
	Reason         string     `json:"reason,omitempty" doc:"Why it is down; or what its host finds wrong with it."`
	ReportedAt     time.Time  `json:"reported_at" doc:"When the orchestrator told all this; it does so every 10 s, and on news."`
	HeardAt        time.Time  `json:"heard_at" doc:"Last heartbeat before the report."`
	LostAt         *time.Time `json:"lost_at,omitempty" doc:"When it went down."`
	RoundTripUS    int64      `json:"round_trip_us,omitempty" doc:"Microseconds that a heartbeat takes there and back."`
	HandshakeAt    *time.Time `json:"handshake_at,omitempty" doc:"Last WireGuard handshake; it says nothing about health."`
	RxBytes        int64      `json:"rx_bytes" doc:"Received from the host, since its key was configured."`
	TxBytes        int64      `json:"tx_bytes" doc:"Sent to the host, likewise."`
	MTU            int        `json:"mtu,omitempty"`
	GatewayBackend string     `json:"gateway_backend,omitempty" doc:"WireGuard backend of the orchestrator: kernel, tun or netstack."`
	HostBackend    string     `json:"host_backend,omitempty" doc:"WireGuard backend of the host."`
	Repairs        Repairs    `json:"repairs"`
	RepairedAt     *time.Time `json:"repaired_at,omitempty" doc:"When the host last had to repair it."`
	Losses         int        `json:"losses,omitempty" doc:"How often it was lost lately, while it is damped."`
	DampedUntil    *time.Time `json:"damped_until,omitempty" doc:"It was lost too often, and takes no new session before."`
}

// Repairs counts how a host got a link back, by rung of its ladder, since its agent started.
type Repairs struct {
	Handshake int `json:"handshake" doc:"New handshakes."`
	Socket    int `json:"socket" doc:"New UDP sockets."`
	Resolve   int `json:"resolve" doc:"Times the endpoint was looked up again."`
	Device    int `json:"device" doc:"New devices."`
}

// Total is the repairs of all rungs.
func (r Repairs) Total() int { return r.Handshake + r.Socket + r.Resolve + r.Device }

// HostList lists hosts.
type HostList struct {
	Hosts []Host `json:"hosts"`
}

// Device is one device of a host.
type Device struct {
	Host            string            `json:"host"`
	Name            string            `json:"name"`
	Kind            string            `json:"kind"`
	Browser         string            `json:"browser" doc:"The browserName that capabilities ask for it with."`
	BiDi            bool              `json:"bidi" doc:"It offers WebDriver BiDi (webSocketUrl)."`
	Model           string            `json:"model"`
	PlatformName    string            `json:"platform_name"`
	PlatformVersion string            `json:"platform_version"`
	Country         string            `json:"country,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
	State           string            `json:"state" enum:"ready,busy,quarantined,offline"`
	Reason          string            `json:"reason,omitempty"`
	Session         string            `json:"session,omitempty"`
	Cordon          *Cordon           `json:"cordon,omitempty" doc:"An operator's word that it takes no new session: its own, or its host's."`
}

// DeviceList lists devices.
type DeviceList struct {
	Devices []Device `json:"devices"`
}

// Event is one line of a session's log. It carries no payload: a route is a template, the rest are numbers and fixed words.
type Event struct {
	Session    string    `json:"session"`
	Seq        int64     `json:"seq" doc:"Rises by one within a session."`
	At         time.Time `json:"at"`
	Kind       string    `json:"kind"`
	Term       int64     `json:"term,omitempty"`
	Route      string    `json:"route,omitempty" doc:"W3C route template, for example POST /session/{session id}/url."`
	Status     int       `json:"status,omitempty" doc:"HTTP status of the answer; of a bidi_closed, the websocket's close code."`
	TookUS     int64     `json:"took_us,omitempty" doc:"Microseconds, at the orchestrator."`
	DriverUS   int64     `json:"driver_us,omitempty" doc:"Microseconds, at the driver."`
	BytesIn    int64     `json:"bytes_in,omitempty"`
	BytesOut   int64     `json:"bytes_out,omitempty"`
	Reason     string    `json:"reason,omitempty" doc:"A row of the endings table."`
	Generation int64     `json:"generation,omitempty"`
	Restored   int       `json:"restored,omitempty"`
	Altered    int       `json:"altered,omitempty"`
	Dropped    int       `json:"dropped,omitempty" doc:"Of a device_wiped: sites that did not let anybody look."`
	Captured   int       `json:"captured,omitempty"`
	Kept       int       `json:"kept,omitempty" doc:"Items of the profile that this session could not see; of a device_wiped: sites of which something is left."`
	Removed    int       `json:"removed,omitempty" doc:"Of a device_wiped: sites of which nothing is left."`
	Partial    bool      `json:"partial,omitempty"`
}

// EventList is a stretch of a session's log.
type EventList struct {
	Events []Event `json:"events"`
}

// Gateway is an orchestrator's end of the tunnels.
type Gateway struct {
	Name          string    `json:"name" doc:"of the orchestrator"`
	Address       string    `json:"address" doc:"in the tunnel"`
	Endpoint      string    `json:"endpoint" doc:"HOST:PORT that driver hosts send to"`
	PublicKey     string    `json:"public_key"`
	NextPublicKey string    `json:"next_public_key,omitempty" doc:"takes the place of public_key in next_in_seconds"`
	NextInSeconds int64     `json:"next_in_seconds,omitempty"`
	Live          bool      `json:"live" doc:"heard of within the last minute"`
	RotatedAt     time.Time `json:"rotated_at" doc:"when public_key was first used"`
	SeenAt        time.Time `json:"seen_at"`
}

// GatewayList is every gateway.
type GatewayList struct {
	Gateways []Gateway `json:"gateways"`
}

// RotateGateway is the body of POST /v1/gateways/{name}/rotate.
type RotateGateway struct {
	WithinSeconds int64 `json:"within_seconds,omitempty" minimum:"60" maximum:"2592000" doc:"when the new key is used; a host that is not connected to any gateway until then must be added again. Default: 7 days."`
}
