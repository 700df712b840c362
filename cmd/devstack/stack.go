package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
	"github.com/driftstack/fleet/orchestrator/pgstore/pgcluster"
)

const (
	hostName   = "devhost"
	deviceName = "webkit-1"
	deviceKind = "webkitgtk"
	readyLimit = 60 * time.Second
	pollEvery  = 100 * time.Millisecond
)

// config is what the command line says.
type config struct {
	dir    string // state; absolute
	bin    string // our programs and versitygw; absolute
	tunnel string // backend: netstack or tun
	out    *printer
}

// stack is the running system.
type stack struct {
	cfg      config
	state    *state
	site     *site
	postgres *pgcluster.Cluster
	objects  map[string]*objectStore // by region
	eu       *child                  // orchestrator
	host     *child                  // driverhost
	space    *netSpace               // the driver host's network namespace; nil: ours
	url      string                  // of the orchestrator
	fleet    *client.Client
	undo     []func(context.Context) error // in order of start
}

// startStack brings everything up, in the order of need. On an error what was started is stopped again.
func startStack(ctx context.Context, cfg config) (_ *stack, err error) {
	s := &stack{cfg: cfg, objects: map[string]*objectStore{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop(context.WithoutCancel(ctx)))
		}
	}()
	st, lock, err := openState(cfg.dir)
	if err != nil {
		return nil, err
	}
	s.state = st
	s.undo = append(s.undo, func(context.Context) error { return lock.Close() })
	s.url = fmt.Sprintf("http://127.0.0.1:%d", st.HTTPPort)
	if s.fleet, err = client.New(s.url, st.ServiceToken); err != nil {
		return nil, err
	}
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"network namespaces", s.startSpace},
		{"sample site", s.startSite},
		{"Postgres", s.startPostgres},
		{"object storage eu", func(ctx context.Context) error { return s.startObjects(ctx, "eu", st.EUAccessKey, st.EUSecretKey) }},
		{"object storage us", func(ctx context.Context) error { return s.startObjects(ctx, "us", st.USAccessKey, st.USSecretKey) }},
		{"orchestrator", s.startOrchestrator},
		{"driverhost", s.startHost},
	} {
		if step.name == "network namespaces" && cfg.tunnel != "tun" {
			continue
		}
		if err := cfg.out.step(ctx, "starting "+step.name, step.run); err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return s, s.writeAccess()
}

// stop ends everything in the opposite order of start and tells what did not end well.
func (s *stack) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	var errs []error
	for _, undo := range slices.Backward(s.undo) {
		errs = append(errs, undo(ctx))
	}
	s.undo = nil
	return errors.Join(errs...)
}

// watch returns an error when a part of the stack ends that should run, and nil when ctx does.
func (s *stack) watch(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-s.eu.done:
		return s.eu.ended()
	case <-s.host.done:
		return s.host.ended()
	case <-s.postgres.Done():
		return fmt.Errorf("postgres ended by itself: see %s", s.log("postgres"))
	}
}

func (s *stack) log(name string) string { return filepath.Join(s.cfg.dir, "logs", name+".log") }

func (s *stack) startSpace(context.Context) (err error) {
	if s.space, err = newNetSpace(); err != nil {
		return err
	}
	s.undo = append(s.undo, func(context.Context) error { return s.space.close() })
	return nil
}

func (s *stack) startSite(context.Context) error {
	l, err := s.space.listen(fmt.Sprintf("127.0.0.1:%d", s.state.SitePort))
	if err != nil {
		return fmt.Errorf("%w: the site's port cannot change, saved profiles name it; stop what uses it, or run `make clean`", err)
	}
	s.site = startSite(l, s.state.SiteKey)
	s.undo = append(s.undo, s.site.stop)
	return nil
}

func (s *stack) startPostgres(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(s.cfg.dir, "logs"), 0o700); err != nil {
		return err
	}
	c, err := pgcluster.Start(ctx, pgcluster.Config{Dir: filepath.Join(s.cfg.dir, "postgres"), LogFile: s.log("postgres")})
	if err != nil {
		return err
	}
	s.postgres = c
	s.undo = append(s.undo, c.Stop)
	return errors.Join(c.CreateDatabase(ctx, "fleet"), c.CreateDatabase(ctx, "fleet_keys"))
}

func (s *stack) startObjects(ctx context.Context, region, accessKey, secretKey string) error {
	o, err := startObjectStore(ctx, s.cfg, region, accessKey, secretKey)
	if err != nil {
		return err
	}
	s.objects[region] = o
	s.undo = append(s.undo, o.stop)
	return nil
}

