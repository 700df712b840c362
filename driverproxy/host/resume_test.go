package host_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random cuts; 0: another each time")

func seed(t *testing.T) uint64 {
	t.Helper()
	s := *seedFlag
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("replay with: go test ./driverproxy/host -run '^%s$' -seed %d", t.Name(), s)
	return s
}

// overLine is a session over a line, with a driver that keeps a log.
func overLine(t *testing.T) (*stack, *line, *drivertest.Driver, *driverproxy.Session) {
	t.Helper()
	s, driver, l := newFleet(t), drivertest.New(), &line{}
	cfg := s.config(t)
	cfg.Fake, cfg.Dial = fakes(driver), l.dial
	s.run(t, cfg)
	return s, l, driver, assign(t, s, first("s1", 1))
}

// TestSessionOutlivesItsSockets: the control socket and the command socket, in the order of dialling.
func TestSessionOutlivesItsSockets(t *testing.T) {
	t.Parallel()
	for i, name := range []string{"control", "command"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, l, driver, session := overLine(t)
			do[any](t, session, "POST", "/url", map[string]string{"url": "http://site/"})
			l.cut(i)
			if got := do[string](t, session, "GET", "/url", nil); got != "http://site/" {
				t.Errorf("url %q", got)
			}
			eventually(t, "the socket is dialled again", func() bool { return l.dialled() == 3 })
			s.connected(t)
			if err := session.Err(); err != nil {
				t.Errorf("the session ended: %v", err)
			}
			release(t, session)
			s.ready(t, "phone")
			if open, ever := driver.Sessions(); open != 0 || ever != 1 {
				t.Errorf("%d of %d driver sessions open", open, ever)
			}
		})
	}
}

// TestCutAtEveryPoint cuts the command socket after each number of bytes that a command and its answer take on it: before and in
// the command, between the two, in and after the answer; and in a large answer.
func TestCutAtEveryPoint(t *testing.T) {
	t.Parallel()
	_, l, driver, session := overLine(t)
	n := 0
	try := func(b budget, answer int) {
		t.Helper()
		at := l.dialled() - 1
		l.limit(at, b)
		n++
		url := fmt.Sprint("http://site/", n)
		do[any](t, session, "POST", "/url", map[string]string{"url": url})
		if answer > 0 {
			driver.Inject(drivertest.Fault{Route: webdriver.RouteGetPageSource, Effect: drivertest.Flood, Bytes: answer})
			if got := do[string](t, session, "GET", "/source", nil); len(got) != answer {
				t.Fatalf("%+v: %d bytes", b, len(got))
			}
		}
		// A command that goes over the socket that is left: the numbers belong together again.
		if got := do[string](t, session, "GET", "/url", nil); got != url {
			t.Fatalf("%+v: at %s, want %s", b, got, url)
		}
	}
	for i := range 110 { // a command with its frame is some 100 bytes, its answer 40
		try(budget{i, -1}, 0)
		try(budget{-1, i}, 0)
	}
	for _, written := range []int{100, 4096, 65535, 1 << 20, 5<<20 + 1, 10 << 20, 10<<20 + 60} {
		try(budget{-1, written}, 10<<20)
	}
	executed := map[string]int{}
	for _, e := range driver.Executed() {
		if e.Route == webdriver.RouteNavigateTo {
			executed[e.Body]++
		}
	}
	for i := 1; i <= n; i++ {
		if body := fmt.Sprintf(`{"url":"http://site/%d"}`, i); executed[body] != 1 {
			t.Errorf("%s was executed %d times", body, executed[body])
		}
	}
}

// TestRandomCuts is a sample of TestSoakRandomCuts.
func TestRandomCuts(t *testing.T) {
	t.Parallel()
	randomCuts(t, 60)
}

