package host

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"
)

// keepLinks holds a control socket to every orchestrator until ctx ends, and follows changes of their list. An
// orchestrator that is dropped is told goodbye; the sessions it had assigned end.
func (a *agent) keepLinks(ctx context.Context) {
	var links sync.WaitGroup
	defer links.Wait()
	kept := map[string]context.CancelFunc{}
	defer func() {
		for _, drop := range kept {
			drop()
		}
	}()
	for {
		addrs, changed := a.cfg.Orchestrators()
		for addr, drop := range kept {
			if !slices.Contains(addrs, addr) {
				drop()
				delete(kept, addr)
			}
		}
		for _, addr := range addrs {
			if kept[addr] != nil {
				continue
			}
			of, drop := context.WithCancel(ctx)
			kept[addr] = drop
			links.Go(func() { a.keepLink(of, addr) })
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// redial says how long to wait before an orchestrator is dialled again.
type redial struct {
	pause   *backoff.ExponentialBackOff
	hurried bool // the last one did not wait
}

func newRedial() *redial {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 100*time.Millisecond, 3*time.Second
	return &redial{pause: pause}
}

// A dial that took slowFail to fail was itself the wait for an orchestrator that cannot be reached, and ends when it can:
// there is little to wait for in between.
const (
	slowFail   = 2 * time.Second
	shortPause = 200 * time.Millisecond
)

// after is asked when a socket has ended. One that had been welcomed is replaced at once: the tunnel closes sockets
// that have died when the orchestrator can be reached again. But a second one that did not hold either waits.
func (r *redial) after(welcomed bool, held time.Duration) time.Duration {
	if held > steady {
		r.pause.Reset()
		r.hurried = false
	}
	if welcomed && !r.hurried {
		r.hurried = true
		return 0
	}
	wait := r.pause.NextBackOff()
	if !welcomed && held >= slowFail {
		wait = min(wait, shortPause)
	}
	return wait
}

// keepLink holds a control socket to one orchestrator until ctx ends.
func (a *agent) keepLink(ctx context.Context, addr string) {
	log := a.cfg.Log.With(zap.String("orchestrator", addr))
	again := newRedial()
	for dial := uint64(1); ctx.Err() == nil; dial++ {
		begin := time.Now()
		welcomed, err := a.talk(ctx, addr, dial, log)
		if ctx.Err() != nil {
			return
		}
		wait := again.after(welcomed, time.Since(begin))
		log.Warn("no control socket", zap.Error(err), zap.Duration("retry_in", wait))
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}
