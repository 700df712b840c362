package tunnel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
)

var errNothingElse = errors.New("nothing else has helped")

func (l *Link) openedAt() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.opened
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
	l.gen++
	l.mu.Unlock()
	var errs []error
	for _, g := range l.all() {
		errs = append(errs, l.handshake(ctx, g, time.Time{}))
		g.nudge()
	}
	return errors.Join(errs...)
}
