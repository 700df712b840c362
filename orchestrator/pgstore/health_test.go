package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/tunnel"
)

func hostOf(t *testing.T, s *pgstore.Store) api.HostDetail {
	t.Helper()
	h, err := s.Host(t.Context(), "mac-1")
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func store(t *testing.T, s *pgstore.Store, l orchestrator.LinkReport) {
	t.Helper()
	if err := s.StoreLinks(t.Context(), "netstack", []orchestrator.LinkReport{l}); err != nil {
		t.Fatal(err)
	}
}

func TestLinksAreShownAsReported(t *testing.T) {
	s := open(t, 1)
	if err := s.StoreLinks(t.Context(), "netstack", nil); err != nil {
		t.Fatal(err)
	}
	shaken := time.Now().Add(-time.Minute).Truncate(time.Millisecond)
	report := orchestrator.LinkReport{Host: "mac-1", Silent: 700 * time.Millisecond, RoundTrip: 131 * time.Millisecond, Tunnel: tunnel.PeerStatus{
		Handshake: shaken, RxBytes: 1 << 40, TxBytes: 12, PulsedAt: time.Now(),
		Pulse: wire.Pulse{Backend: "tun", MTU: 1280, Repairs: wire.Repairs{Handshake: 4, Socket: 3, Resolve: 2, Device: 1}},
	}}
	store(t, s, report)
	h := hostOf(t, s)
	if h.State != api.HostUp || h.Reason != "live links to 1 of 1 orchestrators" || h.RoundTripUS != 131_000 || h.Devices != 1 || len(h.DeviceList) != 1 || h.PublicKey == "" || len(h.Links) != 1 {
		t.Fatalf("%+v", h)
	}
	l := h.Links[0]
	silent := time.Since(l.HeardAt)
	if !l.Up || silent < 700*time.Millisecond || silent > time.Minute {
		t.Errorf("heard %s ago", silent)
	}
	if l.HandshakeAt == nil || !l.HandshakeAt.Equal(shaken) || l.RepairedAt != nil {
		t.Errorf("%+v: repairs of before the first report are no news", l)
	}
	l.ReportedAt, l.HeardAt, l.HandshakeAt = time.Time{}, time.Time{}, nil
	if want := (api.HostLink{Orchestrator: "eu-1", Up: true, RoundTripUS: 131_000, RxBytes: 1 << 40, TxBytes: 12, MTU: 1280,
		GatewayBackend: "netstack", HostBackend: "tun", Repairs: api.Repairs{Handshake: 4, Socket: 3, Resolve: 2, Device: 1}}); l != want {
		t.Errorf("link %+v, want %+v", l, want)
	}

	// The orchestrator was started anew and has heard no pulse: what the last one said stands.
	report.Tunnel = tunnel.PeerStatus{}
	store(t, s, report)
	if l := hostOf(t, s).Links[0]; l.MTU != 1280 || l.HostBackend != "tun" || l.Repairs.Total() != 10 || l.HandshakeAt != nil {
		t.Errorf("without a pulse: %+v", l)
	}
	// One more repair is news; the counters of an agent that was started anew are not.
	report.Tunnel = tunnel.PeerStatus{PulsedAt: time.Now(), Pulse: wire.Pulse{Backend: "tun", MTU: 1200, Reason: "slow day", Repairs: wire.Repairs{Handshake: 1}}}
	store(t, s, report)
	if l := hostOf(t, s).Links[0]; l.RepairedAt != nil || l.Repairs.Total() != 1 {
		t.Errorf("agent started anew: %+v", l)
	}
	report.Tunnel.Pulse.Repairs.Socket = 1
	store(t, s, report)
	h = hostOf(t, s)
	if l := h.Links[0]; l.RepairedAt == nil || l.Repairs.Total() != 2 {
		t.Errorf("a repair: %+v", l)
	}
	if h.State != api.HostDegraded || !strings.Contains(h.Reason, "slow day") || !strings.Contains(h.Reason, "MTU 1200") || !strings.Contains(h.Reason, "repaired") {
		t.Errorf("%s: %s", h.State, h.Reason)
	}
	if list, err := s.Hosts(t.Context()); err != nil || len(list) != 1 || list[0].State != h.State || list[0].Name != "mac-1" {
		t.Errorf("list: %+v, %v", list, err)
	}
	if _, err := s.Host(t.Context(), "mac-2"); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Errorf("no such host: %v", err)
	}
}

