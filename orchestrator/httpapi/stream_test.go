package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/stream"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
)

// snapping dials connections that break after some kilobytes, so many times.
type snapping struct {
	mu    sync.Mutex // guards what follows
	rand  *rand.Rand
	snaps int
}

type snap struct {
	net.Conn
	of   *snapping
	left int // guarded by of.mu; below 0: it holds
}

func (s *snapping) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	left := -1
	if s.snaps > 0 {
		s.snaps--
		left = 1000 + s.rand.IntN(6000)
	}
	return &snap{c, s, left}, nil
}

func (s *snapping) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snaps
}

func (c *snap) Write(b []byte) (int, error) { return c.spend(c.Conn.Write, b) }
func (c *snap) Read(b []byte) (int, error)  { return c.spend(c.Conn.Read, b) }

func (c *snap) spend(f func([]byte) (int, error), b []byte) (int, error) {
	c.of.mu.Lock()
	left := c.left
	c.of.mu.Unlock()
	if left == 0 {
		c.Close()
		return 0, errors.New("snapped")
	}
	if left > 0 {
		b = b[:min(len(b), left)]
	}
	n, err := f(b)
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	if c.left > 0 {
		c.left = max(0, c.left-n)
	}
	if err == nil && n < len(b) {
		return n, nil
	}
	return n, err
}

// A client whose connection breaks again and again notices nothing: each command runs once, in order, is answered, and is
// one line of the log.
func TestStreamOutlivesItsConnections(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 10)
	s := r.running(t, api.CreateSession{})
	driver := <-r.drivers
	seed := rand.Uint64()
	line := &snapping{rand: rand.New(rand.NewPCG(seed, 0)), snaps: 40}
	c, err := r.client.StreamWith(t.Context(), s.ID, stream.Options{Dial: line.dial})
	must(t, err)
	defer c.Close()
	var pending []*stream.Pending
	for line.left() > 0 {
		p, err := c.Go(t.Context(), webdriver.Command{Method: "POST", Path: "/execute/sync", Body: fmt.Appendf(nil, `{"script":"","args":[%d]}`, len(pending))})
		must(t, err)
		pending = append(pending, p)
	}
	for i, p := range pending {
		var v int
		a, err := p.Wait(t.Context())
		if err != nil || a.Value(&v) != nil || v != i {
			t.Fatalf("seed %d: command %d: %v, %s", seed, i, err, a.Body)
		}
	}
	n := 0
	for _, e := range driver.Executed() {
		var b struct{ Args []int }
		if e.Route != webdriver.RouteExecuteScript {
			continue
		}
		if err := json.Unmarshal([]byte(e.Body), &b); err != nil || b.Args[0] != n {
			t.Fatalf("seed %d: %s ran where %d was the next", seed, e.Body, n)
		}
		n++
	}
	if n != len(pending) {
		t.Errorf("seed %d: %d commands ran of %d", seed, n, len(pending))
	}
	if a, err := c.Do(t.Context(), webdriver.Command{Method: "DELETE"}); err != nil || a.Status != 200 {
		t.Fatalf("quit: %s, %v", a.Body, err)
	}
	logged := 0
	must(t, r.client.Follow(t.Context(), s.ID, 0, func(e api.Event) error {
		if e.Kind == "command" && e.Route == webdriver.RouteExecuteScript.String() {
			logged++
		}
		return nil
	}))
	if logged != n {
		t.Errorf("%d commands are in the log, of %d", logged, n)
	}
}

