package host_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/drivertest/safari"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// iphone is a stack with one phone that a fake safaridriver drives.
type iphone struct {
	*stack
	safari.Phone
	cfg   host.Config
	clock *clock
}

func newIPhone(t *testing.T) *iphone {
	t.Helper()
	p, err := safari.NewPhone(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	i := &iphone{stack: newFleet(t), Phone: p, clock: newClock()}
	i.cfg = i.config(t)
	i.cfg.Devices[0].Kind, i.cfg.Devices[0].UDID = host.KindSafariDriver, "UDID-1"
	i.cfg.SafariDriver, i.cfg.Clock = p.Driver(), i.clock
	return i
}

func (i *iphone) set(t *testing.T, q safari.Quirk, value string) {
	t.Helper()
	if err := i.Set(q, value); err != nil {
		t.Fatal(err)
	}
}

func (i *iphone) clear(t *testing.T, q safari.Quirk) {
	t.Helper()
	if err := i.Clear(q); err != nil {
		t.Fatal(err)
	}
}

// count is how often the phone's drivers did something.
func (i *iphone) count(t *testing.T, what string) int {
	t.Helper()
	log, err := i.Log()
	if err != nil {
		t.Fatal(err)
	}
	return len(slices.DeleteFunc(log, func(s string) bool { return s != what }))
}

// refused assigns a session that the device fails.
func (i *iphone) refused(t *testing.T, session string, code wire.FailureCode) {
	t.Helper()
	_, err := i.fleet.Assign(t.Context(), first(session, 1))
	var f *wire.Failure
	if !errors.As(err, &f) || f.Code != code {
		t.Fatalf("Assign: %v, want %s", err, code)
	}
}

func (i *iphone) quarantined() bool { return i.dir.state("phone") == wire.DeviceQuarantined }
func (i *iphone) isReady() bool     { return i.dir.state("phone") == wire.DeviceReady }

// works has a session on the device.
func (i *iphone) works(t *testing.T, session string) {
	t.Helper()
	s := assign(t, i.stack, first(session, 1))
	do[any](t, s, "POST", "/url", map[string]string{"url": "http://site/"})
	release(t, s)
}

// TestSessionSpawnsNothing: all that a session needs runs before it is assigned, and again after it.
func TestSessionSpawnsNothing(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	supervisors := filepath.Join(t.TempDir(), "supervisors")
	i.cfg.Supervisor = append([]string{"/bin/sh", "-c", `echo started >>"$0"; exec "$@"`, supervisors}, i.cfg.Supervisor...)
	i.run(t, i.cfg)
	i.ready(t, "phone")
	started := func() (drivers, supervised int) {
		b, err := os.ReadFile(supervisors)
		if err != nil {
			t.Fatal(err)
		}
		return i.count(t, "start"), strings.Count(string(b), "started")
	}
	for n := range 3 {
		before := processesBelow(i.state)
		session := assign(t, i.stack, first(fmt.Sprint("s", n), 1))
		if drivers, supervised := started(); drivers != n+1 || supervised != n+1 {
			t.Errorf("session %d: %d drivers and %d supervisors were started, want the standby's and those of former sessions", n, drivers, supervised)
		}
		if during := processesBelow(i.state); len(before) != 2 || !slices.Equal(before, during) {
			t.Errorf("processes %v before the session, %v in it", before, during)
		}
		do[any](t, session, "GET", "/url", nil)
		release(t, session)
		i.idle(t)
		if drivers, supervised := started(); drivers != n+2 || supervised != n+2 {
			t.Errorf("after session %d: %d drivers and %d supervisors were started, want one more", n, drivers, supervised)
		}
	}
}

// TestGrades: what is wrong with a phone is recognised, tells the operator what to do, and gets over by itself once it is right.
// TestReadiness has the times of it.
func TestGrades(t *testing.T) {
	t.Parallel()
	fails := func(code wire.FailureCode, times int) func(*testing.T, *iphone) {
		return func(t *testing.T, i *iphone) {
			for n := range times {
				i.clock.until(t, "the device can be tried", i.isReady)
				i.refused(t, fmt.Sprint("refused-", n), code)
			}
		}
	}
	idles := func(*testing.T, *iphone) {}
	for _, test := range []struct {
		name    string
		quirk   safari.Quirk
		value   string
		provoke func(*testing.T, *iphone)
		shows   string // what the driver does in a bad probe
		says    string
		goods   int // probes that readmit the device
	}{
		{"locked", safari.Locked, "", fails(wire.FailureDevice, 1), "refused", "unlock it", 1},
		{"untrusted", safari.Untrusted, "", fails(wire.FailureDevice, 1), "refused", "tap Trust", 1},
		{"automation off", safari.AutomationOff, "", fails(wire.FailureDevice, 1), "refused", "Remote Automation", 1},
		{"not found", safari.Hidden, "", fails(wire.FailureDevice, 2), "refused", "cable", 1},
		{"crashes at New Session", safari.CrashAtSession, "100", fails(wire.FailureDriver, 3), "crash", "died 3 times", 2},
		{"not ready", safari.Unready, "", idles, "status", "slow", 2},
		{"slow", safari.SlowStatus, "2100ms", idles, "status", "slow", 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			i := newIPhone(t)
			i.run(t, i.cfg)
			i.ready(t, "phone")
			i.set(t, test.quirk, test.value)
			test.provoke(t, i)
			i.clock.until(t, "quarantine", i.quarantined)
			if reason := i.dir.reason("phone"); !strings.Contains(reason, test.says) {
				t.Errorf("the reason %q does not say %q", reason, test.says)
			}
			i.refused(t, "early", wire.FailureDevice)
			bad := i.count(t, test.shows)
			i.clock.until(t, "bad probes", func() bool { return i.count(t, test.shows) >= bad+2 })
			if !i.quarantined() {
				t.Fatal("readmitted although nothing has changed")
			}
			i.clear(t, test.quirk)
			probes := i.count(t, "status")
			i.clock.until(t, "readmission", i.isReady)
			if n := i.count(t, "status") - probes; n < test.goods {
				t.Errorf("readmitted after %d good probes, want %d", n, test.goods)
			}
			i.works(t, "after")
			i.idle(t)
		})
	}
}

