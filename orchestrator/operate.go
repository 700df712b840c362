package orchestrator

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// Act is who does something to the fleet, and why. It goes into the audit log.
type Act struct {
	By     string // as the caller says: everybody has the same token
	Reason string
}

// MissingError is an ErrNotFound that says what is not there, and what is.
type MissingError struct{ What string }

func (e *MissingError) Error() string { return e.What }

// Unwrap gives ErrNotFound.
func (e *MissingError) Unwrap() error { return ErrNotFound }

// asked is why a session ends that somebody wants ended: its client, a drain whose time is up, an operator.
func asked(r Reason) error {
	switch r {
	case Cancelled:
		return errCancelled
	case Drained:
		return &EndError{Reason: Drained, Detail: "its host is being drained, and the time that sessions had is up"}
	}
	return &EndError{Reason: r}
}

// endDrained ends what still runs on hosts whose drain is over.
func (o *Orchestrator) endDrained(ctx context.Context) {
	n, err := o.deps.Hosts.EndDrained(ctx)
	if err != nil && ctx.Err() == nil {
		o.log.Warn("sessions on drained hosts cannot be ended; trying again", zap.Error(err))
	}
	if n > 0 {
		o.log.Info("sessions end because the deadline of their hosts' drain has passed", zap.Int("sessions", n))
	}
}

// DefaultDrain is how long sessions on a host that is drained have to end by themselves.
const DefaultDrain = 10 * time.Minute
