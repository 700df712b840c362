package host_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestSession(t *testing.T) {
	s, driver := newFleet(t), drivertest.New()
	cfg := s.config(t)
	cfg.Fake = fakes(driver)
	s.run(t, cfg)
	a := first("s1", 1)
	a.Capabilities = []byte(`{"browserName":"safari","platformName":"iOS","pageLoadStrategy":"eager","vendor:x":1}`)
	session := assign(t, s, a)
	eventually(t, "the device is busy", func() bool { return s.dir.state("phone") == wire.DeviceBusy })

	for _, want := range []string{`"browserName":"safari"`, `"platformName":"iOS"`, `"pageLoadStrategy":"eager"`} {
		if !strings.Contains(string(session.Capabilities()), want) {
			t.Errorf("capabilities %s without %s", session.Capabilities(), want)
		}
	}
	if asked := string(driver.Asked()); strings.Contains(asked, "browserName") || strings.Contains(asked, "platformName") || !strings.Contains(asked, "vendor:x") {
		t.Errorf("the driver was asked for %s", asked)
	}
	do[any](t, session, "POST", "/url", map[string]string{"url": "http://site/"})
	if got := do[string](t, session, "GET", "/url", nil); got != "http://site/" {
		t.Errorf("url %q", got)
	}
	release(t, session)
	if err := session.Err(); !errors.Is(err, driverproxy.ErrReleased) {
		t.Errorf("Err %v after Release", err)
	}
	s.ready(t, "phone")
	if open, ever := driver.Sessions(); open != 0 || ever != 1 {
		t.Errorf("%d of %d driver sessions open", open, ever)
	}
	release(t, session) // again: harmless
	_, receipt, err := session.Do(t.Context(), webdriver.Command{Method: "GET", Path: "/url"})
	if !errors.Is(err, driverproxy.ErrReleased) || receipt.Outcome != wire.OutcomeNotRun {
		t.Errorf("Do after Release: %v, outcome %d", err, receipt.Outcome)
	}
}

func TestPipelinedCommandsRunInOrder(t *testing.T) {
	s, driver := newFleet(t), drivertest.New()
	cfg := s.config(t)
	cfg.Fake = fakes(driver)
	s.run(t, cfg)
	session := assign(t, s, first("s1", 1))
	// The first command blocks the driver, so that the others are all in flight at once.
	driver.Inject(drivertest.Fault{Route: webdriver.RouteRefresh, Effect: drivertest.Delay, For: 100 * time.Millisecond})
	const n = 200
	type result struct {
		i       int
		receipt driverproxy.Receipt
		err     error
	}
	results := make(chan result, n)
	called := make(chan struct{})
	go func() {
		defer close(called)
		for i := range n {
			c := command(t, "POST", "/url", map[string]string{"url": fmt.Sprint("http://site/", i)})
			if i == 0 {
				c = command(t, "POST", "/refresh", nil)
			}
			sent := make(chan struct{})
			go func() {
				close(sent)
				_, receipt, err := session.Do(context.Background(), c)
				results <- result{i, receipt, err}
			}()
			<-sent
			runtime.Gosched()
		}
	}()
	within(t, "all are called", called)
	seqs := map[uint64]int{}
	for range n {
		r := <-results
		if r.err != nil || r.receipt.Outcome != wire.OutcomeDone {
			t.Fatalf("command %d: %v", r.i, r.err)
		}
		seqs[r.receipt.Seq] = r.i
	}
	executed := driver.Executed()
	if len(executed) != n || len(seqs) != n {
		t.Fatalf("%d commands executed, %d numbers, want %d", len(executed), len(seqs), n)
	}
	for i, e := range executed { // the driver saw them in the order of their numbers, each with its own answer
		want := fmt.Sprintf(`{"url":"http://site/%d"}`, seqs[uint64(i+1)])
		if e.Route == webdriver.RouteNavigateTo && e.Body != want {
			t.Errorf("executed as number %d: %s, want %s", i+1, e.Body, want)
		}
	}
	release(t, session)
}

