package httpapi_test

import (
	"context"
	"net"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
	"github.com/driftstack/fleet/orchestrator/httpapi"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/orchestrator/residency"
	"github.com/driftstack/fleet/profilestate"
	"github.com/driftstack/fleet/recorder"
)

// mate is one of several orchestrators on one database and one volume. Its lines can be cut and frozen: for everybody
// else it is then dead, or stopped.
type mate struct {
	name     string
	volume   string
	client   *client.Client
	url      string
	store    *pgstore.Store
	fleet    *driverproxy.Fleet
	recorder *recorder.Recorder
	others   *httpapi.Peers
	wake     func(session string) // as a notification does
	stop     func()               // as SIGTERM does, and waits

	database, hosts *line
	peers           *line  // the other orchestrators' way to it
	peerURL         string // ... begins here
}

// several are orchestrators and one host that dials them all.
type several struct {
	all     []*mate
	drivers chan *drivertest.Driver // the driver of each session, as it starts
	dir     string                  // with all files
}

// newSeveral starts them; ttl is their lease time, orphan how long the host keeps a session that nobody comes for, 0 for its
// usual time.
func newSeveral(t *testing.T, ttl, orphan time.Duration, names ...string) *several {
	t.Helper()
	phone := host.Device{Name: "phone-a", Kind: host.KindFake, Model: "iPhone 15", PlatformName: "iOS", PlatformVersion: "17.0", BiDi: true}
	return newSeveralWith(t, phone, ttl, orphan, names...)
}

func newSeveralWith(t *testing.T, phone host.Device, ttl, orphan time.Duration, names ...string) *several {
	t.Helper()
	dsn, keyDSN, dir := database(t), keyDatabase(t), t.TempDir()
	r := &several{drivers: make(chan *drivertest.Driver, 16), dir: dir}
	must(t, profilestate.CreateRootKey(dir+"/root.key"))
	var addrs []string
	for _, name := range names {
		o, addr := newMate(t, dsn, keyDSN, dir, name, ttl)
		r.all, addrs = append(r.all, o), append(addrs, addr)
	}
	enrolMac(t, r.all[0].store)
	for _, a := range []string{"a", "b"} {
		_, err := r.all[0].client.PutAccount(t.Context(), a, api.PutAccount{Recordings: "eu"})
		must(t, err)
	}
	r.introduce(t, func(*mate) string { return "" })
	r.all[0].connect()

	hosting, stopHost := context.WithCancel(context.Background())
	hosted := make(chan struct{})
	go func() {
		defer close(hosted)
		err := host.Run(hosting, host.Config{Name: "mac-1", Agent: "test", StateDir: dir + "/host", Orchestrators: host.Fixed(addrs...),
			Dial: (&net.Dialer{}).DialContext, Log: zap.NewNop(), Orphan: orphan,
			Devices: []host.Device{phone},
			Fake: func(string) *drivertest.Driver {
				d := drivertest.New()
				d.OfferBiDi(nil)
				r.drivers <- d
				return d
			}})
		if err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		for _, o := range r.all {
			o.live()
		}
		for _, o := range r.all {
			o.stop()
		}
		stopHost()
		<-hosted
	})
	r.connected(t, r.all[0])
	return r
}

