package host_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/drivertest/safari"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// TestFlapRederivesReadiness: after the control socket broke, a hello does not repeat what was known before.
func TestFlapRederivesReadiness(t *testing.T) {
	t.Parallel()
	i, cable := newIPhone(t), &line{}
	i.cfg.Dial = cable.dial
	i.run(t, i.cfg)
	i.ready(t, "phone")
	flap := func() wire.Device {
		t.Helper()
		before := i.dir.hellos()
		cable.cut(len(before) - 1) // control sockets are all that is dialled here
		eventually(t, "the host is back", func() bool { return len(i.dir.hellos()) == len(before)+1 })
		return i.dir.hellos()[len(before)].Devices[0]
	}
	statuses := i.count(t, "status")
	if d := flap(); d.State != wire.DeviceReady {
		t.Errorf("a device that is well is listed as %s %s", d.State, d.Reason)
	}
	if n := i.count(t, "status") - statuses; n == 0 {
		t.Error("it was listed as ready unasked")
	}
	// No time passes by the agent's clock: nothing but the flap can make it look.
	hung := pidOf(i.state, safari.Program)
	freeze(t, hung)
	begin := time.Now()
	if d := flap(); d.State != wire.DeviceBusy || d.Reason != "being checked" {
		t.Errorf("a device that does not answer is listed as %s %s", d.State, d.Reason)
	}
	if took := time.Since(begin); took < 2*time.Second { // it was waited for
		t.Errorf("hello after %s", took)
	}
	if err := syscall.Kill(hung, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	i.clock.until(t, "it is ready", i.isReady) // is told later, on the same socket
	i.works(t, "s1")
	i.idle(t)
}

// TestQuarantineOutlivesAFlap, and its next probe does not wait for the end of a long pause.
func TestQuarantineOutlivesAFlap(t *testing.T) {
	t.Parallel()
	i, cable := newIPhone(t), &line{}
	i.cfg.Dial = cable.dial
	i.run(t, i.cfg)
	i.ready(t, "phone")
	i.set(t, safari.Locked, "")
	i.refused(t, "s1", wire.FailureDevice)
	eventually(t, "quarantine", i.quarantined)
	tried := i.count(t, "refused")
	i.clock.until(t, "six bad probes", func() bool { return i.count(t, "refused") >= tried+6 }) // two minutes lie between them now
	eventually(t, "the pause has begun", i.clock.waiting)
	before := i.dir.hellos()
	cable.cut(0)
	eventually(t, "the host is back", func() bool { return len(i.dir.hellos()) == len(before)+1 })
	if d := i.dir.hellos()[len(before)].Devices[0]; d.State != wire.DeviceQuarantined {
		t.Errorf("listed as %s", d.State)
	}
	i.clear(t, safari.Locked)
	begin := i.clock.Now()
	if i.clock.until(t, "readmission", i.isReady); i.clock.Now().Sub(begin) > 30*time.Second {
		t.Errorf("readmitted after %s", i.clock.Now().Sub(begin))
	}
}

// TestProbesThroughTheTunnel: the orchestrator asks the host, the host its driver.
func TestProbesThroughTheTunnel(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	i.stack = newFleetThat(t, func(c *fleetConfig) { c.ProbeEvery = 100 * time.Millisecond })
	i.cfg.StateDir, i.cfg.Orchestrators = i.config(t).StateDir, i.config(t).Orchestrators
	i.run(t, i.cfg)
	i.ready(t, "phone")
	statuses := i.count(t, "status")
	eventually(t, "the driver is asked, and asked again", func() bool { return i.count(t, "status") >= statuses+3 })
	i.set(t, safari.Unready, "") // the agent's own clock stands still
	eventually(t, "the device is not ready", func() bool { return !i.isReady() })
	i.clear(t, safari.Unready)
	eventually(t, "it is again", i.isReady)
	i.works(t, "s1")
}
