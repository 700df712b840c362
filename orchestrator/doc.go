// Package orchestrator is a session's life: it claims queued sessions, runs each down one line, and settles how it ended.
// This comment is the architecture document of the project.
//
// # States
//
//	                                                    ┌── adopted by another orchestrator
//	                                                    ▼ │ or the same, started anew
//	           claim              first command can be sent        quit, idle, deadline …
//	queued ─────────────▶ starting ─────────────▶ running ─────────────▶ finishing ──▶ ended(reason)
//	   ▲ │  cancelled, no device in time  │ failed to start   │ host or driver lost           ▲
//	   │ └────────────────────────────────┴───────────────────┴───────────────────────────────┘
//	   └── the device was taken after all: the next free one may have the session
//
// A recording has states of its own, because it outlives its session:
//
//	recording ─▶ sealed ─▶ uploading ─▶ available (EU copy verified) ─▶ replicated (US copy too, where the account has one)
//	                                    empty (nothing was captured)   quarantined (its spool is damaged)   lost (its spool is gone)
//
// Each of its copies has one too; the last two are for an account that was changed from replicated to eu, and are the US copy's alone:
//
//	pending ─▶ uploading ─▶ verified ─▶ removing ─▶ removed
//	                         │    ▲
//	          found damaged  ▼    │  put back
//	                        repairing
//
// The reasons are the rows of one table, in errors.go: HTTP status, W3C error and whether to try again are its columns.
//
// # The line
//
// A session is one value that flows down one function, in run.go. Each stage's result is the next one's argument:
//
//	claim → lease → confirm that its client is there → open recording → start driver → restore profile → serve commands
//	      → stop recording → capture profile → seal → release device → finish
//
// An adopted session has the stages before serve behind it: it gets its lease, its profile as it is stored, and its driver
// from the host, which has been running it. A session that goes on elsewhere leaves the line at serve.
//
// serve blocks until the client quits, nobody sends a command for too long, time is up, or the session is cancelled.
// What a stage must undo is deferred beside it, runs without the session's cancellation and with a deadline of its own.
// Commands of restore and capture do not show in the session's log; what they did does, as counts.
//
// # Leases
//
// A session belongs to whoever holds its term. Claim, adoption and handover raise the term; the first two say until when the lease
// runs, by the database's clock. Every later write of that session says `WHERE id = … AND term = … AND state <> 'ended'` and a
// write that matches no row means that the lease is lost. The holder renews every third of the lease time and trusts
// the lease only until (start of the last successful attempt) + ttl − margin, by its own monotonic clock, so that it
// stops before anyone else can start. A holder that was stopped for longer than that, or slept, finds its lease lost before it
// sends anything else; what it had sent already is refused by the driver host, which takes no frame of an older term.
//
// A claim may be carried out whose answer is lost, also after it was given up. So for a minute after such a claim its holder asks every second which
// sessions are starting for it that it does not run, and takes them up under the next term. It asks every second as well, of all its
// sessions at once, which somebody wants ended: a notification that was lost costs no more than that.
//
// # Sessions that outlive their orchestrator
//
// The driver on the host outlives the orchestrator, and what it has of the session outlives the lease:
//
//	            lease runs out                          AdoptWindow, 60 s                     host.OrphanLimit, 90 s
//	killed ───────────────────▶ running, nobody's ───────────────────────▶ ended(lease_lost)   from the last command socket:
//	            ≤ ttl, 15 s        │                                                           the host ends it and wipes
//	stopped ──── handed over ──────┤ an orchestrator that the host is connected to: term + 1,
//	            at once            ▼ then adopt on its control socket
//	                            running, adopted: same driver, same pages, same profile lease, same device
//
// An orchestrator that cannot trust a lease any more, or is told to stop, leaves the session: it takes no more commands for it
// (they are answered with data.outcome "not_run": send them again), waits 10 s at most for those that run (2 s without a lease),
// ends its sockets, and does not tell the host to end anything. A handover gives up the lease and the term in one write and tells the others.
// One that is stopped lets sessions that are starting start, for 20 s, and hands them over as well; those that did not make it
// end as drained, those that are finishing finish.
//
// Everybody looks for sessions to adopt every second, and when told of a handover, among those whose hosts are
// connected. A command that comes meanwhile waits for the adoption, for the lease time and a little more. An adoption whose host is lost in its
// middle is handed over again; when the host does not have the session (any more) it ends as host_lost. A session that was starting or
// finishing without its holder is not adopted but ended as lease_lost; its device is free once its host says so.
//
// A session may run for max_seconds from when it first ran, whoever has it; idle_seconds count anew from the adoption. Commands
// that were sent before are run once, in order, and never again: the host's journal knows them. Those of a client's connection that went
// with the orchestrator are waited for and let go.
//
// Its recording goes on too, where the orchestrators share a volume. By the time that the host has answered the adoption, it takes nothing from
// the former holder any more, so that what that has on disk is all that it acknowledged; the adopting one copies it to a spool of its own term, and
// the host sends again what came after. Folder and object carry a name of that term: a holder that wakes up writes to what nobody reads, and
// stores no object before Postgres has taken it that its recording is sealed, which it does not from a lower term. A spool that is not sealed
// is left alone while its session has not ended; then whichever orchestrator of the volume sees it first brings it to its end, and likewise
// sealed ones that nobody carries on with.
//
// Where an orchestrator has a volume of its own, which it says at start, a session with a profile is claimed and adopted by those alone that have
// the profile's volume (each has an id, made at its first start), and the recording of a session that moves to another volume ends
// there as partial.
//
// What the restore of its profile left in the browser is in a sealed file beside the profile's generations while a session runs, and removed with its
// end: an adopted session's capture tells what was deleted from what was never there, as any other. It looks at the sites of the profile and at the pages
// that the host remembers.
//
// Known limits. Commands of the last moment before a kill may be missing from the log of a session that runs. A host
// tries for 32 s to find who takes its recording; one whose adoption takes longer ends as partial.
// An adoption whose answer is lost is not taken up as a claim is: the session waits until its lease has run out once more.
//
// # Several orchestrators
//
// Any orchestrator serves any request. What Postgres knows (states, logs, lists, cancelling, waiting) it answers itself; what only the session's
// holder can do (driver commands, quitting, batches, streams, BiDi) it forwards, as the client made it, so that URLs in answers point to where the
// client came in:
//
//	client ══▶ B ── who holds the session's lease, and where is it reached? ──▶ Postgres (sessions.holder, replicas.url)
//	           ╚══ the same request, with a MAC instead of the client's credentials ══▶ A
//	                                           421: not here, nothing was run ◀────────╯
//
// The MAC is under a key of the service token, over the process it is for, method and target; nothing else that a request carries is believed, and a
// request that has one is never forwarded again. Where a session was found is remembered until Postgres tells of news of it, or the holder
// answers 421.
//
// A request is sent once. One that did not get a connection, or was answered 421, waits for the session's next holder, as one that comes
// during an adoption does, for the lease time and a little more. One that was sent and not answered has an unknown outcome, and the
// holder is asked whether it is there before it gets another. A request waits for its answer as long as Postgres says that the session is where
// it was sent, and 12 s longer. Once forwarded, websockets are relayed until either end closes them.
//
// # Two phases
//
// A session of W3C New Session is for a client that waits for it; one of POST /v1/sessions is not. The row says at which orchestrator
// the client waits (sessions.waiter). A claim gives such a session its device, and is confirmed before anything is done on it:
//
//	client ══ POST /session ══▶ A: queued, waiter A ─▶ Postgres ◀─ claim ── B: starting, term 1
//	       is it still there?   A ◀──── notification ───┤
//	                            A ── confirmed = 1 ────▶├──── notification ────▶ B: start the driver
//	                                                    └ not within 5 s, or A is gone ▶ B: ended(cancelled); the device was not touched
//
// A client that leaves has its session cancelled by A at once, and A confirms nothing for it. With A dies the waiting: what it had queued is not
// confirmed, so that it costs nobody a device, and whoever sees A's announcements missing for 15 s, or its name taken by a new process, ends
// it. Whoever sees the database answer for 15 s on end, that is: after an outage, or a pause of its own, the others may not have had the time
// to announce themselves; nor is a waiter taken for gone before, and nothing at all is reaped after a pause of its own until every holder had its renewal.
// Where A claims itself, it looks into its own list instead; which is the rule, since for the first 100 ms the session is left to A.
//
// A database that is away for seconds ends nothing: every step that needs it is repeated, for as long as the lease can be
// trusted, or while a stage's own limit lasts.
//
// A profile has one writer: a unique index lets one session that has not ended, and is not readonly, name it. A fork names a profile of
// its own. Publishing a generation is one compare-and-swap on the profile's row under the session's term; what has no session
// (import, promotion, deletion) locks the row, which excludes new sessions, and is refused while one holds it. Wrapped keys are in a
// database of their own; what was destroyed is in a ledger of both (package profilestate).
//
// # WebDriver BiDi
//
// A session that asks for it (webSocketUrl: true) is matched to a device whose driver offers it, or refused at once. Its answer has a
// webSocketUrl that points at us, with a token in it that opens this session's BiDi and nothing else:
//
//	client ══ /session/{id}/bidi ══▶ orchestrator ◀══ /fleet/v1/bidi ══ host ══ ws://127.0.0.1 ══▶ driver
//
// Messages pass both ways piece by piece and are not looked at: the log has a line when a connection is opened and one when it is closed.
// What a client sends counts as use, as commands do. The session's end closes the connections, with its reason, before the
// profile is captured. Pages that were opened over BiDi alone are not among those that a profile is captured from.
//
// # Tunnels
//
// Each orchestrator has a gateway, each driver host a link with a peer for every gateway; hosts dial, gateways listen.
// A host's state is computed when it is asked for, from what each orchestrator last wrote of its link (host_links), and
// always has a reason:
//
//	 hosts add          token redeemed             control socket           the last link is lost
//	──────────▶ invited ─────────────▶ registered ────────────────▶ up ───────────────────────────▶ stale
//	   ▲                                  ▲    ▲                   │  ▲                               │
//	   │                                  │    └──── goodbye ──────┤  │ all well                      │
//	   │                                  │          something is  ▼  │                               │
//	   │                                  └─ goodbye ──── wrong  degraded ◀────── control socket ─────┘
//	   │ hosts add                                                            (or up, if all is well)
//	   └────────── revoked ◀── hosts rm, from every state
//
// Beside its state, a host may be closed to new sessions: cordoned, draining or drained by an operator, or damped. Claims read the first from the
// device's row (devices.closed), which a cordon changes with the host's: a claim that locks the row sees every cordon that was stored before. Damping is each
// orchestrator's for its own links, from losses without a goodbye (driverproxy, damping.go): it claims nothing on a damped host, and adopts
// what runs there. At a drain's deadline sessions are asked to end as drained, on the way that a cancellation takes, with the reason in
// sessions.end_as; a forced release goes the same way and saves no profile. What operators do is in the table audit, in one transaction with what it tells of.
//
// up is a live link to every orchestrator that runs; a link is live until the control socket breaks, or the orchestrator that
// has it stops reporting for 30 s. Wrong are a missing link, missed or slow heartbeats, a reason the host gives, an MTU below
// 1280, and for a minute each repair.
//
//	heartbeat  1 s, on the control socket: what health is, and how long a command takes at least    driverproxy
//	pulse      15 s, HTTP through the tunnel: the host tells MTU and repairs, and hears of gateways and keys    tunnel
//	watch      1.2 s without a byte on open connections, an unanswered dial or a jump of the clocks: ask, then repair
//	ladder     new handshake → new UDP socket (first after sleep) → endpoint resolved again → new device → again
//	MTU        full-size probes at connect, after repairs and every 30 s: 1280 → 1200 → a named error
//
// Postgres knows the public key and preshared key of each host, and of each gateway its public key and the next; private
// keys never leave their machine. A gateway knows all peers, told by NOTIFY and a 10 s tick, and lets them reach its fleet
// port only. A host knows its gateways and nothing of other hosts. Who repairs is always the host; a gateway restores
// its own device.
//
// # What each log line may hold
//
// An [Event] has no field that could carry a payload: a route is a [webdriver.Route], out of a closed table; the rest
// are numbers and rows of fixed tables.
//
// # House
//
//	cmd/orchestrator    the EU daemon: parse, wire, wait, unwind
//	cmd/driverhost      the agent on each Mac
//	cmd/driftctl        the operators' and engineers' command line
//	cmd/devstack        the whole system on one machine, then a sample session
//	cmd/bench           the figures we hold ourselves to
//
//	orchestrator/       this package
//	  api/              control-plane messages
//	  httpapi/          handlers: decode, call, encode
//	  pgstore/          all SQL; migrations/, keymigrations/ of the key database; pgcluster/ is a private Postgres for development and tests
//	  place/            region and place as types, and the names that providers give to hosts
//	  outbound/         connections to what they are pinned to, and to nothing else
//	  residency/        the register: what is kept where, who may be connected to, what is refused at start
//	  coredump/         keeps a crash from writing memory to a disk
//	  client/           the Go client of the API server
//	driverproxy/        the command stream, EU end
//	  webdriver/        W3C envelopes, errors, routes
//	  batch/            a list of commands run beside the driver: what is sound, references, waits
//	  inert/            documents of a site at which none of its scripts run: where profiles are restored and captured, and devices wiped
//	  wire/             frames and messages between orchestrator and driver host
//	  host/             the command stream, host end: drivers started, watched, reaped
//	  socket/           websockets with bounded reads and writes, both ends; sockettest/ is a network in memory
//	  bulk/             bodies of commands and answers, read into one piece of memory
//	  lanes/            one recording over several sockets, both ends
//	  stream/           the clients' websocket of commands, both ends
//	  drivertest/       a scriptable fake driver; safari/ is a safaridriver that misbehaves, as a process
//	tunnel/             WireGuard: enrolment, keys and their rotation, peers, isolation, repair, backends
//	  tunneltest/       a relay with delay, loss, cuts and rebinds, and bare WireGuard to compare with
//	profilestate/       snapshot, keys, seal/open, generations, restore/capture over driver commands
//	recorder/           spool, parts, targets, finalise; capture/ is the host end; webm/ the container;
//	                    s3server/ is versitygw for development and tests
//
// # Ranks
//
// Imports descend; a test holds them, and each library's one home (cmd/ranks_test.go).
//
//	rank 0  orchestrator/api orchestrator/coredump orchestrator/outbound orchestrator/place driverproxy/batch driverproxy/inert
//	        driverproxy/webdriver driverproxy/wire recorder/webm                                      (standard library only)
//	rank 1  tunnel/…  driverproxy/…  profilestate  recorder/…                                          (never one another)
//	rank 2  orchestrator
//	rank 3  orchestrator/httpapi orchestrator/pgstore orchestrator/client orchestrator/residency
//	rank 4  cmd/…
//
// Out of scope of this package: SQL (pgstore), HTTP (httpapi), sockets (driverproxy), what profiles, recordings and
// tunnels are made of (their packages).
package orchestrator
