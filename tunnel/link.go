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
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// LinkConfig configures a Link.
type LinkConfig struct {
	StateDir    string        // holds tunnel.json with the private key, mode 0600; made with mode 0700 when it is missing
	Token       string        `json:"-"` // join token; not needed any more once the host has joined
	Backend     string        // auto (the default), kernel, tun or netstack
	Interface   string        // name of the network interface, default drifthost0; macOS picks its own
	MTU         int           // default 1280
	Keepalive   time.Duration // default 15 s: whole seconds, because devices round down
	DialTimeout time.Duration // of one attempt, default 3 s, a third of it for the first; a silent one is followed by a new handshake
	Log         *zap.Logger
}

// Link is the driver host's end: one device with a peer for each gateway.
type Link struct {
	cfg      LinkConfig
	host     string
	addr     netip.Addr
	gateways []*remoteGateway
	psk      PresharedKey
	dev      wgDevice
	backend  string

	closing sync.Once
	closed  error
}

// remoteGateway is one gateway and when its handshake was last begun.
type remoteGateway struct {
	GatewayInfo

	mu  sync.Mutex // guards set and the exchange of the peer
	set time.Time  // when the peer was exchanged last
}

// ErrNoToken says that a host which has not joined yet was started without a join token.
var ErrNoToken = errors.New("tunnel: this host has not joined yet: start it with the token that `driftctl hosts add NAME` prints")

// ErrNotGateway is returned for an address that the link does not lead to.
var ErrNotGateway = errors.New("not the address of a gateway of this host")

// OpenLink opens the host's tunnels. A host that has no state file yet joins first: that needs the token and a gateway
// that answers, and takes as long as ctx allows (with no deadline, two minutes). Errors wrap ErrNoToken, ErrToken,
// ErrTokenUsed, ErrTokenExpired, ErrTokenUnknown or ErrKeyTaken where one of them is the cause; trying again with the
// same token does not help then.
func OpenLink(ctx context.Context, cfg LinkConfig) (*Link, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s, err := prepareState(cfg)
	if err != nil {
		return nil, err
	}
	if !s.joined() {
		if s, err = join(ctx, cfg, s); err != nil {
			return nil, err
		}
	}
	l, err := openLink(ctx, cfg, s, s.PrivateKey, s.Addr)
	if err != nil {
		return nil, err
	}
	l.host = s.Host
	return l, nil
}

func (cfg LinkConfig) withDefaults() (LinkConfig, error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	cfg.Interface = orDefault(cfg.Interface, "drifthost0")
	cfg.MTU = orDefault(cfg.MTU, defaultMTU)
	cfg.Keepalive = orDefault(cfg.Keepalive, 15*time.Second)
	cfg.DialTimeout = orDefault(cfg.DialTimeout, 3*time.Second)
	err := errors.Join(checkBackend(cfg.Backend), checkInterface(cfg.Interface, cfg.MTU, 0))
	if cfg.Keepalive < time.Second || cfg.Keepalive%time.Second != 0 {
		err = errors.Join(err, fmt.Errorf("tunnel: keepalive of %s is not whole seconds, 1 s or more", cfg.Keepalive))
	}
	if cfg.DialTimeout < 0 {
		err = errors.Join(err, fmt.Errorf("tunnel: dial timeout of %s is negative", cfg.DialTimeout))
	}
	if cfg.StateDir == "" {
		err = errors.Join(err, errors.New("tunnel: no state directory is configured"))
	}
	return cfg, err
}

