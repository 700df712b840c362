package tunnel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
)

// lowMTU is used where a path does not carry packets for the default.
const lowMTU = 1200

// ErrPathMTU says that small packets reach the gateway and full-size ones do not, even with the low MTU.
var ErrPathMTU = errors.New("the path to the gateway carries small packets only")

// Where the low MTU is used, the configured one is tried again so often: not more, as it costs those connections a pause
// that are opened in the moment it takes to find out that the path is as small as before.
const (
	raiseEvery = time.Hour
	raisePause = time.Minute // after sleep
)

// probePath bounds one probe with full-size packets, where round trips are short.
const probePath = 1500 * time.Millisecond

// measure finds out whether full-size packets pass, and lowers the MTU or gives the gateway's path up when they do not.
// Trouble is returned when not even small ones do.
func (k *keeper) measure(ctx context.Context) *trouble {
	k.raise(ctx)
	k.measuredAt = k.g.since()
	k.pathAt = k.measuredAt + pathEvery
	tries := 1
	if _, used := k.g.silent(); used {
		tries = 3 // a probe may get lost on a busy path, and what follows breaks what runs
	}
	for {
		passes, t := k.passes(ctx, tries)
		switch {
		case passes:
			k.setPath(nil)
			return nil
		case t != nil || k.unanswered || ctx.Err() != nil: // of a gateway that answers nothing, nothing is learned
			return t
		case k.pulser.trip > k.probed/3: // nor of one that is slow to answer anything
			k.log.Info("the path is measured later, everything is slow now", zap.Duration("round_trip", k.pulser.trip))
			k.pathAt = k.g.since() + pathEvery
			return nil
		}
		mtu := k.l.held().mtu
		if mtu <= lowMTU {
			k.setPath(fmt.Errorf("%w: packets of MTU %d vanish between this host and %s: find what on the way has a smaller MTU, "+
				"or drops fragments or ICMP (a VPN, PPPoE, a firewall)", ErrPathMTU, mtu, k.g.get().Endpoint))
			k.pathAt = k.g.since() + pathRetry
			return nil
		}
		gen := k.l.held().gen
		if err := k.l.setMTU(ctx, lowMTU); err != nil {
			k.log.Error("the MTU cannot be changed", zap.Error(err))
			if broken(err) {
				return &trouble{what: "the MTU cannot be changed", heard: k.g.since(), lost: err, gen: gen}
			}
			return nil
		}
		opened := k.l.sizes().raisedAt
		n := k.g.closeConns(func(c *tracked) bool { return !c.own && c.opened >= opened }) // for larger packets
		k.log.Warn("full-size packets do not reach the gateway, small ones do: lowering the MTU",
			zap.Int("from", mtu), zap.Int("to", lowMTU), zap.Int("closed_connections", n))
	}
}

// passes says whether a probe comes back.
func (k *keeper) passes(ctx context.Context, tries int) (bool, *trouble) {
	for range tries {
		k.probed = probePath + 6*k.pulser.usual()
		err := k.pulser.probe(ctx, k.probed)
		if err == nil || spoke(err) {
			return true, nil
		}
		k.log.Info("a probe with full-size packets did not come back", zap.Error(err))
		k.pulser.drop()
		if t := k.ask(ctx, "no answer to a probe"); t != nil || k.unanswered || ctx.Err() != nil {
			return false, t
		}
	}
	return false, nil
}

// setPath says whether anything of use can be sent to the gateway.
func (k *keeper) setPath(err error) {
	k.g.mu.Lock()
	was := k.g.path
	k.g.path = err
	k.g.mu.Unlock()
	switch {
	case err != nil && was == nil:
		n := k.g.closeConns(func(c *tracked) bool { return !c.own })
		k.log.Error("gateway is of no use", zap.Error(err), zap.Int("closed_connections", n))
	case err == nil && was != nil:
		k.log.Info("full-size packets reach the gateway again")
	}
}

// raise tries the configured MTU again where a lower one is used: once in a while, and after sleep, since this machine may
// be elsewhere. The other keepers measure their paths then too.
func (k *keeper) raise(ctx context.Context) {
	every := raiseEvery
	if k.slept {
		every, k.slept = raisePause, false
	}
	s := k.l.sizes()
	if s.mtu >= k.l.cfg.MTU || k.g.since()-s.sizedAt < every {
		return
	}
	if err := k.l.setMTU(ctx, k.l.cfg.MTU); err != nil {
		k.log.Warn("the MTU cannot be raised", zap.Error(err))
		return
	}
	k.log.Info("trying packets of the configured MTU again", zap.Int("from", s.mtu), zap.Int("to", k.l.cfg.MTU))
}

// sizes is what is known of the MTU.
type sizes struct {
	mtu               int
	sizedAt, raisedAt time.Duration
}

func (l *Link) sizes() sizes {
	l.mu.Lock()
	defer l.mu.Unlock()
	return sizes{l.mtu, l.sizedAt, l.raisedAt}
}

// setMTU changes the device's MTU, unless it is so already.
func (l *Link) setMTU(ctx context.Context, mtu int) error {
	l.restoring.Lock() // a device that is being made has the MTU of before
	defer l.restoring.Unlock()
	h := l.held()
	if h.mtu == mtu {
		return nil
	}
	if err := h.dev.setMTU(ctx, mtu); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sizedAt = time.Since(l.began)
	if mtu > l.mtu {
		l.raisedAt = l.sizedAt
	}
	l.mtu = mtu
	return nil
}

// reason says what is not as it should be with a gateway, for its health.
func (l *Link) reason(g *remoteGateway) string {
	if err := g.pathError(); err != nil {
		return err.Error()
	}
	if mtu := l.MTU(); mtu < l.cfg.MTU {
		return fmt.Sprintf("the path carries no packets for MTU %d: %d is used", l.cfg.MTU, mtu)
	}
	return ""
}
