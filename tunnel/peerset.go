package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// handshakePause separates handshakes: a gateway takes one that follows another within 20 ms for a flood, and the
// timestamps that protect from replays tick every 17 ms. A handshake lost to either is repeated after 5 s only.
const handshakePause = 50 * time.Millisecond

// handshake exchanges the peer of g, unless that was done after since: several dials that fail at once need one
// handshake. A peer that is new starts with a handshake at once.
func (l *Link) handshake(ctx context.Context, g *remoteGateway, since time.Time) error {
	g.setting.Lock()
	defer g.setting.Unlock()
	if !since.IsZero() && g.set.After(since) {
		return nil
	}
	if err := pause(ctx, handshakePause-time.Since(g.set)); err != nil {
		return fmt.Errorf("tunnel: gateway %s: %w", g.addr, err)
	}
	if g.endpoint() == nil {
		if err := l.resolve(ctx, g); err != nil {
			return err
		}
	}
	err := l.setPeer(ctx, g)
	g.set = time.Now() // after a failure too: the handshake may be on its way
	return err
}

// isNew says that there was no handshake yet.
func (g *remoteGateway) isNew() bool {
	g.setting.Lock()
	defer g.setting.Unlock()
	return g.set.IsZero()
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// setPeer removes the gateway's peer and adds it, in one call, and reads it back.
func (l *Link) setPeer(ctx context.Context, g *remoteGateway) error {
	h := l.held()
	info := g.get()
	allowed := netip.PrefixFrom(g.addr, 32)
	if err := h.dev.apply(ctx, wgtypes.Config{Peers: l.peerConfigs(g, h.psk)}); err != nil {
		return err
	}
	d, err := h.dev.read(ctx)
	if err != nil {
		return err
	}
	e, ok := tableOf(d)[info.PublicKey]
	if !ok || !e.equal(entry{PSK: h.psk, Addrs: []netip.Prefix{allowed}}) {
		return fmt.Errorf("tunnel: gateway %s: %w", g.addr, ErrNotVerified)
	}
	if h.key != (PrivateKey{}) && Key(d.PublicKey) != h.key.Public() {
		return fmt.Errorf("tunnel: %s has another key, someone made it anew: %w", h.dev.name(), ErrDeviceGone)
	}
	return nil
}

// peerConfigs removes the peers of g and adds the one of its key.
func (l *Link) peerConfigs(g *remoteGateway, psk PresharedKey) []wgtypes.PeerConfig {
	info, shared, keepalive := g.get(), wgtypes.Key(psk), l.cfg.Keepalive
	out := []wgtypes.PeerConfig{
		{PublicKey: wgtypes.Key(info.PublicKey), Remove: true},
		{
			PublicKey:                   wgtypes.Key(info.PublicKey),
			PresharedKey:                &shared,
			Endpoint:                    g.endpoint(),
			PersistentKeepaliveInterval: &keepalive,
			ReplaceAllowedIPs:           true,
			AllowedIPs:                  []net.IPNet{ipNet(netip.PrefixFrom(g.addr, 32))},
		},
	}
	if info.NextPublicKey != (Key{}) { // which was the key before, when it is tried again
		out = append([]wgtypes.PeerConfig{{PublicKey: wgtypes.Key(info.NextPublicKey), Remove: true}}, out...)
	}
	return out
}

// newSocket has the device open its UDP socket at another port.
func (l *Link) newSocket(ctx context.Context) error {
	anyPort := 0
	if err := l.held().dev.apply(ctx, wgtypes.Config{ListenPort: &anyPort}); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.socketAt = time.Since(l.began)
	return nil
}

const resolveLimit = 5 * time.Second

// resolve looks the gateway's endpoint up and turns to its next address, if it has another.
func (l *Link) resolve(ctx context.Context, g *remoteGateway) error {
	found, err := resolve(ctx, l.cfg.Lookup, g.get().Endpoint)
	if err != nil {
		return fmt.Errorf("tunnel: gateway %s: %w", g.addr, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.at = nextOf(found, g.at)
	return nil
}

// nextOf is the address after last, or the first.
func nextOf(found []netip.AddrPort, last netip.AddrPort) netip.AddrPort {
	return found[(slices.Index(found, last)+1)%len(found)]
}

// endpoint is the address in use; nil: it was never found.
func (g *remoteGateway) endpoint() *net.UDPAddr {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.at.IsValid() {
		return nil
	}
	return net.UDPAddrFromAddrPort(g.at)
}

func systemLookup(ctx context.Context, name string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
}

// resolve looks an endpoint up. IPv4 comes first: that is what every provider of Macs routes.
func resolve(ctx context.Context, lookup func(context.Context, string) ([]netip.Addr, error), endpoint string) ([]netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(endpoint)
	if err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", endpoint, err)
	}
	ctx, cancel := context.WithTimeout(ctx, resolveLimit)
	defer cancel()
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", endpoint, err)
	}
	addrs, err := lookup(ctx, host)
	if err == nil && len(addrs) == 0 {
		err = errors.New("no address")
	}
	if err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", endpoint, err)
	}
	var out []netip.AddrPort
	for _, a := range addrs {
		out = append(out, netip.AddrPortFrom(a.Unmap(), uint16(port)))
	}
	slices.SortFunc(out, func(a, b netip.AddrPort) int {
		return cmp.Or(cmp.Compare(a.Addr().BitLen(), b.Addr().BitLen()), a.Compare(b))
	})
	return slices.Compact(out), nil
}

func (l *Link) removePeer(ctx context.Context, key Key) error {
	return l.held().dev.apply(ctx, wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: wgtypes.Key(key), Remove: true}}})
}