func TestStreamsThatAreRefused(t *testing.T) {
	r := newRig(t, 1, 10)
	s := r.running(t, api.CreateSession{})
	queued, err := r.client.CreateSession(t.Context(), unrecorded(api.CreateSession{}))
	must(t, err)
	refused := func(session, query string, status int, says string) {
		t.Helper()
		resp, b := r.call(t, http.MethodGet, "/v1/sessions/"+session+"/stream"+query, "", func(req *http.Request) {
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", "websocket")
			req.Header.Set("Sec-WebSocket-Version", "13")
			req.Header.Set("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")
		})
		p := decode[client.Problem](t, b)
		if resp.StatusCode != status || p.Status != status || !strings.Contains(p.Detail, says) || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s%s: %d %s, want %d %q", session, query, resp.StatusCode, b, status, says)
		}
	}
	const unknown = "?resume=00000000000000000000000000000001"
	refused(s.ID, "?resume=xyz", 400, "32 hex digits")
	refused(s.ID, "?answered=1", 400, "goes with resume")
	refused(s.ID, unknown+"&answered=x", 400, "answered")
	refused(queued.ID, "", 409, "wait=running")
	refused("714f84b6-02b5-442d-8c4b-8931bbc3c30f", "", 404, "no such thing")

	var open []*stream.Client
	for range 8 {
		c, err := r.client.Stream(t.Context(), s.ID)
		must(t, err)
		defer c.Close()
		open = append(open, c)
	}
	refused(s.ID, "", 429, "resume one with its token")
	refused(s.ID, unknown, 429, "resume one with its token")
	open[3].Close()
	eventually(t, "a stream that was left makes room", func() bool {
		c, err := r.client.Stream(t.Context(), s.ID)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	a, err := open[0].Do(t.Context(), webdriver.Command{Method: "DELETE"})
	if err != nil || a.Status != 200 {
		t.Fatalf("%s, %v", a.Body, err)
	}
	refused(s.ID, "", 410, "completed")
	// The others are told as well.
	eventually(t, "the other streams end", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := open[1].Do(ctx, webdriver.Command{Method: "GET", Path: "/url"})
		return errors.Is(err, stream.ErrEnded)
	})
}

// towards dials one orchestrator or the other, whatever it is asked for, as a balancer in front of them does.
type towards struct {
	mu   sync.Mutex
	addr string // guarded by mu
}

func (d *towards) turn(o *mate) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addr = strings.TrimPrefix(o.url, "http://")
}

func (d *towards) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	d.mu.Lock()
	addr := d.addr
	d.mu.Unlock()
	return new(net.Dialer).DialContext(ctx, network, addr)
}

// A stream goes on at whichever orchestrator goes on with its session: what was on its way is run once and answered, and its client
// notices nothing.
func TestStreamGoesOnAtAnotherOrchestrator(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ttl  time.Duration
		goes func(*mate)
	}{
		"handed over": {10 * time.Minute, func(o *mate) { o.stop() }},
		"died":        {shortLease, (*mate).die},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newSeveral(t, c.ttl, 0, "eu-1", "eu-2")
			s, d := r.running(t, api.CreateSession{})
			var where towards
			where.turn(r.all[0])
			commands, err := r.all[0].client.StreamWith(t.Context(), s.ID, stream.Options{Dial: where.dial, Patience: 2 * time.Minute})
			must(t, err)
			defer commands.Close()
			var pending []*stream.Pending
			send := func(n int) {
				for range n {
					p, err := commands.Go(t.Context(), webdriver.Command{Method: "POST", Path: "/execute/sync", Body: fmt.Appendf(nil, `{"script":"","args":[%d]}`, len(pending))})
					must(t, err)
					pending = append(pending, p)
				}
			}
			send(300)
			d.Inject(drivertest.Fault{Route: webdriver.RouteExecuteScript, Effect: drivertest.Delay, For: 500 * time.Millisecond})
			entered := d.Entered(webdriver.RouteExecuteScript)
			send(100)
			<-entered // and many wait behind it
			where.turn(r.all[1])
			c.goes(r.all[0])
			send(300)
			for i, p := range pending {
				var v int
				a, err := p.Wait(t.Context())
				if err != nil || a.Err() != nil || a.Value(&v) != nil || v != i {
					t.Fatalf("command %d: %v, %d %s", i, err, a.Status, a.Body)
				}
			}
			n := 0
			for _, e := range d.Executed() {
				if e.Route != webdriver.RouteExecuteScript {
					continue
				}
				if e.Body != fmt.Sprintf(`{"script":"","args":[%d]}`, n) {
					t.Fatalf("%s ran where %d was the next", e.Body, n)
				}
				n++
			}
			if n != len(pending) {
				t.Errorf("%d commands ran, of %d", n, len(pending))
			}
			if a, err := commands.Do(t.Context(), webdriver.Command{Method: "DELETE"}); err != nil || a.Status != 200 {
				t.Fatalf("quit: %s, %v", a.Body, err)
			}
		})
	}
}
