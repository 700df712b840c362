package orchestrator

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// tick bounds what a lost notification costs.
	tick = time.Second
	// startedLimit is how long sessions that are starting have to run once the orchestrator is told to stop.
	startedLimit = 20 * time.Second
	// drainLimit is how long everything else has then; below the 90 s that service managers wait before they kill.
	drainLimit = 45 * time.Second
	// sweepAge is how old a sealed file must be before it can be taken for a leftover.
	sweepEvery = time.Hour
	sweepAge   = 24 * time.Hour
	sweepLimit = 30 * time.Minute
	// tidyEvery keeps what there is to delete to so much as is deleted in seconds.
	tidyEvery = 10 * time.Minute
	tidyLimit = 5 * time.Minute
)

// Orchestrator runs sessions.
type Orchestrator struct {
	deps     Deps
	log      *zap.Logger
	journal  *journal
	watch    *watch
	health   *health
	routes   routes
	measures *measures
	queued   chan struct{} // wakes who claims; has room for one
	later    chan struct{} // has them woken a little later, for what others are told of first; has room for one
	orphaned chan struct{} // wakes who adopts; has room for one
	stopping chan struct{} // closed when the orchestrator is told to stop: running sessions are handed over
	tired    chan struct{} // closed drainLimit after that: whatever still cleans up gives up

	mu         sync.Mutex
	live       map[string]*live     // guarded by mu; by session
	unanswered map[string]time.Time // guarded by mu; see unwanted.go
	attended   map[string]bool      // guarded by mu; sessions that clients wait for here, see attend.go
	sure       time.Time            // guarded by mu; when reap last found that those that are silent are gone, zero: it does not know

	claimLost time.Time // when the answer to a claim was last lost, zero: to none that matters still; claimMany's own

	answering steady    // the database, as reap sees it; reap's own, as what follows
	looked    time.Time // when reap was last called
	grace     int       // ticks until it reaps again
}