// TestSlowNewSession: sessions that start late are served, and the third in a row takes the device out until one starts in time.
func TestSlowNewSession(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	i.cfg.SlowStart = time.Second
	i.run(t, i.cfg)
	i.ready(t, "phone")
	i.set(t, safari.SlowSession, "1100ms")
	for n := range 3 {
		if n > 0 {
			i.clock.until(t, "the device is ready again", i.isReady)
		}
		i.works(t, "slow-"+itoa(n))
	}
	i.clock.until(t, "quarantine", i.quarantined)
	if reason := i.dir.reason("phone"); !strings.Contains(reason, "it took long to start a session") {
		t.Errorf("reason %q", reason)
	}
	i.refused(t, "early", wire.FailureDevice)
	tried := i.count(t, "session")
	i.clock.until(t, "a trial that is slow as well", func() bool { return i.count(t, "session") > tried })
	if !i.quarantined() {
		t.Error("readmitted after a slow trial")
	}
	i.clear(t, safari.SlowSession)
	i.clock.until(t, "readmission", i.isReady)
	i.works(t, "after")
	i.idle(t)
}

func TestPairedPhone(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	i.run(t, i.cfg)
	i.ready(t, "phone")
	if err := i.Occupy(); err != nil {
		t.Fatal(err)
	}
	i.refused(t, "s1", wire.FailureDevice)
	eventually(t, "quarantine", i.quarantined)
	if reason := i.dir.reason("phone"); !strings.Contains(reason, "already paired") {
		t.Errorf("reason %q", reason)
	}
	i.clock.until(t, "readmission", i.isReady)
	if n := i.count(t, "session"); n != 2 {
		t.Errorf("%d sessions were tried, want 2: the first trial is after what holds the phone was killed", n)
	}
	i.works(t, "s2")
	i.idle(t)
	if i.Paired() {
		t.Error("the leftover driver lives")
	}
}

// TestLeftoverOfOwnSession: what a session leaves behind bears its mark and ends with it.
func TestLeftoverOfOwnSession(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	i.set(t, safari.Leftover, "")
	i.run(t, i.cfg)
	for n := range 3 {
		i.works(t, fmt.Sprint("s", n))
		i.idle(t)
	}
}

