package tunnel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
)

// A host's next key is on the device without an address until its first handshake shows that the host uses it: only then
// may it take the address, and the sooner the shorter the gap in which what the host sends is dropped. WireGuard tells
// nobody of a handshake, so the device is read again and again while a next key waits: every pollNext, and less often
// where a device has so many peers that this would keep a core busy.
const (
	pollNext  = 20 * time.Millisecond
	pollShare = 20 // a poll may take one part in so many
)

// pollIn says when to poll next, after a round of work that began at began.
func (g *Gateway) pollIn(began time.Time, polled bool) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.book.waiting) == 0 {
		return g.cfg.Every
	}
	if polled {
		return max(pollNext, min(pollShare*time.Since(began), time.Second))
	}
	return pollNext
}

// promote moves the addresses of hosts whose next key has made a handshake, on the device first.
func (g *Gateway) promote(ctx context.Context) error {
	g.turn.Lock()
	defer g.turn.Unlock()
	moved, err := g.succeed(ctx)
	if moved {
		err = errors.Join(err, g.confirm(ctx))
	}
	return err
}

func (g *Gateway) succeed(ctx context.Context) (moved bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.book.waiting) == 0 {
		return false, nil
	}
	d, err := g.device().read(ctx)
	if err != nil {
		return false, err
	}
	var errs []error
	for _, p := range d.Peers {
		next, ok := g.book.accepted[Key(p.PublicKey)]
		if !ok || !g.book.waiting[next.PublicKey] || p.LastHandshakeTime.IsZero() {
			continue
		}
		c, refused := g.book.promote(next)
		errs = append(errs, refused, g.send(ctx, c, "host_uses_next_key", next.Host))
		moved = true
	}
	return moved, errors.Join(errs...)
}

// confirm tells the source of next keys that are in use. What it cannot take now is told again with the next tick. turn
// is locked.
func (g *Gateway) confirm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, listLimit)
	defer cancel()
	var errs []error
	for _, k := range g.unconfirmed() {
		if err := g.cfg.Peers.Promote(ctx, k.key); err != nil {
			errs = append(errs, fmt.Errorf("tunnel: store that the next key %s is in use: %w", k.key, err))
			continue
		}
		g.mu.Lock()
		g.book.promoted[k] = true
		g.mu.Unlock()
		g.cfg.Log.Info("a host's next key is its key now", zap.String("host", k.host), zap.Stringer("key", k.key))
	}
	return errors.Join(errs...)
}

func (g *Gateway) unconfirmed() []heir {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []heir
	for k, told := range g.book.promoted {
		if !told {
			out = append(out, k)
		}
	}
	return out
}

// switchKey gives the device another private key. Sessions end, and hosts that know the key make new ones.
func (g *Gateway) switchKey(ctx context.Context, key PrivateKey) error {
	g.turn.Lock()
	defer g.turn.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.device().apply(ctx, keyConfig(key)); err != nil {
		return err
	}
	g.cur.mu.Lock()
	g.cur.key = key
	g.cur.mu.Unlock()
	g.book.own = key.Public()
	g.nudges.add(work{all: true})
	_, err := g.look(ctx)
	return err
}