// TestLateReportsRaiseNobody: a report on its way while the host goes down must not bring the link back.
func TestLateReportsRaiseNobody(t *testing.T) {
	s := open(t, 1)
	ctx := t.Context()
	s.HostDown(ctx, "mac-1", fmt.Errorf("%w for 5s", driverproxy.ErrSilent))
	store(t, s, orchestrator.LinkReport{Host: "mac-1", RoundTrip: time.Millisecond})
	h := hostOf(t, s)
	if h.State != api.HostStale || h.Links[0].Up || h.Links[0].LostAt == nil || h.Links[0].Reason != "nothing is heard of it for 5s" || h.DeviceList[0].State != "offline" {
		t.Errorf("silent: %+v", h)
	}
	if l := h.Links[0]; l.HeardAt.After(*l.LostAt) {
		t.Errorf("lost at %s, and heard at %s", l.LostAt, l.HeardAt)
	}
	if err := s.HostUp(ctx, wire.Hello{Host: "mac-1", Devices: []wire.Device{{Name: "phone-0", State: wire.DeviceReady}}}); err != nil {
		t.Fatal(err)
	}
	if h := hostOf(t, s); h.State != api.HostUp || !h.Links[0].Up || h.Links[0].Reason != "" || h.DeviceList[0].State != "ready" {
		t.Errorf("back: %+v", h)
	}
	s.HostDown(ctx, "mac-1", fmt.Errorf("%w: the agent is shutting down", driverproxy.ErrGoodbye))
	if h := hostOf(t, s); h.State != api.HostRegistered || !strings.Contains(h.Reason, "stopped") {
		t.Errorf("goodbye: %s: %s", h.State, h.Reason)
	}
	store(t, s, orchestrator.LinkReport{Host: "mac-1"})
	if h := hostOf(t, s); h.State != api.HostRegistered || h.Links[0].Up {
		t.Errorf("a report after the goodbye: %s: %s", h.State, h.Reason)
	}
}

