package httpapi_test

import (
	"bytes"
	"context"
	"crypto/mlkem"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

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
	"github.com/driftstack/fleet/orchestrator/pgstore/pgcluster/pgtest"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/profilestate"
	"github.com/driftstack/fleet/recorder"
	"github.com/driftstack/fleet/tunnel"
)

const token = "a-service-token-of-the-tests"

var postgres pgtest.Shared

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == host.SuperviseCommand {
		os.Exit(host.SuperviseMain(os.Args[2:]))
	}
	os.Exit(postgres.Run(m))
}

// database and keyDatabase have the schema of their store already.
func database(t *testing.T) (dsn string) {
	t.Helper()
	return postgres.Filled(t, "schema", func(ctx context.Context, dsn string) error {
		s, err := pgstore.Open(ctx, dsn, "", zap.NewNop())
		if err == nil {
			s.Close()
		}
		return err
	})
}

func keyDatabase(t *testing.T) (dsn string) {
	t.Helper()
	return postgres.Filled(t, "schema of keys", func(ctx context.Context, dsn string) error {
		k, err := pgstore.OpenKeys(ctx, dsn)
		if err == nil {
			k.Close()
		}
		return err
	})
}

// rig is an orchestrator on a real database, with a host whose devices have the fake driver, joined over loopback.
type rig struct {
	url      string
	fleet    string // HOST:PORT for hosts
	client   *client.Client
	store    *pgstore.Store
	profiles *profilestate.Store
	dir      string
	stop     func()                  // stops the orchestrator as SIGTERM does, and waits
	stopHost func()                  // stops the host, and waits
	drivers  chan *drivertest.Driver // the driver of each session, in their order; each device is one ahead

	mu     sync.Mutex               // guards what follows
	made   []*drivertest.Driver     // all drivers
	change func(*drivertest.Driver) // what configure was given
}

// configure changes every driver, those that wait for their session already too.
func (r *rig) configure(change func(*drivertest.Driver)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.change = change
	for _, d := range r.made {
		change(d)
	}
}

// openSessions counts those of all drivers.
func (r *rig) openSessions() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.made {
		open, _ := d.Sessions()
		n += open
	}
	return n
}

// newDriver is the driver of a session to come.
func (r *rig) newDriver(string) *drivertest.Driver {
	d := drivertest.New()
	r.mu.Lock()
	r.made = append(r.made, d)
	if r.change != nil {
		r.change(d)
	}
	r.mu.Unlock()
	r.drivers <- d
	return d
}

// openProfiles opens the store of profiles in dir, which has a root key, with its keys in a database of their own.
func openProfiles(t *testing.T, dir, keyDSN string, store *pgstore.Store) (*profilestate.Store, *profilestate.Keyring) {
	t.Helper()
	root, err := profilestate.ReadRootKey(dir + "/root.key")
	must(t, err)
	wrapped, err := pgstore.OpenKeys(t.Context(), keyDSN)
	must(t, err)
	t.Cleanup(wrapped.Close)
	at, err := place.InEU("DE")
	must(t, err)
	keys, err := profilestate.NewKeyring(at, root, wrapped, store)
	must(t, err)
	profiles, err := profilestate.Open(profilestate.Config{Dir: dir + "/profiles", At: at, Keys: keys, Index: store})
	must(t, err)
	return profiles, keys
}

// directory stands in for the tunnel, which says which host an address is.
type directory struct {
	*pgstore.Store
	changed func(wire.Device) // nil, or told of what is stored of a device
}

func (d directory) DevicesChanged(ctx context.Context, host string, list []wire.Device) error {
	err := d.Store.DevicesChanged(ctx, host, list)
	if err == nil && d.changed != nil {
		for _, v := range list {
			d.changed(v)
		}
	}
	return err
}

func (directory) HostByAddr(_ context.Context, a netip.Addr) (string, error) {
	if a == netip.AddrFrom4([4]byte{127, 0, 0, 2}) {
		return "mac-2", nil
	}
	return "mac-1", nil
}

func newRig(t *testing.T, devices, queueLimit int, reroute ...func(*testing.T, string) string) *rig {
	t.Helper()
	return newRigOf(t, fakePhones(devices), queueLimit, reroute...)
}

func fakePhones(n int) (list []host.Device) {
	for i := range n {
		list = append(list, host.Device{Name: "phone-" + string(rune('a'+i)), Kind: host.KindFake, Model: "iPhone 15", PlatformName: "iOS", PlatformVersion: "17.0",
			Labels: map[string]string{"rack": "1"}})
	}
	return list
}

func newRigOf(t *testing.T, list []host.Device, queueLimit int, reroute ...func(*testing.T, string) string) *rig {
	t.Helper()
	return newTappedRig(t, list, queueLimit, taps{}, reroute...)
}

// taps is where a test gets between an orchestrator and its store.
type taps struct {
	sessions func(orchestrator.SessionStore) orchestrator.SessionStore // nil: as it is
	changed  func(wire.Device)                                         // see directory
	public   func(http.Handler) http.Handler                           // nil: as it is
	spool    func(*recorder.Config)                                    // nil: as it is
	fleet    func(http.Handler) http.Handler                           // nil: as it is
}

