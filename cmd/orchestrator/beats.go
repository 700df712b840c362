package main

import (
	"context"
	"net/netip"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/tunnel"
)

// beats answers pulses with what the store knows of the fleet, and this process of itself.
type beats struct {
	tunnel.Beats
	epoch string
}

// Beat implements tunnel.Beats.
func (b beats) Beat(ctx context.Context, host netip.Addr) (wire.Beat, error) {
	out, err := b.Beats.Beat(ctx, host)
	out.Epoch = b.epoch
	return out, err
}
