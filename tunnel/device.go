package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"time"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Backends. BackendAuto takes the first of the others that this machine permits, in this order.
const (
	BackendAuto     = "auto"
	BackendKernel   = "kernel"
	BackendTUN      = "tun"
	BackendNetstack = "netstack"
)

// Errors of devices; use errors.Is.
var (
	ErrBackend     = errors.New("this WireGuard backend is not available here")
	ErrDeviceHung  = errors.New("the WireGuard device does not answer")
	ErrDeviceGone  = errors.New("the WireGuard device is gone")
	ErrDeviceAlien = errors.New("the WireGuard device is not the one that was opened: someone else has changed or made it anew")
	ErrNotVerified = errors.New("the WireGuard device did not take its configuration")
)

const (
	defaultMTU = 1280 // passes every path seen so far; larger ones black-hole big packets on some
	callLimit  = 5 * time.Second
)

// wgDevice is a WireGuard interface with one address. Each backend makes one.
type wgDevice interface {
	name() string
	// apply changes what cfg sets and leaves the rest.
	apply(ctx context.Context, cfg wgtypes.Config) error
	// read returns the device's state, without its private key.
	read(ctx context.Context) (*wgtypes.Device, error)
	listen(ctx context.Context, port uint16) (net.Listener, error)
	dial(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// setMTU holds for connections opened from now on.
	setMTU(ctx context.Context, mtu int) error
	// check looks whether the interface still is what it was opened as. Errors wrap ErrDeviceGone or ErrDeviceAlien; what
	// can be repaired in place is, and logged.
	check(ctx context.Context) error
	// gone is closed when the device has ended, by close or by itself.
	gone() <-chan struct{}
	close() error
	// abandon lets go of what the next device needs, of a device that may hang and so is not asked.
	abandon()
}

// deviceConfig is what a device is opened with; everything after is apply.
type deviceConfig struct {
	Interface string // wanted name; macOS picks its own
	Addr      netip.Addr
	Routes    []netip.Prefix
	MTU       int
	Key       PrivateKey
	Port      int  // UDP, 0: any
	Isolate   bool // a gateway: hosts reach FleetPort of Addr and nothing else
	FleetPort int
	Small     bool   // a few small messages, and then it ends
	Ours      bool   // an interface of this name was ours before, and whatever is there now is replaced
	Repaired  func() `json:"-"` // called when the rules of Isolate had to be put back; nil: nobody counts
	// Answered is called where an answer to a handshake comes from; nil: nobody asks. The kernel does not tell.
	Answered func(from netip.AddrPort) `json:"-"`
	Log      *zap.Logger
}

// backend is a way to make devices. An error that wraps ErrBackend says that this machine lacks what it needs.
type backend struct {
	name string
	open func(context.Context, deviceConfig) (wgDevice, error)
}

func backends() []backend {
	return []backend{{BackendKernel, openKernel}, {BackendTUN, openTUN}, {BackendNetstack, openNetstack}}
}

// checkBackend validates a configured name.
func checkBackend(name string) error {
	for _, b := range backends() {
		if b.name == name {
			return nil
		}
	}
	if name == "" || name == BackendAuto {
		return nil
	}
	return fmt.Errorf("tunnel: backend %q: it is one of auto, kernel, tun, netstack", name)
}

// openDevice opens a device of the named backend and returns the backend's name.
func openDevice(ctx context.Context, name string, cfg deviceConfig) (wgDevice, string, error) {
	return openAmong(ctx, backends(), name, cfg)
}

func openAmong(ctx context.Context, among []backend, name string, cfg deviceConfig) (wgDevice, string, error) {
	auto := name == "" || name == BackendAuto
	var missing []error
	for _, b := range among {
		if !auto && b.name != name {
			continue
		}
		d, err := b.soon(ctx, cfg)
		if err == nil {
			cfg.Log.Info("tunnel device is up", zap.String("backend", b.name), zap.String("device", d.name()),
				zap.Stringer("address", cfg.Addr), zap.Int("mtu", cfg.MTU), zap.Bool("chosen_by_itself", auto))
			return d, b.name, nil
		}
		err = fmt.Errorf("tunnel: backend %s: %w", b.name, err)
		if !auto || !errors.Is(err, ErrBackend) {
			return nil, "", err
		}
		cfg.Log.Info("tunnel backend is not available here, trying the next", zap.String("backend", b.name), zap.Error(err))
		missing = append(missing, err)
	}
	return nil, "", errors.Join(missing...)
}

// openLimit bounds the making of a device: netlink and the opening of a TUN device know no deadline.
const openLimit = 15 * time.Second

// soon opens a device, or is an ErrDeviceHung error; a device that is there after all is closed then.
func (b backend) soon(ctx context.Context, cfg deviceConfig) (wgDevice, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, openLimit, ErrDeviceHung)
	defer cancel()
	type result struct {
		d   wgDevice
		err error
	}
	done := make(chan result)
	go func() {
		d, err := b.open(ctx, cfg)
		select {
		case done <- result{d, err}:
		case <-ctx.Done(): // nobody waits any more
			if err == nil {
				_ = d.close()
			}
		}
	}()
	select {
	case r := <-done:
		return r.d, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("open the device: %w", context.Cause(ctx))
	}
}

