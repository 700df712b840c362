package tunnel

import (
	"context"
	"errors"
	"net/http"
	"net/netip"

	"github.com/driftstack/fleet/driverproxy/wire"
	"go.uber.org/zap"
)

// Served is what the fleet listener serves.
type Served struct {
	Enroller Enroller
	Beats    Beats
	Fleet    http.Handler // what a host's own address reaches, but for the paths below
}

// Handler is the handler of the fleet listener. A join address reaches wire.PathJoin and nothing else; a host's own
// address reaches pulse, probe and rekey, and s.Fleet at every other path. Everyone else is refused, and so is who asks far
// more often than hosts do.
//
// A host that joins or offers a next key is told so once this gateway's device knows the key: what a host sends to a
// gateway that does not know it is lost, and WireGuard sends it again only after seconds.
func (g *Gateway) Handler(s Served) http.Handler {
	log := g.cfg.Log
	return paced(&g.paces, guard(routes{
		join:  JoinHandler(settledEnroller{s.Enroller, g}, log),
		pulse: servePulse(&g.pulses, s.Beats, log),
		probe: serveProbe(),
		rekey: serveRekey(s.Enroller, g.settleAddr, log),
		fleet: s.Fleet,
	}))
}

type settledEnroller struct {
	Enroller
	g *Gateway
}

func (s settledEnroller) Redeem(ctx context.Context, joinAddr netip.Addr, o Offer) (wire.Joined, error) {
	// An address may get another token while this gateway has not heard of it: the old one must not redeem that.
	s.g.mu.Lock()
	o.Through = s.g.book.keyAt(joinAddr)
	s.g.mu.Unlock()
	joined, err := s.Enroller.Redeem(ctx, joinAddr, o)
	if err == nil {
		s.g.settle(ctx, joined.Host)
	}
	return joined, err
}

// settleAddr settles the host that has an address.
func (g *Gateway) settleAddr(ctx context.Context, from netip.Addr) {
	g.mu.Lock()
	host := g.book.hostAt(from)
	g.mu.Unlock()
	g.settle(ctx, host)
}

// settle reconciles one host. What cannot be done now is not the host's trouble: Run tries again.
func (g *Gateway) settle(ctx context.Context, host string) {
	if err := g.ReconcileHost(ctx, host); err != nil && !errors.Is(err, ErrPeer) {
		g.cfg.Log.Warn("the new key of a host is not configured yet", zap.String("host", host), zap.Error(err))
		g.Nudge(host)
	}
}
