package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/tunnel"
)

const (
	idleHosts   = 1000
	idleJoining = 16 // hosts that join at once
	idleRounds  = 3
	idleRound   = 20 * time.Second
	idleSettle  = 20 * time.Second // more than any period of what an idle host does
	idleUp      = 5 * time.Minute
)

// idle measures an orchestrator with hosts that do nothing but stay connected: cmd/orchestrator as it is shipped, in a process
// of its own, with a real Postgres. The hosts are in this process, and all of them real: each joins with its own token over
// its own tunnel, and runs tunnel.Link (pulses and probes included) and driverproxy/host with one fake device.
func (t *tunnelBench) idle(ctx context.Context) (_ []figure, err error) {
	var u undo
	defer func() { err = errors.Join(err, u.close()) }()
	dir := filepath.Join(t.dir, "idle")
	if err := errors.Join(os.Mkdir(dir, 0o700), t.cluster.CreateDatabase(ctx, "idle")); err != nil {
		return nil, err
	}
	d, err := startDaemon(ctx, dir, t.cluster.DSN("idle"))
	if err != nil {
		return nil, err
	}
	u.add(d.stop)
	begin := time.Now()
	if err := openHosts(ctx, &u, d, dir, idleHosts); err != nil {
		return nil, err
	}
	if err := d.allUp(ctx, idleHosts); err != nil {
		return nil, err
	}
	fmt.Printf("tunnel idle: %d hosts joined in %.0fs\n", idleHosts, time.Since(begin).Seconds())
	share, err := d.share(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.allUp(ctx, idleHosts); err != nil { // an orchestrator that lost its hosts has it easy
		return nil, err
	}
	return []figure{atMost("tunnel/idle-1k-hosts-cpu", share, 0, share, "% of a core", 15)}, nil
}

// openHosts starts n hosts, which live until u is closed.
func openHosts(ctx context.Context, u *undo, d *daemon, dir string, n int) error {
	numbers := make(chan int)
	errs := make([]error, n)
	var mu sync.Mutex // guards u
	var workers sync.WaitGroup
	for range idleJoining {
		workers.Go(func() {
			for i := range numbers {
				errs[i] = openHost(ctx, u, &mu, d, dir, i)
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	workers.Wait()
	return errors.Join(errs...)
}

func openHost(ctx context.Context, u *undo, mu *sync.Mutex, d *daemon, dir string, i int) error {
	name := fmt.Sprintf("host-%d", i)
	token, err := d.client.InviteHost(ctx, name)
	if err != nil {
		return err
	}
	state := filepath.Join(dir, name)
	l, err := tunnel.OpenLink(ctx, tunnel.LinkConfig{StateDir: state, Token: token.Token, Backend: tunnel.BackendNetstack, MTU: tunnelMTU})
	if err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	u.add(l.Close)
	u.start(func(ctx context.Context) error {
		return host.Run(ctx, host.Config{
			Name: name, Agent: "bench", StateDir: state, Orchestrators: l.Fleets, Dial: l.DialContext,
			Devices: []host.Device{{Name: "d", Kind: host.KindFake, Model: "fake", PlatformName: "none"}},
			Fake:    func(string) *drivertest.Driver { return drivertest.NewQuiet() },
		})
	})
	return nil
}

// allUp waits until n hosts are up.
func (d *daemon) allUp(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, idleUp)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		hosts, err := d.client.Hosts(ctx)
		if err != nil {
			return err
		}
		states, up := map[string]int{}, 0
		for _, h := range hosts {
			if h.State == api.HostUp {
				up++
			} else {
				states[string(h.State)+" "+h.Reason]++
			}
		}
		if up >= n {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d hosts are up, others are %v", up, n, states)
		}
	}
}

// share is the orchestrator's share of a core, in percent, while nobody asks it for anything.
func (d *daemon) share(ctx context.Context) (float64, error) {
	var shares []float64
	wait := idleSettle
	for range idleRounds {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		before, err := d.cpu()
		if err != nil {
			return 0, err
		}
		begin := time.Now()
		select {
		case <-time.After(idleRound):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		after, err := d.cpu()
		if err != nil {
			return 0, err
		}
		shares = append(shares, 100*(after-before).Seconds()/time.Since(begin).Seconds())
		wait = 0
	}
	return middle(shares), nil
}