func TestStaleTermsAreRefused(t *testing.T) {
	s := newFleet(t)
	s.run(t, s.config(t))
	release(t, assign(t, s, first("s1", 5)))
	for _, term := range []int64{4, 5} {
		_, err := s.fleet.Assign(t.Context(), first("s1", term))
		var f *wire.Failure
		if !errors.As(err, &f) || f.Code != wire.FailureStaleTerm {
			t.Errorf("term %d after 5: %v, want stale_term", term, err)
		}
	}
	again := assign(t, s, first("s1", 6))
	newer := assign(t, s, first("s1", 7)) // adoption: the older one is fenced
	within(t, "the older term ends", again.Done())
	var f *wire.Failure
	if err := again.Err(); !errors.As(err, &f) || f.Code != wire.FailureStaleTerm {
		t.Errorf("fenced session: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := again.Release(ctx); !errors.As(err, &f) || f.Code != wire.FailureStaleTerm {
		t.Errorf("Release of the older term: %v, want stale_term", err)
	}
	do[any](t, newer, "GET", "/url", nil) // and did not touch the newer one
	release(t, newer)
}

func TestAssignRefusals(t *testing.T) {
	s, driver := newFleet(t), drivertest.New()
	cfg := s.config(t)
	cfg.Fake = fakes(driver)
	s.run(t, cfg)
	want := func(what string, a driverproxy.Assignment, code wire.FailureCode) {
		t.Helper()
		_, err := s.fleet.Assign(t.Context(), a)
		var f *wire.Failure
		if !errors.As(err, &f) || f.Code != code {
			t.Errorf("%s: %v, want %s", what, err, code)
		}
	}
	a := first("s1", 1)
	a.Device = "tablet"
	want("unknown device", a, wire.FailureDevice)
	session := assign(t, s, first("s2", 1))
	want("busy device", first("s3", 1), wire.FailureDevice)
	release(t, session)
	a = first("s4", 1)
	a.Capabilities = []byte(`["not an object"]`)
	want("bad capabilities", a, wire.FailureCapabilities)
	driver.Inject(drivertest.Fault{NewSession: true, Effect: drivertest.Refuse, Error: &webdriver.Error{Code: webdriver.SessionNotCreated, Message: "secret"}})
	want("refused by the driver", first("s5", 1), wire.FailureCapabilities)
	for _, effect := range []drivertest.Effect{drivertest.Garbage, drivertest.ServerError} {
		driver.Inject(drivertest.Fault{NewSession: true, Effect: effect})
		want("driver in trouble", first(fmt.Sprint("s6-", effect), 1), wire.FailureDriver)
	}
	a = first("s7", 1)
	a.Host = "mac-2"
	if _, err := s.fleet.Assign(t.Context(), a); !errors.Is(err, driverproxy.ErrHostLost) {
		t.Errorf("unknown host: %v", err)
	}
	release(t, assign(t, s, first("s8", 1)))

	driver.Inject(drivertest.Fault{NewSession: true, Effect: drivertest.Refuse, Error: &webdriver.Error{
		Code: webdriver.SessionNotCreated, Message: "The device is already paired with another WebDriver session"}})
	want("paired", first("s9", 1), wire.FailureDevice)
	eventually(t, "quarantine", func() bool { return s.dir.state("phone") == wire.DeviceQuarantined })
	want("quarantined", first("s10", 1), wire.FailureDevice)
}

func TestDriverDiesUnderACommand(t *testing.T) {
	for _, effect := range []drivertest.Effect{drivertest.Die, drivertest.DieAfter} {
		s := newFleet(t)
		drivers := make(chan *drivertest.Driver, 3) // the last is for the standby that no session takes
		first1 := drivertest.New()
		drivers <- first1
		drivers <- drivertest.New()
		drivers <- drivertest.New()
		cfg := s.config(t)
		cfg.Fake = func(string) *drivertest.Driver { return <-drivers }
		s.run(t, cfg)
		session := assign(t, s, first("s1", 1))
		first1.Inject(drivertest.Fault{Route: webdriver.RouteGetTitle, Effect: effect})
		a, receipt, _ := session.Do(t.Context(), webdriver.Command{Method: "GET", Path: "/title"})
		if receipt.Outcome != wire.OutcomeUnknown {
			t.Errorf("outcome %d, want unknown", receipt.Outcome)
		}
		wantOutcome(t, a, "unknown")
		within(t, "the session ends", session.Done())
		var f *wire.Failure
		if err := session.Err(); !errors.As(err, &f) || f.Code != wire.FailureDriver {
			t.Errorf("Err %v, want driver_failed", err)
		}
		if n := len(first1.Executed()); effect == drivertest.DieAfter && n != 1 {
			t.Errorf("executed %d times, want once: a command must not be repeated", n)
		}
		release(t, session)
		s.ready(t, "phone")
		release(t, assign(t, s, first("s2", 1)))
	}
}

func TestDriverLosesItsSession(t *testing.T) {
	s, driver := newFleet(t), drivertest.New()
	cfg := s.config(t)
	cfg.Fake = fakes(driver)
	s.run(t, cfg)
	session := assign(t, s, first("s1", 1))
	driver.Inject(drivertest.Fault{Effect: drivertest.Refuse, Error: &webdriver.Error{Code: webdriver.InvalidSessionID}})
	a, _, err := session.Do(t.Context(), webdriver.Command{Method: "GET", Path: "/title"})
	if err != nil || a.Status != 404 {
		t.Errorf("answer %d %v", a.Status, err)
	}
	within(t, "the session ends", session.Done())
	var f *wire.Failure
	if err := session.Err(); !errors.As(err, &f) || f.Code != wire.FailureDriver {
		t.Errorf("Err %v, want driver_failed", err)
	}
	release(t, session)
}

func TestQuitIsNotAFailure(t *testing.T) {
	s := newFleet(t)
	s.run(t, s.config(t))
	for i, path := range []string{"", "/window"} {
		session := assign(t, s, first(fmt.Sprint("s", i), 1))
		do[any](t, session, "DELETE", path, nil)
		a, _, err := session.Do(t.Context(), webdriver.Command{Method: "GET", Path: "/title"})
		if err != nil || a.Status != 404 {
			t.Errorf("command after quit: %d %v", a.Status, err)
		}
		select {
		case <-session.Done():
			t.Errorf("ended by itself: %v", session.Err())
		default:
		}
		release(t, session)
	}
}

func TestDriverInTroubleStaysW3C(t *testing.T) {
	s, driver := newFleet(t), drivertest.New()
	cfg := s.config(t)
	cfg.Fake = fakes(driver)
	s.run(t, cfg)
	session := assign(t, s, first("s1", 1))
	for _, effect := range []drivertest.Effect{drivertest.Garbage, drivertest.ServerError} {
		driver.Inject(drivertest.Fault{Effect: effect})
		a, _, err := session.Do(t.Context(), webdriver.Command{Method: "GET", Path: "/title"})
		var e *webdriver.Error
		if err != nil || !errors.As(a.Err(), &e) || e.Code != webdriver.UnknownError || strings.Contains(string(a.Body), "html") {
			t.Errorf("answer %d %s %v", a.Status, a.Body, err)
		}
	}
	for _, c := range []webdriver.Command{{Method: "PUT", Path: "/url"}, {Method: "GET", Path: "/../../status"}, {Method: "GET", Path: "/%2e%2e"}} {
		a, receipt, err := session.Do(t.Context(), c)
		if err != nil || a.Status < 400 || receipt.Outcome != wire.OutcomeNotRun {
			t.Errorf("%s %s: %d %v", c.Method, c.Path, a.Status, err)
		}
	}
	release(t, session)
}

func TestHangingCommandIsEndedByRelease(t *testing.T) {
	s, driver := newFleet(t), drivertest.New()
	cfg := s.config(t)
	cfg.Fake = fakes(driver)
	s.run(t, cfg)
	session := assign(t, s, first("s1", 1))
	driver.Inject(drivertest.Fault{Route: webdriver.RouteGetTitle, Effect: drivertest.Hang})
	entered := driver.Entered(webdriver.RouteGetTitle)
	ctx, cancel := context.WithCancel(t.Context())
	type result struct {
		a   webdriver.Answer
		r   driverproxy.Receipt
		err error
	}
	results := make(chan result, 3)
	call := func(ctx context.Context) {
		a, r, err := session.Do(ctx, webdriver.Command{Method: "GET", Path: "/title"})
		results <- result{a, r, err}
	}
	go call(ctx)
	within(t, "the command reaches the driver", entered)
	cancel() // the client leaves: its wait ends, the session goes on
	left := <-results
	if !errors.Is(left.err, context.Canceled) || left.r.Outcome != wire.OutcomeUnknown {
		t.Errorf("left: %v, outcome %d", left.err, left.r.Outcome)
	}
	wantOutcome(t, left.a, "unknown")
	go call(t.Context()) // waits behind the hanging one
	release(t, session)
	behind := <-results
	if behind.r.Outcome == wire.OutcomeDone {
		t.Errorf("a command behind a hanging one was done: %s", behind.a.Body)
	}
	s.ready(t, "phone")
}

func TestAgentShutdownEndsSessions(t *testing.T) {
	s := newFleet(t)
	stop := s.run(t, s.config(t))
	session := assign(t, s, first("s1", 1))
	stop()
	within(t, "the session ends", session.Done())
	var f *wire.Failure
	if err := session.Err(); !errors.As(err, &f) || f.Code != wire.FailureShutdown {
		t.Errorf("Err %v, want host_shutdown", err)
	}
	eventually(t, "the host is gone", func() bool { return len(s.fleet.Hosts()) == 0 })
}

func TestSecondAgentOfAStateDirectoryIsRefused(t *testing.T) {
	s := newFleet(t)
	cfg := s.config(t)
	s.run(t, cfg)
	if err := host.Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "another agent uses") {
		t.Errorf("second agent: %v", err)
	}
}