// TestDriverThatDies is a standby whose driver is killed, and killed again.
func TestDriverThatDies(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	i.run(t, i.cfg)
	for n := range 3 {
		i.clock.until(t, "ready", func() bool { return i.isReady() && i.count(t, "start") == n+1 })
		if err := syscall.Kill(pidOf(i.state, safari.Program), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is noticed", func() bool { return !i.isReady() })
	}
	i.clock.until(t, "quarantine", i.quarantined)
	if reason := i.dir.reason("phone"); !strings.Contains(reason, "died 3 times") {
		t.Errorf("reason %q", reason)
	}
	i.clock.until(t, "readmission", i.isReady)
	i.works(t, "after")
	i.idle(t)
}

// TestDriverThatCannotBeStarted, and then can.
func TestDriverThatCannotBeStarted(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	if err := os.Rename(i.Driver(), i.Driver()+"-away"); err != nil {
		t.Fatal(err)
	}
	i.run(t, i.cfg)
	i.clock.until(t, "quarantine", i.quarantined)
	if reason := i.dir.reason("phone"); !strings.Contains(reason, "cannot be started") {
		t.Errorf("reason %q", reason)
	}
	if err := os.Rename(i.Driver()+"-away", i.Driver()); err != nil {
		t.Fatal(err)
	}
	i.clock.until(t, "readmission", i.isReady)
	i.works(t, "after")
	i.idle(t)
}

// stranger answers at the port that the agent's driver was given, as another driver.
func (i *iphone) stranger(t *testing.T, asked *atomic.Int32) (stop func() error) {
	t.Helper()
	var l net.Listener
	eventually(t, "the port is known", func() bool {
		line, _ := os.ReadFile("/proc/" + itoa(pidOf(i.state, safari.Program)) + "/cmdline")
		_, port, found := strings.Cut(string(line), "--port\x00")
		if !found {
			return false
		}
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:"+strings.Trim(port, "\x00")); err != nil {
			t.Fatal(err)
		}
		return true
	})
	driver := drivertest.NewQuiet()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		driver.ServeHTTP(w, r)
		asked.Add(1)
	})}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l)
	}()
	return func() error {
		err := server.Close()
		<-served
		return err
	}
}