// TestDeadOrchestratorsHoldNoDevices has one that was killed: its rows say "connected" for ever.
func TestDeadOrchestratorsHoldNoDevices(t *testing.T) {
	dsn := postgres.Database(t)
	var replicas []*pgstore.Store
	for _, name := range []string{"eu-1", "eu-2"} {
		s, err := pgstore.Open(t.Context(), dsn, name, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		replicas = append(replicas, s)
	}
	killed, other := replicas[0], replicas[1]
	up(t, killed, "mac-1", 1)
	state := func() string { return hostOf(t, other).DeviceList[0].State }
	free := func() bool {
		t.Helper()
		free, err := other.DeviceFree(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return free
	}
	if !free() || state() != "ready" {
		t.Fatalf("the device is %s", state())
	}
	killed.Age(t, 31*time.Second)
	h := hostOf(t, other)
	if free() || state() != "offline" || h.State != api.HostStale || !strings.Contains(h.Reason, "eu-1") {
		t.Errorf("31 s after eu-1 died the device is %s, free %v; the host %s: %s", state(), free(), h.State, h.Reason)
	}
	// It was only slow: its next report takes everything back, without help from the host.
	store(t, killed, orchestrator.LinkReport{Host: "mac-1"})
	if h := hostOf(t, other); !free() || state() != "ready" || h.State != api.HostUp {
		t.Errorf("eu-1 is back, and the device is %s, the host %s: %s", state(), h.State, h.Reason)
	}
	// Its next start knows that nobody is connected.
	if err := killed.AllHostsDown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h := hostOf(t, other); free() || h.State != api.HostStale || !strings.Contains(h.Reason, "started anew") {
		t.Errorf("after the start: %s: %s", h.State, h.Reason)
	}
	// The other one is connected now: the device is free again, whatever the first one's rows say.
	if err := other.HostUp(t.Context(), wire.Hello{Host: "mac-1", Devices: []wire.Device{{Name: "phone-0", State: wire.DeviceQuarantined, Reason: "dirty"}}}); err != nil {
		t.Fatal(err)
	}
	if state() != "quarantined" || free() {
		t.Errorf("the device is %s", state())
	}
	other.HostDown(t.Context(), "mac-1", errors.New("cut"))
	if d := hostOf(t, other).DeviceList[0]; d.State != "quarantined" || d.Reason != "dirty" {
		t.Errorf("a quarantine is forgotten with the link: %+v", d)
	}
}

func TestMissingGatewaysShow(t *testing.T) {
	s := open(t, 1)
	s.AddGateway(t, "eu-1", 1)
	if h := hostOf(t, s); h.State != api.HostUp {
		t.Errorf("%s: %s", h.State, h.Reason)
	}
	s.AddGateway(t, "eu-2", 2)
	if h := hostOf(t, s); h.State != api.HostDegraded || !strings.Contains(h.Reason, "no link to eu-2") {
		t.Errorf("%s: %s", h.State, h.Reason)
	}
}

func TestUnwelcome(t *testing.T) {
	s := open(t, 1)
	ctx := t.Context()
	invite(t, s, "mac-2", time.Hour)
	got, err := s.Unwelcome(ctx, []string{"mac-1", "mac-2", "mac-3"})
	slices.Sort(got)
	if err != nil || !slices.Equal(got, []string{"mac-2", "mac-3"}) {
		t.Errorf("unwelcome %v, %v", got, err)
	}
	s.MarkRevoked(t, "mac-1")
	if got, err := s.Unwelcome(ctx, []string{"mac-1"}); err != nil || len(got) != 1 {
		t.Errorf("removed: %v, %v", got, err)
	}
	if err := s.HostUp(ctx, wire.Hello{Host: "mac-1"}); !errors.Is(err, orchestrator.ErrRemoved) {
		t.Errorf("a removed host comes up: %v", err)
	}
	if h := hostOf(t, s); h.State != api.HostRevoked || h.Address != "" || h.RevokedAt == nil {
		t.Errorf("%+v", h)
	}
	// Its device is neither waited for nor claimed, even though the row is still there and a socket still open.
	if _, err := s.Create(ctx, wish("a")); !errors.Is(err, orchestrator.ErrNoSuchDevice) {
		t.Errorf("a session waits for a removed host: %v", err)
	}
}

func TestClaimsLeaveRemovedHostsAlone(t *testing.T) {
	s := open(t, 1)
	mustCreate(t, s, wish("a"))
	s.MarkRevoked(t, "mac-1")
	if c, ok, err := claim(t.Context(), s, "test", []string{"mac-1"}, time.Minute); ok || err != nil {
		t.Errorf("claimed %+v, %v", c, err)
	}
}

// TestHostileText: what one host says does not keep the links of the others from being stored.
func TestHostileText(t *testing.T) {
	s := open(t, 1)
	report := orchestrator.LinkReport{Host: "mac-1", RoundTrip: time.Millisecond, Tunnel: tunnel.PeerStatus{
		PulsedAt: time.Now(), Pulse: wire.Pulse{Backend: "t\x00un", Reason: "a\x00b\xff"},
	}}
	store(t, s, report)
	if l := hostOf(t, s).Links[0]; l.HostBackend != "tun" || l.Reason != "ab" {
		t.Errorf("%+v", l)
	}
	s.HostDown(t.Context(), "mac-1", errors.New("goodbye\x00\xff"))
	if l := hostOf(t, s).Links[0]; l.Up || l.Reason != "goodbye" {
		t.Errorf("%+v", l)
	}
}

// TestInvitedDuringHello: a host that is removed, and invited again, while it says hello has not joined: its token stays
// good, and nothing of it is connected.
func TestInvitedDuringHello(t *testing.T) {
	s := open(t, 1)
	ctx := t.Context()
	if err := s.Revoke(ctx, "mac-1", time.Hour, orchestrator.Act{By: "test"}); err != nil {
		t.Fatal(err)
	}
	tok := invite(t, s, "mac-1", time.Hour)
	if err := s.HostUp(ctx, wire.Hello{Host: "mac-1"}); !errors.Is(err, orchestrator.ErrRemoved) {
		t.Errorf("up: %v", err)
	}
	if got, err := s.Unwelcome(ctx, []string{"mac-1"}); err != nil || len(got) != 1 {
		t.Errorf("not to be cut off: %v, %v", got, err)
	}
	if _, err := s.Redeem(ctx, tok.Addr, newOffer(t)); err != nil {
		t.Errorf("its token: %v", err)
	}
}

// TestHostsThatComeBack are told of to nobody: after a restart there are thousands, and each would have every gateway look
// at all of its peers.
func TestHostsThatComeBack(t *testing.T) {
	s := open(t, 0)
	hosts, listening := make(chan string, 100), make(chan struct{}, 100)
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		none := func(string) {}
		s.Listen(ctx, pgstore.Wakes{Queue: func(string) {}, Hosts: func(name string) { hosts <- name }, Session: none, Cancel: none,
			Gateway: func(string) { listening <- struct{}{} }})
	})
	defer group.Wait()
	defer stop()
	<-listening
	told := func() (names []string) { // until all that was done before is told
		if _, err := s.Announce(ctx, tunnel.Announcement{Gateway: gatewayInfo(1), Every: time.Hour}); err != nil {
			t.Fatal(err)
		}
		if err := s.RotateGateway(ctx, "eu-1", time.Hour); err != nil {
			t.Fatal(err)
		}
		<-listening
		for len(hosts) > 0 {
			names = append(names, <-hosts)
		}
		return names
	}
	up(t, s, "mac-1", 1)
	if got := told(); !slices.Equal(got, []string{"", "mac-1", "mac-1", "mac-1"}) { // invited, joined, its token is spent
		t.Errorf("told of %q", got)
	}
	if err := s.HostUp(ctx, wire.Hello{Host: "mac-1"}); err != nil {
		t.Fatal(err)
	}
	if got := told(); len(got) != 0 {
		t.Errorf("told of %q", got)
	}
}