// openLink opens a device with the given identity and peers for all gateways of s that can be resolved.
func openLink(ctx context.Context, cfg LinkConfig, s *state, key PrivateKey, addr netip.Addr) (*Link, error) {
	var routes []netip.Prefix
	for _, g := range s.Gateways {
		routes = append(routes, netip.PrefixFrom(g.Addr, 32))
	}
	dev, backend, err := openDevice(ctx, cfg.Backend, deviceConfig{
		Interface: cfg.Interface, Addr: addr, Routes: routes, MTU: cfg.MTU, Key: key, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	l := &Link{
		cfg: cfg, addr: addr, psk: s.PresharedKey, dev: dev, backend: backend,
	}
	for _, g := range s.Gateways {
		l.gateways = append(l.gateways, &remoteGateway{GatewayInfo: g})
	}
	// One gateway whose name does not resolve now is no reason to go without the others; dialling it tries again.
	var errs []error
	for _, g := range l.gateways {
		if err := l.repair(ctx, g, time.Time{}); err != nil {
			cfg.Log.Warn("gateway is not set up", zap.Stringer("gateway", g.Addr), zap.Error(err))
			errs = append(errs, err)
		}
	}
	if len(errs) == len(l.gateways) {
		return nil, errors.Join(append(errs, l.Close())...)
	}
	return l, nil
}

// Format implements fmt.Formatter: printed field by field, a Link would show its keys.
func (l *Link) Format(s fmt.State, _ rune) {
	_, _ = fmt.Fprintf(s, "tunnel link of %s (%s)", l.host, l.addr)
}

// Format implements fmt.Formatter: the token is not for logs.
func (cfg LinkConfig) Format(s fmt.State, _ rune) {
	_, _ = fmt.Fprintf(s, "tunnel link configuration (state in %s, backend %s)", cfg.StateDir, cfg.Backend)
}

// Host is the name the orchestrator gave this host when it joined.
func (l *Link) Host() string { return l.host }

// Addr is the host's address in the tunnel.
func (l *Link) Addr() netip.Addr { return l.addr }

// Backend is the name of the backend in use.
func (l *Link) Backend() string { return l.backend }

// Gateways are the orchestrators this host has tunnels to.
func (l *Link) Gateways() []GatewayInfo {
	out := make([]GatewayInfo, 0, len(l.gateways))
	for _, g := range l.gateways {
		out = append(out, g.GatewayInfo)
	}
	return out
}

// Gone is closed when the device has ended, by Close or by itself; the link is of no use then.
func (l *Link) Gone() <-chan struct{} { return l.dev.gone() }

// Close takes the device down. Connections over it end.
func (l *Link) Close() error {
	l.closing.Do(func() { l.closed = l.dev.close() })
	return l.closed
}

const dialAttempts = 3

// DialContext dials a TCP address of a gateway through the tunnel; other addresses are ErrNotGateway errors. An attempt
// that gets no answer within DialTimeout makes a new handshake and is repeated, up to 3 attempts: a gateway that was
// restarted drops what a host sends with the old session, and would come back after minutes only.
func (l *Link) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp" && network != "tcp4" {
		return nil, fmt.Errorf("tunnel: dial %s %s: only tcp to an IP address and port goes through the tunnel", network, address)
	}
	i := slices.IndexFunc(l.gateways, func(g *remoteGateway) bool { return g.Addr == to.Addr() })
	if i < 0 {
		return nil, fmt.Errorf("tunnel: dial %s: %w", address, ErrNotGateway)
	}
	for attempt := 1; ; attempt++ {
		began := time.Now()
		limit := l.cfg.DialTimeout
		if attempt == 1 {
			limit /= 3 // a link that works answers in two round trips; one that does not is better repaired soon
		}
		c, err := l.dialOnce(ctx, to, limit)
		if err == nil {
			return c, nil
		}
		fail := fmt.Errorf("tunnel: dial %s: attempt %d: %w", address, attempt, err)
		if ctx.Err() != nil || !silent(err) || attempt == dialAttempts {
			return nil, fail
		}
		l.cfg.Log.Info("gateway is silent, making a new handshake", zap.Stringer("gateway", to.Addr()), zap.Int("attempt", attempt))
		if err := l.repair(ctx, l.gateways[i], began); err != nil {
			return nil, errors.Join(fail, err)
		}
	}
}

func (l *Link) dialOnce(ctx context.Context, to netip.AddrPort, limit time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return l.dev.dial(ctx, to)
}

// silent says whether a dial failed for want of an answer. The net package's timeout is another error than the
// context's, and comes a moment before the context says that it has ended.
func silent(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// Repair makes new handshakes with all gateways, resolving their endpoints again. Connections that work survive it;
// what was in flight is sent again by TCP.
func (l *Link) Repair(ctx context.Context) error {
	var errs []error
	for _, g := range l.gateways {
		errs = append(errs, l.repair(ctx, g, time.Now()))
	}
	return errors.Join(errs...)
}

// handshakePause separates handshakes: a gateway takes one that follows another within 20 ms for a flood, and the
// timestamps that protect from replays tick every 17 ms. A handshake lost to either is repeated after 5 s only.
const handshakePause = 50 * time.Millisecond

// repair exchanges the peer of g, unless that was done after since: several dials that fail at once need one handshake.
func (l *Link) repair(ctx context.Context, g *remoteGateway, since time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !since.IsZero() && g.set.After(since) {
		return nil
	}
	if pause := handshakePause - time.Since(g.set); pause > 0 {
		t := time.NewTimer(pause)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("tunnel: gateway %s: %w", g.Addr, context.Cause(ctx))
		}
	}
	err := l.setPeer(ctx, g.GatewayInfo)
	g.set = time.Now() // after a failure too: the handshake may be on its way
	return err
}

// setPeer removes the gateway's peer and adds it, in one call: a peer that is new starts with a handshake at once.
func (l *Link) setPeer(ctx context.Context, g GatewayInfo) error {
	endpoint, err := resolve(ctx, g.Endpoint)
	if err != nil {
		return fmt.Errorf("tunnel: gateway %s: %w", g.Addr, err)
	}
	psk, keepalive := wgtypes.Key(l.psk), l.cfg.Keepalive
	err = l.dev.apply(ctx, wgtypes.Config{Peers: []wgtypes.PeerConfig{
		{PublicKey: wgtypes.Key(g.PublicKey), Remove: true},
		{
			PublicKey:                   wgtypes.Key(g.PublicKey),
			PresharedKey:                &psk,
			Endpoint:                    endpoint,
			PersistentKeepaliveInterval: &keepalive,
			ReplaceAllowedIPs:           true,
			AllowedIPs:                  []net.IPNet{ipNet(netip.PrefixFrom(g.Addr, 32))},
		},
	}})
	if err != nil {
		return err
	}
	d, err := l.dev.read(ctx)
	if err != nil {
		return err
	}
	e, ok := tableOf(d)[g.PublicKey]
	if !ok || !e.equal(entry{PSK: l.psk, Addrs: []netip.Prefix{netip.PrefixFrom(g.Addr, 32)}}) {
		return fmt.Errorf("tunnel: gateway %s: %w", g.Addr, ErrNotVerified)
	}
	return nil
}

const resolveLimit = 5 * time.Second

// resolve looks an endpoint up, preferring IPv4: that is what every provider of Macs routes.
func resolve(ctx context.Context, endpoint string) (*net.UDPAddr, error) {
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
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", endpoint, err)
	}
	best := addrs[0].Unmap()
	for _, a := range addrs {
		if a = a.Unmap(); a.Is4() && !best.Is4() {
			best = a
		}
	}
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(best, uint16(port))), nil
}
