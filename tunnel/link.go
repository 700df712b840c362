package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"go.uber.org/zap"
)

// LinkConfig configures a Link.
type LinkConfig struct {
	StateDir    string           // holds tunnel.json with the private key, mode 0600; made with mode 0700 when it is missing
	Token       string           `json:"-"` // join token; not needed any more once the host has joined
	Backend     string           // auto (the default), kernel, tun or netstack
	Interface   string           // name of the network interface, default drifthost0; macOS picks its own
	MTU         int              // default 1280; 1200 is used by itself where it must be, and as long
	Keepalive   time.Duration    // default 15 s: whole seconds, because devices round down
	DialTimeout time.Duration    // of one attempt, default 3 s, a third of it for the first; a silent gateway is repaired before the next
	Now         func() time.Time `json:"-"` // wall clock, default time.Now: it is compared with the monotonic one to notice sleep
	Log         *zap.Logger

	// Lookup looks up the name of a gateway's endpoint; nil: as the system does.
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error) `json:"-"`
}

// Link is the driver host's end: one device with a peer for each gateway, and a goroutine for each that keeps it heard.
type Link struct {
	cfg    LinkConfig
	began  time.Time
	joined bool // as opposed to a tunnel that is only there to redeem a token

	life    context.Context // ends with Close; every goroutine of the link runs in it
	end     context.CancelFunc
	keepers sync.WaitGroup
	closing sync.Once
	closed  error

	rekeying  atomic.Bool
	restoring sync.Mutex // one restore, or change of the MTU, at a time
	heeding   sync.Mutex // one beat at a time

	mu       sync.Mutex // guards what follows
	state    *state     // never changed in place, see update
	key      PrivateKey // of the device: that of the state, or the token's
	addr     netip.Addr
	dev      wgDevice
	backend  string
	gen      int           // counts devices
	opened   time.Duration // when dev was, since began
	socketAt time.Duration // when its UDP socket was
	mtu      int
	sizedAt  time.Duration // when mtu was changed, since began
	raisedAt time.Duration // when it was made larger
	gateways []*remoteGateway
	changed  chan struct{} // closed and made anew when gateways change
	repairs  wire.Repairs
}

// remoteGateway is one gateway. Its address never changes; the rest may, by what a beat says.
type remoteGateway struct {
	addr  netip.Addr
	began time.Time
	kept  context.Context    // its keeper runs in it
	stop  context.CancelFunc // ends it, whether the keeper has started or not
	kick  chan struct{}      // holds one token: written by dials and restores, read by the keeper
	ready chan struct{}      // closed when the keeper has looked for the first time
	heard atomic.Int64       // when something was read from it last, since began

	answers atomic.Int64 // when it answered a handshake last, since began; 0: not yet

	setting sync.Mutex // guards set, and the exchange of the peer
	set     time.Time  // when the peer was exchanged last

	mu      sync.Mutex // guards what follows
	info    GatewayInfo
	turnAt  time.Duration  // when info.NextPublicKey takes over, since began; 0: it is not known
	at      netip.AddrPort // of the endpoint
	conns   map[*tracked]struct{}
	mending chan struct{} // closed when the gateway is heard again; nil: it is
	healed  chan struct{} // closed and made anew when it is heard again after a repair
	path    error         // an ErrPathMTU error, when no packet of useful size passes
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
	return openLink(ctx, cfg, s, s.PrivateKey, s.Addr)
}