// newMate starts an orchestrator that hosts do not reach yet.
func newMate(t *testing.T, dsn, keyDSN, dir, name string, ttl time.Duration) (o *mate, addr string) {
	t.Helper()
	log := zap.NewNop()
	o = &mate{name: name}
	var err error
	o.database, dsn = newLine(t, dsn)
	o.store, err = pgstore.Open(t.Context(), dsn, name, log)
	must(t, err)
	t.Cleanup(o.store.Close)
	profiles, keys := openProfiles(t, dir, keyDSN, o.store)
	o.volume = profiles.Volume()
	must(t, second(o.store.AnnounceReplica(t.Context(), orchestrator.Replica{ID: name, Name: name, Volume: o.volume})))
	rec, err := recorder.Open(t.Context(), recorder.Config{Dir: dir + "/spool-" + name, Journal: o.store, Log: log,
		EU: recorder.EUTarget{Target: recorder.Target{Endpoint: "http://127.0.0.1:9", Bucket: "recordings-eu", AccessKey: "k", SecretKey: "s"}}})
	must(t, err)
	o.recorder = rec
	t.Cleanup(func() { must(t, rec.Close(context.Background())) })
	o.fleet = driverproxy.NewFleet(driverproxy.Config{Orchestrator: name, Epoch: name, Directory: directory{Store: o.store}, Log: log})
	hosts := httptest.NewServer(o.fleet.Handler())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	o.hosts = openLine(t, listener, "tcp", strings.TrimPrefix(hosts.URL, "http://"))
	o.hosts.set(true, false)
	orch := orchestrator.New(orchestrator.Deps{ID: name, Sessions: o.store, Hosts: o.store, Replicas: o.store, Fleet: o.fleet, Recorder: rec, Profiles: profiles,
		Log: log, Now: time.Now, QueueLimit: 10, LeaseTTL: ttl})
	o.others = httpapi.NewPeers(httpapi.PeersConfig{ID: name, Token: token, Way: residency.Site{Development: true}.Peers(), Log: log, Now: time.Now})
	public := httptest.NewServer(httpapi.New(httpapi.Config{Orchestrator: orch, Store: o.store, Profiles: profiles, Keys: keys, Recordings: rec, Peers: o.others, Token: token, Log: log, Now: time.Now}))
	o.url, o.wake = public.URL, orch.WakeSession
	between, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	o.peers, o.peerURL = openLine(t, between, "tcp", strings.TrimPrefix(public.URL, "http://")), "http://"+between.Addr().String()
	o.client, err = client.New(public.URL, token)
	must(t, err)

	work, stop := context.WithCancel(context.Background())
	background, stopBackground := context.WithCancel(context.Background())
	var loops sync.WaitGroup
	loops.Go(func() {
		o.store.Listen(background, pgstore.Wakes{Queue: orch.WakeQueue, Adopt: orch.WakeAdopt, Hosts: orch.WakeHost, Session: orch.WakeSession, Cancel: orch.WakeCancel})
	})
	ran := make(chan struct{})
	go func() { defer close(ran); orch.Run(work) }()
	// As the daemon does it: the hosts are left before the clients' connections end.
	o.stop = sync.OnceFunc(func() {
		stop()
		<-ran
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		must(t, o.fleet.Close(ctx))
		must(t, o.others.Close(ctx))
		public.CloseClientConnections()
		public.Close()
		hosts.Close()
		stopBackground()
		loops.Wait()
	})
	return o, listener.Addr().String()
}

// connect lets hosts reach the orchestrator.
func (o *mate) connect() { o.hosts.set(false, false) }

// die cuts the orchestrator off from everything.
func (o *mate) die() {
	o.peers.set(true, false)
	o.database.set(true, false)
	o.hosts.set(true, false)
}

// live undoes die and freeze.
func (o *mate) live() {
	o.peers.set(false, false)
	o.database.set(false, false)
	o.hosts.set(false, false)
}

// freeze stops the orchestrator for everybody else, with its connections open.
func (o *mate) freeze() {
	o.peers.set(false, true)
	o.database.set(false, true)
	o.hosts.set(false, true)
}

// introduce says where the orchestrators reach one another.
func (r *several) introduce(t *testing.T, at func(*mate) string) {
	t.Helper()
	for _, o := range r.all {
		must(t, second(o.store.AnnounceReplica(t.Context(), orchestrator.Replica{ID: o.name, Name: o.name, URL: at(o), Volume: o.volume})))
	}
}

func byPeerURL(o *mate) string { return o.peerURL }

func (r *several) connected(t *testing.T, o *mate) {
	t.Helper()
	eventually(t, "the host is connected", func() bool { return slices.Equal(o.fleet.Hosts(), []string{"mac-1"}) })
}

// running is a session that the first orchestrator runs; the others have its host too.
func (r *several) running(t *testing.T, create api.CreateSession) (api.Session, *drivertest.Driver) {
	t.Helper()
	first := &rig{client: r.all[0].client}
	s := first.running(t, create)
	for _, o := range r.all[1:] {
		o.connect()
		r.connected(t, o)
	}
	return s, <-r.drivers
}

// call sends one command to an orchestrator, and returns the status and the answer.
func (o *mate) call(t *testing.T, method, path, body string) (int, w3cAnswer) {
	t.Helper()
	resp, b := (&rig{url: o.url}).call(t, method, path, body)
	return resp.StatusCode, decode[w3cAnswer](t, b)
}

// w3cAnswer is an answer whose value is not looked into.
type w3cAnswer struct {
	Value any `json:"value"`
}

// outcome is data.outcome of an error, "" of an answer.
func (a w3cAnswer) outcome() string {
	v, _ := a.Value.(map[string]any)
	data, _ := v["data"].(map[string]any)
	s, _ := data["outcome"].(string)
	return s
}

// kinds are those of a session's log, commands left out.
func kinds(t *testing.T, o *mate, session string) []string {
	t.Helper()
	events, err := o.store.Events(t.Context(), session, 0, 10000)
	must(t, err)
	var out []string
	for _, e := range events {
		if e.Kind != string(orchestrator.EventCommand) {
			out = append(out, e.Kind)
		}
	}
	return out
}
