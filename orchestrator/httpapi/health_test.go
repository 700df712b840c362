package httpapi_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
	"github.com/driftstack/fleet/orchestrator/httpapi"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/profilestate"
	"github.com/driftstack/fleet/recorder"
	"github.com/driftstack/fleet/tunnel"
)

// tunnelEnd stands in for a gateway: it says what the test wants.
type tunnelEnd struct {
	mu     sync.Mutex
	status []tunnel.PeerStatus
	err    error
}

func (*tunnelEnd) Backend() string { return "kernel" }

func (*tunnelEnd) Counters() tunnel.Counters {
	return tunnel.Counters{Peers: 2, Reconciled: 3, ReconcileTime: 30 * time.Millisecond, ReconcileBuckets: map[float64]uint64{.01: 2, .1: 3},
		ReconcileErrors: 1, Restores: 4, IsolationRepairs: 5}
}

func (e *tunnelEnd) Status(context.Context) ([]tunnel.PeerStatus, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.status), e.err
}

// replica is one of several orchestrators on one database.
type replica struct {
	o      *orchestrator.Orchestrator
	store  *pgstore.Store
	fleet  *driverproxy.Fleet
	client *client.Client
	tunnel *tunnelEnd
	addr   string // where hosts find it, over the line
	line   *line
	told   chan string // hosts that the database notified about
}

// newReplica is one with the root key of the others, as all have it.
func newReplica(t *testing.T, dsn, name, root string) *replica {
	t.Helper()
	log, dir := zap.NewNop(), t.TempDir()
	r := &replica{tunnel: &tunnelEnd{}, told: make(chan string, 1024)}
	var err error
	r.store, err = pgstore.Open(t.Context(), dsn, name, log)
	must(t, err)
	t.Cleanup(r.store.Close)
	must(t, os.Link(root, dir+"/root.key"))
	profiles, keys := openProfiles(t, dir, keyDatabase(t), r.store)
	rec, err := recorder.Open(t.Context(), recorder.Config{Dir: dir + "/spool", Journal: r.store, Log: log,
		EU: recorder.EUTarget{Target: recorder.Target{Endpoint: "http://127.0.0.1:9", Bucket: "recordings-eu", AccessKey: "k", SecretKey: "s"}}})
	must(t, err)
	t.Cleanup(func() { must(t, rec.Close(context.Background())) })
	// A host that is only silent is not given up during the test: what else ends a session is what the test did.
	r.fleet = driverproxy.NewFleet(driverproxy.Config{Orchestrator: name, Epoch: name, Directory: directory{Store: r.store}, HeartbeatLimit: 5 * time.Minute, Log: log})
	fleetServer := httptest.NewServer(r.fleet.Handler())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	r.addr = listener.Addr().String()
	r.line = openLine(t, listener, "tcp", fleetServer.Listener.Addr().String())
	r.o = orchestrator.New(orchestrator.Deps{ID: name, Sessions: r.store, Hosts: r.store, Fleet: r.fleet, Recorder: rec, Profiles: profiles, Tunnel: r.tunnel,
		Log: log, Now: time.Now, QueueLimit: 100, LeaseTTL: 15 * time.Second})
	public := httptest.NewServer(httpapi.New(httpapi.Config{Orchestrator: r.o, Store: r.store, Profiles: profiles, Keys: keys, Recordings: rec, Token: token, Log: log, Now: time.Now}))
	r.client, err = client.New(public.URL, token)
	must(t, err)
	work, stop := context.WithCancel(context.Background())
	background, stopBackground := context.WithCancel(context.Background())
	var running, listening sync.WaitGroup
	running.Go(func() { r.o.Run(work) })
	listening.Go(func() {
		r.store.Listen(background, pgstore.Wakes{Queue: r.o.WakeQueue, Session: r.o.WakeSession, Cancel: r.o.WakeCancel, Hosts: func(name string) {
			r.o.WakeHost(name)
			select {
			case r.told <- name:
			default:
			}
		}})
	})
	t.Cleanup(func() {
		stop()
		running.Wait()
		public.CloseClientConnections()
		public.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		must(t, r.fleet.Close(ctx))
		fleetServer.Close()
		stopBackground()
		listening.Wait()
	})
	return r
}

