package orchestrator

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// This file is what becomes of a session that outlives the orchestrator that runs it: how one leaves it, and another goes
// on with it. The protocol is in the package comment.

const (
	settleLimit = 10 * time.Second // for commands that run, before their session is handed over
	adoptLimit  = 15 * time.Second // host's answer and command socket
	rejoinSlack = 3 * time.Second  // beyond the lease time, for a session to be adopted
)

// leaving says whether the session goes on without this orchestrator.
func (l *live) leaving() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end != nil && l.end.left
}

// remaining is how long the session may still run. The time of an adopted one counts from when it first ran.
func (l *live) remaining() time.Duration {
	if !l.claim.Adopted {
		return l.claim.Max
	}
	return l.claim.Max - l.claim.Ran - l.now().Sub(l.began)
}

// settle waits until no command runs any more, so that clients get their answers from who took their commands. It says whether
// the session has died meanwhile.
func (l *live) settle(lost, dead <-chan struct{}, most time.Duration) bool {
	limit := time.NewTimer(most)
	defer limit.Stop()
	for {
		l.mu.Lock()
		running := l.inflight
		l.mu.Unlock()
		if running == 0 {
			return false
		}
		select {
		case <-l.quiet:
		case <-limit.C:
			return false
		case <-lost:
			return false
		case <-dead:
			return true
		}
	}
}

// handOver gives up a session that goes on: it can be adopted at once. When it cannot be stored, its lease runs out by itself.
func (o *Orchestrator) handOver(ctx context.Context, l *live) {
	ctx, cancel := o.cleanup(ctx, finishLimit)
	defer cancel()
	o.journal.flush(ctx)
	last := l.stamp(Event{Kind: EventHandedOver})
	err := o.patiently(ctx, func() error { return o.deps.Sessions.HandOver(ctx, last) })
	switch {
	case err == nil:
		o.log.Info("session handed over", zap.String("session", l.claim.Session))
	case errors.Is(err, ErrLeaseLost):
		o.log.Info("session is another orchestrator's, or has ended", zap.String("session", l.claim.Session))
	default:
		o.log.Warn("session could not be handed over; it can be adopted once its lease is over", zap.String("session", l.claim.Session), zap.Error(err))
	}
}

// adopt takes over the session that the host runs.
func (o *Orchestrator) adopt(ctx context.Context, l *live) (*driverproxy.Session, error) {
	call, cancel := context.WithTimeout(ctx, adoptLimit)
	defer cancel()
	dev, err := o.deps.Fleet.Adopt(call, driverproxy.Assignment{
		Host: l.claim.Host, Device: l.claim.Device, Session: l.claim.Session, Term: l.claim.Term,
	})
	var f *wire.Failure
	switch {
	case err == nil:
		for _, page := range dev.Visited() {
			l.visit(page)
		}
		o.log.Info("session adopted", zap.String("session", l.claim.Session), zap.String("host", l.claim.Host))
		return dev, nil
	case errors.Is(err, driverproxy.ErrHostLost): // whoever the host comes back to may have the session
		return nil, leave(err)
	case errors.As(err, &f) && f.Code == wire.FailureStaleTerm: // another has it
		return nil, leave(err)
	case call.Err() != nil && ctx.Err() == nil:
		return nil, &EndError{Reason: HostLost, Detail: "the host did not give the session in time", cause: err}
	}
	return nil, err
}

// elsewhere is the answer to a command that came where the session is not, and was not run.
func elsewhere() webdriver.Answer {
	return NotRun("the session is being handed over to another orchestrator; send it again")
}

// NotRun answers a command that was not run.
func NotRun(why string) webdriver.Answer { return fate("not_run", "the command was not run: "+why) }

// Unknown answers a command that may have been run.
func Unknown(why string) webdriver.Answer {
	return fate("unknown", "whether the command was run is not known: "+why)
}

func fate(name, message string) webdriver.Answer {
	return (&webdriver.Error{Code: webdriver.UnknownError, Message: message, Data: map[string]any{"outcome": name}}).Answer()
}

// leave is the end of a session here that goes on elsewhere.
func leave(cause error) *EndError { return &EndError{Reason: LeaseLost, cause: cause, left: true} }

// unlessLost is endOf of a session that runs: with the lost lease it is not the session that ends.
func unlessLost(cause error) *EndError {
	end := endOf(cause)
	end.left = end.Reason == LeaseLost
	return end
}