func (s *stack) startOrchestrator(ctx context.Context) error {
	st := s.state
	endpoint := "127.0.0.1"
	if s.space != nil {
		endpoint = gatewayAddr
	}
	argv := []string{filepath.Join(s.cfg.bin, "orchestrator"),
		"--http-addr", fmt.Sprintf("127.0.0.1:%d", st.HTTPPort),
		"--state-dir", filepath.Join(s.cfg.dir, "orchestrator"),
		"--location", "DE", // it stands in for one that is there
		"--tunnel-backend", s.cfg.tunnel,
		"--tunnel-listen-port", strconv.Itoa(st.TunnelPort),
		"--tunnel-endpoint", fmt.Sprintf("%s:%d", endpoint, st.TunnelPort),
		"--development",
	}
	env := []string{"DRIFTSTACK_SERVICE_TOKEN=" + st.ServiceToken, "DRIFTSTACK_DATABASE_URL=" + s.postgres.DSN("fleet"),
		"DRIFTSTACK_KEY_DATABASE_URL=" + s.postgres.DSN("fleet_keys")}
	for region, key := range map[string][2]string{"eu": {st.EUAccessKey, st.EUSecretKey}, "us": {st.USAccessKey, st.USSecretKey}} {
		o, name := s.objects[region], map[string]string{"eu": "EU", "us": "US"}[region]
		argv = append(argv, "--"+region+"-s3-endpoint", o.endpoint, "--"+region+"-s3-bucket", o.bucket)
		env = append(env, "DRIFTSTACK_"+name+"_S3_ACCESS_KEY="+key[0], "DRIFTSTACK_"+name+"_S3_SECRET_KEY="+key[1])
	}
	var err error
	if s.eu, err = startChild(spec{name: "orchestrator", argv: argv, env: env, log: s.log("orchestrator")}); err != nil {
		return err
	}
	s.undo = append(s.undo, s.eu.stop)
	return until(ctx, s.eu, "is not ready", func(ctx context.Context) (bool, error) {
		return healthy(ctx, s.url), nil
	})
}

// startHost invites the host when it is not enrolled yet, starts it and waits until its device takes sessions.
func (s *stack) startHost(ctx context.Context) error {
	argv := []string{filepath.Join(s.cfg.bin, "driverhost"),
		"--state-dir", filepath.Join(s.cfg.dir, "driverhost"),
		"--device", "name=" + deviceName + ",kind=" + deviceKind + ",model=iPhone 15",
		"--tunnel-backend", s.cfg.tunnel,
	}
	var env []string
	token, err := s.fleet.InviteHost(ctx, hostName)
	var problem *client.Problem
	switch {
	case err == nil:
		env = []string{"DRIFTSTACK_JOIN=" + token.Token}
	case errors.As(err, &problem) && problem.Status == http.StatusConflict: // enrolled by an earlier start
	default:
		return err
	}
	if s.host, err = startChild(spec{name: "driverhost", argv: argv, env: env, log: s.log("driverhost"), inside: s.space}); err != nil {
		return err
	}
	s.undo = append(s.undo, s.host.stop)
	return until(ctx, s.host, "has no device that is ready", func(ctx context.Context) (bool, error) {
		devices, err := s.fleet.Devices(ctx)
		return slices.ContainsFunc(devices, func(d api.Device) bool {
			// busy: a session that was queued when the stack stopped has begun
			return d.Host == hostName && d.Name == deviceName && (d.State == "ready" || d.State == "busy")
		}), err
	})
}

// access is what other programs need to use the stack; devstack writes it to access.json while it runs.
type access struct {
	URL          string `json:"url"`
	ServiceToken string `json:"service_token"`
	Site         string `json:"site"`
	Account      string `json:"account"`
}

func (s *stack) access() access {
	return access{s.url, s.state.ServiceToken, s.site.origin, accountA}
}

func (s *stack) writeAccess() error {
	raw, err := json.MarshalIndent(s.access(), "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(s.cfg.dir, "access.json")
	s.undo = append(s.undo, func(context.Context) error { return os.Remove(path) })
	return writeFile(path, raw)
}

// until asks again and again until ok, an end of the child, an error, or the limit.
func until(ctx context.Context, c *child, not string, ok func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		done, err := ok(ctx)
		if done {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-c.done:
			return c.ended()
		case <-ctx.Done():
			return fmt.Errorf("%s %s after %s (%w); end of %s:\n%s", c.name, not, readyLimit, context.Cause(ctx), c.log, c.tail())
		case <-tick.C:
		}
	}
}