// newReplicas are two orchestrators, and a host that is connected to both; stop says goodbye.
func newReplicas(t *testing.T, devices int) (one, two *replica, stop func()) {
	t.Helper()
	dsn := database(t)
	root := t.TempDir() + "/root.key"
	must(t, profilestate.CreateRootKey(root))
	one, two = newReplica(t, dsn, "eu-1", root), newReplica(t, dsn, "eu-2", root)
	enrolMac(t, one.store)
	_, err := one.client.PutAccount(t.Context(), "a", api.PutAccount{Recordings: "eu"})
	must(t, err)
	cfg := host.Config{Name: "mac-1", Agent: "test", StateDir: t.TempDir(), Dial: (&net.Dialer{}).DialContext, Log: zap.NewNop(),
		Orchestrators: host.Fixed(one.addr, two.addr),
		Fake:          func(string) *drivertest.Driver { return drivertest.New() }}
	for i := range devices {
		cfg.Devices = append(cfg.Devices, host.Device{Name: "phone-" + string(rune('a'+i)), Kind: host.KindFake, Model: "iPhone 15", PlatformName: "iOS", PlatformVersion: "17.0"})
	}
	ctx, cancel := context.WithCancel(context.Background())
	var hosting sync.WaitGroup
	hosting.Go(func() {
		if err := host.Run(ctx, cfg); err != nil {
			t.Error(err)
		}
	})
	stop = func() { cancel(); hosting.Wait() }
	t.Cleanup(stop)
	return one, two, stop
}

func (r *replica) host(t *testing.T) api.HostDetail {
	t.Helper()
	h, err := r.client.Host(t.Context(), "mac-1")
	must(t, err)
	return h
}

// becomes waits for a state whose reason says something.
func (r *replica) becomes(t *testing.T, state api.HostState, reason string) api.HostDetail {
	t.Helper()
	var h api.HostDetail
	defer func() {
		if t.Failed() {
			t.Logf("the host is %s: %s", h.State, h.Reason)
		}
	}()
	eventually(t, "the host is "+string(state)+": "+reason, func() bool {
		h = r.host(t)
		return h.State == state && strings.Contains(h.Reason, reason)
	})
	return h
}

