package host

import (
	"slices"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// phase is where a device is between sessions and probes.
type phase int

const (
	phaseChecking    phase = iota // free, and not known to be usable
	phaseReady                    // its driver has answered; it can take a session
	phaseBusy                     // a session has it
	phaseQuarantined              // found unusable; probed until it is not
)

// readiness is whether a device can take a session, and what to do about it. It does nothing by itself: what was seen goes
// in with its time, what to do next comes out.
//
//	            good probe             claim
//	checking ────────────────▶ ready ─────────▶ busy ──▶ free: checking, or quarantined for what the session met
//	 ▲ │ ▲      a bad probe      │  │
//	 │ │ └───────────────────────┘  │  enough strikes of one grade
//	 │ └─────────────┬──────────────┘
//	 │               ▼
//	 │          quarantined ──▶ ready: after as many good probes in a row as its grade asks for
//	 └─ doubt: what was known is not trusted any more
//
// agent.mu guards a device's.
type readiness struct {
	phase   phase
	strikes [grades][]time.Time // the latest of each grade, as many as count
	due     time.Time           // of the next probe; zero: there is none

	grade    grade     // of the quarantine, as the next ones
	needs    proof     // what its probes must show, besides their status; also while it is checked after a session
	entered  time.Time // or when it was probed last
	tries    int       // bad probes
	goods    int       // good ones since the last bad one
	relapses int       // quarantines, one after another, that came soon after a readmission
	back     time.Time // the last readmission

	verdicts []grade // of a busy device: what it is quarantined for when it is free
}

// newReadiness is that of a device of which nothing is known.
func newReadiness(now time.Time) readiness { return readiness{due: now} }

// state is what the orchestrators are told.
func (r *readiness) state() (wire.DeviceState, string) {
	switch r.phase {
	case phaseReady:
		return wire.DeviceReady, ""
	case phaseQuarantined:
		return wire.DeviceQuarantined, r.grade.rule().reason()
	case phaseChecking:
		return wire.DeviceBusy, "being checked"
	}
	return wire.DeviceBusy, ""
}

// claim gives the device to a session. One that is being checked may be had too, New Session checks it as well, unless a probe has
// more to show.
func (r *readiness) claim() bool {
	if r.phase != phaseReady && (r.phase != phaseChecking || r.needs != 0) {
		return false
	}
	r.phase, r.due = phaseBusy, time.Time{}
	return true
}

// demand has a busy device show something before it can be had again.
func (r *readiness) demand(p proof) { r.needs |= p }

// free takes it back.
func (r *readiness) free(now time.Time) {
	r.phase, r.due = phaseChecking, now
	for _, g := range r.verdicts {
		r.quarantine(now, g)
	}
	r.verdicts = nil
}

// bad is a result of grade g: of a probe, or of what a session met.
func (r *readiness) bad(now time.Time, g grade) {
	enough := r.strike(now, g)
	switch r.phase {
	case phaseBusy:
		if enough {
			r.verdicts = append(r.verdicts, g)
		}
	case phaseQuarantined:
		r.tries++
		r.goods = 0
		if !enough { // not this grade's yet: the known one stays
			g = r.grade
		}
		r.quarantine(now, g)
	default:
		r.phase, r.due = phaseChecking, now.Add(retryEvery)
		if enough {
			r.quarantine(now, g)
		}
	}
}

// strike notes a bad result and says whether there are enough of its grade.
func (r *readiness) strike(now time.Time, g grade) bool {
	rule := g.rule()
	s := append(r.strikes[g], now)
	if rule.within > 0 {
		s = slices.DeleteFunc(s, func(t time.Time) bool { return now.Sub(t) > rule.within })
	}
	s = s[max(0, len(s)-rule.strikes):]
	r.strikes[g] = s
	return len(s) >= rule.strikes
}

// quarantine puts the device, or keeps it, in quarantine.
func (r *readiness) quarantine(now time.Time, g grade) {
	if r.phase != phaseQuarantined {
		r.phase, r.tries, r.goods = phaseQuarantined, 0, 0
		if r.back.IsZero() || now.Sub(r.back) > relapse {
			r.relapses = 0
		} else {
			r.relapses++
		}
	}
	rule := g.rule()
	r.grade, r.entered = g, now
	r.needs |= rule.needs
	r.due = time.Time{}
	if rule.first > 0 {
		r.due = now.Add(rule.delay(r.tries + r.relapses))
	}
}

// good is a result that shows something: a probe, which has shown all that was asked for, or New Session of a session.
func (r *readiness) good(now time.Time, shown proof) {
	for g := range grades {
		if rule := g.rule(); rule.within == 0 && rule.clears&shown != 0 {
			r.strikes[g] = nil
		}
	}
	switch r.phase {
	case phaseChecking, phaseReady:
		if r.needs&^shown != 0 {
			return // it has not been asked for all of it
		}
		r.phase, r.due, r.needs = phaseReady, now.Add(probeEvery), 0
	case phaseQuarantined:
		if r.needs&^shown != 0 {
			return // not what was asked for
		}
		r.goods++
		r.entered = now
		if rule := r.grade.rule(); r.goods < rule.goods {
			r.due = now.Add(rule.first)
			return
		}
		r.phase, r.due, r.grade, r.needs, r.back = phaseReady, now.Add(probeEvery), gradeNone, 0, now
	}
}

// doubt says that the device may not be what it was; recheck that it is to be probed now. A quarantined device is not probed
// more often for it than its grade says at the least.
func (r *readiness) doubt(now time.Time) {
	if r.phase == phaseReady {
		r.phase = phaseChecking
	}
	r.recheck(now)
}

func (r *readiness) recheck(now time.Time) {
	switch r.phase {
	case phaseReady, phaseChecking:
		r.due = now
	case phaseQuarantined:
		if soon := r.entered.Add(r.grade.rule().first); !r.due.IsZero() && soon.Before(r.due) {
			r.due = soon
		}
	}
}

// next says what to do: if probe, now, and the probe must show needs; else nothing until at, or at all if that is zero.
func (r *readiness) next(now time.Time) (probe bool, needs proof, at time.Time) {
	if r.due.IsZero() || now.Before(r.due) {
		return false, 0, r.due
	}
	return true, r.needs, now
}
