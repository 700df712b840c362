package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/httpapi"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/orchestrator/residency"
)

const (
	dispatchAccounts = 32
	devicesPerHost   = 200
	crewUp           = 2 * time.Minute
)

// crew is orchestrators over one database, and hosts that are connected to all of them.
type crew struct {
	bench    *dispatchBench
	database string
	store    *pgstore.Store
	urls     []string // of the orchestrators
}

// open brings a crew up; u takes it down.
func (d *dispatchBench) open(ctx context.Context, u *undo, database string, devices, replicas int) (*crew, error) {
	c := &crew{bench: d, database: database}
	hosts := max(1, devices/devicesPerHost)
	f := &fleet{}
	u.add(f.close)
	addrs := make([][]string, hosts) // of the fleet listeners, by host
	var members []enrolled
	for r := range replicas {
		name := fmt.Sprintf("bench-%d", r)
		store, err := d.openStore(ctx, &f.undo, database, name)
		if err != nil {
			return nil, err
		}
		if c.store == nil {
			c.store = store
			if members, err = enrol(ctx, &tunnelBench{dir: d.dir, cluster: d.cluster}, database, hosts); err != nil {
				return nil, err
			}
		}
		if err := c.replica(ctx, f, store, name, members, addrs); err != nil {
			return nil, err
		}
	}
	for i, m := range members {
		h := newSimHost(helloOf(m.name, min(devices, devicesPerHost)))
		f.start(func(ctx context.Context) error { return h.run(ctx, addrs[i]) })
	}
	return c, c.up(ctx, devices, hosts*replicas)
}

// replica starts an orchestrator. It has a listener for each host, which says whose address it is, as the tunnel does.
func (c *crew) replica(ctx context.Context, f *fleet, store *pgstore.Store, name string, members []enrolled, addrs [][]string) error {
	dir, log := filepath.Join(c.bench.dir, c.database, name), zap.NewNop()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	deps, err := f.parts(ctx, dir, ground{name: name, cluster: c.bench.cluster, store: store, directory: store}, log)
	if err != nil {
		return err
	}
	deps.QueueLimit = 1 << 20
	o := orchestrator.New(deps)
	for i, m := range members {
		addr, err := f.serve(from(m.addr, deps.Fleet.Handler()))
		if err != nil {
			return err
		}
		addrs[i] = append(addrs[i], addr)
	}
	f.add(within(deps.Fleet.Close))
	peers := httpapi.NewPeers(httpapi.PeersConfig{ID: deps.ID, Token: benchToken, Way: residency.Site{Development: true}.Peers(), Log: log, Now: time.Now})
	f.add(within(peers.Close))
	public, err := f.serve(httpapi.New(httpapi.Config{Orchestrator: o, Store: store, Peers: peers, Recordings: deps.Recorder, Token: benchToken, Log: log, Now: time.Now}))
	if err != nil {
		return err
	}
	c.urls = append(c.urls, "http://"+public)
	self := orchestrator.Replica{ID: deps.ID, Name: name, URL: "http://" + public, Volume: deps.Profiles.Volume()}
	if _, err := store.AnnounceReplica(ctx, self); err != nil {
		return err
	}
	f.start(func(ctx context.Context) error { orchestrator.Announce(ctx, store, self, log); return nil })
	f.start(func(ctx context.Context) error {
		store.Listen(ctx, pgstore.Wakes{Queue: o.WakeQueue, Adopt: o.WakeAdopt, Hosts: o.WakeHost, Session: o.WakeSession, Cancel: o.WakeCancel})
		return nil
	})
	f.start(func(ctx context.Context) error { o.Run(ctx); return nil })
	return nil
}

// from has all requests come from an address.
func from(addr netip.Addr, h http.Handler) http.Handler {
	remote := netip.AddrPortFrom(addr, 1).String()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.RemoteAddr = remote
		h.ServeHTTP(w, r)
	})
}

// helloOf is what a host with such devices says.
func helloOf(name string, devices int) wire.Hello {
	h := wire.Hello{Protocol: wire.Version, Host: name}
	for n := range devices {
		h.Devices = append(h.Devices, wire.Device{Name: fmt.Sprint("d", n), Kind: host.KindFake, Model: "fake", PlatformName: "none", State: wire.DeviceReady})
	}
	return h
}

// up waits until all devices are ready and all hosts are connected to every orchestrator.
func (c *crew) up(ctx context.Context, devices, links int) error {
	ctx, cancel := context.WithTimeout(ctx, crewUp)
	defer cancel()
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	want := fmt.Sprintf("%d|%d", devices, links)
	for {
		got, err := c.bench.cluster.Run(ctx, c.database, `
			SELECT (SELECT count(*) FROM devices WHERE state = 'ready'), (SELECT count(*) FROM host_links WHERE lost_at IS NULL)`)
		if err != nil {
			return err
		}
		if got == want {
			_, err := c.bench.cluster.Run(ctx, c.database, `ANALYZE`)
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("devices and links are %s, not %s", got, want)
		}
	}
}

// check says whether all sessions ended as they should, and all that they did is stored.
func (c *crew) check(ctx context.Context) error {
	got, err := c.bench.cluster.Run(ctx, c.database, `
		SELECT count(*) FROM sessions s WHERE state <> 'ended' OR reason <> 'completed'
		    OR (SELECT array_agg(kind ORDER BY seq) FROM session_events e WHERE e.session = s.id)
		       <> '{queued,starting,driver_started,running,command,command,finishing,ended}'`)
	if err == nil && got != "0" {
		err = fmt.Errorf("%s sessions did not end as they should, or not all of their events are stored", got)
	}
	return err
}

// dispatchClient has one session after another, on connections of its own to each orchestrator, which take turns.
type dispatchClient struct {
	to     []*caller
	turn   int
	create []byte
}

func (c *crew) client(ctx context.Context, u *undo, n int) (*dispatchClient, error) {
	all, err := openCallers(ctx, u, http.StatusOK, c.urls...)
	if err != nil {
		return nil, err
	}
	body := fmt.Sprintf(`{"capabilities":{"alwaysMatch":{"driftstack:options":{"account":%q,"recording":false}}}}`, accountName(n%dispatchAccounts))
	return &dispatchClient{to: all, turn: n, create: requestOf(http.MethodPost, "/session", body)}, nil
}

func accountName(n int) string { return fmt.Sprintf("account-%d", n) }

func requestOf(method, path, body string) []byte {
	return fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", method, path, benchToken, len(body), body)
}

// live is a session's whole life; it says how long New Session took.
func (c *dispatchClient) live() (time.Duration, error) {
	begin := time.Now()
	b, err := c.send(c.create)
	if err != nil {
		return 0, err
	}
	took := time.Since(begin)
	var created struct {
		Value struct {
			SessionID string `json:"sessionId"`
		} `json:"value"`
	}
	if err := json.Unmarshal(b, &created); err != nil || created.Value.SessionID == "" {
		return 0, errors.Join(fmt.Errorf("no session: %s", b), err)
	}
	path := "/session/" + created.Value.SessionID
	if _, err := c.send(requestOf(http.MethodGet, path+"/title", "")); err != nil {
		return 0, err
	}
	_, err = c.send(requestOf(http.MethodDelete, path, ""))
	return took, err
}

func (c *dispatchClient) send(request []byte) ([]byte, error) {
	c.turn++
	return c.to[c.turn%len(c.to)].exchange(request, http.StatusOK)
}
