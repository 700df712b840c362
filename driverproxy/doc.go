// Package driverproxy is the orchestrator's end of the command stream: it takes the sockets that driver hosts dial,
// knows which hosts are connected, starts sessions on them and carries each session's commands and recording.
//
// A [Fleet] serves the fleet listener. A host is what its tunnel address says it is ([Directory].HostByAddr). Of each
// host it holds one control socket; of each [Session] one command socket, if recorded one or more recording sockets (package lanes),
// and one for each WebDriver BiDi connection:
//
//	Assign ──▶ assign on control ──▶ host starts the driver, dials the session's sockets, answers assigned
//	Do     ──▶ queue ──▶ writer ──▶ command socket ──▶ answer of the same Seq     (many in flight, run in order)
//	OpenBiDi ▶ open_bidi on control ──▶ host dials the BiDi socket and the driver's own; [BiDi].Serve relays a client to it
//	Release ─▶ release on control ──▶ host stops everything, answers released
//
// # Broken sockets
//
// A session outlives its sockets. Each command has a number, and both ends keep what the other may not have:
//
//	orchestrator                          host
//	commands without an answer            its journal: the highest number taken, and every command
//	                                      whose answer is not acknowledged, with the answer once there
//
//	       ◀── Resume{received, kept} ──  a new command socket, dialled within 50 ms of the loss
//	     ──── Resumed{answered} ──────▶
//	     ──── commands above received ─▶  taken: executed once, in the order of their numbers
//	       ◀── answers above answered ──
//
// So the host's journal is the authority on what was executed: a number it has is never executed again, one it does not have
// never was. A session without its command socket, or whose host has no control socket, waits for [Config].ResumeLimit; then its
// host is lost ([ErrHostLost]). A session ends at once when its driver died (a *[wire.Failure]), when its host says goodbye, was started anew
// (another Boot) or is dropped, and with [ErrOverflow] when more than [wire.MaxOutstanding] commands are unacknowledged. Then
// a command that was sent is answered as unknown and one that was not as not run; see [Session.Do].
//
// The host keeps a session that nobody carries for a while (host.OrphanLimit), also one that [Session.Leave] gave up. [Fleet.Adopt] takes it over, at a higher term:
// the new orchestrator learns from the journal which commands there are and which client streams they came from.
//
// A host that dials a second control socket replaces its first one at once if its agent was started anew (another
// Boot), if it dialled it later (Hello.Dial), or if the first has missed heartbeats.
//
// A BiDi connection is relayed as it is, piece by piece (socket.Relay), and belongs to its sockets: one that breaks is not resumed,
// its client is told so (1012) and may connect again. The session goes on, or ends, without it.
//
// # Probes
//
// Every ten seconds a host is asked for its devices ([wire.Probe], with a heartbeat): it has the driver of each that waits for a
// session asked for its status, and answers what it found. The Directory is told of changes. A host that leaves three probes
// unanswered although its heartbeats come has devices that nobody uses, until it answers one.
//
// Out of scope: who may use which device (orchestrator), what a recording's bytes mean (recorder), WireGuard (tunnel),
// the host's end (driverproxy/host).
package driverproxy