func newTappedRig(t *testing.T, list []host.Device, queueLimit int, tap taps, reroute ...func(*testing.T, string) string) *rig {
	t.Helper()
	ctx := t.Context()
	log := zap.NewNop()
	r := &rig{drivers: make(chan *drivertest.Driver, 64)}
	var err error
	dsn := database(t)
	for _, f := range reroute {
		dsn = f(t, dsn)
	}
	if r.store, err = pgstore.Open(ctx, dsn, "test", log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.store.Close)
	enrolMac(t, r.store)

	dir := t.TempDir()
	must(t, profilestate.CreateRootKey(dir+"/root.key"))
	profiles, keys := openProfiles(t, dir, keyDatabase(t), r.store)
	must(t, second(r.store.AnnounceReplica(t.Context(), orchestrator.Replica{ID: "test", Name: "test", Volume: profiles.Volume()})))
	r.profiles, r.dir = profiles, dir
	// Nothing listens there: sessions of these tests are not recorded.
	spool := recorder.Config{Dir: dir + "/spool", Journal: r.store, Log: log,
		EU: recorder.EUTarget{Target: recorder.Target{Endpoint: "http://127.0.0.1:9", Bucket: "recordings-eu", AccessKey: "k", SecretKey: "s"}}}
	if tap.spool != nil {
		tap.spool(&spool)
	}
	rec, err := recorder.Open(ctx, spool)
	must(t, err)
	t.Cleanup(func() { must(t, rec.Close(context.Background())) })

	fleet := driverproxy.NewFleet(driverproxy.Config{Orchestrator: "test", Epoch: "1", Directory: directory{r.store, tap.changed}, Log: log})
	hosts := fleet.Handler()
	if tap.fleet != nil {
		hosts = tap.fleet(hosts)
	}
	fleetServer := httptest.NewServer(hosts)
	r.fleet = strings.TrimPrefix(fleetServer.URL, "http://")
	var sessions orchestrator.SessionStore = r.store
	if tap.sessions != nil {
		sessions = tap.sessions(sessions)
	}
	o := orchestrator.New(orchestrator.Deps{ID: "test", Sessions: sessions, Hosts: r.store, Fleet: fleet, Recorder: rec, Profiles: profiles,
		Log: log, Now: time.Now, QueueLimit: queueLimit, LeaseTTL: 15 * time.Second})
	handler := httpapi.New(httpapi.Config{Orchestrator: o, Store: r.store, Profiles: profiles, Keys: keys, Recordings: rec, Token: token, Log: log, Now: time.Now})
	if tap.public != nil {
		handler = tap.public(handler)
	}
	public := httptest.NewServer(handler)
	r.url = public.URL
	r.client, err = client.New(public.URL, token)
	must(t, err)

	work, stop := context.WithCancel(context.Background())
	background, stopBackground := context.WithCancel(context.Background())
	ran, listened := make(chan struct{}), make(chan struct{})
	go func() { defer close(ran); o.Run(work) }()
	go func() {
		defer close(listened)
		r.store.Listen(background, pgstore.Wakes{Queue: o.WakeQueue, Hosts: o.WakeHost, Session: o.WakeSession, Cancel: o.WakeCancel})
	}()
	r.stop = func() { stop(); <-ran }

	hosting, stopHost := context.WithCancel(context.Background())
	hosted := make(chan struct{})
	go func() {
		defer close(hosted)
		if err := host.Run(hosting, host.Config{Name: "mac-1", Agent: "test", StateDir: dir + "/host", Orchestrators: host.Fixed(strings.TrimPrefix(fleetServer.URL, "http://")),
			Dial: (&net.Dialer{}).DialContext, Devices: list, Log: log, Supervisor: []string{os.Args[0], host.SuperviseCommand}, Fake: r.newDriver}); err != nil {
			t.Error(err)
		}
	}()
	r.stopHost = func() { stopHost(); <-hosted }
	t.Cleanup(func() {
		r.stop()
		r.stopHost()
		public.CloseClientConnections()
		public.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		must(t, fleet.Close(ctx))
		fleetServer.Close()
		stopBackground()
		<-listened
	})
	for _, a := range []string{"a", "b"} {
		_, err := r.client.PutAccount(ctx, a, api.PutAccount{Recordings: "eu"})
		must(t, err)
	}
	eventually(t, "the host is up", func() bool {
		d, err := r.client.Devices(ctx)
		return err == nil && len(d) == len(list) && d[0].State == string(wire.DeviceReady)
	})
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(40 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		}
	}
}

// call makes a request with a raw body and returns the answer with its body read.
func (r *rig) call(t *testing.T, method, path, body string, change ...func(*http.Request)) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, bytes.NewReader([]byte(body)))
	must(t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	for _, c := range change {
		c(req)
	}
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp, b
}

// running creates a session without recording and waits until it runs.
func (r *rig) running(t *testing.T, create api.CreateSession) api.Session {
	t.Helper()
	s, err := r.client.CreateSession(t.Context(), unrecorded(create))
	must(t, err)
	s, err = r.client.Wait(t.Context(), s.ID, api.Running)
	must(t, err)
	if s.State != api.Running {
		t.Fatalf("session is %s: %s %s", s.State, s.Reason, s.Detail)
	}
	return s
}

func unrecorded(c api.CreateSession) api.CreateSession {
	off := false
	c.Recording = &off
	if c.Account == "" {
		c.Account = "a"
	}
	return c
}

func decode[T any](t *testing.T, b []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return v
}

// enrolMac adds the host of these tests.
func enrolMac(t *testing.T, s *pgstore.Store) {
	t.Helper()
	enrol(t, s, "mac-1", 1)
}

func enrol(t *testing.T, s *pgstore.Store, name string, key byte) {
	t.Helper()
	var at netip.Addr
	_, err := s.Invite(t.Context(), name, time.Hour, func(number int) (i orchestrator.Invitation, err error) {
		at, err = tunnel.JoinAddr(number)
		return orchestrator.Invitation{JoinPublicKey: tunnel.Key{key}}, err
	})
	must(t, err)
	kem, err := mlkem.GenerateKey768()
	must(t, err)
	_, err = s.Redeem(t.Context(), at, tunnel.Offer{PublicKey: tunnel.Key{key + 100}, EncapsulationKey: kem.EncapsulationKey().Bytes()})
	must(t, err)
}
