package orchestrator

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/stream"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// cables dials, and cuts what it has dialled.
type cables struct {
	mu   sync.Mutex
	open []net.Conn // guarded by mu
}

func (c *cables) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	n, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.open = append(c.open, n)
	}
	return n, err
}

func (c *cables) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.open {
		n.Close()
	}
	c.open = nil
}

// loopback is a directory of one host.
type loopback struct{}

func (loopback) HostByAddr(context.Context, netip.Addr) (string, error)      { return "mac-1", nil }
func (loopback) HostUp(context.Context, wire.Hello) error                    { return nil }
func (loopback) DevicesChanged(context.Context, string, []wire.Device) error { return nil }
func (loopback) HostDown(context.Context, string, error)                     {}

// roaming is a session that moves from one orchestrator to the next.
type roaming struct {
	t       *testing.T
	driver  *drivertest.Driver
	fleets  []*driverproxy.Fleet
	toHost  cables
	journal *journal
	serving sync.WaitGroup

	mu    sync.Mutex // guards what follows
	lives []*live    // the last one has it
	dead  bool       // the last one is dead, and no other has the session yet
	term  int64
	dev   *driverproxy.Session
}

// newRoaming starts two orchestrators' fleets, a host that is connected to both, and a session at the first.
func newRoaming(t *testing.T) *roaming {
	t.Helper()
	r := &roaming{t: t, driver: drivertest.New(), journal: newJournal(&memory{}, zap.NewNop())}
	stored := make(chan struct{})
	go func() {
		defer close(stored)
		r.journal.run(context.Background())
	}()
	var addrs []string
	for i := range 2 {
		f := driverproxy.NewFleet(driverproxy.Config{Orchestrator: fmt.Sprintf("eu-%d", i), Epoch: fmt.Sprint(i), Directory: loopback{}, HeartbeatLimit: 30 * time.Second})
		s := httptest.NewServer(f.Handler())
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := f.Close(ctx); err != nil {
				t.Error(err)
			}
			s.Close()
		})
		r.fleets, addrs = append(r.fleets, f), append(addrs, s.Listener.Addr().String())
	}
	ctx, stop := context.WithCancel(context.Background())
	hosted := make(chan struct{})
	go func() {
		defer close(hosted)
		if err := host.Run(ctx, host.Config{Name: "mac-1", Agent: "test", StateDir: t.TempDir(), Orchestrators: host.Fixed(addrs...), Dial: r.toHost.dial,
			Devices: []host.Device{{Name: "phone", Kind: host.KindFake, Model: "iPhone", PlatformName: "iOS", PlatformVersion: "18"}},
			Fake:    func(string) *drivertest.Driver { return r.driver }}); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		r.end()
		stop()
		<-hosted
		r.journal.close()
		<-stored
	})
	for _, f := range r.fleets {
		within(t, "the host connects", func() bool { return len(f.Hosts()) == 1 })
	}
	r.move()
	return r
}

// die has the orchestrator die: nobody reaches it any more, though its session is not told.
func (r *roaming) die() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dead = true
}

// move has the next orchestrator take the session over.
func (r *roaming) move() {
	r.t.Helper()
	r.term++
	get := r.fleets[r.term%2].Adopt
	if r.term == 1 {
		get = r.fleets[1].Assign
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var dev *driverproxy.Session
	within(r.t, "the session is taken", func() bool {
		var err error
		dev, err = get(ctx, driverproxy.Assignment{Host: "mac-1", Device: "phone", Session: "s", Term: r.term})
		if err != nil && !errors.Is(err, driverproxy.ErrHostLost) { // a control socket was cut just now
			r.t.Errorf("term %d: %v", r.term, err)
		}
		return err == nil || r.t.Failed()
	})
	if dev == nil {
		return
	}
	l := newLive(Claim{Session: "s", Term: r.term, Idle: time.Hour, Max: time.Hour, Command: 5 * time.Minute}, r.journal, time.Now)
	r.serving.Go(func() { l.serve(context.Background(), dev, nil) })
	<-l.serving
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lives, r.dev, r.dead = append(r.lives, l), dev, false
}

// end ends all that there was of the session.
func (r *roaming) end() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := r.dev.Release(ctx); err != nil {
		r.t.Error(err)
	}
	for _, f := range r.fleets { // what former lives wait for
		if err := f.Close(ctx); err != nil {
			r.t.Error(err)
		}
	}
	for _, l := range r.lives {
		l.stop(endWith(Completed, nil))
		close(l.over)
		l.streams.close()
	}
	r.serving.Wait()
}

