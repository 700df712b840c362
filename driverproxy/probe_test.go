package driverproxy_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// pulse sends two heartbeats and returns the probe that comes with their answers; nil if none does.
func (p *peer) pulse(seq uint64) *wire.Probe {
	p.t.Helper()
	p.send(wire.Control{Heartbeat: &wire.Heartbeat{Seq: seq}})
	p.send(wire.Control{Heartbeat: &wire.Heartbeat{Seq: seq + 1}}) // its answer ends what the first may have brought
	var probe *wire.Probe
	for {
		m, err := p.receive()
		switch {
		case err != nil:
			p.t.Fatal(err)
		case m.Probe != nil:
			probe = m.Probe
		case m.Heartbeat == nil:
			p.t.Fatalf("received %+v", m)
		case m.Heartbeat.Seq == seq+1:
			return probe
		}
	}
}

func (p *peer) answer(seq uint64, state wire.DeviceState, reason string) {
	p.t.Helper()
	p.send(wire.Control{Probed: &wire.Probed{Seq: seq, Devices: []wire.ProbedDevice{{Name: "phone", State: state, Reason: reason}}}})
}

// ready is a connected host with a ready device.
func (s *server) ready(t *testing.T) *peer {
	t.Helper()
	p := s.up(t, "boot")
	p.send(wire.Control{Device: &wire.Device{Name: "phone", State: wire.DeviceReady}})
	eventually(t, "it is ready", func() bool { return s.dir.last() == "device phone ready" })
	return p
}

// TestProbes: with a heartbeat, every ten seconds; a device that is not ready any more, or is again, is reported, and nothing else.
func TestProbes(t *testing.T) {
	s := serve(t, limit)
	p := s.ready(t)
	if probe := p.pulse(1); probe != nil {
		t.Errorf("probed at once: %+v", probe)
	}
	beats := uint64(3)
	probe := func() uint64 {
		t.Helper()
		s.now.Add(int64(10 * time.Second))
		m := p.pulse(beats)
		beats += 2
		if m == nil {
			t.Fatal("not probed")
		}
		return m.Seq
	}
	calls := len(s.dir.noted())
	for range 5 {
		p.answer(probe(), wire.DeviceReady, "")
	}
	p.pulse(beats) // so that the last answer has been heard
	beats += 2
	if more := s.dir.noted()[calls:]; len(more) != 0 {
		t.Errorf("a ready device that stays so was reported: %v", more)
	}
	p.answer(probe(), wire.DeviceQuarantined, "slow")
	eventually(t, "the bad probe is reported", func() bool { return s.dir.last() == "device phone quarantined" })
	p.answer(probe(), wire.DeviceReady, "")
	eventually(t, "the good one is", func() bool { return s.dir.last() == "device phone ready" })
}

// TestUnansweredProbes: the host lives, as its heartbeats say, and its devices are not to be had.
func TestUnansweredProbes(t *testing.T) {
	s := serve(t, limit)
	p := s.ready(t)
	var last uint64
	for i := range uint64(4) {
		if s.dir.last() != "device phone ready" {
			t.Fatalf("%s after %d unanswered probes", s.dir.last(), i)
		}
		s.now.Add(int64(10 * time.Second))
		m := p.pulse(1 + 2*i)
		if m == nil || m.Seq != last+1 {
			t.Fatalf("probe %+v after number %d", m, last)
		}
		last = m.Seq
	}
	eventually(t, "the device is taken out", func() bool { return s.dir.last() == "device phone quarantined" })
	p.send(wire.Control{Device: &wire.Device{Name: "phone", State: wire.DeviceReady}}) // says the host, and proves nothing
	p.pulse(101)
	if last := s.dir.last(); last != "device phone quarantined" {
		t.Errorf("%s without an answer to a probe", last)
	}
	p.answer(last, wire.DeviceReady, "")
	eventually(t, "it is back", func() bool { return s.dir.last() == "device phone ready" })
}

// TestDevicesAreToldAgain: another replica, which sees the host differently, may have written over what this one told.
func TestDevicesAreToldAgain(t *testing.T) {
	s := serve(t, limit)
	p := s.ready(t)
	calls := len(s.dir.noted())
	for i := range uint64(61) {
		s.now.Add(int64(10 * time.Second))
		p.answer(p.pulse(1+2*i).Seq, wire.DeviceReady, "")
	}
	eventually(t, "it is told again", func() bool { return slices.Equal(s.dir.noted()[calls:], []string{"device phone ready"}) })
}

// TestRecheck: what the Directory was told is told again, once the host has said it after the doubt, and once.
func TestRecheck(t *testing.T) {
	s := serve(t, limit)
	p := s.ready(t)
	calls := len(s.dir.noted())
	told := func(want ...string) func() bool {
		return func() bool { return slices.Equal(s.dir.noted()[calls:], want) }
	}
	s.now.Add(int64(10 * time.Second))
	before := p.pulse(1).Seq
	s.Recheck("mac-1", "phone")
	s.Recheck("mac-1", "tablet") // which it does not have
	s.Recheck("mac-2", "phone")  // which is not connected
	if probe := p.pulse(3); probe != nil {
		t.Errorf("probed beside a probe: %+v", probe)
	}
	p.answer(before, wire.DeviceReady, "") // says what was before
	after := p.pulse(5)
	if after == nil || after.Seq != before+1 {
		t.Fatalf("probe %+v after a doubt", after)
	}
	if !told()() {
		t.Errorf("an answer from before the doubt is told: %v", s.dir.noted()[calls:])
	}
	p.answer(after.Seq, wire.DeviceReady, "")
	eventually(t, "it is told again", told("device phone ready"))
	if probe := p.pulse(7); probe != nil {
		t.Errorf("probed without a doubt: %+v", probe)
	}

	s.Recheck("mac-1", "phone") // with nothing on its way
	if after = p.pulse(9); after == nil {
		t.Fatal("not probed after a doubt")
	}
	p.send(wire.Control{Device: &wire.Device{Name: "phone", State: wire.DeviceReady}}) // is as good as an answer
	eventually(t, "it is told what the host says by itself", told("device phone ready", "device phone ready"))
	p.answer(after.Seq, wire.DeviceReady, "")
	p.pulse(11)
	if !told("device phone ready", "device phone ready")() {
		t.Errorf("told %v", s.dir.noted()[calls:])
	}
}

func TestBadProbeAnswersEndTheSocket(t *testing.T) {
	for name, m := range map[string]wire.Probed{
		"of a probe that was not sent": {Seq: 1},
		"of a device it does not have": {Devices: []wire.ProbedDevice{{Name: "tablet", State: wire.DeviceReady}}},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, limit)
			p := s.ready(t)
			p.send(wire.Control{Probed: &m})
			if got, err := p.receive(); err == nil {
				t.Errorf("received %s", fmt.Sprint(got))
			}
		})
	}
}
