package orchestrator

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
)

// leaseMargin is how long before the lease's end its holder stops trusting it: room for a clock that runs a little
// slower than the database's, and for the stop itself.
const leaseMargin = 3 * time.Second

// AdoptWindow is how long after the end of its lease a running session can still be adopted. With a lease time below 30 s it
// is over before the host ends a session that nobody came for.
const AdoptWindow = 60 * time.Second

// Why a session's context is cancelled.
var (
	errCancelled = errors.New("cancelled by request")
	errDrained   = errors.New("the orchestrator is stopping") // ... before the session had started
)

// hold keeps the lease of c until ctx is done: it renews every third of the lease time, and at once on a wake from
// look. It cancels with ErrLeaseLost when the lease is lost or can no longer be trusted, and as asked says when
// somebody wants the session's end. The protocol is in the package comment.
func (o *Orchestrator) hold(ctx context.Context, c Claim, claimed time.Time, look <-chan struct{}, cancel context.CancelCauseFunc) {
	ttl := o.deps.LeaseTTL
	trusted := claimed.Add(ttl - leaseMargin)
	tick := time.NewTicker(ttl / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-look:
		}
		begin := o.deps.Now()
		call, stop := context.WithTimeout(ctx, max(min(trusted.Sub(begin), ttl/3), 0))
		end, err := o.deps.Sessions.Renew(call, c.Session, c.Term, ttl)
		stop()
		switch {
		case errors.Is(err, ErrLeaseLost):
			cancel(ErrLeaseLost)
			return
		case err == nil:
			trusted = begin.Add(ttl - leaseMargin)
			if end != "" {
				cancel(asked(end))
			}
		case o.deps.Now().Add(ttl / 3).After(trusted):
			// The next attempt would come too late.
			o.log.Error("lease cannot be renewed", zap.String("session", c.Session), zap.Error(err))
			cancel(ErrLeaseLost)
			return
		}
	}
}
