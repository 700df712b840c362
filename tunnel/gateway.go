package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// GatewayConfig configures a Gateway.
type GatewayConfig struct {
	KeyFile    string // private key, made with mode 0600 when it is missing
	Number     int    // 1 to LastGateway, another for each orchestrator: the address is 10.77.0.Number
	ListenPort int    // UDP; 0 takes any
	Backend    string // auto (the default), kernel, tun or netstack
	Interface  string // name of the network interface, default driftgw0
	MTU        int    // default 1280
	FleetPort  int    // TCP port of the fleet listener: all that hosts can reach of this machine
	Peers      PeerSource
	Every      time.Duration    // how often peers are reconciled without a Nudge, default 10 s
	Now        func() time.Time // default time.Now
	Log        *zap.Logger
}

// Gateway is the orchestrator's end of the tunnels.
type Gateway struct {
	cfg     GatewayConfig
	addr    netip.Addr
	public  Key
	dev     wgDevice
	backend string
	port    int
	pulses  pulses
	nudge   chan struct{} // holds one token: written by Nudge, read by Run

	mu      sync.Mutex // one reconciliation at a time
	knownMu sync.Mutex
	peers   map[Key]Peer // accepted by the last reconciliation; guarded by knownMu
	closing sync.Once
	closed  error
}