func (r *roaming) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	l, dead := r.lives[len(r.lives)-1], r.dead
	r.mu.Unlock()
	if dead {
		http.Error(w, "not yet", http.StatusServiceUnavailable)
		return
	}
	l.sit(w, req)
}

var seedFlag = flag.Uint64("seed", 0, "seed of the random breaks; 0: another each time")

// A sample of TestSoakStreamBreaks.
func TestStreamBreaks(t *testing.T) { breakEverything(t, 40) }

// breakEverything runs a stream's commands, pipelined, while the client's socket, the host's sockets and the orchestrator
// break at random: every command runs once, in order, and is answered.
func breakEverything(t *testing.T, breaks int) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with: go test ./orchestrator -run '^%s$' -seed %d", t.Name(), seed)
	random := rand.New(rand.NewPCG(seed, 0))
	r := newRoaming(t)
	s := httptest.NewServer(r)
	defer s.Close()
	var toClient cables
	c, err := stream.Dial(t.Context(), "ws"+strings.TrimPrefix(s.URL, "http"), stream.Options{Dial: toClient.dial, Patience: 2 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wanted := make(chan struct{}, 1024) // written by the breaks: so many commands are sent
	pending := make(chan *stream.Pending, 256)
	go func() {
		defer close(pending)
		n := 0
		for range wanted {
			p, err := c.Go(t.Context(), post("/execute/sync", fmt.Sprintf(`{"script":"","args":[%d]}`, n)))
			if err != nil {
				t.Errorf("command %d: %v", n, err)
				return
			}
			n++
			pending <- p
		}
	}()
	var answers atomic.Int64
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		for p := range pending {
			n := int(answers.Load())
			a, err := p.Wait(t.Context())
			var v int
			if err != nil || a.Err() != nil || a.Value(&v) != nil || v != n {
				t.Errorf("command %d: %v, %d %s", n, err, a.Status, a.Body)
			}
			answers.Add(1)
		}
	}()
	for range breaks {
		some := 50 + random.IntN(200)
		enough := answers.Load() + int64(random.IntN(some))
		for range some {
			wanted <- struct{}{}
		}
		within(t, "commands go on", func() bool { return answers.Load() >= enough || t.Failed() })
		switch random.IntN(4) {
		case 0:
			toClient.cut()
		case 1:
			r.toHost.cut()
		case 2:
			toClient.cut()
			r.toHost.cut()
		case 3: // the orchestrator dies: its clients and hosts have no socket any more, and another takes over
			r.die()
			toClient.cut()
			r.move()
		}
	}
	close(wanted)
	<-answered
	next, n := 0, int(answers.Load())
	for _, e := range r.driver.Executed() {
		if e.Route != webdriver.RouteExecuteScript {
			continue
		}
		var b struct{ Args []int }
		if err := json.Unmarshal([]byte(e.Body), &b); err != nil || len(b.Args) != 1 || b.Args[0] != next {
			t.Fatalf("seed %d: the driver ran %s where %d was the next", seed, e.Body, next)
		}
		next++
	}
	if next != n {
		t.Errorf("seed %d: %d commands ran, %d were answered", seed, next, n)
	}
	t.Logf("%d commands, %d orchestrators", n, r.term)
}
