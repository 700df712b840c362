package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// lost says that only a new device helps.
func lost(err error) bool {
	return errors.Is(err, ErrDeviceHung) || errors.Is(err, ErrDeviceGone) || errors.Is(err, ErrDeviceAlien)
}

const (
	restoreFirst = 100 * time.Millisecond // pause after a first failure, doubled with each
	restoreLast  = 5 * time.Second
	letGo        = time.Second // for an old device to close, before it is abandoned
)

// restore exchanges the device until one works, or ctx ends.
func (g *Gateway) restore(ctx context.Context, cause error) {
	began := time.Now()
	g.cfg.Log.Error("the tunnel device is lost; opening it again", zap.Error(cause))
	hung := errors.Is(cause, ErrDeviceHung)
	var log once
	for pause := restoreFirst; ; pause = min(2*pause, restoreLast) {
		err := g.reopen(ctx, hung)
		switch {
		case ctx.Err() != nil || g.isClosed():
			return
		case err == nil:
			g.tally.restored()
			g.cfg.Log.Info("the tunnel device is restored", zap.Duration("after", time.Since(began)))
			return
		case log.news(err):
			g.cfg.Log.Error("the tunnel device cannot be restored yet; trying again, and no host is reached meanwhile", zap.Error(err))
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// reopen is one attempt: the device with its address, routes and rules, then the listeners, then the peers as they were,
// without asking the source, which may be away as well.
func (g *Gateway) reopen(ctx context.Context, hung bool) error {
	g.turn.Lock()
	defer g.turn.Unlock()
	g.dismiss(hung)
	if err := g.openDevice(ctx, true); err != nil {
		return err
	}
	if err := g.relisten(ctx); err != nil {
		g.dismiss(false)
		return err
	}
	return g.verify(ctx)
}

// dismiss closes the device in use. One that hangs is left to itself: the next one does not wait for it.
func (g *Gateway) dismiss(hung bool) {
	old := g.swap(lostDevice{}, "")
	if hung {
		old.abandon()
	}
	done := make(chan struct{})
	g.leaving.Go(func() {
		defer close(done)
		if err := old.close(); err != nil {
			g.cfg.Log.Warn("a lost tunnel device did not close cleanly", zap.Error(err))
		}
	})
	t := time.NewTimer(letGo)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		old.abandon()
	}
}

// swap puts another device in place and returns the one before. An empty backend keeps the name.
func (g *Gateway) swap(dev wgDevice, backend string) wgDevice {
	g.cur.mu.Lock()
	defer g.cur.mu.Unlock()
	old := g.cur.dev
	g.cur.dev = dev
	g.cur.backend = orDefault(backend, g.cur.backend)
	return old
}

// openDevice opens the device and makes it the one in use. again says that it was open before: it gets the same backend
// and port, and whatever has its name by now is replaced.
func (g *Gateway) openDevice(ctx context.Context, again bool) error {
	g.cur.mu.Lock()
	backend, key, port := g.cur.backend, g.cur.key, g.cur.port
	g.cur.mu.Unlock()
	dev, backend, err := g.open(ctx, backend, deviceConfig{
		Interface: g.cfg.Interface, Addr: g.addr, Routes: []netip.Prefix{Network()}, MTU: g.cfg.MTU,
		Key: key, Port: port, FleetPort: g.cfg.FleetPort, Isolate: true, Repaired: g.tally.isolated, Ours: again, Log: g.cfg.Log,
	})
	if err != nil {
		return err
	}
	st, err := dev.read(ctx)
	if err == nil && (st.ListenPort == 0 || port != 0 && st.ListenPort != port || Key(st.PublicKey) != key.Public()) {
		err = fmt.Errorf("tunnel: %s: %w", dev.name(), ErrNotVerified)
	}
	g.cur.mu.Lock()
	closed := g.cur.closed
	if err == nil && !closed {
		g.cur.dev, g.cur.backend, g.cur.port = dev, backend, st.ListenPort
	}
	g.cur.mu.Unlock()
	if err != nil || closed {
		return errors.Join(err, dev.close())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.book.have = table{}
	return nil
}

// relisten gives every listener its place on the device in use.
func (g *Gateway) relisten(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.listeners {
		if err := l.renew(func(port uint16) (net.Listener, error) { return g.device().listen(ctx, port) }); err != nil {
			return fmt.Errorf("tunnel: listen on %s again: %w", l.Addr(), err)
		}
	}
	return nil
}

func keyConfig(key PrivateKey) wgtypes.Config {
	k := wgtypes.Key(key)
	return wgtypes.Config{PrivateKey: &k}
}

// lostDevice stands in while there is no device.
type lostDevice struct{}

var _ wgDevice = lostDevice{}

func (lostDevice) name() string                                { return "tunnel device" }
func (lostDevice) apply(context.Context, wgtypes.Config) error { return errLost() }
func (lostDevice) check(context.Context) error                 { return errLost() }
func (lostDevice) gone() <-chan struct{}                       { return nil }
func (lostDevice) setMTU(context.Context, int) error           { return errLost() }
func (lostDevice) close() error                                { return nil }
func (lostDevice) abandon()                                    {}

func (lostDevice) read(context.Context) (*wgtypes.Device, error)          { return nil, errLost() }
func (lostDevice) listen(context.Context, uint16) (net.Listener, error)   { return nil, errLost() }
func (lostDevice) dial(context.Context, netip.AddrPort) (net.Conn, error) { return nil, errLost() }

func errLost() error { return fmt.Errorf("tunnel: it is being restored: %w", ErrDeviceGone) }
