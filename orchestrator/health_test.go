package orchestrator

import (
	"context"
	"errors"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/tunnel"
)

// patient is more than anything here takes on a busy machine.
const patient = 20 * time.Second

type anyHost struct{}

func (anyHost) HostByAddr(context.Context, netip.Addr) (string, error)      { return "mac-1", nil }
func (anyHost) HostUp(context.Context, wire.Hello) error                    { return nil }
func (anyHost) DevicesChanged(context.Context, string, []wire.Device) error { return nil }
func (anyHost) HostDown(_ context.Context, _ string, _ error)               {}

// linkStore notes what is stored, and may be away.
type linkStore struct {
	HostStore
	stored chan []LinkReport
	asked  chan []string

	mu   sync.Mutex
	away int // calls of Unwelcome that fail
	gone []string
}

func (s *linkStore) StoreLinks(_ context.Context, _ string, links []LinkReport) error {
	s.stored <- links
	return nil
}

func (*linkStore) EndDrained(context.Context) (int, error) { return 0, nil }

func (s *linkStore) Unwelcome(_ context.Context, hosts []string) ([]string, error) {
	s.asked <- hosts
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away > 0 {
		s.away--
		return nil, errors.New("the database is away")
	}
	return slices.DeleteFunc(slices.Clone(hosts), func(h string) bool { return !slices.Contains(s.gone, h) }), nil
}

// connected is an orchestrator with one host whose messages the test writes. Its clock stands still.
func connected(t *testing.T, store *linkStore) (*Orchestrator, *websocket.Conn) {
	t.Helper()
	start := time.Now()
	clock := func() time.Time { return start }
	fleet := driverproxy.NewFleet(driverproxy.Config{Orchestrator: "eu-1", Epoch: "e", Directory: anyHost{}, HeartbeatLimit: time.Minute, Now: clock})
	server := httptest.NewServer(fleet.Handler())
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patient)
		defer cancel()
		if err := fleet.Close(ctx); err != nil {
			t.Error(err)
		}
		server.Close()
	})
	ws, _, err := websocket.DefaultDialer.DialContext(t.Context(), "ws"+strings.TrimPrefix(server.URL, "http")+wire.PathControl, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ws.Close() })
	return New(Deps{ID: "test", Hosts: store, Fleet: fleet, Log: zap.NewNop(), Now: clock}), ws
}

func say(t *testing.T, ws *websocket.Conn, m wire.Control) {
	t.Helper()
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := ws.WriteMessage(websocket.TextMessage, b); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ws.ReadMessage(); err != nil {
		t.Fatal(err)
	}
}

func hello(t *testing.T, ws *websocket.Conn) {
	t.Helper()
	say(t, ws, wire.Control{Hello: &wire.Hello{Protocol: wire.Version, Host: "mac-1", Boot: "b"}})
}

func got[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patient):
		t.Fatalf("%s: not in time", what)
	}
	return v
}

// during runs a loop for as long as the test.
func during(t *testing.T, loop func(context.Context)) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { loop(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
}

// TestNewsIsReported: by this clock the next report is never due, so that only news can bring one.
func TestNewsIsReported(t *testing.T) {
	store := &linkStore{stored: make(chan []LinkReport, 16)}
	o, ws := connected(t, store)
	during(t, o.reportHealth)
	if first := got(t, "the first report", store.stored); len(first) != 0 {
		t.Errorf("nobody is connected: %+v", first)
	}
	hello(t, ws)
	if r := got(t, "a report of the new host", store.stored); len(r) != 1 || r[0].Host != "mac-1" || r[0].RoundTrip != 0 {
		t.Errorf("%+v", r)
	}
	say(t, ws, wire.Control{Heartbeat: &wire.Heartbeat{Seq: 1, RoundTrip: 900 * time.Millisecond}}) // no news
	say(t, ws, wire.Control{Heartbeat: &wire.Heartbeat{Seq: 2, RoundTrip: 2 * time.Second}})
	if r := got(t, "a report of a slow heartbeat", store.stored); len(r) != 1 || r[0].RoundTrip != 2*time.Second {
		t.Errorf("%+v", r)
	}
	_ = ws.Close()
	if r := got(t, "a report without the host", store.stored); len(r) != 0 {
		t.Errorf("%+v", r)
	}
}

func TestRemovedHostIsDropped(t *testing.T) {
	store := &linkStore{asked: make(chan []string, 16), away: 3}
	o, ws := connected(t, store)
	hello(t, ws)
	during(t, o.evict)
	o.WakeHost("mac-2")
	for range 4 { // until the database is back
		if names := got(t, "a look", store.asked); !slices.Equal(names, []string{"mac-2"}) {
			t.Errorf("looked for %q", names)
		}
	}
	if hosts := o.deps.Fleet.Hosts(); len(hosts) != 1 {
		t.Errorf("connected: %q", hosts)
	}
	store.mu.Lock()
	store.gone = []string{"mac-1"}
	store.mu.Unlock()
	o.WakeHost("") // after a lost connection anything may have changed
	if names := got(t, "a look at all", store.asked); !slices.Equal(names, []string{"mac-1"}) {
		t.Errorf("looked for %q", names)
	}
	_ = ws.SetReadDeadline(time.Now().Add(patient))
	if _, _, err := ws.ReadMessage(); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the host is not cut off: %v", err)
	}
}

// TestPulsesAreReported: of a host that is not connected, as long as they are fresh.
func TestPulsesAreReported(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	o := New(Deps{Now: func() time.Time { return now }, Fleet: driverproxy.NewFleet(driverproxy.Config{Orchestrator: "eu-1", Directory: anyHost{}}), Log: zap.NewNop()})
	o.health.tunnel = map[string]tunnel.PeerStatus{
		"mac-1": {Host: "mac-1", PulsedAt: now.Add(-44 * time.Second), Pulse: wire.Pulse{Reason: "why"}},
		"mac-2": {Host: "mac-2", PulsedAt: now.Add(-45 * time.Second)},
		"mac-3": {Host: "mac-3"},
	}
	r := o.linkReports()
	if len(r) != 1 || r[0].Host != "mac-1" || !r[0].Pulses || r[0].Silent != 44*time.Second || r[0].Tunnel.Pulse.Reason != "why" {
		t.Errorf("%+v", r)
	}
}
