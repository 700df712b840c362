package orchestrator

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator/api"
)

// This file is the two phases of claiming a session that a client waits for; see the package comment.

const (
	// confirmLimit is how long a claim waits for its confirmation: more than a lost notification costs at either end, twice.
	confirmLimit = 5 * time.Second
	// settled is how long the database must have answered until those that are silent can be taken for gone: longer than they
	// count as alive without announcing themselves.
	settled = 18 * time.Second
)

// Attend waits, for a client that is there while ctx lasts, until a session that CreateFirst made runs, or has ended.
func (o *Orchestrator) Attend(ctx context.Context, session string) (api.Session, error) {
	o.attend(session, true)
	defer o.attend(session, false)
	o.watch.wake(session) // it may have been claimed here already
	var confirmed int64
	return o.Wait(ctx, session, func(s api.Session) bool {
		if s.State == api.Starting && s.Term != confirmed && o.find(session) == nil && ctx.Err() == nil {
			call, cancel := context.WithTimeout(ctx, lookLimit)
			defer cancel()
			switch err := o.deps.Sessions.Confirm(call, session, s.Term); {
			case err == nil:
				confirmed = s.Term
			case ctx.Err() == nil:
				o.log.Warn("that a session's client is there cannot be said; trying again", zap.String("session", session), zap.Error(err))
			}
		}
		return IsRunning(s)
	})
}

func (o *Orchestrator) attend(session string, on bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if on {
		o.attended[session] = true
	} else {
		delete(o.attended, session)
	}
}

func (o *Orchestrator) attends(session string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.attended[session]
}

// knows notes when reap last found that those that are silent are gone.
func (o *Orchestrator) knows(at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sure = at
}

// isSure says that those that are silent are gone: the database has answered for long enough, until just now.
func (o *Orchestrator) isSure() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.sure.IsZero() && !paused(o.sure, o.deps.Now())
}

// errNobodyWaits ends a session whose client is not there any more.
var errNobodyWaits = &EndError{Reason: Cancelled, Detail: "its client does not wait for it any more"}

// awaited returns once the client of a claimed session is known to wait for it. A session without such a client is ready at once.
func (o *Orchestrator) awaited(ctx context.Context, l *live) error {
	c := l.claim
	if c.Adopted || c.Waiter == "" {
		return nil
	}
	limited, cancel := context.WithTimeoutCause(ctx, confirmLimit, errNobodyWaits)
	defer cancel()
	news, unsubscribe := o.watch.subscribe(c.Session)
	defer unsubscribe()
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		if c.Waiter == o.deps.ID {
			if o.attends(c.Session) {
				return nil
			}
		} else {
			confirmed, gone, err := o.deps.Sessions.Confirmed(limited, c.Session, c.Term)
			switch {
			case err == nil && confirmed:
				return nil
			case err == nil && gone && o.isSure(): // or it may have had no time to say that it is there
				return errNobodyWaits
			case err != nil && !errors.Is(err, ErrUnavailable) && limited.Err() == nil:
				return err
			}
		}
		select {
		case <-news:
		case <-t.C:
		case <-limited.Done():
			return context.Cause(limited)
		}
	}
}

// steady is since when something has been seen to work again and again.
type steady struct{ since, last time.Time }

// longEnough notes that it is looked at, and says whether it has been for long enough without a break.
func (s *steady) longEnough(now time.Time) bool {
	if s.since.IsZero() || paused(s.last, now) {
		s.since = now
	}
	s.last = now
	return now.Sub(s.since) >= settled
}

// paused says that there was a pause between two looks that are a tick apart: this process was stopped, or its machine slept.
func paused(last, now time.Time) bool {
	d := now.Sub(last)
	return d < 0 || d > 5*tick
}
