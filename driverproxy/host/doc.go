// Package host is the driver host's end of the command stream: the agent that runs beside the devices.
//
// [Run] keeps one control socket to every orchestrator and runs the sessions they assign. A session is a line:
//
//	claim device → directory → supervisor → display → recorder → driver → New Session → serve → clean up → device ready
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
// device is ready again. A device that could not be cleaned is quarantined until the agent starts anew.
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