// OpenGateway brings the gateway's device up. Peers are configured by Run. Close it in the end.
func OpenGateway(ctx context.Context, cfg GatewayConfig) (*Gateway, error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	cfg.Interface = orDefault(cfg.Interface, "driftgw0")
	cfg.MTU = orDefault(cfg.MTU, defaultMTU)
	cfg.Every = orDefault(cfg.Every, 10*time.Second)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	addr, err := GatewayAddr(cfg.Number)
	if err != nil {
		return nil, err
	}
	if cfg.Peers == nil {
		return nil, errors.New("tunnel: a gateway needs a source of peers")
	}
	if cfg.Every < 0 {
		return nil, fmt.Errorf("tunnel: peers cannot be reconciled every %s: use a positive duration", cfg.Every)
	}
	if cfg.FleetPort < 0 || cfg.FleetPort > 65535 {
		return nil, fmt.Errorf("tunnel: fleet port %d is not between 0 and 65535", cfg.FleetPort)
	}
	if err := errors.Join(checkBackend(cfg.Backend), checkInterface(cfg.Interface, cfg.MTU, cfg.ListenPort)); err != nil {
		return nil, err
	}
	key, err := loadOrCreateKey(cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	dev, backend, err := openDevice(ctx, cfg.Backend, deviceConfig{
		Interface: cfg.Interface, Addr: addr, Routes: []netip.Prefix{Network()},
		MTU: cfg.MTU, Key: key, Port: cfg.ListenPort, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	g := &Gateway{cfg: cfg, addr: addr, public: key.Public(), dev: dev, backend: backend, nudge: make(chan struct{}, 1),
		pulses: pulses{now: cfg.Now}}
	st, err := dev.read(ctx)
	if err == nil && (st.ListenPort == 0 || Key(st.PublicKey) != g.public) {
		err = fmt.Errorf("tunnel: %s: %w", dev.name(), ErrNotVerified)
	}
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	g.port = st.ListenPort
	return g, nil
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

func checkInterface(name string, mtu, port int) error {
	switch {
	case len(name) > 15 || name == "" || name == "." || name == "..":
		return fmt.Errorf("tunnel: interface name %q is not 1 to 15 characters long", name)
	case mtu < 576 || mtu > 65535:
		return fmt.Errorf("tunnel: MTU %d is not between 576 and 65535", mtu)
	case port < 0 || port > 65535:
		return fmt.Errorf("tunnel: UDP port %d is not between 0 and 65535", port)
	}
	for _, r := range name { // it becomes the name of a socket file
		if r <= ' ' || r == '/' || r > '~' {
			return fmt.Errorf("tunnel: interface name %q has a character that is not allowed", name)
		}
	}
	return nil
}

// PublicKey is the gateway's key, for join tokens.
func (g *Gateway) PublicKey() Key { return g.public }

// Addr is the gateway's address in the tunnel.
func (g *Gateway) Addr() netip.Addr { return g.addr }

// Port is the UDP port that hosts send to.
func (g *Gateway) Port() int { return g.port }

// Backend is the name of the backend in use.
func (g *Gateway) Backend() string { return g.backend }

// Listen listens for TCP on the tunnel address, and nowhere else.
func (g *Gateway) Listen(ctx context.Context, port int) (net.Listener, error) {
	if port < 0 || port > 65535 {
		return nil, fmt.Errorf("tunnel: port %d is not between 0 and 65535", port)
	}
	l, err := g.dev.listen(ctx, uint16(port))
	if err != nil {
		return nil, fmt.Errorf("tunnel: listen on %s port %d: %w", g.addr, port, err)
	}
	return l, nil
}

// Nudge makes Run reconcile one host soon, or all when host is empty. It never blocks.
func (g *Gateway) Nudge(host string) {
	select {
	case g.nudge <- struct{}{}:
	default: // one is pending already
	}
}

// Run keeps the device's peers what the source says: at once, on every Nudge and on a tick. It returns nil when ctx
// ends, and an ErrDeviceGone error when the device does; every other trouble is logged and tried again.
func (g *Gateway) Run(ctx context.Context) error {
	tick := time.NewTicker(g.cfg.Every)
	defer tick.Stop()
	last := "" // so that a lasting trouble is logged once, not every tick
	for {
		switch err := g.Reconcile(ctx); {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrDeviceGone):
			return err
		case err != nil && err.Error() != last:
			last = err.Error()
			g.cfg.Log.Error("tunnel peers are not all as they should be; trying again", zap.Error(err))
		case err == nil && last != "":
			last = ""
			g.cfg.Log.Info("tunnel peers are as they should be again")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-g.dev.gone():
			return fmt.Errorf("tunnel: %s: %w", g.dev.name(), ErrDeviceGone)
		case <-g.nudge:
		case <-tick.C:
		}
	}
}

// reconcileTries: the second try repairs what a first one left half applied, or what someone changed meanwhile.
const reconcileTries = 2

// Reconcile makes the device's peers what the source says, once. Peers that are so already are not touched. Errors name
// the peers that are refused (ErrPeer); the others are configured nevertheless.
func (g *Gateway) Reconcile(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	want, err := g.list(ctx)
	if err != nil {
		return err
	}
	have, err := g.read(ctx)
	if err != nil {
		return err
	}
	accepted, refused := accept(want, have, g.public)
	g.know(accepted)
	c := diff(accepted, have)
	for try := 0; c.size() > 0; try++ {
		if try == reconcileTries {
			return errors.Join(refused, fmt.Errorf("tunnel: %s: %w: %d of %d peers differ after %d tries",
				g.dev.name(), ErrNotVerified, c.size(), len(accepted), try))
		}
		applied := g.apply(ctx, c.configs())
		if have, err = g.read(ctx); err != nil {
			return errors.Join(refused, applied, err)
		}
		g.cfg.Log.Info("tunnel peers changed", zap.Int("removed", len(c.Remove)), zap.Int("updated", len(c.Update)),
			zap.Int("added", len(c.Add)), zap.Int("now", len(have)), zap.Error(applied))
		c = diff(accepted, have)
		if applied != nil && c.size() > 0 && try == reconcileTries-1 {
			return errors.Join(refused, applied)
		}
	}
	return refused
}

// list asks for the peers. Without a bound of its own a source that hangs would stop every reconciliation after this one,
// and with it every join and every removal of a host.
func (g *Gateway) list(ctx context.Context) ([]Peer, error) {
	ctx, cancel := context.WithTimeout(ctx, listLimit)
	defer cancel()
	peers, err := g.cfg.Peers.Peers(ctx)
	if err != nil {
		return nil, fmt.Errorf("tunnel: list the peers: %w", err)
	}
	return peers, nil
}

const listLimit = 10 * time.Second

// apply sends every batch: a bad one must not keep the others from the device.
func (g *Gateway) apply(ctx context.Context, cfgs []wgtypes.Config) error {
	var errs []error
	for _, cfg := range cfgs {
		errs = append(errs, g.dev.apply(ctx, cfg))
	}
	return errors.Join(errs...)
}

func (g *Gateway) read(ctx context.Context) (table, error) {
	d, err := g.dev.read(ctx)
	if err != nil {
		return nil, err
	}
	return tableOf(d), nil
}

// Close takes the device down. Listeners and connections over it end.
func (g *Gateway) Close() error {
	g.closing.Do(func() { g.closed = g.dev.close() })
	return g.closed
}