func TestAssignGivenUpLeavesNothing(t *testing.T) {
	s, driver := newFleet(t), drivertest.New()
	cfg := s.config(t)
	cfg.Fake = fakes(driver)
	s.run(t, cfg)
	driver.Inject(drivertest.Fault{NewSession: true, Effect: drivertest.Hang})
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := s.fleet.Assign(ctx, first("s1", 1))
		failed <- err
	}()
	eventually(t, "New Session hangs", func() bool { return driver.Pending() == 0 })
	files := s.files(t)
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("Assign: %v", err)
	}
	s.gone(t, files)
	s.idle(t)
	again := first("s1", 2)
	eventually(t, "the device can be had again", func() bool {
		session, err := s.fleet.Assign(t.Context(), again)
		again.Term++
		if err == nil {
			release(t, session)
		}
		return err == nil
	})
}

func TestManyCyclesLeaveNothing(t *testing.T) {
	s, driver := newFleet(t), drivertest.NewQuiet()
	cfg := s.config(t)
	cfg.Fake = fakes(driver)
	s.run(t, cfg)
	cycle := func(i int) {
		session := assign(t, s, first(fmt.Sprint("s", i), 1))
		do[any](t, session, "GET", "/url", nil)
		release(t, session)
	}
	for i := range 5 { // connections that are kept, pools
		cycle(i)
	}
	s.ready(t, "phone")
	before := runtime.NumGoroutine()
	for i := range 120 {
		cycle(1000 + i)
	}
	s.ready(t, "phone")
	eventually(t, "goroutines are gone", func() bool { return runtime.NumGoroutine() <= before })
	if open, ever := driver.Sessions(); open != 0 || ever != 125 {
		t.Errorf("%d of %d driver sessions open", open, ever)
	}
	s.ready(t, "phone")
	s.idle(t)
}