// New returns an Orchestrator that runs nothing yet.
func New(d Deps) *Orchestrator {
	if d.LeaseTTL == 0 {
		d.LeaseTTL = 15 * time.Second
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	o := &Orchestrator{
		deps: d, log: d.Log, journal: newJournal(d.Sessions, d.Log), watch: newWatch(), health: newHealth(), measures: newMeasures(),
		queued: make(chan struct{}, 1), later: make(chan struct{}, 1), orphaned: make(chan struct{}, 1), stopping: make(chan struct{}), tired: make(chan struct{}),
		live: map[string]*live{}, unanswered: map[string]time.Time{}, attended: map[string]bool{},
	}
	o.journal.stored = o.measures.stored
	return o
}

// Run claims, adopts and runs sessions until ctx is done; then it hands the running ones over, waits for those that start
// or finish, for drainLimit and a little more, and returns. It is called once.
func (o *Orchestrator) Run(ctx context.Context) {
	var sessions, loops sync.WaitGroup
	work, abandon := context.WithCancelCause(context.WithoutCancel(ctx))
	storing, giveUp := o.patience(ctx)
	defer giveUp()
	loops.Go(func() { o.journal.run(storing) })
	loops.Go(func() { o.wakeLater(ctx) })
	loops.Go(func() { every(ctx, tick, 10*time.Second, o.reap) })
	loops.Go(func() { every(ctx, tick, reportLimit, o.endUnwanted) })
	loops.Go(func() { every(ctx, tick, lookLimit, o.endCancelled) })
	loops.Go(func() { every(ctx, tick, 10*time.Second, o.endDrained) })
	loops.Go(func() { every(ctx, sweepEvery, sweepLimit, o.sweep) })
	loops.Go(func() { every(ctx, tidyEvery, tidyLimit, o.tidy) })
	linked, unlink := context.WithCancel(context.WithoutCancel(ctx)) // hosts stay connected while sessions end
	loops.Go(func() { o.reportHealth(linked) })
	loops.Go(func() { o.evict(linked) })
	start := func(c Claim, claimed time.Time) {
		l := newLive(c, o.journal, o.deps.Now)
		o.enter(l) // at once: what is known is not reclaimed
		sessions.Go(func() { o.run(work, l, claimed) })
	}
	var takers sync.WaitGroup
	takers.Go(func() { o.take(ctx, o.orphaned, o.deps.Fleet.Hosts, o.adoptOne, start) })
	takers.Go(func() { o.take(ctx, o.queued, o.deps.Fleet.Open, o.claimMany, start) })
	takers.Wait()
	close(o.stopping)
	limits := []*time.Timer{
		time.AfterFunc(startedLimit, func() { abandon(errDrained) }),
		time.AfterFunc(drainLimit, func() { close(o.tired) }),
	}
	sessions.Wait()
	for _, l := range limits {
		l.Stop()
	}
	abandon(nil)
	unlink()
	o.journal.close()
	loops.Wait()
}

const (
	// claimMost is how many sessions are claimed at once: enough that the claim itself costs each little.
	claimMost = 64
	// lockedPause is for how long what others have locked is left to them. They hold it for a statement or a few.
	lockedPause = 20 * time.Millisecond
	// waiterFirst is how long a session is left to the orchestrator that its client waits at; a little more than claim_sessions has.
	waiterFirst = 110 * time.Millisecond
)

// taker is one of the two ways to get sessions: to claim queued ones, or to adopt one that runs. again is when to ask for others if nothing wakes it
// before: at once, or soon, where some may be left that it could have; otherwise it took all that there were, and what comes meanwhile wakes it, so that
// a tick is for a wake that was lost. Where no host is in reach it gets none, but for what is the holder's already.
type taker func(ctx context.Context, hosts []string) (got []Claim, again time.Duration, err error)

func (o *Orchestrator) claimMany(ctx context.Context, hosts []string) (got []Claim, again time.Duration, err error) {
	defer func() {
		if err != nil {
			o.claimLost = o.deps.Now()
		}
	}()
	if !o.claimLost.IsZero() {
		if got, err = o.reclaim(ctx); len(got) > 0 {
			return got, 0, nil
		} else if err != nil {
			o.log.Warn("what a lost answer may have given cannot be taken up, it is tried again", zap.Error(err))
		}
	}
	if len(hosts) == 0 {
		return nil, tick, nil
	}
	got, left, err := o.deps.Sessions.Claim(ctx, o.deps.ID, hosts, o.deps.LeaseTTL, claimMost, o.deps.Limits.Concurrent)
	switch {
	case !left:
		return got, tick, err
	case len(got) == 0: // others have locked it
		return nil, lockedPause, err
	}
	return got, 0, err
}

// reclaim takes up what was claimed and not told of: otherwise it would be nobody's until its lease is over, and then end. What a claim
// was cut short of may still come to be, so that it is asked for again for a while.
func (o *Orchestrator) reclaim(ctx context.Context) ([]Claim, error) {
	over := o.deps.Now().Sub(o.claimLost) > landLimit
	got, err := o.deps.Sessions.Reclaim(ctx, o.deps.ID, o.known(), o.deps.LeaseTTL, claimMost)
	if err != nil {
		return nil, err
	}
	if len(got) > 0 {
		o.log.Info("sessions taken up that a lost answer had given", zap.Int("sessions", len(got)))
	} else if over {
		o.claimLost = time.Time{}
	}
	return got, nil
}

func (o *Orchestrator) adoptOne(ctx context.Context, hosts []string) ([]Claim, time.Duration, error) {
	if len(hosts) == 0 {
		return nil, tick, nil
	}
	c, ok, err := o.deps.Sessions.Adopt(ctx, o.deps.ID, hosts, o.deps.LeaseTTL)
	if !ok {
		return nil, tick, err
	}
	return []Claim{c}, 0, err
}

// take starts sessions for as long as there are any to get, then waits for a wake, or for as long as get says. There are never more than
// devices of connected hosts.
func (o *Orchestrator) take(ctx context.Context, wake <-chan struct{}, from func() []string, get taker, start func(Claim, time.Time)) {
	t := time.NewTimer(0)
	defer t.Stop()
	for ctx.Err() == nil {
		begin := o.deps.Now()
		// What is cut short may have happened, and nobody would run the session.
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.deps.LeaseTTL/3)
		got, again, err := get(call, from())
		cancel()
		for _, c := range got {
			start(c, begin)
		}
		if again == 0 {
			continue
		}
		if err != nil && ctx.Err() == nil {
			o.log.Warn("no session can be claimed or adopted", zap.Error(err))
		}
		t.Reset(again)
		select {
		case <-ctx.Done():
		case <-wake:
		case <-t.C:
		}
	}
}

// every calls f again and again until ctx is done, each call with a limit.
func every(ctx context.Context, pause, limit time.Duration, f func(context.Context)) {
	t := time.NewTicker(pause)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		call, cancel := context.WithTimeout(ctx, limit)
		f(call)
		cancel()
	}
}

