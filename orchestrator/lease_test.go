package orchestrator

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
)

// unheard is a store in which a session was cancelled, which no notification tells of.
type unheard struct {
	untidy
	cancelled atomic.Bool
	looks     atomic.Int64
}

func (u *unheard) Renew(context.Context, string, int64, time.Duration) (Reason, error) {
	if u.cancelled.Load() {
		return Cancelled, nil
	}
	return "", nil
}

func (u *unheard) Cancelled(_ context.Context, holder string) ([]string, error) {
	u.looks.Add(1)
	if u.cancelled.Load() && holder == "eu-1" {
		return []string{"elsewhere", "s"}, nil
	}
	return nil, nil
}

// TestLostCancellationCostsATick, whatever the lease time, and one question for all sessions.
func TestLostCancellationCostsATick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &unheard{}
		o := New(Deps{ID: "eu-1", Sessions: u, Hosts: u, Fleet: driverproxy.NewFleet(driverproxy.Config{}), Log: zap.NewNop(), LeaseTTL: time.Hour})
		run, stop := context.WithCancel(t.Context())
		ran := make(chan struct{})
		go func() { defer close(ran); o.Run(run) }()
		held, end := context.WithCancelCause(t.Context())
		defer end(nil)
		for _, id := range []string{"s", "other"} {
			l := newLive(Claim{Session: id, Term: 1}, o.journal, time.Now)
			o.enter(l)
			cancel := end
			if id != "s" {
				cancel = func(err error) { t.Errorf("%s: %v", id, err) }
			}
			go o.hold(held, l.claim, time.Now(), l.look, cancel)
		}
		time.Sleep(10*tick + tick/2)
		began := time.Now()
		u.cancelled.Store(true)
		<-held.Done()
		if took := time.Since(began); took > tick || !errors.Is(context.Cause(held), errCancelled) {
			t.Errorf("after %s: %v", took, context.Cause(held))
		}
		if n := u.looks.Load(); n != 11 {
			t.Errorf("looked %d times in 11 s", n)
		}
		stop()
		<-ran
	})
}