func (cfg LinkConfig) withDefaults() (LinkConfig, error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Interface = orDefault(cfg.Interface, "drifthost0")
	cfg.MTU = orDefault(cfg.MTU, defaultMTU)
	cfg.Keepalive = orDefault(cfg.Keepalive, 15*time.Second)
	cfg.DialTimeout = orDefault(cfg.DialTimeout, 3*time.Second)
	if cfg.Lookup == nil {
		cfg.Lookup = systemLookup
	}
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

// openLink opens a device with the given identity and peers for all gateways of s that can be resolved. With the host's
// own address every gateway gets its keeper.
func openLink(ctx context.Context, cfg LinkConfig, s *state, key PrivateKey, addr netip.Addr) (*Link, error) {
	l := newLink(cfg, s, key, addr)
	dev, backend, err := openDevice(ctx, cfg.Backend, l.deviceConfig())
	if err != nil {
		return nil, err
	}
	l.dev, l.backend = dev, backend
	// One gateway whose name does not resolve now is no reason to go without the others; its keeper tries again.
	var errs []error
	for _, g := range l.gateways {
		if err := l.handshake(ctx, g, time.Time{}); err != nil {
			cfg.Log.Warn("gateway is not set up", zap.Stringer("gateway", g.addr), zap.Error(err))
			errs = append(errs, err)
		}
	}
	if len(errs) == len(l.gateways) && (!l.joined || broken(errors.Join(errs...))) { // a host may start before its network does
		return nil, errors.Join(append(errs, l.Close())...)
	}
	if l.joined {
		for _, g := range l.gateways {
			l.startKeeper(g)
		}
	}
	return l, nil
}

func newLink(cfg LinkConfig, s *state, key PrivateKey, addr netip.Addr) *Link {
	life, end := context.WithCancel(context.Background())
	l := &Link{
		cfg: cfg, began: time.Now(), joined: s.joined() && addr == s.Addr, life: life, end: end,
		state: s, key: key, addr: addr, mtu: cfg.MTU, changed: make(chan struct{}),
	}
	for _, info := range s.Gateways {
		l.gateways = append(l.gateways, l.newGateway(info))
	}
	return l
}

func (l *Link) newGateway(info GatewayInfo) *remoteGateway {
	kept, stop := context.WithCancel(l.life)
	return &remoteGateway{
		addr: info.Addr, info: info, began: l.began, conns: map[*tracked]struct{}{}, kept: kept, stop: stop,
		kick: make(chan struct{}, 1), ready: make(chan struct{}), healed: make(chan struct{}),
	}
}

// deviceConfig is for the first device and for every one that takes its place. It routes the range of all gateways,
// so that one more needs no route; without a peer for an address the device drops what is sent there.
func (l *Link) deviceConfig() deviceConfig {
	l.mu.Lock()
	defer l.mu.Unlock()
	return deviceConfig{
		Interface: l.cfg.Interface, Addr: l.addr, Routes: []netip.Prefix{gatewayRange()}, MTU: l.mtu, Key: l.key,
		Small: !l.joined, Answered: l.answered, Log: l.cfg.Log,
	}
}

// held is a consistent look at the device.
type held struct {
	dev wgDevice
	gen int
	key PrivateKey
	psk PresharedKey
	mtu int
}

func (l *Link) held() held {
	l.mu.Lock()
	defer l.mu.Unlock()
	return held{l.dev, l.gen, l.key, l.state.PresharedKey, l.mtu}
}

// update stores what change makes of the state, and then uses it.
func (l *Link) update(change func(*state)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := *l.state
	change(&s)
	if err := s.check(); err != nil {
		return err
	}
	if err := s.save(l.cfg.StateDir); err != nil {
		return err
	}
	l.state = &s
	return nil
}

// Format implements fmt.Formatter: printed field by field, a Link would show its keys.
func (l *Link) Format(s fmt.State, _ rune) {
	_, _ = fmt.Fprintf(s, "tunnel link of %s (%s)", l.Host(), l.addr)
}

// Format implements fmt.Formatter: the token is not for logs.
func (cfg LinkConfig) Format(s fmt.State, _ rune) {
	_, _ = fmt.Fprintf(s, "tunnel link configuration (state in %s, backend %s)", cfg.StateDir, cfg.Backend)
}

// Host is the name the orchestrator gave this host when it joined.
func (l *Link) Host() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.Host
}

// Addr is the host's address in the tunnel.
func (l *Link) Addr() netip.Addr { return l.addr }

// Backend is the name of the backend in use.
func (l *Link) Backend() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.backend
}

// MTU is the tunnel's now.
func (l *Link) MTU() int { return l.held().mtu }

// Repairs counts what was done since the link was opened.
func (l *Link) Repairs() wire.Repairs {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.repairs
}

// Gateways are the orchestrators this host has tunnels to.
func (l *Link) Gateways() []GatewayInfo {
	out := make([]GatewayInfo, 0, 2)
	for _, g := range l.all() {
		out = append(out, g.get())
	}
	return out
}

// Fleets are the fleet listeners to dial, as host:port; changed is closed once the list is another.
func (l *Link) Fleets() (addrs []string, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range l.gateways {
		addrs = append(addrs, g.get().Fleet())
	}
	return addrs, l.changed
}

// all is a copy of the list.
func (l *Link) all() []*remoteGateway {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.gateways)
}

func (g *remoteGateway) get() GatewayInfo {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.info
}

// Close takes the device down and waits for what the link runs. Connections over it end.
func (l *Link) Close() error {
	l.closing.Do(func() {
		l.end()
		l.keepers.Wait()
		for _, g := range l.all() {
			g.closeConns(func(*tracked) bool { return true })
		}
		l.closed = l.held().dev.close()
	})
	return l.closed
}