// wakeGrace is for how many ticks nothing is reaped after a pause of our own: where everybody slept, the leases of all are over by
// the database's clock, and those that had sessions renew them, or hand them over, when their next renewal is due.
func wakeGrace(ttl time.Duration) int { return int(ttl/3/tick) + 1 }

// reap ends what nobody holds any more.
func (o *Orchestrator) reap(ctx context.Context) {
	now := o.deps.Now().Round(0) // by the wall clock: the other one stands still in a machine that sleeps
	if !o.looked.IsZero() && paused(o.looked, now) {
		o.grace = wakeGrace(o.deps.LeaseTTL)
	}
	o.looked = now
	if o.grace > 0 {
		o.grace--
		o.knows(time.Time{})
		return
	}
	enough := o.answering.longEnough(now)
	ended, err := o.deps.Sessions.Reap(ctx, o.deps.ID, enough)
	if enough && err == nil {
		o.knows(now)
	} else {
		o.knows(time.Time{})
	}
	if err != nil {
		o.answering = steady{}
		o.log.Warn("sessions cannot be reaped", zap.Error(err))
	}
	for _, r := range ended {
		o.measures.end(r)
	}
	if len(ended) > 0 {
		o.log.Info("sessions reaped", zap.Int("sessions", len(ended)))
	}
}

// sweep removes sealed files that no profile refers to any more.
func (o *Orchestrator) sweep(ctx context.Context) {
	swept, err := o.deps.Profiles.Sweep(ctx, sweepAge)
	if err != nil {
		o.log.Warn("sealed profiles cannot all be swept", zap.Error(err))
	}
	if swept.Removed > 0 {
		o.log.Info("sealed profiles swept", zap.Int("removed", swept.Removed))
	}
}

// tidy deletes rows that nothing needs any more.
func (o *Orchestrator) tidy(ctx context.Context) {
	n, err := o.deps.Sessions.Tidy(ctx)
	if err != nil && ctx.Err() == nil {
		o.log.Warn("what the database need not keep cannot all be deleted", zap.Error(err))
	}
	if n != (Tidied{}) {
		o.log.Info("deleted what the database need not keep", zap.Int("idempotency_keys", n.Keys), zap.Int("wants", n.Wants))
	}
}

// WakeQueue says that a session was queued or a device became free. A session that a client waits for at an orchestrator is that one's
// to claim, which knows of it, and the others' a little later.
func (o *Orchestrator) WakeQueue(waiter string) {
	switch waiter {
	case "":
		poke(o.queued)
	case o.deps.ID:
	default:
		poke(o.later)
	}
}

// wakeLater wakes who claims for what others were told of first, once that has been left to them for long enough. What comes while it waits has it wait again.
func (o *Orchestrator) wakeLater(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.later:
		}
		t := time.NewTimer(waiterFirst)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
			poke(o.queued)
		}
	}
}

// WakeAdopt says that a session was handed over.
func (o *Orchestrator) WakeAdopt() { poke(o.orphaned) }

// WakeSession says that there is news of a session, or of any when id is empty.
func (o *Orchestrator) WakeSession(id string) {
	o.routes.forget(id)
	o.watch.wake(id)
}

// WakeCancel says that a session may have been cancelled. Which of all, when id is empty, the tick finds out.
func (o *Orchestrator) WakeCancel(id string) {
	if l := o.find(id); l != nil {
		poke(l.look)
	}
}

// endCancelled is WakeCancel for those whose notification was lost, in one look for all of them.
func (o *Orchestrator) endCancelled(ctx context.Context) {
	ids, err := o.deps.Sessions.Cancelled(ctx, o.deps.ID)
	if err != nil && ctx.Err() == nil {
		o.log.Warn("what was cancelled cannot be looked up; trying again", zap.Error(err))
	}
	for _, id := range ids {
		o.WakeCancel(id)
	}
}

// isStopping says that nothing is claimed or adopted any more.
func (o *Orchestrator) isStopping() bool {
	select {
	case <-o.stopping:
		return true
	default:
		return false
	}
}

func (o *Orchestrator) enter(l *live) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.live[l.claim.Session] = l
}

func (o *Orchestrator) leave(l *live) {
	o.mu.Lock()
	// A session that was queued again may have been claimed again already: then the place is its next life's.
	if o.live[l.claim.Session] == l {
		delete(o.live, l.claim.Session)
	}
	o.mu.Unlock()
	close(l.over)
	o.watch.wake(l.claim.Session)
	l.streams.close()
}

// known are the sessions that this process runs.
func (o *Orchestrator) known() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Collect(maps.Keys(o.live))
}

func (o *Orchestrator) find(session string) *live {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.live[session]
}
