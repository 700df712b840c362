package main

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/orchestrator/pgstore/pgcluster"
	"github.com/driftstack/fleet/tunnel"
)

const (
	tunnelMTU   = 1280
	tunnelFleet = 7700 // port of a fleet listener
	tunnelPeers = 10000
	echoPath    = "/echo"
)

// benchTunnel measures what our tunnels cost beside wireguard-go alone, how fast a gateway learns of its hosts, what idle
// hosts cost an orchestrator, and how fast a recording crosses an ocean. Both ends are netstack devices: the one kind
// that every machine has.
func benchTunnel(ctx context.Context, only string) (_ []figure, err error) {
	var u undo
	defer func() { err = errors.Join(err, u.close()) }()
	dir, cluster, err := openCluster(ctx, &u, "track_commit_timestamp=on")
	if err != nil {
		return nil, err
	}
	t := &tunnelBench{dir: dir, cluster: cluster}
	return measureAll(ctx, "tunnel", only, []measurement{
		{"path", t.path}, {"reconcile", t.reconcile}, {"change", t.change}, {"idle", t.idle}, {"idle-10k", t.idleCrowd}, {"ocean", t.ocean},
	})
}

type tunnelBench struct {
	dir     string
	cluster *pgcluster.Cluster
}

// site is a gateway of a database of its own, and the hosts that were opened at it.
type site struct {
	undo
	dir     string
	store   *pgstore.Store
	gateway *tunnel.Gateway
	hosts   *orchestrator.Orchestrator
	info    tunnel.GatewayInfo
}

// undo is what closes a thing, in the order in which it was opened.
type undo []func() error

func (u *undo) add(f func() error) { *u = append(*u, f) }

func (u *undo) close() error {
	var errs []error
	for i := len(*u) - 1; i >= 0; i-- {
		errs = append(errs, (*u)[i]())
	}
	*u = nil
	return errors.Join(errs...)
}

// start runs a part until close.
func (u *undo) start(run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	u.add(func() error {
		cancel()
		return <-done
	})
}

// siteConfig says what a site is for. Hosts reach its gateway at what Via makes of its UDP address; nil: directly.
type siteConfig struct {
	Name  string // of its database and folder
	Fleet func(*pgstore.Store) http.Handler
	Via   func(udp string) (string, error)
	Log   *zap.Logger
}

// openSite opens a gateway with a fleet listener on a new database.
func (t *tunnelBench) openSite(ctx context.Context, cfg siteConfig) (_ *site, err error) {
	name, log := cfg.Name, cfg.Log
	if log == nil {
		log = zap.NewNop()
	}
	s := &site{dir: filepath.Join(t.dir, name)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := errors.Join(os.Mkdir(s.dir, 0o700), t.cluster.CreateDatabase(ctx, name)); err != nil {
		return nil, err
	}
	s.add(func() error { return t.cluster.DropDatabase(context.Background(), name) })
	if s.store, err = pgstore.Open(ctx, t.cluster.DSN(name), name, log); err != nil {
		return nil, err
	}
	s.add(func() error { s.store.Close(); return nil })
	s.hosts = orchestrator.New(orchestrator.Deps{Hosts: s.store, Log: log, Now: time.Now})
	s.gateway, err = tunnel.OpenGateway(ctx, tunnel.GatewayConfig{
		KeyFile: filepath.Join(s.dir, "gateway.key"), Number: 1, Backend: tunnel.BackendNetstack, MTU: tunnelMTU,
		FleetPort: tunnelFleet, Peers: s.store, Log: log,
	})
	if err != nil {
		return nil, err
	}
	s.add(s.gateway.Close)
	s.info = tunnel.GatewayInfo{
		Endpoint: "127.0.0.1:" + strconv.Itoa(s.gateway.Port()), PublicKey: s.gateway.PublicKey(), Addr: s.gateway.Addr(), FleetPort: tunnelFleet,
	}
	if cfg.Via != nil {
		if s.info.Endpoint, err = cfg.Via(s.info.Endpoint); err != nil {
			return nil, err
		}
	}
	l, err := s.gateway.Listen(ctx, tunnelFleet)
	if err != nil {
		return nil, err
	}
	served := s.gateway.Handler(tunnel.Served{Enroller: s.store, Beats: beats{s.info}, Fleet: cfg.Fleet(s.store)})
	server := &http.Server{Handler: served, ReadHeaderTimeout: 10 * time.Second}
	s.start(func(context.Context) error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	s.add(server.Close)
	s.start(func(ctx context.Context) error { s.gateway.Run(ctx); return nil })
	s.start(func(ctx context.Context) error {
		s.store.Listen(ctx, pgstore.Wakes{Queue: func(string) {}, Hosts: s.gateway.Nudge, Session: func(string) {}, Cancel: func(string) {}})
		return nil
	})
	return s, nil
}

// beats answers pulses with the one gateway there is.
type beats struct{ info tunnel.GatewayInfo }

func (b beats) Beat(context.Context, netip.Addr) (wire.Beat, error) {
	return wire.Beat{Orchestrator: "bench", Epoch: "1", Gateways: []wire.Gateway{{
		Endpoint: b.info.Endpoint, PublicKey: b.info.PublicKey.String(), Address: b.info.Addr.String(), FleetPort: b.info.FleetPort,
	}}}, nil
}

// link enrols a host and opens its end.
func (s *site) link(ctx context.Context, name string) (*tunnel.Link, error) {
	token, err := s.hosts.Invite(ctx, name, []tunnel.GatewayInfo{s.info})
	if err != nil {
		return nil, err
	}
	if err := s.gateway.Reconcile(ctx); err != nil { // as it is long before a person has copied a token
		return nil, err
	}
	l, err := tunnel.OpenLink(ctx, tunnel.LinkConfig{
		StateDir: filepath.Join(s.dir, name), Token: token.Token, Backend: tunnel.BackendNetstack, MTU: tunnelMTU,
	})
	if err != nil {
		return nil, err
	}
	s.add(l.Close)
	return l, nil
}

// middle is the median.
func middle(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}
