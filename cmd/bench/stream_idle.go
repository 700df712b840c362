package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/tunnel/tunneltest"
)

const (
	residentHosts    = 25
	residentDevices  = 200 // of each
	residentStarting = 16
	residentSettle   = 30 * time.Second
	residentCommands = 1_000_000
	residentFiles    = 65536 // a fake driver has a listener and a connection
)

// benchIdleSessions measures what an orchestrator, as it is shipped and in a process of its own, keeps in memory for a session
// that runs and is idle; and whether that grows over a million commands. The hosts, with fake drivers, are in this process.
func benchIdleSessions(ctx context.Context) (_ []figure, err error) {
	var u undo
	defer func() { err = errors.Join(err, u.close()) }()
	_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: residentFiles, Max: residentFiles}) // where it may; else what there is must do
	dir, cluster, err := openCluster(ctx, &u)
	if err != nil {
		return nil, err
	}
	d, err := openResidents(ctx, &u, &tunnelBench{dir: dir, cluster: cluster})
	if err != nil {
		return nil, err
	}
	before, err := d.settled(ctx)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	sessions, err := d.startSessions(ctx, residentHosts*residentDevices)
	if err != nil {
		return nil, err
	}
	fmt.Printf("stream idle: %d sessions started in %.0fs\n", len(sessions), time.Since(begin).Seconds())
	after, err := d.settled(ctx)
	if err != nil {
		return nil, err
	}
	each := float64(after-before) / float64(len(sessions)) / 1024
	if err := d.drive(ctx, sessions[:hopSessions], residentCommands); err != nil {
		return nil, err
	}
	driven, err := d.settled(ctx)
	if err != nil {
		return nil, err
	}
	growth := float64(driven-after) / (1 << 20)
	return []figure{
		atMost("stream/idle-session-memory", each, 0, each, "KiB", 100),
		atMost("stream/memory-after-1M-commands", float64(driven)/(1<<20), float64(after)/(1<<20), growth, "MiB", 64),
	}, nil
}

// openResidents starts the orchestrator and its hosts.
func openResidents(ctx context.Context, u *undo, t *tunnelBench) (*daemon, error) {
	const name = "residents"
	d, err := startDaemon(ctx, t.dir, t.cluster, name)
	if err != nil {
		return nil, err
	}
	u.add(d.stop)
	info, err := d.gateway(ctx)
	if err != nil {
		return nil, err
	}
	members, err := enrol(ctx, t, name, residentHosts)
	if err != nil {
		return nil, err
	}
	crowd, err := tunneltest.OpenCrowd(tunneltest.CrowdConfig{Endpoint: info.Endpoint, PublicKey: info.PublicKey, MTU: tunnelMTU})
	if err != nil {
		return nil, err
	}
	u.add(crowd.Close)
	for _, e := range members {
		if err := crowd.Add(ctx, e.private, e.psk, e.addr); err != nil {
			return nil, err
		}
		u.start(func(ctx context.Context) error {
			return host.Run(ctx, host.Config{
				Name: e.name, Agent: "bench", StateDir: filepath.Join(t.dir, e.name), Orchestrators: host.Fixed(info.Fleet()), Dial: crowd.Dial(e.addr),
				Devices: fakes(residentDevices), Fake: func(string) *drivertest.Driver { return drivertest.NewQuiet() },
			})
		})
	}
	if _, err := d.client.PutAccount(ctx, "bench", api.PutAccount{Recordings: string(place.EUOnly)}); err != nil {
		return nil, err
	}
	return d, d.allUp(ctx, residentHosts)
}

// startSessions starts sessions that stay idle.
func (d *daemon) startSessions(ctx context.Context, n int) ([]string, error) {
	ids, errs := make([]string, n), make([]error, residentStarting)
	var workers sync.WaitGroup
	for w := range residentStarting {
		workers.Go(func() {
			for i := w; i < n && errs[w] == nil; i += residentStarting {
				ids[i], errs[w] = d.startSession(ctx)
			}
		})
	}
	workers.Wait()
	return ids, errors.Join(errs...)
}

func (d *daemon) startSession(ctx context.Context) (string, error) {
	record := false
	s, err := d.client.CreateSession(ctx, api.CreateSession{Account: "bench", Recording: &record, Timeouts: api.Timeouts{IdleSeconds: 7200, MaxSeconds: 7200}})
	if err != nil {
		return "", err
	}
	if s, err = d.client.Wait(ctx, s.ID, api.Running); err == nil && s.State != api.Running {
		err = fmt.Errorf("a session did not start: %s %s", s.Reason, s.Detail)
	}
	return s.ID, err
}

// drive runs n commands, shared by the sessions.
func (d *daemon) drive(ctx context.Context, sessions []string, n int) (err error) {
	var u undo
	defer func() { err = errors.Join(err, u.close()) }()
	var urls []string
	for _, id := range sessions {
		urls = append(urls, d.url+"/session/"+id+"/title")
	}
	callers, err := openCallers(ctx, &u, http.StatusOK, urls...)
	if err != nil {
		return err
	}
	begin := time.Now()
	errs := make([]error, len(callers))
	var all sync.WaitGroup
	for i, c := range callers {
		all.Go(func() {
			for range n / len(callers) {
				if _, errs[i] = c.call(); errs[i] != nil || ctx.Err() != nil {
					return
				}
			}
		})
	}
	all.Wait()
	fmt.Printf("stream idle: %d commands in %.0fs\n", n, time.Since(begin).Seconds())
	return errors.Join(append(errs, ctx.Err())...)
}

// settled is the resident memory of the orchestrator's process, once it has had time to give back what it does not need.
func (d *daemon) settled(ctx context.Context) (int64, error) {
	select {
	case <-time.After(residentSettle):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.Join(errors.New("there is no VmRSS"), lines.Err())
}