// randomCuts has callers that send commands, some pipelined, while sockets are cut at random: every command runs exactly once, and
// those of a caller in its order.
func randomCuts(t *testing.T, cuts int) {
	_, l, driver, session := overLine(t)
	random := rand.New(rand.NewPCG(seed(t), 0))
	stop := make(chan struct{})
	var callers sync.WaitGroup
	quit := sync.OnceFunc(func() {
		close(stop)
		callers.Wait()
	})
	defer quit()
	sent := make([]int, 4)
	var mu sync.Mutex
	numbers := map[string]uint64{} // of each command
	for c := range sent {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				var burst sync.WaitGroup
				for range 1 + c { // a caller that does not wait has its order from the numbers: Do queues at once
					sent[c]++
					number := sent[c]
					body, _ := json.Marshal(map[string]any{"script": "return arguments[0]", "args": []any{fmt.Sprintf("%d/%d", c, number)}})
					queued := make(chan struct{})
					burst.Go(func() {
						ctx, cancel := context.WithTimeout(context.Background(), limit)
						defer cancel()
						close(queued)
						from := wire.Origin{Stream: [16]byte{byte(c + 1)}, Number: uint64(number)}
						a, r, err := session.DoFrom(ctx, from, webdriver.Command{Method: "POST", Path: "/execute/sync", Body: body})
						if t.Failed() {
							return
						}
						if err != nil || r.Outcome != wire.OutcomeDone || a.Status != 200 {
							t.Errorf("caller %d: %v, outcome %d: %s", c, err, r.Outcome, a.Body)
						}
						session.Acknowledge(r.Seq)
						mu.Lock()
						numbers[fmt.Sprintf("%d/%d", c, number)] = r.Seq
						mu.Unlock()
					})
					<-queued
				}
				burst.Wait()
			}
		})
	}
	for range cuts {
		before, alive := l.dialled(), l.alive()
		if len(alive) == 0 {
			continue
		}
		switch at := alive[random.IntN(len(alive))]; random.IntN(4) {
		case 0:
			l.limit(at, budget{random.IntN(3000), -1})
		case 1:
			l.limit(at, budget{-1, random.IntN(3000)})
		case 2:
			l.cut(at)
		case 3:
			l.cutAll(false)
		}
		eventually(t, "a socket is dialled again", func() bool { return l.dialled() > before || session.Err() != nil })
	}
	quit()
	if err := session.Err(); err != nil {
		t.Fatalf("the session ended: %v", err)
	}
	ran := map[string]int{}
	last := uint64(0)
	for _, e := range driver.Executed() {
		var b struct{ Args []string }
		if e.Route == webdriver.RouteExecuteScript && json.Unmarshal([]byte(e.Body), &b) == nil {
			ran[b.Args[0]]++
			if n := numbers[b.Args[0]]; n <= last {
				t.Errorf("command %d ran after %d", n, last)
			} else {
				last = n
			}
		}
	}
	total := 0
	for c, n := range sent {
		for i := 1; i <= n; i++ {
			if times := ran[fmt.Sprintf("%d/%d", c, i)]; times != 1 {
				t.Errorf("command %d of caller %d ran %d times", i, c, times)
			}
		}
		total += n
	}
	t.Logf("%d commands, %d sockets", total, l.dialled())
	release(t, session)
}

// TestOrphan: nobody comes back for the session.
func TestOrphan(t *testing.T) {
	t.Parallel()
	s, driver, l := newFleet(t), drivertest.New(), &line{}
	cfg := s.config(t)
	cfg.Fake, cfg.Dial, cfg.Orphan = fakes(driver), l.dial, 200*time.Millisecond
	s.run(t, cfg)
	session := assign(t, s, first("s1", 1))
	l.cutAll(true)
	eventually(t, "the driver's session is deleted", func() bool { open, _ := driver.Sessions(); return open == 0 })
	l.cutAll(false)
	within(t, "the orchestrator hears of it when the host is back", session.Done())
	var f *wire.Failure
	if err := session.Err(); !errors.As(err, &f) || f.Code != wire.FailureGone {
		t.Errorf("Err %v, want session_gone", err)
	}
	release(t, session)
	s.ready(t, "phone")
	release(t, assign(t, s, first("s2", 1)))
}

// TestDriverDiesWhileNobodyListens: the orchestrator hears why when the host is back, and what was sent is answered as unknown.
func TestDriverDiesWhileNobodyListens(t *testing.T) {
	t.Parallel()
	s, l, driver, session := overLine(t)
	driver.Inject(drivertest.Fault{Route: webdriver.RouteRefresh, Effect: drivertest.Hang})
	entered := driver.Entered(webdriver.RouteRefresh)
	answer := make(chan webdriver.Answer, 1)
	go func() {
		a, _, _ := session.Do(context.Background(), webdriver.Command{Method: "POST", Path: "/refresh", Body: []byte("{}")})
		answer <- a
	}()
	within(t, "the command runs", entered)
	l.cutAll(true)
	files := s.files(t)
	driver.Kill()
	s.gone(t, files)
	l.cutAll(false)
	within(t, "the session ends", session.Done())
	var f *wire.Failure
	if err := session.Err(); !errors.As(err, &f) || f.Code != wire.FailureDriver {
		t.Errorf("Err %v, want driver_failed", err)
	}
	wantOutcome(t, <-answer, "unknown")
	release(t, session)
}

