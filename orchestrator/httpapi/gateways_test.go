package httpapi_test

import (
	"crypto/mlkem"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/client"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/tunnel"
)

// refused checks that a call fails with a status, and says something.
func refused(t *testing.T, what string, err error, status int, says string) {
	t.Helper()
	var p *client.Problem
	if !errors.As(err, &p) || p.Status != status || !strings.Contains(p.Error(), says) {
		t.Errorf("%s: %v, want status %d and %q", what, err, status, says)
	}
}

// TestRotateKeys is what operators ask for and what hosts and gateways are then told.
func TestRotateKeys(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 10)
	ctx := t.Context()
	refused(t, "an unknown host", r.client.RotateHost(ctx, "nobody"), http.StatusNotFound, "")
	number := 0
	_, err := r.store.Invite(ctx, "mac-2", time.Hour, func(n int) (orchestrator.Invitation, error) {
		number = n
		return orchestrator.Invitation{JoinPublicKey: tunnel.Key{3}}, nil
	})
	must(t, err)
	refused(t, "a host that has not joined", r.client.RotateHost(ctx, "mac-2"), http.StatusConflict, "has not joined yet")
	join, err := tunnel.JoinAddr(number)
	must(t, err)
	addr, err := tunnel.HostAddr(number)
	must(t, err)
	kem, err := mlkem.GenerateKey768()
	must(t, err)
	_, err = r.store.Redeem(ctx, join, tunnel.Offer{PublicKey: tunnel.Key{4}, EncapsulationKey: kem.EncapsulationKey().Bytes()})
	must(t, err)
	told := func() (b wire.Beat) {
		t.Helper()
		b, err := r.store.Beat(ctx, addr)
		must(t, err)
		return b
	}
	if told().Rotate {
		t.Error("a host is told to rotate that nobody asked")
	}
	for range 2 { // again while it is under way: the same
		must(t, r.client.RotateHost(ctx, "mac-2"))
	}
	eventually(t, "the host is told to rotate", func() bool { return told().Rotate })

	if g, err := r.client.Gateways(ctx); err != nil || g == nil || len(g) != 0 {
		t.Errorf("gateways before there are any: %v, %v", g, err)
	}
	refused(t, "an unknown gateway", r.client.RotateGateway(ctx, "eu-9", time.Hour), http.StatusNotFound, "")
	for _, within := range []time.Duration{-time.Hour, time.Second, 59 * time.Second, 30*24*time.Hour + time.Second} {
		refused(t, "within "+within.String(), r.client.RotateGateway(ctx, "test", within), http.StatusUnprocessableEntity, "within_seconds")
	}
	at, err := tunnel.GatewayAddr(1)
	must(t, err)
	info := tunnel.GatewayInfo{Endpoint: "gw.example.com:51820", PublicKey: tunnel.Key{9}, Addr: at, FleetPort: 7700}
	announce(t, r.store, info)
	must(t, r.client.RotateGateway(ctx, "test", 0))
	if o := announce(t, r.store, info); !o.Rotate {
		t.Errorf("the gateway is not told to rotate: %+v", o)
	}
	info.NextPublicKey = tunnel.Key{10}
	if o := announce(t, r.store, info); o.NextIn < 7*24*time.Hour-time.Minute || o.NextIn > 7*24*time.Hour {
		t.Errorf("without a time it is %s", o.NextIn)
	}
	// Sooner is possible, later is not.
	must(t, r.client.RotateGateway(ctx, "test", 59*time.Second+time.Nanosecond)) // rounded up
	must(t, r.client.RotateGateway(ctx, "test", 30*24*time.Hour))
	g, err := r.client.Gateways(ctx)
	if err != nil || len(g) != 1 || g[0].Name != "test" || g[0].Address != info.Addr.String() || g[0].Endpoint != info.Endpoint || g[0].PublicKey != info.PublicKey.String() ||
		g[0].NextPublicKey != info.NextPublicKey.String() || g[0].NextInSeconds <= 0 || g[0].NextInSeconds > 60 || !g[0].Live {
		t.Errorf("gateways %+v, %v", g, err)
	}

	must(t, r.client.RemoveHost(ctx, "mac-2"))
	refused(t, "a removed host", r.client.RotateHost(ctx, "mac-2"), http.StatusConflict, "was removed")
}

func announce(t *testing.T, s *pgstore.Store, g tunnel.GatewayInfo) tunnel.Orders {
	t.Helper()
	o, err := s.Announce(t.Context(), tunnel.Announcement{Gateway: g, Every: 90 * 24 * time.Hour})
	must(t, err)
	return o
}
