package orchestrator

import (
	"context"
	"encoding/json"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/profilestate"
	"github.com/driftstack/fleet/recorder"
	"github.com/driftstack/fleet/tunnel"
)

// Deps is everything an [Orchestrator] works with. All fields but Tunnel are required.
type Deps struct {
	ID       string // names this process in leases
	Sessions SessionStore
	Hosts    HostStore
	Replicas ReplicaStore
	Fleet    *driverproxy.Fleet
	Recorder *recorder.Recorder
	Profiles *profilestate.Store
	Tunnel   Tunnel // nil: hosts come over something else, as in tests
	Log      *zap.Logger
	Now      func() time.Time

	QueueLimit int           // sessions that may be queued at once
	Limits     Limits        // of accounts that have none of their own
	LeaseTTL   time.Duration // see the lease protocol in the package comment
}

// SessionStore keeps sessions. Writes that carry a term return ErrLeaseLost when it is not the session's any more.
type SessionStore interface {
	// Create queues a session and says when it did. Errors: *InvalidError, ErrNoSuchDevice, *ProfileHeldError, *QueueFullError, *QuotaError,
	// *ConflictError when the idempotency key was used for another request, *RepeatedError when it was for this one.
	Create(ctx context.Context, s NewSession) (time.Time, error)
	// Made is what Create says of a request that was made before under its idempotency key; nil if there was none.
	Made(ctx context.Context, account string, key Idempotency) error
	// Offers is what enrolled devices have to offer, each once, that the session wants and may be given, whatever browser it is for.
	Offers(ctx context.Context, n NewSession) ([]webdriver.Offer, error)
	// Shapes are what enrolled devices are matched by, with what each misses of what n wants.
	Shapes(ctx context.Context, n NewSession) ([]Shape, error)
	// Prospect is what would become of a session that Create were called with now, and what each enrolled device has against it. Errors
	// that Create has are in it; *InvalidError is returned.
	Prospect(ctx context.Context, n NewSession) (Prospect, error)
	// Claim gives queued sessions to free devices of the hosts, up to most, in fair order: see claim_sessions in pgstore. concurrent is how
	// many an account may have at once that has no quota of its own; zero is no limit. It fills every device that it can. left says that a claim at once
	// may get more: there were so many that it took no more, or others had locked what it passed over.
	Claim(ctx context.Context, holder string, hosts []string, ttl time.Duration, most, concurrent int) (got []Claim, left bool, err error)
	// Reclaim gives again, under a new term, what Claim gave to the holder in an answer that did not arrive: those sessions of its that are
	// starting, and are not among those that it knows of, up to most.
	Reclaim(ctx context.Context, holder string, known []string, ttl time.Duration, most int) ([]Claim, error)
	// Adopt takes a running session on a device of one of the hosts whose lease ran out at most AdoptWindow ago, or was handed
	// over: the oldest first. ok is false when there is none.
	Adopt(ctx context.Context, holder string, hosts []string, ttl time.Duration) (c Claim, ok bool, err error)
	// HandOver gives up the lease of a running session, and its term, with its last event so far: it can be adopted at once.
	HandOver(ctx context.Context, last Event) error
	// Renew extends the lease and says as what somebody wants the session to end: "" when nobody does.
	Renew(ctx context.Context, session string, term int64, ttl time.Duration) (end Reason, err error)
	Running(ctx context.Context, session string, term int64, capabilities json.RawMessage) error
	Finishing(ctx context.Context, session string, term int64) error
	// Finish ends the session with its last event and frees its device.
	Finish(ctx context.Context, last Event, detail string, generation int64) error
	// Requeue puts a session that has not started back into the queue, with its last event so far; its device is not free
	// until its host says so. again is false when the session was cancelled or its time in the queue is up.
	Requeue(ctx context.Context, last Event) (again bool, err error)
	// Cancel ends a queued session or asks the holder of a running one to end it. ErrNotFound.
	Cancel(ctx context.Context, session string) error
	// Cancelled are the sessions of a holder that Renew would tell to end.
	Cancelled(ctx context.Context, holder string) ([]string, error)
	// Reap ends queued sessions whose time is up and sessions whose lease ran out, running ones only AdoptWindow later; and with
	// waiters those that are queued for clients of another orchestrator than self which is gone. It says as what, for each.
	Reap(ctx context.Context, self string, waiters bool) ([]Reason, error)
	// Tidy deletes what has piled up and nothing needs any more, unless another orchestrator does, and says how much. It may have
	// deleted some when it fails.
	Tidy(ctx context.Context) (Tidied, error)
	// Confirm says that the client of a session that is starting under term is there.
	Confirm(ctx context.Context, session string, term int64) error
	// Confirmed says whether that was said, and whether the orchestrator that could say it is gone.
	Confirmed(ctx context.Context, session string, term int64) (confirmed, gone bool, err error)
	// AppendEvents stores events of sessions this process holds; those of a lost term are dropped.
	AppendEvents(ctx context.Context, events []Event) error
	// QueuePlace is where a session waits; ok is false when it is not queued. concurrent is as with Claim.
	QueuePlace(ctx context.Context, session string, concurrent int) (at api.QueuePlace, ok bool, err error)
	// Get returns one session. ErrNotFound.
	Get(ctx context.Context, session string) (api.Session, error)
}

// Tidied is how much Tidy has deleted.
type Tidied struct {
	Keys  int // idempotency keys of more than 24 hours ago
	Wants int // what sessions wanted, and none that is there wants
}

// HostStore keeps driver hosts and their devices.
type HostStore interface {
	// Invite adds a host, or gives one that has not joined yet, or was removed, a new token that can be redeemed for ttl.
	// mint makes the token for the host's number. It is stored as one step; expires is by the database's clock.
	// *ConflictError when the host has joined, or there is no number left.
	Invite(ctx context.Context, name string, ttl time.Duration, mint func(number int) (Invitation, error)) (expires time.Time, err error)
	// Hosts lists every host with its state.
	Hosts(ctx context.Context) ([]api.Host, error)
	// Fleet counts hosts, devices and sessions as of one moment; every state is there.
	Fleet(ctx context.Context) (api.Fleet, error)
	// StoreLinks stores what this orchestrator knows of its links, and that it is there to know it. backend is its own
	// end's. Of a host that is not connected only its pulse is stored.
	StoreLinks(ctx context.Context, backend string, links []LinkReport) error
	// EndDrained asks for the end of what still runs on hosts whose drain's deadline has passed, and says of how many.
	EndDrained(ctx context.Context) (int, error)
	// Unwelcome names those of the hosts that must not be connected: they were removed, or invited anew.
	Unwelcome(ctx context.Context, hosts []string) ([]string, error)
}

// Tunnel is what health and metrics need to know of the gateway; see [tunnel.Gateway].
type Tunnel interface {
	Backend() string
	Counters() tunnel.Counters
	Status(ctx context.Context) ([]tunnel.PeerStatus, error)
}

var _ Tunnel = (*tunnel.Gateway)(nil)

// Invitation is what is kept of a join token.
type Invitation struct {
	JoinPublicKey tunnel.Key
	PresharedKey  tunnel.PresharedKey
}
