package tunnel

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// PeerStatus is what a gateway knows of its tunnel to a host that has joined. The age of a handshake says nothing about
// health and is for showing only; a pulse came through the tunnel.
type PeerStatus struct {
	Host             string
	Addr             netip.Addr
	Handshake        time.Time // zero: none since the device was opened
	RxBytes, TxBytes int64     // since the key is configured
	Pulse            wire.Pulse
	PulsedAt         time.Time // zero: no pulse since the gateway was opened
}

// Status is the state of every host that has joined and is configured on the device, in no order. Errors wrap
// ErrDeviceHung or ErrDeviceGone when the device is being restored.
func (g *Gateway) Status(ctx context.Context) ([]PeerStatus, error) {
	d, err := g.device().read(ctx)
	if err != nil {
		return nil, fmt.Errorf("tunnel: status: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]PeerStatus, 0, len(d.Peers))
	for _, p := range d.Peers {
		own, ok := g.book.accepted[Key(p.PublicKey)]
		if !ok || own.Next || !IsHost(own.Addr) {
			continue
		}
		said := g.pulses.get(own.Addr)
		out = append(out, PeerStatus{
			Host: own.Host, Addr: own.Addr, Handshake: p.LastHandshakeTime, RxBytes: p.ReceiveBytes, TxBytes: p.TransmitBytes,
			Pulse: said.Pulse, PulsedAt: said.at,
		})
	}
	return out, nil
}
