// Package wire is what travels between the orchestrator and a driver host, inside the tunnel.
//
// The host dials; every socket is a websocket on the orchestrator's fleet listener:
//
//	GET /fleet/v1/control                          one a host: JSON text messages, [Control]
//	GET /fleet/v1/command?session=S&term=T         one a session: binary messages: first [Resume] up and [Resumed] down, then [Command] down, [Answer] up
//	GET /fleet/v1/recording?session=S&term=T&lane=N  one or more a recorded session: binary, [Chunk] and [End] up, [Ack] and [Held] down
//	GET /fleet/v1/bidi?session=S&term=T&id=N       one a BiDi connection, id is that of [OpenBiDi]: WebDriver BiDi as it is, both ways
//	POST /fleet/v1/join                            plain, over a join tunnel: [Join] up, [Joined] down
//	POST /fleet/v1/pulse                           plain, from the tunnel itself: [Pulse] up, [Beat] down
//	POST /fleet/v1/probe                           plain: the body comes back, so that full-size packets go both ways
//	POST /fleet/v1/rekey                           plain: [Rekey] up, [Rekeyed] down
//
// A host is known by its address in the tunnel, which WireGuard binds to its key; no message carries a credential.
// A frame of an older term than the newest one seen for its session is refused by the host.
//
// # History
//
// Version 1 (2026-11-23): first version.
//
// Version 2 (2026-11-23): joining and rekeying exchange a preshared key with ML-KEM-768; pulse, probe and rekey;
// heartbeats carry the round trip of the one before. A recording has up to [MaxLanes] sockets and a window; [Held].
//
// Version 3 (2026-11-27): sessions outlive their sockets and their orchestrator. A command socket begins with [Resume] and
// [Resumed]; commands have an [Origin]; [Hello] lists the sessions that run, and [Adopt] takes one over; [Assigned] then
// says where the session was. WebDriver BiDi: [OpenBiDi] and its socket; a [Device] says which browser it drives and whether
// its driver offers BiDi. [Probe] and [Probed] of a host's devices. [Released] has [Wiped], where it is known.
//
// Out of scope: sockets, timeouts and retries (package driverproxy and driverproxy/host), what a command means (webdriver).
package wire

// Version is the protocol version both ends state in [Hello] and [Welcome]; ends of different versions do not talk.
const Version = 3

// Paths on the fleet listener.
const (
	PathControl   = "/fleet/v1/control"
	PathCommand   = "/fleet/v1/command"
	PathRecording = "/fleet/v1/recording"
	PathBiDi      = "/fleet/v1/bidi"
	PathJoin      = "/fleet/v1/join"
	PathPulse     = "/fleet/v1/pulse"
	PathProbe     = "/fleet/v1/probe"
	PathRekey     = "/fleet/v1/rekey"
)