// unread is a recorder that waits for the orchestrator to acknowledge what it was sent, as the real one does.
type unread struct{}

func (unread) Args(host.Display) []string { return []string{"sleep", "1000"} }

func (unread) Pump(ctx context.Context, stdout io.Reader, c host.RecordingConn, _ func() bool) error {
	_, _ = io.Copy(io.Discard, stdout)
	_, err := c.Receive(ctx)
	return err
}

// TestFailedStartIsNotRecorded: nobody acknowledges the recording of a session that did not start, and nobody waits for it.
func TestFailedStartIsNotRecorded(t *testing.T) {
	s, driver := newFleet(t), drivertest.New()
	cfg := s.config(t)
	cfg.Fake, cfg.Recorder = fakes(driver), unread{}
	s.run(t, cfg)
	driver.Inject(drivertest.Fault{NewSession: true, Effect: drivertest.Refuse, Error: &webdriver.Error{Code: webdriver.SessionNotCreated}})
	a := first("s1", 1)
	a.Record = true
	begin := time.Now()
	_, err := s.fleet.Assign(t.Context(), a)
	var f *wire.Failure
	if !errors.As(err, &f) || f.Code != wire.FailureCapabilities {
		t.Errorf("Assign: %v, want capabilities_refused", err)
	}
	if took := time.Since(begin); took > 8*time.Second { // 10 s are granted to a recording's last bytes
		t.Errorf("the refusal took %v", took)
	}
}

// TestDirectoryThatCannotBeMade fails a session before it has left anything: its device is clean, and stays usable.
func TestDirectoryThatCannotBeMade(t *testing.T) {
	s, clock := newFleet(t), newClock()
	cfg := s.config(t)
	cfg.Clock = clock
	s.run(t, cfg)
	s.ready(t, "phone")
	sessions := filepath.Join(s.state, "sessions")
	release1 := assign(t, s, first("s1", 1))
	if err := os.Rename(sessions, sessions+"-away"); err != nil { // so that there is no standby for the next
		t.Fatal(err)
	}
	release(t, release1)
	_, err := s.fleet.Assign(t.Context(), first("s2", 1))
	var f *wire.Failure
	if !errors.As(err, &f) || f.Code != wire.FailureDriver {
		t.Errorf("Assign: %v, want driver_failed", err)
	}
	clock.until(t, "quarantine", func() bool { return s.dir.state("phone") == wire.DeviceQuarantined })
	if err := os.RemoveAll(sessions + "-away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(sessions, 0o700); err != nil {
		t.Fatal(err)
	}
	clock.until(t, "the device is ready again", func() bool { return s.dir.state("phone") == wire.DeviceReady })
	release(t, assign(t, s, first("s3", 1)))
}
