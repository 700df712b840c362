package host

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// probes has probes of a device end as the function says, for so long, and returns when they were.
func (r *readiness) probes(from time.Time, span time.Duration, result func(now time.Time, needs proof)) (at []time.Duration) {
	for now := from; ; {
		probe, needs, next := r.next(now)
		switch {
		case probe:
			at = append(at, now.Sub(from))
			result(now, needs)
		case next.IsZero() || next.Sub(from) > span:
			return at
		default:
			now = next
		}
	}
}

// TestReadiness has the times of each grade: how many strikes there are until the device is quarantined, when it is probed
// while nothing changes and when after a relapse, and how many good probes readmit it.
func TestReadiness(t *testing.T) {
	const s, m = time.Second, time.Minute
	for _, test := range []struct {
		name    string
		grade   grade
		strikes int
		needs   proof
		bad     []time.Duration // probes from the quarantine on, if all are bad
		good    []time.Duration // if they are good, up to the one that readmits
		relapse []time.Duration // the same, when it comes back at once
	}{
		{"locked", gradeLocked, 1, proofSession, []time.Duration{10 * s, 30 * s, 70 * s, 150 * s, 270 * s, 390 * s}, []time.Duration{10 * s}, []time.Duration{20 * s}},
		{"untrusted", gradeUntrusted, 1, proofSession, []time.Duration{30 * s, 90 * s, 210 * s, 450 * s, 750 * s}, []time.Duration{30 * s}, []time.Duration{60 * s}},
		{"automation", gradeAutomation, 1, proofSession, []time.Duration{30 * s, 90 * s, 210 * s, 450 * s, 750 * s}, []time.Duration{30 * s}, []time.Duration{60 * s}},
		{"absent", gradeAbsent, 2, proofSession, []time.Duration{10 * s, 30 * s, 70 * s, 150 * s, 310 * s, 610 * s}, []time.Duration{10 * s}, []time.Duration{20 * s}},
		{"paired", gradePaired, 1, proofSession | proofAlone, []time.Duration{2 * s, 6 * s, 14 * s, 30 * s, 62 * s, 126 * s, 246 * s, 366 * s}, []time.Duration{2 * s}, []time.Duration{4 * s}},
		{"crashes", gradeCrashes, 3, proofSession, []time.Duration{30 * s, 90 * s, 210 * s, 450 * s}, []time.Duration{30 * s, 60 * s}, []time.Duration{60 * s, 90 * s}},
		{"start", gradeStart, 3, 0, []time.Duration{30 * s, 90 * s, 210 * s, 450 * s}, []time.Duration{30 * s}, []time.Duration{60 * s}},
		{"slow driver", gradeSlowDriver, 3, 0, []time.Duration{30 * s, 90 * s, 210 * s, 450 * s, 750 * s}, []time.Duration{30 * s, 60 * s}, []time.Duration{60 * s, 90 * s}},
		{"slow start", gradeSlowStart, 3, proofSession, []time.Duration{30 * s, 90 * s, 210 * s, 450 * s, 750 * s}, []time.Duration{30 * s}, []time.Duration{60 * s}},
		{"wiped", gradeWiped, 1, proofWiped, []time.Duration{30 * s, 90 * s, 210 * s, 450 * s}, []time.Duration{30 * s}, []time.Duration{60 * s}},
		{"platform", gradePlatform, 1, 0, nil, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			now := time.Unix(1e9, 0)
			fresh := func() *readiness {
				r := newReadiness(now)
				r.good(now, proofStatus)
				return &r
			}
			strike := func(r *readiness) {
				t.Helper()
				for n := 1; r.phase != phaseQuarantined; n++ {
					r.bad(now, test.grade)
					if (n >= test.strikes) != (r.phase == phaseQuarantined) {
						t.Fatalf("phase %d after %d strikes, want the quarantine after %d", r.phase, n, test.strikes)
					}
				}
			}
			r := fresh()
			strike(r)
			if state, reason := r.state(); state != wire.DeviceQuarantined || reason != test.grade.rule().reason() {
				t.Errorf("%s because of %q", state, reason)
			}
			if r.claim() {
				t.Error("a session could have it")
			}
			span := 8 * m
			if len(test.bad) > 0 {
				span = test.bad[len(test.bad)-1]
			}
			if at := r.probes(now, span, func(now time.Time, needs proof) {
				if needs != test.needs {
					t.Errorf("a probe needs %b, want %b", needs, test.needs)
				}
				r.bad(now, test.grade)
			}); !equal(at, test.bad) {
				t.Errorf("bad probes at %v, want %v", at, test.bad)
			}
			r = fresh()
			for i, want := range [][]time.Duration{test.good, test.relapse} {
				if i == 0 {
					strike(r)
				}
				for r.phase != phaseQuarantined { // strikes of before still count where they count by time
					r.bad(now, test.grade)
				}
				var back []time.Duration
				for r.phase == phaseQuarantined && len(back) < len(want) {
					_, _, next := r.next(now.Add(-time.Hour))
					back = append(back, next.Sub(now))
					r.good(next, test.needs|proofStatus)
				}
				if !equal(back, want) || (len(want) > 0) != (r.phase == phaseReady) {
					t.Errorf("good probes at %v leave phase %d, want %v", back, r.phase, want)
				}
				if len(want) > 0 {
					now = now.Add(want[len(want)-1])
				}
			}
		})
	}
}

