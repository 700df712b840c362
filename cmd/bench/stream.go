package main

import (
	"context"
	"crypto/mlkem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
	"github.com/driftstack/fleet/orchestrator/httpapi"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/orchestrator/pgstore/pgcluster"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/profilestate"
	"github.com/driftstack/fleet/recorder"
	"github.com/driftstack/fleet/tunnel"
)

const (
	benchToken  = "the-token-of-a-benchmark"
	hopCommands = 4000 // of each side, taking turns
	hopSessions = 16
	hopPerRound = 500 // commands a session and round
	hopRounds   = 5
)

// benchStream measures what commands cost: on their way through us, and across an ocean.
func benchStream(ctx context.Context, only string) (_ []figure, err error) {
	return measureAll(ctx, "stream", only, []measurement{{"hop", benchHop}, {"tunnel", benchThroughTunnel}, {"batch", benchBatch}, {"idle", benchIdleSessions}})
}

// measurement is a piece of a part that can be run alone.
type measurement struct {
	name string
	run  func(context.Context) ([]figure, error)
}

// measureAll runs the measurements, or the one that is asked for.
func measureAll(ctx context.Context, part, only string, list []measurement) (all []figure, _ error) {
	found := false
	for _, m := range list {
		if only != "" && only != m.name {
			continue
		}
		found = true
		begin := time.Now()
		figures, err := m.run(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
		for _, f := range figures {
			fmt.Printf("%s: %s %s (ours %s, reference %s)\n", f.Name, number(f.Value), f.Unit, number(f.Ours), number(f.Reference))
		}
		fmt.Printf("%s %s: %.0fs\n", part, m.name, time.Since(begin).Seconds())
		all = append(all, figures...)
	}
	if !found {
		return nil, fmt.Errorf("there is no measurement %q", only)
	}
	return all, nil
}

// benchHop measures what a command costs between a client and the driver: orchestrator and host agent on loopback, the
// fake driver, events stored. The reference is the same request to the same driver, without us.
func benchHop(ctx context.Context) (_ []figure, err error) {
	f, err := openFleet(ctx, fakes(hopSessions))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	direct, err := f.direct(ctx)
	if err != nil {
		return nil, err
	}
	var ours []string
	for range hopSessions {
		id, err := f.session(ctx)
		if err != nil {
			return nil, err
		}
		ours = append(ours, f.url+"/session/"+id+"/title")
	}
	callers, err := openCallers(ctx, &f.undo, http.StatusOK, append(ours, direct)...)
	if err != nil {
		return nil, err
	}
	through, past := callers[:hopSessions], callers[hopSessions]
	for range 500 { // warm up
		if err := errors.Join(second(past.call()), second(through[0].call())); err != nil {
			return nil, err
		}
	}
	var a, b []time.Duration
	for range hopCommands {
		one, err1 := past.call()
		two, err2 := through[0].call()
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		a, b = append(a, one), append(b, two)
	}
	reference, mine := micros(median(a)), micros(median(b))
	var rates []float64
	for range hopRounds {
		r, err := throughputOf(through)
		if err != nil {
			return nil, err
		}
		rates = append(rates, r)
	}
	throughput := middle(rates)
	return []figure{
		atMost("stream/hop-added-p50", mine, reference, mine-reference, "us", 100),
		atLeast("stream/hop-throughput-16", throughput, 0, throughput, "1/s", 10000),
	}, nil
}

func second[A any](_ A, err error) error { return err }

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// loopback stands in for the tunnel, which says which host an address is.
type loopback struct{ *pgstore.Store }

func (loopback) HostByAddr(context.Context, netip.Addr) (string, error) { return "bench", nil }

// fleet is an orchestrator on a private database, and a host with fake drivers, joined over loopback.
type fleet struct {
	undo
	url    string
	client *client.Client
	http   *http.Client
}

// openCluster starts a private Postgres in a folder that others may use too; u ends both.
func openCluster(ctx context.Context, u *undo, settings ...string) (dir string, _ *pgcluster.Cluster, err error) {
	if dir, err = os.MkdirTemp("", "bench"); err != nil {
		return "", nil, err
	}
	u.add(func() error { return os.RemoveAll(dir) })
	cluster, err := pgcluster.Start(ctx, pgcluster.Config{Dir: filepath.Join(dir, "postgres"), Settings: settings, Log: zap.NewNop()})
	if err != nil {
		return "", nil, err
	}
	u.add(within(cluster.Stop))
	return dir, cluster, nil
}

// fakes are devices with the fake driver.
func fakes(n int) (list []host.Device) {
	for i := range n {
		list = append(list, host.Device{Name: fmt.Sprintf("d%d", i), Kind: host.KindFake, Model: "fake", PlatformName: "none"})
	}
	return list
}

// openFleet has its host dial the orchestrator at what via makes of its address, if there is one.
func openFleet(ctx context.Context, devices []host.Device, via ...func(addr string) (string, error)) (_ *fleet, err error) {
	f := &fleet{http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2 * len(devices)}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	log := zap.NewNop()
	dir, cluster, err := openCluster(ctx, &f.undo)
	if err != nil {
		return nil, err
	}
	if err := cluster.CreateDatabase(ctx, "fleet"); err != nil {
		return nil, err
	}
	store, err := pgstore.Open(ctx, cluster.DSN("fleet"), "bench", log)
	if err != nil {
		return nil, err
	}
	f.add(func() error { store.Close(); return nil })
	if err := enrolHost(ctx, store); err != nil {
		return nil, err
	}
	g := ground{name: "bench", cluster: cluster, store: store, directory: loopback{store}, dial: (&net.Dialer{}).DialContext, serve: func(h http.Handler) (addr string, err error) {
		addr, err = f.serve(h)
		for _, v := range via {
			if err == nil {
				addr, err = v(addr)
			}
		}
		return addr, err
	}}
	return f, f.on(ctx, g, dir, devices)
}

// ground is what a fleet stands on: its database, and the way between orchestrator and host.
type ground struct {
	name      string // of the orchestrator
	cluster   *pgcluster.Cluster
	store     *pgstore.Store
	directory driverproxy.Directory
	serve     func(fleet http.Handler) (addr string, err error)
	dial      host.DialFunc
}

// on brings orchestrator and host up.
func (f *fleet) on(ctx context.Context, g ground, dir string, devices []host.Device) error {
	store, log := g.store, zap.NewNop()
	if _, err := store.PutAccount(ctx, "bench", api.PutAccount{Recordings: string(place.EUOnly)}, orchestrator.Act{By: "bench"}); err != nil {
		return err
	}
	deps, err := f.parts(ctx, dir, g, log)
	if err != nil {
		return err
	}
	o := orchestrator.New(deps)
	fleetAddr, err := g.serve(deps.Fleet.Handler())
	if err != nil {
		return err
	}
	f.add(within(deps.Fleet.Close))
	public, err := f.serve(httpapi.New(httpapi.Config{Orchestrator: o, Store: store, Profiles: deps.Profiles, Recordings: deps.Recorder, Token: benchToken, Log: log, Now: time.Now}))
	if err != nil {
		return err
	}
	f.url = "http://" + public
	if f.client, err = client.New(f.url, benchToken); err != nil {
		return err
	}
	// Without it no session with a profile is claimed: nobody is known to have its volume.
	self := orchestrator.Replica{ID: deps.ID, Name: g.name, URL: f.url, Volume: deps.Profiles.Volume()}
	if _, err := store.AnnounceReplica(ctx, self); err != nil {
		return err
	}
	f.start(func(ctx context.Context) error { orchestrator.Announce(ctx, store, self, log); return nil })
	f.start(func(ctx context.Context) error { o.Run(ctx); return nil })
	f.start(func(ctx context.Context) error {
		store.Listen(ctx, pgstore.Wakes{Queue: o.WakeQueue, Hosts: o.WakeHost, Session: o.WakeSession, Cancel: o.WakeCancel})
		return nil
	})
	f.start(func(ctx context.Context) error {
		return host.Run(ctx, host.Config{Name: "bench", Agent: "bench", StateDir: filepath.Join(dir, "host"), Orchestrators: host.Fixed(fleetAddr),
			Dial: g.dial, Devices: devices, Log: log, Fake: func(string) *drivertest.Driver { return drivertest.NewQuiet() }})
	})
	return f.ready(ctx, store)
}

// enrolHost has the host join.
func enrolHost(ctx context.Context, store *pgstore.Store) error {
	var at netip.Addr
	if _, err := store.Invite(ctx, "bench", time.Hour, func(number int) (i orchestrator.Invitation, err error) {
		at, err = tunnel.JoinAddr(number)
		return orchestrator.Invitation{JoinPublicKey: tunnel.Key{1}}, err
	}); err != nil {
		return err
	}
	kem, err := mlkem.GenerateKey768()
	if err != nil {
		return err
	}
	_, err = store.Redeem(ctx, at, tunnel.Offer{PublicKey: tunnel.Key{2}, EncapsulationKey: kem.EncapsulationKey().Bytes()})
	return err
}

func (f *fleet) parts(ctx context.Context, dir string, g ground, log *zap.Logger) (orchestrator.Deps, error) {
	store := g.store
	d := orchestrator.Deps{ID: uuid.NewString(), Sessions: store, Hosts: store, Replicas: store, Log: log, Now: time.Now, QueueLimit: 1000, LeaseTTL: 15 * time.Second}
	key := filepath.Join(dir, "root.key")
	if err := profilestate.CreateRootKey(key); err != nil {
		return d, err
	}
	root, err := profilestate.ReadRootKey(key)
	if err != nil {
		return d, err
	}
	wrapped, err := openKeys(ctx, g.cluster)
	if err != nil {
		return d, err
	}
	f.add(func() error { wrapped.Close(); return nil })
	at, err := place.InEU("DE")
	if err != nil {
		return d, err
	}
	keys, err := profilestate.NewKeyring(at, root, wrapped, store)
	if err != nil {
		return d, err
	}
	if d.Profiles, err = profilestate.Open(profilestate.Config{Dir: filepath.Join(dir, "profiles"), At: at, Keys: keys, Index: store}); err != nil {
		return d, err
	}
	// Nothing is recorded, so nothing has to be there.
	d.Recorder, err = recorder.Open(ctx, recorder.Config{Dir: filepath.Join(dir, "spool"), Journal: store, Log: log,
		EU: recorder.EUTarget{Target: recorder.Target{Endpoint: "http://127.0.0.1:9", Bucket: "bench", AccessKey: "none", SecretKey: "none"}}})
	if err != nil {
		return d, err
	}
	f.add(within(d.Recorder.Close))
	d.Fleet = driverproxy.NewFleet(driverproxy.Config{Orchestrator: g.name, Epoch: d.ID, Directory: g.directory, Log: log})
	return d, nil
}

// openKeys opens the key database of a cluster.
func openKeys(ctx context.Context, cluster *pgcluster.Cluster) (*pgstore.Keys, error) {
	if err := cluster.CreateDatabase(ctx, "keys"); err != nil {
		return nil, err
	}
	return pgstore.OpenKeys(ctx, cluster.DSN("keys"))
}

func within(stop func(context.Context) error) func() error {
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		return stop(ctx)
	}
}

