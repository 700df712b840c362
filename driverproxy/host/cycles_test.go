package host_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/drivertest/safari"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// TestCycles is a sample of TestSoakCycles.
func TestCycles(t *testing.T) { cycles(t, 100) }

// cycles runs sessions one after the other. Half of them end by a Release; of the others the driver or supervisor is killed or sockets are
// cut, in the session or at any point of it, its start and its end included. Nothing may be left.
func cycles(t *testing.T, n int) {
	random := rand.New(rand.NewPCG(seed(t), 0))
	i, cable := newIPhone(t), &line{}
	i.cfg.Dial = cable.dial
	stop := i.run(t, i.cfg)
	for c := range 5 { // connections that are kept, pools
		i.works(t, fmt.Sprint("warm-", c))
	}
	i.idle(t)
	before := runtime.NumGoroutine()
	ends := map[string]int{}
	for c := range n {
		ends[i.cycle(t, cable, fmt.Sprint("s", c), random)]++
		if c%100 == 99 {
			i.idle(t)
		}
	}
	t.Logf("cycles by their ends: %v; %d sessions were tried, with the trials of quarantines", ends, i.count(t, "session"))
	if ends["refused"] > n/10 {
		t.Errorf("%d of %d sessions were refused", ends["refused"], n)
	}
	i.idle(t)
	eventually(t, "goroutines are gone", func() bool { return runtime.NumGoroutine() <= before })
	i.works(t, "last")
	if i.Paired() {
		t.Error("something holds the phone")
	}
	stop() // and leaves nothing
}

// cycle is one session. It waits until the device is ready again, and says how the session ended.
func (i *iphone) cycle(t *testing.T, cable *line, id string, random *rand.Rand) string {
	t.Helper()
	kill := func(name string) func() {
		return func() {
			if pid := pidOf(i.state, name); pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
			}
		}
	}
	cut := func() { cable.cutAll(false) }
	type way struct {
		name   string
		strike func()
	}
	how := []way{{"driver killed", kill(safari.Program)}, {"supervisor killed", kill(host.SuperviseCommand)}}[random.IntN(2)]
	if random.IntN(10) == 0 { // a host does not dial so fast that there could be more
		how = way{"sockets cut", cut}
	}
	released, anywhere := random.IntN(2) == 0, random.IntN(2) == 0
	defer i.clock.until(t, "ready again", func() bool { return i.knows(cable) && i.isReady() })
	if !released && anywhere {
		struck := make(chan struct{})
		timer := time.AfterFunc(time.Duration(random.Int64N(int64(50*time.Millisecond))), func() {
			defer close(struck)
			how.strike()
		})
		defer func() {
			if !timer.Stop() {
				<-struck
			}
		}()
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	session, err := i.fleet.Assign(ctx, first(id, 1))
	if f := (*wire.Failure)(nil); errors.As(err, &f) && f.Code == wire.FailureDevice {
		return "refused" // it was quarantined, and the orchestrator has not heard of it yet
	}
	if err != nil {
		if released || !anywhere {
			t.Fatalf("Assign: %v", err)
		}
		return "start: " + how.name
	}
	_, _, _ = session.Do(ctx, webdriver.Command{Method: "GET", Path: "/url"}) // it may be struck
	if !released && !anywhere {
		how.strike()
	}
	release(t, session)
	if released {
		return "released"
	}
	return how.name
}

// TestKilledAgentLeavesNothing: what it had running, sessions and standbys, has ended when the next one is connected, also a process
// that no supervisor has below it any more.
func TestKilledAgentLeavesNothing(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	i.cfg.Devices = append(i.cfg.Devices, i.cfg.Devices[0])
	i.cfg.Devices[1].Name = "idle" // of the same phone, which a standby does not need
	i.set(t, safari.Leftover, "")
	agent := i.startAgent(t, i.cfg)
	i.connected(t)
	i.ready(t, "phone")
	i.ready(t, "idle")
	session := assign(t, i.stack, first("s1", 1))
	do[any](t, session, "POST", "/url", map[string]string{"url": "http://site/"})
	var pids []int
	for _, p := range processesBelow(i.state) {
		var pid int
		if _, err := fmt.Sscan(p, &pid); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	if len(pids) != 5 { // two supervisors with a driver each, and what the session has left behind already
		t.Fatalf("processes %v", processesBelow(i.state))
	}
	supervisors := pidsOf(i.state, host.SuperviseCommand)
	for _, pid := range supervisors { // so that none can do its work before it is killed
		freeze(t, pid)
	}
	for _, pid := range append(supervisors, agent.Process.Pid) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	_ = agent.Wait()
	if !i.Paired() {
		t.Fatal("nothing is left that the next agent could find")
	}
	i.run(t, i.cfg)
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); err == nil && i.has(pid) {
			t.Errorf("process %d of the killed agent is left", pid)
		}
	}
	i.ready(t, "phone")
	i.ready(t, "idle")
	i.idle(t)
	if i.Paired() {
		t.Error("the phone is still held")
	}
	i.clear(t, safari.Leftover)
	i.works(t, "s2")
}

// has says whether a process is one of the state directory's still: its pid may be another's by now, or that of a dead one.
func (i *iphone) has(pid int) bool {
	for _, p := range processesBelow(i.state) {
		var is int
		if _, err := fmt.Sscan(p, &is); err == nil && is == pid {
			return true
		}
	}
	return false
}
