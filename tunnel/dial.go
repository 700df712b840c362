package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

const dialAttempts = 3

// firstLook bounds the wait for what a keeper finds out at its start: at the worst a pulse, and the path measured twice
// with a pulse after each, which is 6 s.
const firstLook = 8 * time.Second

// DialContext dials a TCP address of a gateway through the tunnel; other addresses are ErrNotGateway errors. A gateway
// that does not answer is repaired, and dialled again when it is heard: up to 3 attempts. A gateway whose path lets no
// packet of useful size through is an ErrPathMTU error at once.
func (l *Link) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp" && network != "tcp4" {
		return nil, fmt.Errorf("tunnel: dial %s %s: only tcp to an IP address and port goes through the tunnel", network, address)
	}
	gateways := l.all()
	i := slices.IndexFunc(gateways, func(g *remoteGateway) bool { return g.addr == to.Addr() })
	if i < 0 {
		return nil, fmt.Errorf("tunnel: dial %s: %w", address, ErrNotGateway)
	}
	g := gateways[i]
	for attempt := 1; ; attempt++ {
		if err := l.awaitHeard(ctx, g); err != nil {
			return nil, fmt.Errorf("tunnel: dial %s: attempt %d: %w", address, attempt, err)
		}
		began := time.Now()
		limit := l.cfg.DialTimeout
		if attempt == 1 {
			limit /= 3 // a link that works answers in two round trips; one that does not is better repaired soon
		}
		c, err := l.dialOnce(ctx, g, to, limit)
		if err == nil {
			return g.track(c, false), nil
		}
		if errors.Is(err, errHealed) {
			attempt-- // it was under way when nobody could answer
			continue
		}
		fail := fmt.Errorf("tunnel: dial %s: attempt %d: %w", address, attempt, err)
		again := silent(err) || broken(err) || l.joined && broken(l.held().dev.check(ctx)) // an interface that is down refuses at once
		if ctx.Err() != nil || !again || attempt == dialAttempts {
			return nil, fail
		}
		if err := l.mend(ctx, g, began); err != nil {
			return nil, errors.Join(fail, err)
		}
	}
}

// errHealed ends a dial that began before its gateway was heard again: what it has sent is lost, and TCP sends that again
// only after seconds.
var errHealed = errors.New("the gateway is heard again")

func (l *Link) dialOnce(ctx context.Context, g *remoteGateway, to netip.AddrPort, limit time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ctx, done := until(ctx, g.healing(), errHealed)
	defer done()
	c, err := l.held().dev.dial(ctx, to)
	if err != nil && context.Cause(ctx) == errHealed {
		err = errHealed
	}
	return c, err
}

// until is ctx that ends, for the given cause, also when c is closed. done must be called.
func until(ctx context.Context, c <-chan struct{}, cause error) (_ context.Context, done func()) {
	ctx, end := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-c:
			end(cause)
		case <-ctx.Done():
		}
	})
	return ctx, func() { end(nil); watch.Wait() }
}

// healing is closed when the gateway is heard again after a repair.
func (g *remoteGateway) healing() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.healed
}

// heal ends the dials that began before.
func (g *remoteGateway) heal() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.healed)
	g.healed = make(chan struct{})
}

// silent says whether a dial failed for want of an answer. The net package's timeout is another error than the
// context's, and comes a moment before the context says that it has ended.
func silent(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// mend asks for the repair of a gateway that did not answer what began then.
func (l *Link) mend(ctx context.Context, g *remoteGateway, began time.Time) error {
	if l.joined {
		g.setMending(true)
		g.nudge() // its keeper has better means
		return nil
	}
	if l.slow(g) {
		l.cfg.Log.Info("gateway answers handshakes and nothing else yet: the last one is given more time", zap.Stringer("gateway", g.addr))
		return nil
	}
	l.cfg.Log.Info("gateway is silent, making a new handshake", zap.Stringer("gateway", g.addr))
	return l.handshake(ctx, g, began)
}

// slow says that the handshake before this moment may still be of use: one was answered since.
func (l *Link) slow(g *remoteGateway) bool {
	g.setting.Lock()
	set := g.set
	g.setting.Unlock()
	return time.Since(set) < slowTry && g.answeredSince(set.Sub(g.began))
}

// nudge makes the keeper look at once.
func (g *remoteGateway) nudge() {
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// awaitHeard waits, while the keeper repairs a gateway, or has not looked yet, until it is heard or DialTimeout has
// passed (for the first look, firstLook): then a dial may find out for itself.
func (l *Link) awaitHeard(ctx context.Context, g *remoteGateway) error {
	if !l.joined {
		return nil
	}
	err := l.await(ctx, g.ready, firstLook)
	if c := g.isMending(); err == nil && c != nil {
		err = l.await(ctx, c, l.cfg.DialTimeout)
	}
	return errors.Join(err, g.pathError())
}

// await waits for c; that the limit passed is no error.
func (l *Link) await(ctx context.Context, c <-chan struct{}, limit time.Duration) error {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-c:
	case <-t.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-l.life.Done():
		return net.ErrClosed
	}
	return nil
}

func (g *remoteGateway) isMending() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mending
}

func (g *remoteGateway) pathError() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.path
}

// setMending says whether dials should wait for the keeper.
func (g *remoteGateway) setMending(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case on && g.mending == nil:
		g.mending = make(chan struct{})
	case !on && g.mending != nil:
		close(g.mending)
		g.mending = nil
	}
}
