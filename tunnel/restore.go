package tunnel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
)

var errNothingElse = errors.New("nothing else has helped")

// openedAt says when the device was opened, and its UDP socket.
func (l *Link) openedAt() (device, socket time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.opened, l.socketAt
}

// restore puts a new device with the same identity in the place of the one numbered gen, unless that was done already.
// Connections over the old one end.
func (l *Link) restore(ctx context.Context, gen int, why error) error {
	l.restoring.Lock()
	defer l.restoring.Unlock()
	h := l.held()
	if h.gen != gen {
		return nil
	}
	l.cfg.Log.Error("tunnel device is made anew", zap.String("device", h.dev.name()), zap.Error(why))
	for _, g := range l.all() {
		g.closeConns(func(*tracked) bool { return true })
	}
	if errors.Is(why, ErrDeviceHung) {
		h.dev.abandon()
	}
	if err := h.dev.close(); err != nil { // what is left of it must not keep the new one from working
		l.cfg.Log.Warn("the old tunnel device did not close as it should", zap.Error(err))
	}
	cfg := l.deviceConfig()
	cfg.Ours = true
	dev, backend, err := openDevice(ctx, l.Backend(), cfg)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDeviceGone, err)
	}
	l.mu.Lock()
	l.dev, l.backend, l.opened = dev, backend, time.Since(l.began)
	l.socketAt = l.opened
	l.gen++
	l.repairs.Device++
	l.mu.Unlock()
	// The device is restored whatever comes of its peers: a gateway that is not set up now is its keeper's matter, and no
	// reason for yet another device.
	for _, g := range l.all() {
		if g.endpoint() != nil { // else its name has to be looked up, and the others do not wait for that
			if err := l.handshake(ctx, g, time.Time{}); err != nil {
				l.cfg.Log.Warn("gateway is not set up on the new device", zap.Stringer("gateway", g.addr), zap.Error(err))
			}
		}
		g.nudge()
	}
	return nil
}
