package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

const (
	// reconcileTries: the second try repairs what a first one left half applied, or what someone changed meanwhile.
	reconcileTries = 2
	// listLimit bounds the source. One that hangs would stop every reconciliation after this one, and with it every join
	// and every removal of a host.
	listLimit = 10 * time.Second
)

// Reconcile makes the device's peers what the source says, once. Peers that are so already are not touched. Errors name
// the peers that are refused (ErrPeer); the others are configured nevertheless. While the source does not answer, the
// device is held to what it said last.
func (g *Gateway) Reconcile(ctx context.Context) error {
	g.turn.Lock()
	defer g.turn.Unlock()
	began := g.cfg.Now()
	err := g.reconcile(ctx)
	g.tally.reconciled(g.cfg.Now().Sub(began), g.onDevice(), err)
	return err
}

// reconcile needs the turn.
func (g *Gateway) reconcile(ctx context.Context) error {
	want, err := list(ctx, g.cfg.Peers.Peers)
	if err != nil {
		return errors.Join(err, g.verify(ctx))
	}
	return errors.Join(g.replace(ctx, want), g.confirm(ctx))
}

// onDevice is how many peers the device had when it was last read.
func (g *Gateway) onDevice() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.book.have)
}

func (g *Gateway) replace(ctx context.Context, want []Peer) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	d, err := g.look(ctx)
	if err != nil {
		return err
	}
	refused := g.book.replace(want, tableOf(d))
	known := func(a netip.Addr) bool { return len(g.book.addrs[a]) > 0 }
	g.pulses.keep(known)
	g.paces.keep(known)
	return errors.Join(refused, g.converge(ctx))
}

// ReconcileHost makes the device's peers of one host what the source says, and no others: it takes as long whether there
// are ten peers or ten thousand. It returns when the device has accepted them; Run verifies soon after.
func (g *Gateway) ReconcileHost(ctx context.Context, host string) error {
	if host == "" {
		return g.Reconcile(ctx)
	}
	g.turn.Lock()
	defer g.turn.Unlock()
	want, err := list(ctx, func(ctx context.Context) ([]Peer, error) { return g.cfg.Peers.PeersOf(ctx, host) })
	if err != nil {
		g.nudges.add(work{all: true})
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.book.listed { // the first listing has failed so far, and there is nothing to compare with
		g.nudges.add(work{all: true})
	}
	c, refused := g.book.update(host, want)
	return errors.Join(refused, g.send(ctx, c, "host", host))
}

// Verify reads the whole device back, and corrects it where it is not what it should be.
func (g *Gateway) Verify(ctx context.Context) error {
	g.turn.Lock()
	defer g.turn.Unlock()
	return g.verify(ctx)
}

// verify wants turn to be locked.
func (g *Gateway) verify(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.book.listed {
		return nil
	}
	d, err := g.look(ctx)
	if err != nil {
		return err
	}
	g.book.have = tableOf(d)
	return g.converge(ctx)
}

// converge changes the device until it has what is wanted. g.book.have is what was just read.
func (g *Gateway) converge(ctx context.Context) error {
	want := g.book.wanted()
	c := diff(want, g.book.have)
	for try := 0; c.size() > 0; try++ {
		if try == reconcileTries {
			return fmt.Errorf("tunnel: %s: %w: %d of %d peers differ after %d tries", g.device().name(), ErrNotVerified, c.size(), len(want), try)
		}
		applied := g.apply(ctx, c.configs())
		d, err := g.look(ctx)
		if err != nil {
			return errors.Join(applied, err)
		}
		g.book.have = tableOf(d)
		g.cfg.Log.Info("tunnel peers changed", zap.Int("removed", len(c.Remove)), zap.Int("updated", len(c.Update)),
			zap.Int("added", len(c.Add)), zap.Int("now", len(g.book.have)), zap.Error(applied))
		c = diff(want, g.book.have)
		if applied != nil && c.size() > 0 && try == reconcileTries-1 {
			return applied
		}
	}
	return nil
}

// send applies changes of the book to the device and has them verified.
func (g *Gateway) send(ctx context.Context, c changes, why, who string) error {
	if c.size() == 0 {
		return nil
	}
	if err := g.apply(ctx, c.configs()); err != nil {
		g.nudges.add(work{all: true})
		return err
	}
	g.book.applied(c)
	g.nudges.add(work{verify: true})
	g.cfg.Log.Info("tunnel peers changed", zap.String(why, who), zap.Int("removed", len(c.Remove)),
		zap.Int("updated", len(c.Update)), zap.Int("added", len(c.Add)))
	return nil
}

func list(ctx context.Context, of func(context.Context) ([]Peer, error)) ([]Peer, error) {
	ctx, cancel := context.WithTimeout(ctx, listLimit)
	defer cancel()
	peers, err := of(ctx)
	if err != nil {
		return nil, fmt.Errorf("tunnel: list the peers: %w", err)
	}
	return peers, nil
}

// apply sends every batch: a bad one must not keep the others from the device. One that is lost is asked no further, since
// each call to a device that hangs takes its whole limit.
func (g *Gateway) apply(ctx context.Context, cfgs []wgtypes.Config) error {
	dev := g.device()
	var errs []error
	for _, cfg := range cfgs {
		err := dev.apply(ctx, cfg)
		errs = append(errs, err)
		if lost(err) {
			break
		}
	}
	return errors.Join(errs...)
}

// look reads the device, which must be the one that was opened.
func (g *Gateway) look(ctx context.Context) (*wgtypes.Device, error) {
	dev := g.device()
	if err := dev.check(ctx); err != nil {
		return nil, err
	}
	d, err := dev.read(ctx)
	if err != nil {
		return nil, err
	}
	g.cur.mu.Lock()
	defer g.cur.mu.Unlock()
	switch {
	case Key(d.PublicKey) != g.cur.key.Public():
		return nil, fmt.Errorf("tunnel: %s has another key: %w", dev.name(), ErrDeviceAlien)
	case d.ListenPort != g.cur.port:
		return nil, fmt.Errorf("tunnel: %s has UDP port %d instead of %d: %w", dev.name(), d.ListenPort, g.cur.port, ErrDeviceAlien)
	}
	return d, nil
}
