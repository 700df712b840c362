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
	open    func(ctx context.Context, backend string, cfg deviceConfig) (wgDevice, string, error)
	pulses  pulses
	paces   paces
	crowds  crowds
	nudges  nudges
	tally   tally
	leaving sync.WaitGroup // closes devices that were replaced

	cur current // the device in use

	promised promise // of Announce

	turn      sync.Mutex // one change of the device at a time; locked before mu
	mu        sync.Mutex // guards book and listeners, and is not held while the source is asked
	book      *book
	listeners []*listener

	closing sync.Once
	closed  error
}

// current is a device and what it is, or was, known by.
type current struct {
	mu      sync.Mutex
	dev     wgDevice
	backend string
	key     PrivateKey
	port    int
	closed  bool
}

// OpenGateway brings the gateway's device up. Peers are configured by Run. Close it in the end.
func OpenGateway(ctx context.Context, cfg GatewayConfig) (*Gateway, error) {
	return openGateway(ctx, cfg, openDevice)
}

func openGateway(ctx context.Context, cfg GatewayConfig,
	open func(context.Context, string, deviceConfig) (wgDevice, string, error)) (*Gateway, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	addr, err := GatewayAddr(cfg.Number)
	if err != nil {
		return nil, err
	}
	key, err := loadOrCreateKey(cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	g := &Gateway{cfg: cfg, addr: addr, open: open, pulses: pulses{now: cfg.Now}, paces: paces{now: cfg.Now}, book: newBook(key.Public())}
	g.nudges.wake = make(chan struct{}, 1)
	g.cur = current{dev: lostDevice{}, backend: cfg.Backend, key: key, port: cfg.ListenPort}
	if err := g.openDevice(ctx, false); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

func (cfg GatewayConfig) withDefaults() (GatewayConfig, error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Interface = orDefault(cfg.Interface, "driftgw0")
	cfg.MTU = orDefault(cfg.MTU, defaultMTU)
	cfg.Every = orDefault(cfg.Every, 10*time.Second)
	err := errors.Join(checkBackend(cfg.Backend), checkInterface(cfg.Interface, cfg.MTU, cfg.ListenPort))
	if cfg.Peers == nil {
		err = errors.Join(err, errors.New("tunnel: a gateway needs a source of peers"))
	}
	if cfg.Every < 0 {
		err = errors.Join(err, fmt.Errorf("tunnel: peers cannot be reconciled every %s: use a positive duration", cfg.Every))
	}
	if cfg.FleetPort < 0 || cfg.FleetPort > 65535 {
		err = errors.Join(err, fmt.Errorf("tunnel: fleet port %d is not between 0 and 65535", cfg.FleetPort))
	}
	return cfg, err
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
func (g *Gateway) PublicKey() Key {
	g.cur.mu.Lock()
	defer g.cur.mu.Unlock()
	return g.cur.key.Public()
}

// Addr is the gateway's address in the tunnel.
func (g *Gateway) Addr() netip.Addr { return g.addr }

// Port is the UDP port that hosts send to.
func (g *Gateway) Port() int {
	g.cur.mu.Lock()
	defer g.cur.mu.Unlock()
	return g.cur.port
}

// Backend is the name of the backend in use.
func (g *Gateway) Backend() string {
	g.cur.mu.Lock()
	defer g.cur.mu.Unlock()
	return g.cur.backend
}

// Listen listens for TCP on the tunnel address, and nowhere else. The listener survives the loss of the device: it
// accepts again once the device is restored. Of one host it has a bounded number of connections open.
func (g *Gateway) Listen(ctx context.Context, port int) (net.Listener, error) {
	if port < 0 || port > 65535 {
		return nil, fmt.Errorf("tunnel: port %d is not between 0 and 65535", port)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	l, err := g.device().listen(ctx, uint16(port))
	if err != nil {
		return nil, fmt.Errorf("tunnel: listen on %s port %d: %w", g.addr, port, err)
	}
	lasting := newListener(l, func(c net.Conn) net.Conn { return g.crowds.admit(c, g.cfg.Log) })
	g.listeners = append(g.listeners, lasting)
	return lasting, nil
}

// Run keeps the device what it should be until ctx ends: its peers what the source says, at once, on every Nudge and on
// a tick; and the device itself, its address, routes, rules and listeners, when it hangs, vanishes or was changed by
// someone else. No trouble ends it: a lasting one is logged once.
func (g *Gateway) Run(ctx context.Context) {
	tick := time.NewTicker(g.cfg.Every)
	defer tick.Stop()
	poll := time.NewTimer(0)
	defer poll.Stop()
	var log once
	do := work{all: true}
	for ctx.Err() == nil {
		began := time.Now()
		err := g.do(ctx, do)
		switch {
		case ctx.Err() != nil || g.isClosed():
			return
		case lost(err):
			g.restore(ctx, err)
			do = work{all: true}
			continue
		case err != nil && log.news(err):
			g.cfg.Log.Error("tunnel peers are not all as they should be; trying again", zap.Error(err))
		case err == nil && do.all && log.over():
			g.cfg.Log.Info("tunnel peers are as they should be again")
		}
		poll.Reset(g.pollIn(began, do.poll))
		do = work{}
		select {
		case <-ctx.Done():
		case <-g.device().gone(): // to find out what it is
			do.all = true
		case <-g.nudges.wake:
			do = g.nudges.take()
		case <-tick.C:
			do.all = true
		case <-poll.C:
			do.poll = true
		}
	}
}

func (g *Gateway) do(ctx context.Context, w work) error {
	switch {
	case w.all:
		return g.Reconcile(ctx)
	case w.poll:
		return g.promote(ctx)
	}
	var errs []error
	for host := range w.hosts {
		if err := g.ReconcileHost(ctx, host); err != nil {
			errs = append(errs, err)
		}
	}
	if w.verify { // asked for by what changed the device: most nudges, as of a host that came up, change nothing
		err := g.Verify(ctx)
		if err == nil {
			g.cfg.Log.Debug("tunnel peers verified")
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (g *Gateway) device() wgDevice {
	g.cur.mu.Lock()
	defer g.cur.mu.Unlock()
	return g.cur.dev
}

func (g *Gateway) isClosed() bool {
	g.cur.mu.Lock()
	defer g.cur.mu.Unlock()
	return g.cur.closed
}

// Close takes the device down. Listeners and connections over it end.
func (g *Gateway) Close() error {
	g.closing.Do(func() {
		g.cur.mu.Lock()
		g.cur.closed = true
		dev := g.cur.dev
		g.cur.mu.Unlock()
		g.closed = dev.close()
		if isolated, ok := dev.(interface{ unisolate() error }); ok && g.closed == nil { // rules stay as long as the interface might
			g.closed = isolated.unisolate()
		}
		g.mu.Lock()
		for _, l := range g.listeners {
			_ = l.Close() // ended with the device
		}
		g.mu.Unlock()
		g.leaving.Wait() // bounded: every close of a device is
	})
	return g.closed
}

// once says of a trouble that lasts whether it was said already.
type once struct{ last string }

func (o *once) news(err error) bool {
	is := err.Error() != o.last
	o.last = err.Error()
	return is
}

func (o *once) over() bool {
	was := o.last != ""
	o.last = ""
	return was
}