// caller bounds calls that know no deadline: wgctrl and UAPI block for ever on a hung daemon. A call that outlives its
// limit cannot be stopped, only left; while it is stuck every further call waits for its own limit and fails, so at most one
// goroutine hangs.
type caller struct {
	device string
	limit  time.Duration
	gone   <-chan struct{} // may be nil
	busy   chan struct{}   // holds one token while a call runs
}

func newCaller(device string, gone <-chan struct{}) *caller {
	return &caller{device: device, limit: callLimit, gone: gone, busy: make(chan struct{}, 1)}
}

// call runs fn, which must not touch what its caller reads except through its result.
func call[T any](ctx context.Context, c *caller, what string, fn func() (T, error)) (T, error) {
	var zero T
	ctx, cancel := context.WithTimeoutCause(ctx, c.limit, ErrDeviceHung)
	defer cancel()
	fail := func(err error) (T, error) { return zero, fmt.Errorf("tunnel: %s %s: %w", what, c.device, err) }
	select {
	case <-c.gone:
		return fail(ErrDeviceGone)
	default:
	}
	select {
	case c.busy <- struct{}{}:
	case <-c.gone:
		return fail(ErrDeviceGone)
	case <-ctx.Done():
		return fail(context.Cause(ctx))
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-c.busy }()
		v, err := fn()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return fail(r.err)
		}
		return r.v, nil
	case <-c.gone:
		return fail(ErrDeviceGone)
	case <-ctx.Done():
		return fail(context.Cause(ctx))
	}
}

// settle waits, bounded, until no call runs.
func (c *caller) settle() error {
	t := time.NewTimer(c.limit)
	defer t.Stop()
	select {
	case c.busy <- struct{}{}:
		<-c.busy
		return nil
	case <-t.C:
		return fmt.Errorf("tunnel: close %s: %w", c.device, ErrDeviceHung)
	}
}

// wgLogger passes what wireguard-go says on to zap. Its messages can quote configuration lines, so anything that
// looks like a key is taken out.
func wgLogger(log *zap.Logger) *device.Logger {
	keys := regexp.MustCompile(`[0-9a-fA-F]{64}|[A-Za-z0-9+/]{43}=`)
	clean := func(format string, args []any) string {
		return keys.ReplaceAllString(fmt.Sprintf(format, args...), redacted)
	}
	l := log.WithOptions(zap.WithCaller(false), zap.AddStacktrace(zap.FatalLevel))
	verbose := device.DiscardLogf
	if l.Core().Enabled(zap.DebugLevel) {
		verbose = func(format string, args ...any) { l.Debug("wireguard: " + clean(format, args)) }
	}
	return &device.Logger{
		Verbosef: verbose,
		Errorf:   func(format string, args ...any) { l.Info("wireguard: " + clean(format, args)) }, // a peer that is away fills the log of a higher level
	}
}
