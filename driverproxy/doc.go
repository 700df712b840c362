// Package driverproxy is the orchestrator's end of the command stream: it takes the sockets that driver hosts dial,
// knows which hosts are connected, starts sessions on them and carries each session's commands and recording.
//
// A [Fleet] serves the fleet listener. A host is what its tunnel address says it is ([Directory].HostByAddr). Of each
// host it holds one control socket; of each [Session] one command socket and, if recorded, one or more recording sockets (package lanes):
//
//	Assign ──▶ assign on control ──▶ host starts the driver, dials the session's sockets, answers assigned
//	Do     ──▶ queue ──▶ writer ──▶ command socket ──▶ answer of the same Seq     (many in flight, run in order)
//	Release ─▶ release on control ──▶ host stops everything, answers released
//
// A session ends by itself when its driver died (a *[wire.Failure]) or when its host is lost ([ErrHostLost]): the control socket broke,
// was silent for HeartbeatLimit, or the session's command socket broke. At that moment a command in flight is answered
// as unknown and one not yet sent as not run; see [Session.Do]. The host ends and wipes on its side by itself.
//
// A host that dials a second control socket replaces its first one at once if its agent was started anew (another
// Boot) or if the first has missed heartbeats; otherwise the second is refused, and the host tries again
// until the first has been found dead: one process has one control socket, so two live ones of one Boot cannot be.
//
// Out of scope: who may use which device (orchestrator), what a recording's bytes mean (recorder), WireGuard (tunnel),
// the host's end (driverproxy/host), and resuming a session after a broken socket.
package driverproxy
