package main

import (
	"context"
	"net/netip"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/tunnel"
)

// beats answers pulses with what this orchestrator knows of itself.
type beats struct {
	cfg     config
	epoch   string
	gateway *tunnel.Gateway
}

var _ tunnel.Beats = beats{}

func (b beats) Beat(context.Context, netip.Addr) (wire.Beat, error) {
	return wire.Beat{Orchestrator: b.cfg.Name, Epoch: b.epoch, Gateways: []wire.Gateway{{
		Endpoint: b.cfg.TunnelEndpoint, PublicKey: b.gateway.PublicKey().String(), Address: b.gateway.Addr().String(),
		FleetPort: b.cfg.TunnelFleetPort,
	}}}, nil
}
