package main

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/tunnel"
	"github.com/driftstack/fleet/tunnel/tunneltest"
)

const (
	idleHosts   = 1000
	idleMany    = 10000
	idleJoining = 16 // hosts that connect at once
	idleRounds  = 3
	idleRound   = 20 * time.Second
	idleSettle  = 20 * time.Second // more than any period of what an idle host does
	idleUp      = 5 * time.Minute

	firstMember = tunnel.FirstHost + 100 // the first are for hosts that are invited

	idleManyLimit = 4 * time.Minute

	pulseEvery = 15 * time.Second // as tunnel.Link does both
	probeEvery = 30 * time.Second
	probeBytes = 8 << 10
)

// idle measures an orchestrator with hosts that do nothing but stay connected: cmd/orchestrator as it is shipped, in a process
// of its own, on a real Postgres.
//
// The hosts are in this process. Real are the agent (driverproxy/host with a fake device: control socket and heartbeats), keys,
// addresses and rows of their own, WireGuard (handshakes with preshared keys every two minutes, encrypted packets over UDP), TCP,
// and the requests of tunnel.Link for pulses and probes at their intervals. The reference is a gateway that does nothing but
// answer as many echoes (idleBare). Not real is that tunneltest.Crowd carries them
// all over a few UDP sockets and one TCP stack: a Link each takes 9 MB and the processor that the orchestrator is to be seen on.
func (t *tunnelBench) idle(ctx context.Context) ([]figure, error) {
	few, err := t.idleWith(ctx, idleHosts)
	if err != nil {
		return nil, err
	}
	bare, err := t.idleBare(ctx, idleHosts)
	if err != nil {
		return nil, err
	}
	fmt.Printf("tunnel idle: %d hosts take %.1f %% of a core, their echoes alone on a bare gateway %.1f %%\n", idleHosts, few, bare)
	return []figure{atMost("tunnel/idle-1k-hosts-cpu", few, bare, few, "% of a core", 15)}, nil
}

// idleCrowd is idle with ten times as many. It has no bar; where hosts and orchestrator together are too much for the machine, it says so.
func (t *tunnelBench) idleCrowd(ctx context.Context) ([]figure, error) {
	limited, cancel := context.WithTimeout(ctx, idleManyLimit)
	defer cancel()
	many, err := t.idleWith(limited, idleMany)
	if err != nil {
		fmt.Printf("tunnel idle: %d hosts are too many for this machine: %v\n", idleMany, err)
		return nil, ctx.Err()
	}
	return []figure{{Name: "tunnel/idle-10k-hosts-cpu", Ours: many, Value: many, Unit: "% of a core", OK: true}}, nil
}