func (r *replica) metrics(t *testing.T) string {
	t.Helper()
	w := httptest.NewRecorder()
	r.o.Metrics().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("metrics: %d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestHostFromUpToStale(t *testing.T) {
	t.Parallel()
	one, two, stop := newReplicas(t, 1)
	pulse := tunnel.PeerStatus{Host: "mac-1", RxBytes: 1234, TxBytes: 56, Handshake: time.Now().Add(-time.Minute), PulsedAt: time.Now(),
		Pulse: wire.Pulse{Backend: "netstack", MTU: 1280, Repairs: wire.Repairs{Handshake: 7}}}
	one.tunnel.mu.Lock()
	one.tunnel.status = []tunnel.PeerStatus{pulse, {Host: "mac-9", RxBytes: 1}}
	one.tunnel.mu.Unlock()
	two.tunnel.mu.Lock()
	two.tunnel.err = errors.New("hung") // which must not keep its heartbeats from being told
	two.tunnel.mu.Unlock()
	var h api.HostDetail
	eventually(t, "both orchestrators tell of the host", func() bool {
		h = one.host(t)
		return h.State == api.HostUp && len(h.Links) == 2 && h.Links[0].MTU == 1280 && h.Links[0].RoundTripUS > 0 && h.Links[1].RoundTripUS > 0
	})
	l := h.Links[0]
	if l.Orchestrator != "eu-1" || !l.Up || l.RxBytes != 1234 || l.TxBytes != 56 || l.HostBackend != "netstack" || l.GatewayBackend != "kernel" ||
		l.Repairs != (api.Repairs{Handshake: 7}) || l.HandshakeAt == nil || l.RoundTripUS > (10*time.Second).Microseconds() {
		t.Errorf("link %+v", l)
	}
	if len(h.DeviceList) != 1 || h.DeviceList[0].State != "ready" || h.RoundTripUS != max(l.RoundTripUS, h.Links[1].RoundTripUS) {
		t.Errorf("host %+v", h)
	}
	list, err := two.client.Hosts(t.Context())
	if err != nil || len(list) != 1 || list[0].State != api.HostUp {
		t.Errorf("list %+v, %v", list, err)
	}

	two.line.set(false, true)
	one.becomes(t, api.HostDegraded, "eu-2 has not heard a heartbeat since")
	two.line.set(false, false)
	one.becomes(t, api.HostUp, "live links to 2 of 2 orchestrators")
	two.line.set(true, false)
	eventually(t, "the link to eu-2 is down", func() bool {
		l := one.host(t).Links[1]
		return !l.Up && l.Reason != "" && l.LostAt != nil
	})
	one.line.set(true, false)
	if h = one.becomes(t, api.HostStale, "not heard since"); h.DeviceList[0].State != "offline" || !strings.Contains(h.Reason, "check that it is powered") {
		t.Errorf("%+v", h)
	}
	pulse.PulsedAt, pulse.Pulse.Reason = time.Now(), "small packets only"
	one.tunnel.mu.Lock()
	one.tunnel.status = []tunnel.PeerStatus{pulse}
	one.tunnel.mu.Unlock()
	one.becomes(t, api.HostStale, "the tunnel to eu-1 works, but the agent does not connect through it: small packets only")
	pulse.Pulse.Reason = ""
	one.tunnel.mu.Lock()
	one.tunnel.status = []tunnel.PeerStatus{pulse}
	one.tunnel.mu.Unlock()
	one.line.set(false, false)
	two.line.set(false, false)
	eventually(t, "the host is back at both", func() bool { h := one.host(t); return h.Links[0].Up && h.Links[1].Up })
	one.becomes(t, api.HostUp, "live links to 2 of 2 orchestrators")
	stop()
	one.becomes(t, api.HostRegistered, "was stopped")
}

func TestRemovedHostIsCutOffEverywhere(t *testing.T) {
	t.Parallel()
	one, two, _ := newReplicas(t, 16)
	eventually(t, "the host is connected to both", func() bool { return len(one.fleet.Hosts()) == 1 && len(two.fleet.Hosts()) == 1 })
	// Whichever looks first runs a session: until both do.
	var sessions []string
	for range 16 {
		s, err := one.client.CreateSession(t.Context(), unrecorded(api.CreateSession{}))
		must(t, err)
		s, err = one.client.Wait(t.Context(), s.ID, api.Running)
		if must(t, err); s.State != api.Running {
			t.Fatalf("session is %s: %s %s", s.State, s.Reason, s.Detail)
		}
		sessions = append(sessions, s.ID)
		if idle := "driftstack_orchestrator_sessions 0\n"; !strings.Contains(one.metrics(t), idle) && !strings.Contains(two.metrics(t), idle) {
			break
		}
	}
	for _, r := range []*replica{one, two} {
		for len(r.told) > 0 {
			<-r.told
		}
	}
	began := time.Now()
	must(t, one.client.RemoveHost(t.Context(), "mac-1"))
	eventually(t, "both have cut the host off", func() bool { return len(one.fleet.Links())+len(two.fleet.Links()) == 0 })
	if took := time.Since(began); took > 9*time.Second { // a lost notification costs up to 10 s
		t.Errorf("cut off on two orchestrators after %s", took)
	} else {
		t.Logf("cut off on two orchestrators after %s", took.Round(time.Millisecond))
	}
	for _, id := range sessions {
		s, err := two.client.Wait(t.Context(), id, api.Ended)
		if must(t, err); s.State != api.Ended || s.Reason != string(orchestrator.HostLost) {
			t.Errorf("session %s is %s: %s %s", id, s.State, s.Reason, s.Detail)
		}
	}
	t.Logf("%d sessions ended after %s", len(sessions), time.Since(began).Round(time.Millisecond))
	for i, r := range []*replica{one, two} {
		select {
		case name := <-r.told:
			if name != "mac-1" {
				t.Errorf("eu-%d was told of %q", i+1, name)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("eu-%d was told nothing", i+1)
		}
	}
	if h := one.becomes(t, api.HostRevoked, "driftctl hosts add mac-1"); h.Address != "" {
		t.Errorf("%+v", h)
	}
	// Its agent still runs, and tries again and again.
	if _, err := one.client.CreateSession(t.Context(), unrecorded(api.CreateSession{})); err == nil || !strings.Contains(err.Error(), "no-such-device") && !strings.Contains(err.Error(), "device") {
		t.Errorf("a session for a host that was removed: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	one, _, stop := newReplicas(t, 1)
	one.tunnel.mu.Lock()
	one.tunnel.status = []tunnel.PeerStatus{{Host: "mac-1", RxBytes: 1234, TxBytes: 56, Handshake: time.Unix(1_700_000_000, 0), PulsedAt: time.Now(),
		Pulse: wire.Pulse{Backend: "netstack", MTU: 1280, Repairs: wire.Repairs{Handshake: 7, Device: 2}}},
		{Host: "mac-gone", RxBytes: 8, PulsedAt: time.Now().Add(-2 * time.Minute), Pulse: wire.Pulse{MTU: 1200}}}
	one.tunnel.mu.Unlock()
	one.becomes(t, api.HostUp, "live links to 2 of 2 orchestrators")
	eventually(t, "the heartbeat is measured and the tunnel read", func() bool {
		m := one.metrics(t)
		return strings.Contains(m, `driftstack_host_heartbeat_round_trip_seconds{host="mac-1"}`) && strings.Contains(m, `driftstack_host_mtu_bytes{host="mac-1"} 1280`)
	})
	m := one.metrics(t)
	for _, want := range []string{
		`driftstack_host_state{host="mac-1",state="up"} 1`, `driftstack_host_state{host="mac-1",state="stale"} 0`,
		`driftstack_host_received_bytes_total{host="mac-1"} 1234`, `driftstack_host_sent_bytes_total{host="mac-1"} 56`,
		`driftstack_host_repairs_total{host="mac-1",rung="handshake"} 7`, `driftstack_host_repairs_total{host="mac-1",rung="device"} 2`,
		`driftstack_host_last_handshake_timestamp_seconds{host="mac-1"} 1.7e+09`, `driftstack_host_last_heartbeat_timestamp_seconds{host="mac-1"} 1.`,
		`driftstack_gateway_info{backend="kernel"} 1`, `driftstack_gateway_peers 2`, `driftstack_gateway_reconcile_errors_total 1`,
		`driftstack_gateway_restores_total 4`, `driftstack_gateway_isolation_repairs_total 5`,
		`driftstack_gateway_reconcile_duration_seconds_bucket{le="0.01"} 2`, `driftstack_gateway_reconcile_duration_seconds_count 3`,
		`driftstack_database_up 1`, `driftstack_orchestrator_sessions 0`, `driftstack_sessions{state="queued"} 0`, `driftstack_devices{state="ready"} 1`,
		`driftstack_hosts_closed{why="damped"} 0`, `driftstack_sessions_ended_total{reason="force_released"} 0`, `driftstack_command_duration_seconds_count{result="ok"} 0`, "go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(m, want) {
			t.Errorf("not exported: %s", want)
		}
	}
	if !strings.Contains(m, `driftstack_host_received_bytes_total{host="mac-gone"} 8`) || strings.Contains(m, `driftstack_host_mtu_bytes{host="mac-gone"}`) {
		t.Error("the MTU of a host that is gone is exported, or its bytes are not")
	}
	problems, err := testutil.CollectAndLint(one.o.Collector())
	if err != nil {
		t.Error(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	stop()
	eventually(t, "the host is gone", func() bool { return len(one.fleet.Hosts()) == 0 })
	one.becomes(t, api.HostRegistered, "")
	if m := one.metrics(t); strings.Contains(m, "heartbeat_round_trip_seconds{") || !strings.Contains(m, `driftstack_host_state{host="mac-1",state="up"} 0`) {
		t.Error("a host that is gone is still measured")
	}
	one.store.Close()
	if m := one.metrics(t); !strings.Contains(m, "driftstack_database_up 0") || strings.Contains(m, "driftstack_host_state{") || !strings.Contains(m, "driftstack_gateway_peers 2") {
		t.Error("metrics while the database is away: its states are not known, the rest is")
	}
}