func equal(a, b []time.Duration) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// TestStrikesEnd: bad results count in a row, or within their time.
func TestStrikesEnd(t *testing.T) {
	now := time.Unix(1e9, 0)
	r := newReadiness(now)
	for range 10 {
		r.bad(now, gradeSlowDriver)
		r.bad(now, gradeSlowDriver)
		r.good(now, proofStatus)
		r.bad(now, gradeSlowStart)
		r.bad(now, gradeSlowStart)
		r.good(now, proofStatus) // says nothing of how long a session takes to start
	}
	if r.phase != phaseQuarantined || r.grade != gradeSlowStart {
		t.Errorf("phase %d grade %d, want slow starts to add up although the driver answers", r.phase, r.grade)
	}
	r = newReadiness(now)
	for range 10 {
		r.bad(now, gradeCrashes)
		now = now.Add(151 * time.Second) // two in five minutes
		r.good(now, proofStatus|proofSession)
	}
	if r.phase != phaseReady {
		t.Errorf("phase %d after crashes that are far apart", r.phase)
	}
}

// TestBusyDeviceIsJudgedWhenFree: what a session meets does not take its device from it.
func TestBusyDeviceIsJudgedWhenFree(t *testing.T) {
	now := time.Unix(1e9, 0)
	r := newReadiness(now)
	if !r.claim() || r.claim() {
		t.Fatal("one session, and one only, must get a device that is free")
	}
	r.bad(now, gradeWiped)
	r.bad(now, gradeLocked)
	if state, _ := r.state(); state != wire.DeviceBusy {
		t.Errorf("%s under its session", state)
	}
	r.free(now)
	if _, needs, _ := r.next(now.Add(time.Hour)); r.phase != phaseQuarantined || needs != proofWiped|proofSession {
		t.Errorf("phase %d, a probe needs %b: want all that was met to be got over", r.phase, needs)
	}
}

// model is what a device's history, kept whole, says it must be.
type model struct {
	t    *rapid.T
	r    readiness
	now  time.Time
	busy bool
	// proved is true from a good probe on, until anything speaks against it.
	proved bool
	owed   proof // what has to be shown before the device may be ready again
}

// TestReadinessModel has anything happen in any order.
func TestReadinessModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{t: t, now: time.Unix(1e9, 0)}
		m.r = newReadiness(m.now)
		bad := rapid.SampledFrom([]grade{gradeLocked, gradeUntrusted, gradeAutomation, gradeAbsent, gradePaired, gradeCrashes, gradeStart,
			gradeSlowDriver, gradeSlowStart, gradeWiped})
		t.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { m.holds() },
			"time": func(t *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.Int64Range(0, int64(20*time.Minute)).Draw(t, "for")))
			},
			"probe": func(t *rapid.T) { m.probe(bad.Draw(t, "grade"), rapid.Bool().Draw(t, "good")) },
			"claim": func(*rapid.T) {
				had := m.r.phase == phaseReady || m.r.phase == phaseChecking
				if got := m.r.claim(); got != had {
					t.Fatalf("claim %v in phase %d", got, m.r.phase)
				}
				m.busy = m.busy || had
			},
			"session meets": func(t *rapid.T) {
				if m.busy {
					m.bad(bad.Draw(t, "grade"))
				}
			},
			"free": func(*rapid.T) {
				if m.busy {
					m.busy, m.proved = false, false
					m.r.free(m.now)
				}
			},
			"doubt": func(*rapid.T) {
				if m.r.doubt(m.now); !m.busy {
					m.proved = false
				}
			},
			"recheck": func(*rapid.T) { m.r.recheck(m.now) },
		})
	})
}

// probe runs the next probe, if it is time for one.
func (m *model) probe(g grade, good bool) {
	probe, needs, _ := m.r.next(m.now)
	switch {
	case !probe:
	case good:
		if m.owed&^needs != 0 {
			m.t.Fatalf("a probe needs %b, and %b is owed", needs, m.owed)
		}
		m.r.good(m.now, needs|proofStatus)
		if m.r.phase == phaseReady {
			m.proved, m.owed = true, 0
		}
	default:
		m.bad(g)
	}
}

func (m *model) bad(g grade) {
	if g.rule().strikes == 1 {
		m.owed |= g.rule().needs
	}
	if !m.busy {
		m.proved = false
	}
	m.r.bad(m.now, g)
}

// holds is what must be true at any time.
func (m *model) holds() {
	state, reason := m.r.state()
	if state == wire.DeviceReady && (!m.proved || m.owed != 0) {
		m.t.Fatalf("ready without proof; %b is owed", m.owed)
	}
	if m.busy != (m.r.phase == phaseBusy) {
		m.t.Fatalf("phase %d, and a session has it: %v", m.r.phase, m.busy)
	}
	if (state == wire.DeviceQuarantined) != (reason != "" && reason != "being checked") {
		m.t.Fatalf("%s because of %q", state, reason)
	}
	_, _, at := m.r.next(m.now)
	wait := at.Sub(m.now)
	switch {
	case m.busy && !at.IsZero():
		m.t.Fatal("a busy device is probed")
	case !m.busy && at.IsZero():
		m.t.Fatal("nothing will happen to the device any more")
	case m.r.phase == phaseQuarantined && wait > m.r.grade.rule().most:
		m.t.Fatalf("the next probe is in %s", wait)
	case (m.r.phase == phaseReady || m.r.phase == phaseChecking) && wait > probeEvery:
		m.t.Fatalf("the next probe is in %s", wait)
	}
	for g, strikes := range m.r.strikes {
		if len(strikes) > max(grade(g).rule().strikes, 1) {
			m.t.Fatalf("%d strikes of grade %d are kept", len(strikes), g)
		}
	}
}
