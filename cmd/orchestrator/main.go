// Command orchestrator is the EU daemon: it takes sessions over HTTP, runs each on a device of a driver host behind
// WireGuard, keeps profiles sealed on its own disk and lands recordings in object storage.
//
// This file parses, wires, waits and unwinds. Out of scope: everything else.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/coredump"
	"github.com/driftstack/fleet/orchestrator/httpapi"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/recorder"
	"github.com/driftstack/fleet/tunnel"
)

func main() {
	var cfg config
	kong.Parse(&cfg, kong.Name("orchestrator"), kong.DefaultEnvars("DRIFTSTACK"), kong.UsageOnError(),
		kong.Description("Runs Driftstack's sessions: takes them over HTTP, drives iPhones through WireGuard, seals profiles, lands recordings. "+
			"Every flag can also be set as the environment variable shown beside it; secrets are better set there."))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	log, err := cfg.logger()
	if err == nil {
		err = run(ctx, cfg, log)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "orchestrator:", err)
		os.Exit(1)
	}
}

// run is the life of the process: everything is opened in order, and closed in the opposite one.
func run(ctx context.Context, cfg config, log *zap.Logger) (err error) {
	if err := coredump.Disable(); err != nil {
		return err
	}
	log.Info("location, as declared and not verified", zap.String("country", cfg.Location.Country()), zap.String("state_dir", cfg.StateDir))
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("--state-dir: %w", err)
	}
	if err := os.MkdirAll(cmp.Or(cfg.PrivateDir, cfg.StateDir), 0o700); err != nil {
		return fmt.Errorf("--private-dir: %w", err)
	}
	refused := newRefusals(log.Named("residency"))
	at, err := cfg.places(cfg.site(refused.add))
	if err != nil {
		return err
	}
	at.tell(log.Named("residency"))
	store, err := pgstore.OpenAt(ctx, at.database, cfg.Name, log.Named("store"))
	if err != nil {
		return fmt.Errorf("--database-url: %w", err)
	}
	defer store.Close()
	wrapped, err := pgstore.OpenKeysAt(ctx, at.keys)
	if err != nil {
		return fmt.Errorf("--key-database-url: %w", err)
	}
	defer wrapped.Close()
	profiles, keys, err := openProfiles(ctx, cfg, store, wrapped)
	if err != nil {
		return err
	}
	rec, err := recorder.Open(ctx, recorder.Config{
		Dir: filepath.Join(cfg.StateDir, "spool"), EU: recorder.EUTarget{Target: cfg.EU.target()}, US: cfg.us(),
		Journal: store, Removals: store, Sweeps: store, Refused: refused.add, Log: log.Named("recorder"),
		BeginAbove: cfg.SpoolBeginAbove, TakeAbove: cfg.SpoolTakeAbove,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeWithin(30*time.Second, rec.Close)) }()

	gateway, err := tunnel.OpenGateway(ctx, tunnel.GatewayConfig{
		KeyFile: filepath.Join(cmp.Or(cfg.PrivateDir, cfg.StateDir), "gateway.key"), Number: cfg.TunnelNumber, ListenPort: cfg.TunnelListenPort,
		Backend: cfg.TunnelBackend, Interface: cfg.TunnelInterface, MTU: cfg.TunnelMTU,
		FleetPort: int(cfg.TunnelFleetPort), Peers: store, Log: log.Named("tunnel"),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, gateway.Close()) }()
	log.Info("tunnel is up", zap.String("backend", gateway.Backend()), zap.Int("udp_port", gateway.Port()), zap.Stringer("address", gateway.Addr()))

	wake := make(chan struct{}, 1)
	keeper := tunnel.KeeperConfig{Announcer: store, Endpoint: cfg.TunnelEndpoint, FleetPort: cfg.TunnelFleetPort, RotateAge: cfg.TunnelRotate, Wake: wake}
	if _, err := gateway.Announce(ctx, keeper); err != nil { // who has this one's number or name is told at once
		return err
	}
	if err := store.AllHostsDown(ctx); err != nil { // not before the name is known to be this one's
		return err
	}
	epoch := uuid.NewString()
	fleet := driverproxy.NewFleet(driverproxy.Config{
		Orchestrator: cfg.Name, Epoch: epoch, Directory: store, Log: log.Named("fleet"),
	})
	self := orchestrator.Replica{ID: cfg.Name + "/" + uuid.NewString(), Name: cfg.Name, URL: strings.TrimSuffix(cfg.PeerURL, "/"), Volume: profiles.Volume()}
	others, err := joinReplicas(ctx, store, self, log)
	if err != nil {
		return err
	}
	o := orchestrator.New(orchestrator.Deps{
		ID: self.ID, Sessions: store, Hosts: store, Replicas: store, Fleet: fleet, Recorder: rec, Profiles: profiles, Tunnel: gateway,
		Log: log, Now: time.Now, QueueLimit: cfg.QueueLimit,
		Limits:   orchestrator.Limits{Concurrent: cfg.QuotaConcurrent, Queued: cfg.QuotaQueued, CreatesPerMinute: cfg.QuotaCreatesPerMinute},
		LeaseTTL: cfg.LeaseTTL,
	})

	fleetListener, err := gateway.Listen(ctx, int(cfg.TunnelFleetPort))
	if err != nil {
		return err
	}
	public, err := net.Listen("tcp", cfg.HTTPAddr)
	if err != nil {
		return errors.Join(fmt.Errorf("--http-addr: %w", err), fleetListener.Close())
	}
	metrics, err := listenMetrics(cfg.MetricsAddr)
	if err != nil {
		return errors.Join(err, fleetListener.Close(), public.Close())
	}
	fleetServer := server(gateway.Handler(tunnel.Served{Enroller: store, Beats: beats{store, epoch}, Fleet: fleet.Handler()}), log)
	fleetServer.MaxHeaderBytes = 16 << 10 // a host that was taken over may try to fill the memory
	peers := httpapi.NewPeers(httpapi.PeersConfig{ID: self.ID, Token: cfg.ServiceToken, Way: at.peers, Log: log.Named("peers"), Now: time.Now})
	publicServer := server(httpapi.New(httpapi.Config{
		Orchestrator: o, Store: store, Profiles: profiles, Keys: keys, Peers: peers, Recordings: rec, Residency: at.reporter(cfg, store, wrapped, rec, profiles), Token: cfg.ServiceToken, Log: log.Named("http"), Now: time.Now,
		Rest: cfg.HostRest,
	}), log)

	// Whatever stops by itself takes the process down; what it stopped with is the exit's error.
	work, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	var group, loops sync.WaitGroup
	serve := func(s *http.Server, l net.Listener) {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fail(err)
		}
	}
	group.Go(func() { serve(fleetServer, fleetListener) })
	group.Go(func() { serve(publicServer, public) })
	metricsServer := server(metricsHandler(o), log)
	if metrics != nil {
		log.Info("metrics", zap.String("http", metrics.Addr().String()))
		group.Go(func() { serve(metricsServer, metrics) })
	}
	loops.Go(func() { gateway.Run(background) })
	loops.Go(func() { gateway.Keep(background, keeper) })
	loops.Go(func() { orchestrator.Announce(background, store, self, log) })
	loops.Go(func() { refused.run(background, store.AuditRefusal) })
	loops.Go(func() { rotateHosts(background, store, cfg.HostRotate, log) })
	loops.Go(func() {
		hosts := func(name string) {
			gateway.Nudge(name)
			o.WakeHost(name)
		}
		store.Listen(background, pgstore.Wakes{Queue: o.WakeQueue, Adopt: o.WakeAdopt, Hosts: hosts, Session: o.WakeSession, Cancel: o.WakeCancel,
			Gateway: func(string) {
				select {
				case wake <- struct{}{}:
				default: // it is awake
				}
			}})
	})
	if err := probeReplicas(ctx, peers, self, others, log); err != nil {
		fail(err)
	} else {
		log.Info("ready", zap.String("http", public.Addr().String()), zap.String("fleet", fleetListener.Addr().String()), zap.String("name", cfg.Name))
	}

	o.Run(work) // returns when stopped, and every session has ended or was handed over

	log.Info("stopping")
	// The hosts first: they keep the sessions for whoever adopts them, and commands that still run are answered as unknown.
	left := closeWithin(10*time.Second, fleet.Close)
	err = closeWithin(10*time.Second, publicServer.Shutdown)
	if err != nil { // followers and streams do not end by themselves
		err = publicServer.Close()
	}
	err = errors.Join(err, closeWithin(10*time.Second, peers.Close))
	err = errors.Join(err, left, fleetServer.Close(), metricsServer.Close())
	group.Wait()
	stopBackground()
	loops.Wait()
	if cause := context.Cause(work); ctx.Err() == nil && cause != nil {
		err = errors.Join(err, cause)
	}
	log.Info("stopped")
	return err
}

// rotateHosts asks hosts for new keys when theirs are old, until ctx ends.
func rotateHosts(ctx context.Context, store *pgstore.Store, age time.Duration, log *zap.Logger) {
	t := time.NewTicker(time.Minute)
	defer t.Stop()
	for {
		if err := store.RotateOldHosts(ctx, age); err != nil && ctx.Err() == nil {
			log.Warn("hosts with old keys are not asked for new ones; trying again in a minute", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// listenMetrics is nil where nothing is to be served.
func listenMetrics(addr string) (net.Listener, error) {
	if addr == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--metrics-addr: %w", err)
	}
	return l, nil
}

func metricsHandler(o *orchestrator.Orchestrator) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", o.Metrics())
	return mux
}

func server(h http.Handler, log *zap.Logger) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, ErrorLog: zap.NewStdLog(log)}
}

func closeWithin(d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return f(ctx)
}