// idleWith is the orchestrator's share of a core with n hosts, in percent.
func (t *tunnelBench) idleWith(ctx context.Context, n int) (_ float64, err error) {
	var u undo
	defer func() { err = errors.Join(err, u.close()) }()
	name := fmt.Sprintf("idle_%d", n)
	dir := filepath.Join(t.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	d, err := startDaemon(ctx, dir, t.cluster, name)
	if err != nil {
		return 0, err
	}
	u.add(d.stop)
	info, err := d.gateway(ctx)
	if err != nil {
		return 0, err
	}
	members, err := enrol(ctx, t, name, n)
	if err != nil {
		return 0, err
	}
	crowd, err := tunneltest.OpenCrowd(tunneltest.CrowdConfig{Endpoint: info.Endpoint, PublicKey: info.PublicKey, MTU: tunnelMTU})
	if err != nil {
		return 0, err
	}
	u.add(crowd.Close)
	begin := time.Now()
	err = openHosts(ctx, &u, crowd, members, func(ctx context.Context, e enrolled) error { return runHost(ctx, crowd, info, dir, e) })
	if err != nil {
		return 0, err
	}
	if err := d.allUp(ctx, n); err != nil {
		return 0, err
	}
	fmt.Printf("tunnel idle: %d hosts connected in %.0fs\n", n, time.Since(begin).Seconds())
	share, err := share(ctx, d.cpu)
	if err != nil {
		return 0, err
	}
	return share, d.allUp(ctx, n) // an orchestrator that lost its hosts has it easy
}

// gateway is what a join token says of the daemon's end of the tunnel.
func (d *daemon) gateway(ctx context.Context) (tunnel.GatewayInfo, error) {
	token, err := d.client.InviteHost(ctx, "nobody")
	if err != nil {
		return tunnel.GatewayInfo{}, err
	}
	parsed, err := tunnel.ParseToken(token.Token)
	if err != nil {
		return tunnel.GatewayInfo{}, err
	}
	return parsed.Gateways[0], nil
}

// enrolled is a host that has joined.
type enrolled struct {
	name         string
	private, psk [32]byte
	public       []byte
	addr         netip.Addr
	mark         time.Duration // of each second, for echoes
}

// newMembers makes hosts with keys and addresses.
func newMembers(n int) ([]enrolled, error) {
	var all []enrolled
	for i := range n {
		e := enrolled{name: fmt.Sprintf("host-%d", i), mark: time.Duration(i%5) * 200 * time.Millisecond} // as driverproxy/host does
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		e.private, e.public = [32]byte(key.Bytes()), key.PublicKey().Bytes()
		if _, err := rand.Read(e.psk[:]); err != nil {
			return nil, err
		}
		if e.addr, err = tunnel.HostAddr(firstMember + i); err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

// enrol writes hosts that have joined into a database. Its orchestrator learns of them as of every other change.
func enrol(ctx context.Context, t *tunnelBench, database string, n int) ([]enrolled, error) {
	all, err := newMembers(n)
	if err != nil {
		return nil, err
	}
	var script strings.Builder
	for i, e := range all {
		fmt.Fprintf(&script, "INSERT INTO hosts (name, number, public_key, psk) VALUES ('%s', %d, '%s', '\\x%x');\n",
			e.name, firstMember+i, tunnel.Key(e.public), e.psk)
	}
	script.WriteString("SELECT pg_notify('driftstack_hosts', '');\n")
	_, err = t.cluster.Run(ctx, database, script.String())
	return all, err
}

// openHosts starts hosts, which live until u is closed.
func openHosts(ctx context.Context, u *undo, crowd *tunneltest.Crowd, members []enrolled, life func(context.Context, enrolled) error) error {
	queue := make(chan enrolled)
	errs := make([]error, idleJoining)
	var mu sync.Mutex // guards u
	var workers sync.WaitGroup
	for i := range idleJoining {
		workers.Go(func() {
			for e := range queue {
				if err := crowd.Add(ctx, e.private, e.psk, e.addr); err != nil {
					errs[i] = err
					continue
				}
				mu.Lock()
				u.start(func(ctx context.Context) error { return life(ctx, e) })
				mu.Unlock()
			}
		})
	}
	for _, e := range members {
		queue <- e
	}
	close(queue)
	workers.Wait()
	return errors.Join(errs...)
}

// runHost is the life of one host.
func runHost(ctx context.Context, crowd *tunneltest.Crowd, info tunnel.GatewayInfo, dir string, e enrolled) error {
	var watch sync.WaitGroup
	watch.Go(func() {
		keepWatch(ctx, &http.Client{Transport: &http.Transport{DialContext: crowd.Dial(e.addr)}, Timeout: 10 * time.Second}, info)
	})
	defer watch.Wait()
	return host.Run(ctx, host.Config{
		Name: e.name, Agent: "bench", StateDir: filepath.Join(dir, e.name), Orchestrators: host.Fixed(info.Fleet()), Dial: crowd.Dial(e.addr),
		Devices: []host.Device{{Name: "d", Kind: host.KindFake, Model: "fake", PlatformName: "none"}},
		Fake:    func(string) *drivertest.Driver { return drivertest.NewQuiet() },
	})
}

// keepWatch sends what a Link's watch sends while nothing is wrong. What fails is seen in the host's state.
func keepWatch(ctx context.Context, c *http.Client, info tunnel.GatewayInfo) {
	defer c.CloseIdleConnections()
	pulse, _ := json.Marshal(wire.Pulse{Backend: tunnel.BackendNetstack, MTU: tunnelMTU, RoundTrip: time.Millisecond}) // it always can be
	probe := make([]byte, probeBytes)
	post := func(path string, body []byte) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+info.Fleet()+path, bytes.NewReader(body))
		if err != nil {
			return
		}
		resp, err := c.Do(req)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	t := time.NewTicker(pulseEvery)
	defer t.Stop()
	for n := 0; ; n++ {
		post(wire.PathPulse, pulse)
		if n%int(probeEvery/pulseEvery) == 0 {
			post(wire.PathProbe, probe)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
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
		states, up := map[api.HostState]int{}, 0
		for _, h := range hosts {
			if h.State == api.HostUp {
				up++
			} else {
				states[h.State]++
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

// share is a process's share of a core, in percent, while nobody asks it for anything. Used is the processor time it has used.
func share(ctx context.Context, used func() (time.Duration, error)) (float64, error) {
	var shares []float64
	wait := idleSettle
	for range idleRounds {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		before, err := used()
		if err != nil {
			return 0, err
		}
		begin := time.Now()
		select {
		case <-time.After(idleRound):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		after, err := used()
		if err != nil {
			return 0, err
		}
		shares = append(shares, 100*(after-before).Seconds()/time.Since(begin).Seconds())
		wait = 0
	}
	return middle(shares), nil
}