// TestStrangerAtTheDriversPort: a program that has the port before the driver does is not taken for it, although it answers like a driver: a session,
// or a trial that is to prove a phone, would be had on another.
func TestStrangerAtTheDriversPort(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	i.run(t, i.cfg)
	i.ready(t, "phone")
	i.set(t, safari.Held, "")
	if err := syscall.Kill(pidOf(i.state, safari.Program), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	i.clock.until(t, "another driver starts", func() bool { return !i.isReady() && i.count(t, "start") == 2 })
	var asked atomic.Int32
	stop := i.stranger(t, &asked)
	// Whoever believed the first answer would have asked the second whether the device is ready, and the third a while later.
	i.clock.until(t, "the stranger answers", func() bool { return asked.Load() >= 3 })
	if i.isReady() {
		t.Error("the device is ready with another's driver")
	}
	i.clear(t, safari.Held) // it exits, and another port is tried
	i.clock.until(t, "ready", i.isReady)
	i.works(t, "s1")
	if n := i.count(t, "session"); n != 1 {
		t.Errorf("the phone had %d sessions, want 1", n)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	i.idle(t)
}

// TestCrashesAtStart: a driver that exits at once may only have lost its port to another program, and is tried again.
func TestCrashesAtStart(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	i.set(t, safari.CrashAtStart, "2")
	i.run(t, i.cfg)
	i.ready(t, "phone")
	if n := i.count(t, "start"); n != 3 {
		t.Errorf("%d starts, want 3", n)
	}
	i.works(t, "s1")
}

// TestCleanUpThatFails keeps the device until it has been repeated.
func TestCleanUpThatFails(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	i.run(t, i.cfg)
	session := assign(t, i.stack, first("s1", 1))
	sessions := filepath.Join(i.state, "sessions")
	if err := os.Rename(sessions, sessions+"-away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sessions, nil, 0o600); err != nil { // so that nothing can be made sure of there
		t.Fatal(err)
	}
	var f *wire.Failure
	if err := session.Release(t.Context()); !errors.As(err, &f) || f.Code != wire.FailureCleanup {
		t.Errorf("Release: %v, want cleanup_failed", err)
	}
	eventually(t, "quarantine", i.quarantined)
	if reason := i.dir.reason("phone"); !strings.Contains(reason, "clean-up failed") {
		t.Errorf("reason %q", reason)
	}
	since := i.clock.Now()
	i.clock.until(t, "it is tried again", func() bool { return i.clock.Now().Sub(since) > 3*time.Minute })
	if !i.quarantined() {
		t.Fatal("readmitted although it is not clean")
	}
	if err := errors.Join(os.Remove(sessions), os.Rename(sessions+"-away", sessions)); err != nil {
		t.Fatal(err)
	}
	i.clock.until(t, "readmission", i.isReady)
	i.idle(t) // the session's own directory is gone as well
	i.works(t, "s2")
}

// TestStandbyIsReplacedWithAge: drivers are not made to idle for days.
func TestStandbyIsReplacedWithAge(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	i.run(t, i.cfg)
	i.ready(t, "phone")
	old := pidOf(i.state, safari.Program)
	took := i.clock.until(t, "a second driver", func() bool { return i.count(t, "start") == 2 })
	if took < time.Hour || took > time.Hour+10*time.Second {
		t.Errorf("replaced after %s", took)
	}
	i.clock.until(t, "ready again", i.isReady)
	i.idle(t)
	if now := pidOf(i.state, safari.Program); now == old {
		t.Error("the old driver is still there")
	}
}

// TestHangingStandby is found out by the session that is to have it.
func TestHangingStandby(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	i.run(t, i.cfg)
	i.ready(t, "phone")
	answers, since := 0, time.Now()
	eventually(t, "it has not answered just now", func() bool {
		if n := i.count(t, "status"); n > answers {
			answers, since = n, time.Now()
		}
		return time.Since(since) > 1500*time.Millisecond
	})
	hung := pidOf(i.state, safari.Program)
	freeze(t, hung)
	i.works(t, "s1")
	i.clock.until(t, "ready", i.isReady)
	i.idle(t)
	eventually(t, "the hanging driver is gone", func() bool { return syscall.Kill(hung, 0) != nil })
}

// TestFreshSessionsCookies: deleteAllCookies hangs there, and so nothing but a client may ask for it.
func TestFreshSessionsCookies(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	i.run(t, i.cfg)
	i.ready(t, "phone")
	session := assign(t, i.stack, first("s1", 1))
	hangs := make(chan struct{})
	go func() {
		defer close(hangs)
		_, _, _ = session.Do(t.Context(), webdriver.Command{Method: "DELETE", Path: "/cookie"})
	}()
	eventually(t, "it is asked", func() bool { return i.count(t, "DELETE/cookie") == 1 })
	release(t, session)
	within(t, "the command ends", hangs)
	i.works(t, "s2")
	i.set(t, safari.Locked, "")
	i.clock.until(t, "ready", i.isReady)
	i.refused(t, "s3", wire.FailureDevice)
	i.clear(t, safari.Locked)
	tried := i.count(t, "session")
	i.clock.until(t, "readmission", i.isReady)
	if i.count(t, "session") == tried { // one may be slow on a busy machine, and is repeated
		t.Error("readmitted without a trial")
	}
	if n := i.count(t, "DELETE/cookie"); n != 1 {
		t.Errorf("deleteAllCookies was asked for %d times, want the client's", n)
	}
}

// TestSupervisorKilledAtStart: a driver that goes with its supervisor before it has answered is not waited for, but started anew.
func TestSupervisorKilledAtStart(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	i.set(t, safari.SlowStart, "10m")
	i.run(t, i.cfg)
	eventually(t, "the driver starts", func() bool { return i.count(t, "start") == 1 })
	i.clear(t, safari.SlowStart)
	if err := syscall.Kill(pidOf(i.state, host.SuperviseCommand), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	i.clock.until(t, "it is ready", i.isReady)
	if took := time.Since(begin); took > startPatience {
		t.Errorf("it took %s", took)
	}
	i.works(t, "s1")
}

// startPatience is far below what a driver has to start.
const startPatience = 30 * time.Second
