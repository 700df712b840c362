package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
)

// rotateWithin is the shortest time that a gateway may be given to use its next key.
const rotateWithin = time.Minute

// TestRotation replaces the keys of both ends of the tunnel as an operator does while the commands of a recorded session
// flow: none fails, no socket breaks, and both ends find each other with what they stored.
func TestRotation(t *testing.T) {
	t.Parallel()
	bin := programs(t)
	dir := filepath.Join(t.TempDir(), "state")
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	s, err := startStack(ctx, config{dir: dir, bin: bin, tunnel: "netstack", out: &printer{w: testWriter{t}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if _, err := s.fleet.PutAccount(ctx, accountA, api.PutAccount{Recordings: "eu"}); err != nil {
		t.Fatal(err)
	}
	b := &broken{t: t, ctx: ctx, stack: s, sample: &sample{stack: s, out: s.cfg.out}}
	id, browser := b.begin()
	if err := browser.open(ctx, s.site.origin+"/counter"); err != nil {
		t.Fatal(err)
	}
	c := startCommands(t, ctx, browser.do)
	usual := c.during(func() { c.atLeast(100) })

	before := b.keys()
	gap := c.during(func() {
		b.driftctl("hosts", "rotate", hostName)
		b.eventually("the host has a new key", func() bool { return b.detail().PublicKey != before.host })
		c.atLeast(50)
	})
	hostTurned := b.keys()
	t.Logf("MEASURED rotation of a host's key and preshared key: longest command %s (usual: %s)", ms(gap), ms(usual))
	if h := b.detail(); h.NextPublicKey != "" || hostTurned.hostPrivate == before.hostPrivate || hostTurned.preshared == before.preshared || hostTurned.hostNext {
		t.Errorf("the host is told of as %+v; stored: another key %t, another preshared key %t, a next key %t", h,
			hostTurned.hostPrivate != before.hostPrivate, hostTurned.preshared != before.preshared, hostTurned.hostNext)
	}

	gap = c.during(func() {
		b.driftctl("gateways", "rotate", "eu-1", "--within", rotateWithin.String())
		b.eventually("the gateway has announced its next key", func() bool { return b.gateway().NextPublicKey != "" })
		next := b.gateway().NextPublicKey
		b.eventually("the gateway has its next key", func() bool { return b.gateway().PublicKey == next })
		b.eventually("the host has stored that this is the key", func() bool { k := b.keys(); return k.hostsGateway == next && !k.hostsGatewayNext })
		c.atLeast(50)
	})
	after := b.keys()
	t.Logf("MEASURED rotation of a gateway's key: longest command %s (usual: %s)", ms(gap), ms(usual))
	if after.gateway == hostTurned.gateway || bytes.Equal(after.gatewayFile, hostTurned.gatewayFile) || after.gatewayNext {
		t.Errorf("another key %t, another on disk %t, a next key there %t", after.gateway != hostTurned.gateway,
			!bytes.Equal(after.gatewayFile, hostTurned.gatewayFile), after.gatewayNext)
	}
	if after.host != hostTurned.host {
		t.Error("the host's key was replaced again")
	}

	if err := c.stop(); err != nil {
		t.Errorf("after %d commands: %v", c.count.Load(), err)
	}
	t.Logf("%d commands of one session while both keys were replaced", c.count.Load())
	if v, err := s.fleet.Session(ctx, id); err != nil || v.State != api.Running {
		t.Errorf("the session is %s (%s: %s), %v", v.State, v.Reason, v.Detail, err)
	}
	b.said("orchestrator", map[string]int{"host up": 1, "host down": 0, "control socket refused": 0})
	b.said("driverhost", map[string]int{"control socket up": 1})
	for _, program := range []string{"orchestrator", "driverhost"} {
		b.tells(program, "key", "not heard", "heard again") // a repair is no failure: the sockets outlive it
	}
	if err := browser.quit(ctx); err != nil {
		t.Fatal(err)
	}
	if v := b.wait(id, api.Ended); v.Reason != "completed" {
		t.Errorf("ended as %s: %s", v.Reason, v.Detail)
	}
	if rec, err := b.sample.waitRecording(ctx, id, []string{"eu"}); err != nil || rec.Partial {
		t.Errorf("recording %+v, %v", rec, err)
	}

	b.host(syscall.SIGTERM)
	if err := s.eu.stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.startOrchestrator(ctx); err != nil {
		t.Fatal(err)
	}
	b.restartHost()
	if again := b.keys(); again.host != after.host || again.gateway != after.gateway {
		t.Errorf("other keys after a restart: host %t, gateway %t", again.host != after.host, again.gateway != after.gateway)
	}
	b.undisturbed(b.sample.clicksAndLooks)
}

func ms(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// commands sends one command after the other, some 20 ms apart, until one fails or it is stopped.
type commands struct {
	t       *testing.T
	ctx     context.Context
	count   atomic.Int64
	longest atomic.Int64
	failed  chan struct{} // closed when err is set
	err     error
	stop    func() error
}

func startCommands(t *testing.T, ctx context.Context, do doer) *commands {
	ctx, cancel := context.WithCancel(ctx)
	c := &commands{t: t, ctx: ctx, failed: make(chan struct{})}
	var sender sync.WaitGroup
	sender.Go(func() {
		for ctx.Err() == nil {
			began := time.Now()
			// What was begun is not cut off by the end of the test.
			_, err := do(context.WithoutCancel(ctx), http.MethodGet, "/title", nil)
			if err != nil {
				c.err = fmt.Errorf("a command failed after %s: %w", time.Since(began), err)
				close(c.failed)
				return
			}
			c.longest.Store(max(c.longest.Load(), int64(time.Since(began))))
			c.count.Add(1)
			pause(ctx, 20*time.Millisecond)
		}
	})
	c.stop = sync.OnceValue(func() error { cancel(); sender.Wait(); return c.err })
	t.Cleanup(func() { _ = c.stop() }) // reported by the test
	return c
}

// during is the longest that a command took while change was at work.
func (c *commands) during(change func()) time.Duration {
	c.t.Helper()
	c.longest.Store(0)
	change()
	return time.Duration(c.longest.Load())
}

// atLeast waits for so many more commands.
func (c *commands) atLeast(n int64) {
	c.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for from := c.count.Load(); c.count.Load() < from+n; {
		select {
		case <-tick.C:
		case <-c.failed:
			c.t.Fatal(c.err)
		case <-limit:
			c.t.Fatal("commands do not go on")
		}
	}
}

// keys are what the API tells of both ends, and what they have on their disks.
type keys struct {
	host, gateway          string
	hostPrivate, preshared string
	hostNext               bool
	hostsGateway           string // the gateway's key as the host stored it
	hostsGatewayNext       bool
	gatewayFile            []byte
	gatewayNext            bool
}

func (b *broken) keys() keys {
	b.t.Helper()
	k := keys{host: b.detail().PublicKey, gateway: b.gateway().PublicKey}
	raw, err := os.ReadFile(filepath.Join(b.stack.cfg.dir, "driverhost", "tunnel.json"))
	if err != nil {
		b.t.Fatal(err)
	}
	var stored struct {
		PrivateKey   string          `json:"private_key"`
		PresharedKey string          `json:"preshared_key"`
		Next         json.RawMessage `json:"next"`
		Gateways     []struct {
			PublicKey     string `json:"public_key"`
			NextPublicKey string `json:"next_public_key"`
		} `json:"gateways"`
	}
	if err := json.Unmarshal(raw, &stored); err != nil || len(stored.Gateways) != 1 || stored.PrivateKey == "" || stored.Gateways[0].PublicKey == "" {
		b.t.Fatalf("the host's state has %d gateways: %v", len(stored.Gateways), err)
	}
	k.hostPrivate, k.preshared, k.hostNext = stored.PrivateKey, stored.PresharedKey, len(stored.Next) > 0
	k.hostsGateway, k.hostsGatewayNext = stored.Gateways[0].PublicKey, stored.Gateways[0].NextPublicKey != ""
	file := filepath.Join(b.stack.cfg.dir, "orchestrator", "gateway.key")
	if k.gatewayFile, err = os.ReadFile(file); err != nil {
		b.t.Fatal(err)
	}
	_, err = os.Stat(file + ".next")
	k.gatewayNext = err == nil
	return k
}

func (b *broken) detail() api.HostDetail {
	b.t.Helper()
	h, err := b.stack.fleet.Host(b.ctx, hostName)
	if err != nil {
		b.t.Fatal(err)
	}
	return h
}

func (b *broken) gateway() api.Gateway {
	b.t.Helper()
	g, err := b.stack.fleet.Gateways(b.ctx)
	if err != nil || len(g) != 1 {
		b.t.Fatalf("gateways %+v, %v", g, err)
	}
	return g[0]
}

// driftctl runs the command as an operator does.
func (b *broken) driftctl(args ...string) {
	b.t.Helper()
	cmd := exec.CommandContext(b.ctx, filepath.Join(b.stack.cfg.bin, "driftctl"), args...)
	cmd.Env = append(inherited(), "DRIFTSTACK_URL="+b.stack.url, "DRIFTSTACK_SERVICE_TOKEN="+b.stack.state.ServiceToken)
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.t.Fatalf("driftctl %v: %v\n%s", args, err, out)
	}
	b.t.Logf("driftctl %v: %s", args, bytes.TrimSpace(out))
}

func (b *broken) eventually(what string, so func() bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, rotateWithin+30*time.Second)
	defer cancel()
	for !so() {
		if pause(ctx, pollEvery); ctx.Err() != nil {
			b.t.Fatalf("not in time: %s", what)
		}
	}
}

// said counts what a program logged.
func (b *broken) said(program string, want map[string]int) {
	b.t.Helper()
	raw, err := os.ReadFile(b.stack.log(program))
	if err != nil {
		b.t.Fatal(err)
	}
	for what, n := range want {
		if got := bytes.Count(raw, []byte(what)); got != n {
			b.t.Errorf("%s logged %q %d times, not %d", program, what, got, n)
		}
	}
}

// tells repeats what a program logged about something.
func (b *broken) tells(program string, about ...string) {
	b.t.Helper()
	raw, err := os.ReadFile(b.stack.log(program))
	if err != nil {
		b.t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if slices.ContainsFunc(about, func(a string) bool { return strings.Contains(line, a) }) {
			b.t.Logf("%s: %s", program, strings.TrimSpace(line))
		}
	}
}
