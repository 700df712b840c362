package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/tunnel"
	"github.com/driftstack/fleet/tunnel/tunneltest"
)

const reconcileRounds = 7

// listed is a source of peers that do not change.
type listed []tunnel.Peer

func (l listed) Peers(context.Context) ([]tunnel.Peer, error) { return l, nil }

func (l listed) PeersOf(context.Context, string) ([]tunnel.Peer, error) { return nil, nil }

func (l listed) Promote(context.Context, tunnel.Key) error { return nil }

// manyPeers makes peers with valid keys.
func manyPeers(n int) (listed, error) {
	var all listed
	for i := range n {
		private, err := tunnel.NewPrivateKey()
		if err != nil {
			return nil, err
		}
		addr, err := tunnel.HostAddr(tunnel.FirstHost + i)
		if err != nil {
			return nil, err
		}
		all = append(all, tunnel.Peer{Name: fmt.Sprintf("host-%d", i), PublicKey: private.Public(), PresharedKey: tunnel.PresharedKey{byte(i), byte(i >> 8), 1}, Addr: addr})
	}
	return all, nil
}

// reconcile measures a gateway that starts with tunnelPeers peers: from nothing to configured, read back and verified,
// beside one call that configures the same peers on wireguard-go alone. That call's text is made before the clock starts.
func (t *tunnelBench) reconcile(ctx context.Context) ([]figure, error) {
	peers, err := manyPeers(tunnelPeers)
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	for _, p := range peers {
		fmt.Fprintf(&text, "public_key=%s\npreshared_key=%s\nreplace_allowed_ips=true\nallowed_ip=%s/32\n",
			hex.EncodeToString(p.PublicKey[:]), hex.EncodeToString(p.PresharedKey[:]), p.Addr)
	}
	ours := func() (took time.Duration, err error) {
		g, err := tunnel.OpenGateway(ctx, tunnel.GatewayConfig{
			KeyFile: filepath.Join(t.dir, "reconcile.key"), Number: 1, Backend: tunnel.BackendNetstack, MTU: tunnelMTU, Peers: peers, Log: zap.NewNop(),
		})
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, g.Close()) }()
		runtime.GC() // what earlier rounds left is not for this one to clear away
		begin := time.Now()
		err = g.Reconcile(ctx)
		return time.Since(begin), err
	}
	bare := func() (time.Duration, error) {
		b, err := tunneltest.OpenBare(netip.MustParseAddr("10.99.0.1"), tunnelMTU)
		if err != nil {
			return 0, err
		}
		defer b.Discard()
		runtime.GC()
		begin := time.Now()
		err = b.Set(text.String())
		return time.Since(begin), err
	}
	var mine, reference, ratios []float64
	for round := range reconcileRounds + 1 {
		x, err1 := ours()
		y, err2 := bare()
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		if round == 0 {
			continue // warm up
		}
		a, b := millis(x), millis(y)
		mine, reference, ratios = append(mine, a), append(reference, b), append(ratios, a/b)
	}
	return []figure{atMost("tunnel/reconcile-10k-vs-one-call", middle(mine), middle(reference), middle(ratios), "ratio", 1.2)}, nil
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