// serve serves on a free loopback port until close.
func (f *fleet) serve(h http.Handler) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l) // ends with Close
	}()
	f.add(func() error {
		err := s.Close()
		<-done
		return err
	})
	return l.Addr().String(), nil
}

func (f *fleet) ready(ctx context.Context, store *pgstore.Store) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for {
		if free, err := store.DeviceFree(ctx); err != nil || free {
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return errors.New("the host did not come up")
		}
	}
}

func (f *fleet) session(ctx context.Context) (string, error) {
	record := false
	s, err := f.client.CreateSession(ctx, api.CreateSession{Account: "bench", Recording: &record})
	if err != nil {
		return "", err
	}
	if s, err = f.client.Wait(ctx, s.ID, api.Running); err == nil && s.State != api.Running {
		err = fmt.Errorf("a session did not start: %s %s", s.Reason, s.Detail)
	}
	return s.ID, err
}

// direct serves a fake driver with a session and returns the same command's URL at it.
func (f *fleet) direct(ctx context.Context) (string, error) {
	addr, err := f.serve(drivertest.NewQuiet())
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/session", strings.NewReader(`{"capabilities":{"alwaysMatch":{}}}`))
	if err != nil {
		return "", err
	}
	resp, err := f.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(b), `"sessionId":"`)
	id, _, ok := strings.Cut(rest, `"`)
	if !ok {
		return "", fmt.Errorf("the fake driver gave no session: %s", b)
	}
	return "http://" + addr + "/session/" + id + "/title", nil
}

// throughputOf is the commands a second of all sessions together.
func throughputOf(callers []*caller) (float64, error) {
	errs := make([]error, len(callers))
	begin := time.Now()
	var all sync.WaitGroup
	for i, c := range callers {
		all.Go(func() {
			for range hopPerRound {
				if _, err := c.call(); err != nil {
					errs[i] = err
					return
				}
			}
		})
	}
	all.Wait()
	return float64(hopPerRound*len(callers)) / time.Since(begin).Seconds(), errors.Join(errs...)
}
