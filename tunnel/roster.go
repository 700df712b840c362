package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/driftstack/fleet/driverproxy/wire"
	"go.uber.org/zap"
)

// heed acts on what a gateway says with each beat. It is called by the gateways' keepers, one at a time.
func (l *Link) heed(ctx context.Context, from *remoteGateway, b wire.Beat) {
	l.heeding.Lock()
	defer l.heeding.Unlock()
	if err := l.follow(ctx, b.Gateways); err != nil {
		l.cfg.Log.Warn("a gateway's list of gateways is not followed", zap.Stringer("gateway", from.addr), zap.Error(err))
	} else {
		l.schedule(b.Gateways)
	}
	if l.rekeyDue(b) {
		l.startRekey()
	}
}

// gatewaysOf reads a beat's list. An empty one is no list.
func gatewaysOf(said []wire.Gateway) ([]GatewayInfo, error) {
	if len(said) == 0 {
		return nil, nil
	}
	var out []GatewayInfo
	for _, g := range said {
		key, err := ParseKey(g.PublicKey)
		if err != nil {
			return nil, err
		}
		a, err := netip.ParseAddr(g.Address)
		if err != nil {
			return nil, fmt.Errorf("tunnel: a gateway's address: %w", err)
		}
		info := GatewayInfo{Endpoint: g.Endpoint, PublicKey: key, Addr: a, FleetPort: g.FleetPort}
		if g.NextPublicKey != "" {
			if info.NextPublicKey, err = ParseKey(g.NextPublicKey); err != nil {
				return nil, err
			}
		}
		out = append(out, info)
	}
	return out, checkGateways(out)
}

// follow makes the link's gateways those of the list, stores them, and tells whoever waits for Fleets. An empty list
// changes nothing: the last gateway is never dropped.
func (l *Link) follow(ctx context.Context, said []wire.Gateway) error {
	want, err := gatewaysOf(said)
	if err != nil || len(want) == 0 {
		return err
	}
	have := l.Gateways()
	for i, w := range want {
		for _, h := range have {
			if h.Addr == w.Addr {
				want[i] = ahead(h, w, said[i].NextIn)
			}
		}
	}
	order := func(a, b GatewayInfo) int { return a.Addr.Compare(b.Addr) }
	slices.SortFunc(want, order)
	if slices.SortFunc(have, order); slices.Equal(want, have) {
		return nil
	}
	if err := l.update(func(s *state) { s.Gateways = want }); err != nil {
		return err
	}
	var errs []error
	var next, added, gone []*remoteGateway
	now := l.all()
	for _, info := range want {
		i := slices.IndexFunc(now, func(g *remoteGateway) bool { return g.addr == info.Addr })
		if i < 0 {
			g := l.newGateway(info)
			added, next = append(added, g), append(next, g)
			continue
		}
		next = append(next, now[i])
		errs = append(errs, l.revise(ctx, now[i], info))
	}
	for _, g := range now {
		if !slices.Contains(next, g) {
			gone = append(gone, g)
		}
	}
	l.mu.Lock()
	l.gateways = next
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
	for _, g := range added {
		l.cfg.Log.Info("gateway added", zap.Stringer("gateway", g.addr), zap.String("endpoint", g.get().Endpoint))
		l.startKeeper(g) // the first thing it does is to repair it
	}
	for _, g := range gone {
		l.cfg.Log.Info("gateway removed", zap.Stringer("gateway", g.addr), zap.String("endpoint", g.get().Endpoint))
		g.stop()
		g.closeConns(func(*tracked) bool { return true })
		errs = append(errs, l.removePeer(l.life, g.get().PublicKey)) // ctx may be of the keeper that was stopped
	}
	return errors.Join(errs...)
}

// revise takes what has changed of a gateway. Another key is another peer; another endpoint is used with the next
// handshake that needs it.
func (l *Link) revise(ctx context.Context, g *remoteGateway, info GatewayInfo) error {
	old := g.get()
	if old == info {
		return nil
	}
	g.mu.Lock()
	g.info = info
	if old.Endpoint != info.Endpoint {
		g.at = netip.AddrPort{}
	}
	g.mu.Unlock()
	l.cfg.Log.Info("gateway changed", zap.Stringer("gateway", g.addr), zap.String("endpoint", info.Endpoint), zap.Stringer("key", info.PublicKey))
	if old.PublicKey == info.PublicKey {
		return nil
	}
	err := l.removePeer(ctx, old.PublicKey)
	g.nudge() // no answer comes with the new key unasked: its keeper makes the handshake
	return err
}
