package orchestrator

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator/api"
)

// This file is how a request finds the orchestrator that has its session. Who that is says the session's lease, by the
// database's clock; where it is reached says its row of replicas.

const (
	announceEvery = 3 * time.Second
	routesMost    = 4096 // remembered
)

// Replica is an orchestrator's process.
type Replica struct {
	ID     string // Deps.ID
	Name   string
	URL    string // where the others reach it; "": nowhere
	Volume string // id of its folder of profiles: those with the same one share it, and the spools beside it
}

// Whereabouts is who has a session.
type Whereabouts struct {
	State  api.SessionState
	Holder Replica // the zero one: nobody. Volume is not looked up
}

// ReplicaStore keeps what orchestrators know of one another.
type ReplicaStore interface {
	// AnnounceReplica says that r is alive, and returns the others that are.
	AnnounceReplica(ctx context.Context, r Replica) ([]Replica, error)
	// WithdrawReplica says that the process is gone.
	WithdrawReplica(ctx context.Context, id string) error
	// Whereabouts says who has a session. ErrNotFound.
	Whereabouts(ctx context.Context, session string) (Whereabouts, error)
}

// Holds says whether this process runs the session, and is not about to leave it.
func (o *Orchestrator) Holds(session string) bool {
	l := o.find(session)
	return l != nil && !l.leaving()
}

// Locate says which other orchestrator has a session; the zero Replica means that its requests are answered here, also those for a
// session that nobody has yet, or no longer. A session that runs and is nobody's is about to be adopted: it is waited for
// as long as that takes at most. past is where the request has been in vain: it is tried again there after a moment only.
// Errors: ErrElsewhere, ErrUnavailable.
func (o *Orchestrator) Locate(ctx context.Context, session string, past string) (Replica, error) {
	if o.Holds(session) {
		return Replica{}, nil
	}
	if r, ok := o.routes.get(session); ok && r.ID != past {
		return r, nil
	}
	o.routes.forget(session)
	ctx, cancel := context.WithTimeout(ctx, o.AdoptedWithin())
	defer cancel()
	news, unsubscribe := o.watch.subscribe(session)
	defer unsubscribe()
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		w, err := o.Whereabouts(ctx, session)
		var invalid *InvalidError
		switch {
		case errors.Is(err, ErrNotFound), errors.As(err, &invalid), o.Holds(session):
			return Replica{}, nil
		case err != nil:
			return Replica{}, err
		case w.Holder.ID == past && past != "":
		case w.Holder.ID == o.deps.ID:
			return Replica{}, nil
		case w.Holder.ID != "" && w.Holder.Name == "": // it is known to be gone, and its lease runs out
		case w.Holder.ID != "" && w.Holder.URL == "":
			o.log.Warn("the session's orchestrator says nowhere that it can be reached: set its --peer-url", zap.String("session", session), zap.String("holder", w.Holder.ID))
			return Replica{}, ErrElsewhere
		case w.Holder.ID != "":
			o.routes.put(session, w.Holder)
			return w.Holder, nil
		case w.State != api.Running:
			return Replica{}, nil
		case o.isStopping():
			return Replica{}, ErrElsewhere
		}
		select {
		case <-news:
		case <-t.C:
			past = ""
		case <-ctx.Done():
			return Replica{}, ErrElsewhere
		}
	}
}

// AdoptedWithin is how long it takes at most until somebody has a session that was lost by its orchestrator, while all is well.
func (o *Orchestrator) AdoptedWithin() time.Duration { return o.deps.LeaseTTL + rejoinSlack }

// Whereabouts says who has a session, by the database. Errors: ErrNotFound, ErrUnavailable, *InvalidError.
func (o *Orchestrator) Whereabouts(ctx context.Context, session string) (Whereabouts, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookLimit)
	defer cancel()
	return o.deps.Replicas.Whereabouts(ctx, session)
}

// Announce tells the others of this process until ctx ends, and then that it is gone.
func Announce(ctx context.Context, store ReplicaStore, r Replica, log *zap.Logger) {
	every(ctx, announceEvery, announceEvery, func(ctx context.Context) {
		if _, err := store.AnnounceReplica(ctx, r); err != nil && ctx.Err() == nil {
			log.Warn("the other orchestrators cannot be told where this one is", zap.Error(err))
		}
	})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookLimit)
	defer cancel()
	if err := store.WithdrawReplica(ctx, r.ID); err != nil {
		log.Warn("the other orchestrators cannot be told that this one is gone", zap.Error(err))
	}
}

// routes remembers where sessions were found. What it says may be out of date: whoever gets a request for a session that it
// does not have says so.
type routes struct {
	mu sync.Mutex
	to map[string]Replica // guarded by mu; by session
}

func (r *routes) get(session string) (Replica, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	to, ok := r.to[session]
	return to, ok
}

func (r *routes) put(session string, to Replica) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.to == nil || len(r.to) >= routesMost {
		r.to = map[string]Replica{}
	}
	r.to[session] = to
}

// forget forgets one session, or all of them when session is empty.
func (r *routes) forget(session string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if session == "" {
		clear(r.to)
		return
	}
	delete(r.to, session)
}
