package orchestrator

import (
	"context"
	"errors"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// keeper has commands that the session's former holder sent.
type keeper interface {
	Kept() []driverproxy.Kept
	Await(ctx context.Context, k driverproxy.Kept) (webdriver.Answer, driverproxy.Receipt, error)
	Acknowledge(seq uint64)
}

var _ keeper = (*driverproxy.Session)(nil)

// inheritFrom has an adopted session see to what was sent before, until the returned function is called.
func (l *live) inheritFrom(ctx context.Context, k keeper) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		if l.claim.Adopted {
			l.inherit(ctx, k)
		}
	}()
	return func() {
		cancel()
		<-over
	}
}

// inherit waits for the commands that came over W3C HTTP to the former holder and have not been acknowledged: nobody asks for
// their answers any more, but while one runs the session is not idle, and it has its time as any other. It ends with ctx, or
// with the session.
func (l *live) inherit(ctx context.Context, k keeper) {
	for _, kept := range k.Kept() {
		if kept.Origin != (wire.Origin{}) {
			continue // a client's stream comes back for it
		}
		l.mu.Lock()
		l.inflight++
		l.mu.Unlock()
		call, cancel := context.WithTimeout(ctx, l.claim.Command)
		_, _, err := k.Await(call, kept)
		cancel()
		l.ran()
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, context.DeadlineExceeded) {
			l.stop(endWith(CommandDeadline, nil))
		}
		k.Acknowledge(kept.Seq)
	}
}