// TestAdoption: a host with two orchestrators; one is lost, the other takes the session over with what was under way.
func TestAdoption(t *testing.T) {
	t.Parallel()
	a, b, driver := newFleet(t), newFleet(t), drivertest.New()
	cfg := a.config(t)
	cfg.Fake, cfg.Orchestrators = fakes(driver), host.Fixed(a.addr, b.addr)
	a.run(t, cfg)
	b.connected(t)
	old := assign(t, a, first("s1", 1))
	do[any](t, old, "POST", "/url", map[string]string{"url": "http://site/"})
	stream := [16]byte{7}
	ask := func(s *driverproxy.Session, n uint64, c webdriver.Command) (webdriver.Answer, driverproxy.Receipt, error) {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		return s.DoFrom(ctx, wire.Origin{Stream: stream, Number: n}, c)
	}
	if _, r, err := ask(old, 1, webdriver.Command{Method: "GET", Path: "/title"}); err != nil {
		t.Fatal(err)
	} else {
		old.Acknowledge(r.Seq)
	}
	if _, _, err := ask(old, 2, webdriver.Command{Method: "GET", Path: "/url"}); err != nil { // never acknowledged
		t.Fatal(err)
	}
	driver.Inject(drivertest.Fault{Route: webdriver.RouteRefresh, Effect: drivertest.Delay, For: 300 * time.Millisecond})
	entered := driver.Entered(webdriver.RouteRefresh)
	broken := make(chan webdriver.Answer, 1)
	go func() {
		answer, _, _ := ask(old, 3, webdriver.Command{Method: "POST", Path: "/refresh", Body: []byte("{}")})
		broken <- answer
	}()
	within(t, "the command runs", entered)

	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if _, err := b.fleet.Adopt(ctx, first("s1", 1)); err == nil {
		t.Error("adopted at the same term")
	}
	session, err := b.fleet.Adopt(ctx, first("s1", 2))
	if err != nil {
		t.Fatal(err)
	}
	if string(session.Capabilities()) != string(old.Capabilities()) {
		t.Errorf("capabilities %s, were %s", session.Capabilities(), old.Capabilities())
	}
	if got := session.Visited(); fmt.Sprint(got) != "[http://site/]" {
		t.Errorf("the session was at %v", got)
	}
	var numbers []uint64
	for _, k := range session.Kept() {
		answer, r, err := session.Await(ctx, k)
		if err != nil || answer.Status != 200 || r.Seq != k.Seq || k.Origin.Stream != stream {
			t.Errorf("kept %+v: %v %s", k, err, answer.Body)
		}
		numbers = append(numbers, k.Origin.Number)
		session.Acknowledge(k.Seq)
	}
	if fmt.Sprint(numbers) != "[2 3]" {
		t.Errorf("kept are %v", numbers)
	}
	if got := do[string](t, session, "GET", "/url", nil); got != "http://site/" {
		t.Errorf("url %q", got)
	}
	// The former holder is still there: nothing of it reaches the driver any more.
	before := len(driver.Executed())
	short, stop := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer stop()
	if _, _, err := old.Do(short, webdriver.Command{Method: "POST", Path: "/back", Body: []byte("{}")}); err == nil {
		t.Error("a command of the former term was answered")
	}
	var f *wire.Failure
	if err := old.Release(ctx); !errors.As(err, &f) || f.Code != wire.FailureStaleTerm {
		t.Errorf("Release of the former term: %v", err)
	}
	if got := do[string](t, session, "GET", "/url", nil); got != "http://site/" || len(driver.Executed()) != before+1 {
		t.Errorf("the former term reached the driver: %v", driver.Executed()[before:])
	}
	wantOutcome(t, <-broken, "unknown")
	release(t, session)
	a.ready(t, "phone")
	if _, err := b.fleet.Adopt(ctx, first("s1", 3)); !errors.As(err, &f) || f.Code != wire.FailureGone && f.Code != wire.FailureStaleTerm {
		t.Errorf("adopt what has ended: %v", err)
	}
}

// TestOverflow: a client that acknowledges nothing ends its session, before anything grows.
func TestOverflow(t *testing.T) {
	t.Parallel()
	s, _, _, session := overLine(t)
	for i := range wire.MaxOutstanding + 1 {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		_, _, err := session.DoFrom(ctx, wire.Origin{Stream: [16]byte{1}, Number: uint64(i + 1)}, webdriver.Command{Method: "GET", Path: "/url"})
		cancel()
		if over := i == wire.MaxOutstanding; over != (err != nil) || over && !errors.Is(err, driverproxy.ErrOverflow) {
			t.Fatalf("command %d: %v", i+1, err)
		}
	}
	within(t, "the session ends", session.Done())
	release(t, session)
	s.ready(t, "phone")
}

// TestMixedAcknowledgements: one client is slower than the others; the host forgets what the others have.
func TestMixedAcknowledgements(t *testing.T) {
	t.Parallel()
	_, l, _, session := overLine(t)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	_, slow, err := session.DoFrom(ctx, wire.Origin{Stream: [16]byte{1}, Number: 1}, webdriver.Command{Method: "GET", Path: "/url"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range wire.MaxOutstanding + 100 { // more than a host keeps
		if i%500 == 250 {
			l.cut(l.dialled() - 1)
		}
		if _, _, err := session.Do(ctx, webdriver.Command{Method: "GET", Path: "/url"}); err != nil {
			t.Fatalf("command %d: %v", i, err)
		}
	}
	session.Acknowledge(slow.Seq)
	release(t, session)
}
