// Package host is the driver host's end of the command stream: the agent that runs beside the devices.
//
// [Run] keeps one control socket to every orchestrator and runs the sessions they assign. A session is a line:
//
//	claim device → its standby → recorder → New Session → serve → empty the browser → clean up → device free
//	               └─ directory → supervisor → display → driver: started before, and again when the device is free
//
// and ends by a Release, by the death of its driver or browser (reported as ended), when nobody has carried its commands for
// [OrphanLimit], or with the agent. It outlives its sockets, and the orchestrator that assigned it: each command is written into
// the session's journal before it runs, its answer is kept there until it is acknowledged, and a new command socket, to
// whichever orchestrator has the session then, begins with what the journal says (package driverproxy draws how).
//
// Nothing outlives its session. Every process of a session runs under a supervisor, which is the agent's own binary
// started anew ([SuperviseMain]) in a session and process group of its own:
//
//		agent ──requests pipe──▶ supervisor ──▶ Xvfb, recorder, driver ─▶ browser
//		      ◀──events pipe────
//
//	  - The agent dies, even by SIGKILL: the requests pipe ends, the supervisor kills all its descendants (on Linux it is their
//	    subreaper, so they stay its descendants), wipes the session's directory and exits.
//	  - The supervisor dies: the kernel kills its children (pdeathsig, Linux); the agent kills the group, and on Linux every
//	    process that carries the session's mark in its environment.
//	  - Both die: the next agent finds the session's record in StateDir and does the same. A mark is random, and where there
//	    is none (macOS) the start time is compared, so a recycled pid is never killed.
//
// What the browser stores goes into the session's directory (HOME, XDG_*_HOME, TMPDIR), which is gone, and checked to be gone, before the
// device is ready again. What could not be removed keeps the device in quarantine until it could. A phone's browser stores elsewhere: what it
// has of the sites that the session was at is deleted through the driver, whatever the kind, and looked at to be gone, with canaries (sweep.go).
// Where the session's own driver could not be used for that, a trial session is, and the device cannot be had before.
//
// # Devices
//
// A device that no session has is its keeper's: a goroutine that starts the standby, probes it every ten seconds, and replaces
// one that died or is an hour old. A device is ready only while its standby's driver has answered GET /status with ready, in time.
//
//	            good probe             claim
//	checking ────────────────▶ ready ─────────▶ busy ──▶ free: checking, or quarantined for what the session met
//	    ▲                        │
//	    │ a bad probe, a flap    │ enough bad results of one grade
//	    └────────────────────────┴──────▶ quarantined ──▶ ready: after good probes, which come by themselves
//
// What a driver does and says is graded: what counts how often, when the device is probed again and what that probe must show (a
// status, a session that starts, a clean-up that succeeds) is one table, in grade.go; safaridriver's sentences are in
// signs.go. New Session of a customer's session counts like that of a probe.
//
// Nothing is believed beyond a flap: before a hello lists a device as ready, its driver has been asked again. Between
// hellos the orchestrators ask over the control socket (wire.Probe), so that a driver is probed on the path of commands.
//
// A driver that offers WebDriver BiDi keeps its endpoint to itself: each connection that the orchestrator asks for is a socket to
// the orchestrator and one to the driver, with a relay between them. The session's clean-up ends them first.
//
// Terms of a session only rise; an assign, stop or release of an older term than the newest seen is refused. Commands of a
// session run one at a time in the order of their numbers, each number at most once.
//
// Out of scope: the tunnel (Dial is given), encoding (a [Recorder] is given), which session gets which device
// (orchestrator).
package host
