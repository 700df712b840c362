package pgstore_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/tunnel"
)

func mustAnnounce(t *testing.T, s *pgstore.Store, g tunnel.GatewayInfo) tunnel.Orders {
	t.Helper()
	o, err := s.Announce(t.Context(), tunnel.Announcement{Gateway: g, Every: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestAnnounceClashes: two orchestrators that were given the same identity are told so before they take each other's hosts.
func TestAnnounceClashes(t *testing.T) {
	dsn := postgres.Database(t)
	stores := map[string]*pgstore.Store{}
	for _, name := range []string{"eu-1", "eu-2"} {
		s, err := pgstore.Open(t.Context(), dsn, name, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		stores[name] = s
	}
	one := gatewayInfo(1)
	for range 2 { // a restart
		mustAnnounce(t, stores["eu-1"], one)
	}
	for name, c := range map[string]struct {
		by   string
		info func(*tunnel.GatewayInfo)
		says string
	}{
		"the same number": {"eu-2", func(g *tunnel.GatewayInfo) { g.PublicKey = tunnel.Key{9} }, "--tunnel-number"},
		"the same key":    {"eu-2", func(g *tunnel.GatewayInfo) { g.Addr = gatewayInfo(2).Addr }, "gateway.key"},
		"the same name":   {"eu-1", func(g *tunnel.GatewayInfo) { *g = gatewayInfo(3) }, "--name"},
	} {
		g := one
		c.info(&g)
		var conflict *orchestrator.ConflictError
		_, err := stores[c.by].Announce(t.Context(), tunnel.Announcement{Gateway: g, Every: time.Hour})
		if !errors.As(err, &conflict) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	two := gatewayInfo(2)
	mustAnnounce(t, stores["eu-2"], two)
	for _, s := range stores {
		if got, err := s.Gateways(t.Context()); err != nil || len(got) != 2 || got[0] != one || got[1] != two {
			t.Errorf("%v, %v", got, err)
		}
	}
}

// TestGatewayRotation is what a gateway and its hosts are told from order to switch.
func TestGatewayRotation(t *testing.T) {
	s := open(t, 0)
	ctx := t.Context()
	g := gatewayInfo(1)
	host := own(t, invite(t, s, "mac", time.Hour))
	if o := mustAnnounce(t, s, g); o.Rotate {
		t.Error("a new key is due to be replaced")
	}
	if err := s.RotateGateway(ctx, "nobody", time.Minute); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("nobody's: %v", err)
	}
	if err := s.RotateGateway(ctx, "eu-1", time.Minute); err != nil {
		t.Fatal(err)
	}
	if o := mustAnnounce(t, s, g); !o.Rotate || o.NextIn != 0 {
		t.Errorf("orders are %+v", o)
	}
	g.NextPublicKey = tunnel.Key{7}
	for range 2 { // again, as after a restart: the time stays
		if o := mustAnnounce(t, s, g); o.Rotate || o.NextIn <= 0 || o.NextIn > time.Minute {
			t.Errorf("orders are %+v", o)
		}
	}
	b, err := s.Beat(ctx, host)
	if err != nil || len(b.Gateways) != 1 || b.Gateways[0].PublicKey != g.PublicKey.String() || b.Gateways[0].NextPublicKey != g.NextPublicKey.String() ||
		b.Gateways[0].NextIn <= 0 || b.Gateways[0].NextIn > time.Minute {
		t.Errorf("hosts are told %+v, %v", b, err)
	}
	// Sooner is possible, later is not: hosts were told.
	if err := s.RotateGateway(ctx, "eu-1", time.Hour); err != nil {
		t.Fatal(err)
	}
	if o := mustAnnounce(t, s, g); o.NextIn > time.Minute {
		t.Errorf("put off: %+v", o)
	}
	if err := s.RotateGateway(ctx, "eu-1", 0); err != nil {
		t.Fatal(err)
	}
	if o := mustAnnounce(t, s, g); o.NextIn != 0 || o.Rotate {
		t.Errorf("orders are %+v", o)
	}
	g.PublicKey, g.NextPublicKey = g.NextPublicKey, tunnel.Key{}
	for range 2 {
		if o := mustAnnounce(t, s, g); o != (tunnel.Orders{}) {
			t.Errorf("after the switch orders are %+v", o)
		}
	}
	if l, err := s.GatewayList(ctx); err != nil || len(l) != 1 || l[0].PublicKey != g.PublicKey.String() || l[0].NextPublicKey != "" || !l[0].Live {
		t.Errorf("%+v, %v", l, err)
	}
	// A key that is too old.
	if o, err := s.Announce(ctx, tunnel.Announcement{Gateway: g, Every: time.Nanosecond}); err != nil || !o.Rotate {
		t.Errorf("an old key: %+v, %v", o, err)
	}
}

// TestBeatsWhileTheDatabaseHangs: hosts take a pulse without an answer for a broken tunnel, and there are many.
func TestBeatsWhileTheDatabaseHangs(t *testing.T) {
	s := open(t, 0)
	mustAnnounce(t, s, gatewayInfo(1))
	host := netip.MustParseAddr("10.77.1.0")
	if b, err := s.Beat(t.Context(), host); err != nil || len(b.Gateways) != 1 {
		t.Fatalf("%+v, %v", b, err)
	}
	s.Hang(t, "gateways")
	s.AgeBeats()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var group sync.WaitGroup
	for range 100 {
		group.Go(func() {
			if b, err := s.Beat(ctx, host); err != nil || len(b.Gateways) != 1 {
				t.Errorf("%+v, %v", b, err)
			}
		})
	}
	group.Wait()
}

// TestGatewaysAreKept: hosts keep the tunnel to an orchestrator that was away for days, and new ones are not sent to it.
func TestGatewaysAreKept(t *testing.T) {
	s := open(t, 0)
	mustAnnounce(t, s, gatewayInfo(1))
	for i, away := range []time.Duration{6 * 24 * time.Hour, 8 * 24 * time.Hour} {
		name := []string{"eu-2", "eu-3"}[i]
		s.AddGateway(t, name, i+2)
		s.AgeGateway(t, name, away)
	}
	b, err := s.Beat(t.Context(), netip.MustParseAddr("10.77.1.0"))
	if err != nil || len(b.Gateways) != 2 || b.Gateways[1].PublicKey != "eu-2" || b.Gateways[1].NextIn != 0 {
		t.Errorf("%+v, %v", b, err)
	}
	if live, err := s.Gateways(t.Context()); err != nil || len(live) != 1 {
		t.Errorf("%+v, %v", live, err)
	}
}
