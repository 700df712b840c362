package host

import (
	"context"
	"errors"
	"net/http"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// probe finds out whether a device can be used. It starts its standby if there is none, and asks that for its status; a device in
// quarantine has more to show.
func (a *agent) probe(ctx context.Context, d *device, j job, log *zap.Logger) result {
	limited, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	s := j.standby
	if j.needs&proofWiped != 0 {
		if err := a.clearResidue(d); err != nil {
			log.Warn("clean-up failed again", zap.Error(err))
			return result{bad: []grade{gradeWiped}, standby: s}
		}
	}
	if j.needs&proofAlone != 0 {
		if err := reapDrivers(limited, a.cfg.safariDriver()); err != nil {
			log.Warn("leftover drivers could not be looked for", zap.Error(err))
			return result{bad: []grade{gradePaired}, standby: s}
		}
	}
	if j.needs&proofSession != 0 {
		if bad := a.trial(limited, d, s, log); len(bad) > 0 {
			return result{bad: bad}
		}
		s = nil
	}
	if s == nil {
		var bad []grade
		if s, bad = a.newStandby(limited, d, log); len(bad) > 0 {
			return result{bad: bad}
		}
	}
	g, took := s.status(limited)
	if g == gradeNone {
		return result{standby: s, took: took}
	}
	if ctx.Err() == nil {
		log.Warn("the standby is not ready", zap.Duration("took", took), zap.String("gone", s.gone()))
	}
	s.spoiled = true // it is discarded once this is known: that takes its time
	return result{bad: []grade{g}, standby: s}
}

// newStandby starts one, or says what is wrong.
func (a *agent) newStandby(ctx context.Context, d *device, log *zap.Logger) (*standby, []grade) {
	s := newStandby(a, d.Device)
	err := s.start(ctx)
	if err == nil {
		return s, nil
	}
	if !errors.Is(context.Cause(ctx), context.Canceled) { // else the agent is being stopped
		log.Warn("no standby", zap.Error(err))
	}
	return nil, append(a.discard(d, s, log), startGrade(err))
}

// trial starts a session, and ends it and the driver that had it. It says what is wrong.
func (a *agent) trial(ctx context.Context, d *device, s *standby, log *zap.Logger) []grade {
	if s == nil {
		var bad []grade
		if s, bad = a.newStandby(ctx, d, log); len(bad) > 0 {
			return bad
		}
	}
	g := s.try(ctx, log)
	bad := a.discard(d, s, log)
	if g != gradeNone {
		bad = append(bad, g)
	}
	return bad
}

// try starts a session and ends it.
func (s *standby) try(ctx context.Context, log *zap.Logger) grade {
	capabilities, err := forDriver(s.kind, s.dir, nil)
	if err != nil {
		log.Warn("no trial", zap.Error(err))
		return gradeStart
	}
	_, g, failure := s.driver.newSession(ctx, capabilities, s.of.UDID)
	switch {
	case failure != nil && s.driverDied():
		return gradeCrashes
	case failure != nil && g == gradeNone:
		log.Warn("a trial failed", zap.String("reason", failure.Message))
		return gradeStart
	case failure != nil:
		return g
	}
	ctx, cancel := context.WithTimeout(ctx, deleteLimit)
	defer cancel()
	if _, err := s.driver.do(ctx, webdriver.Command{Method: http.MethodDelete}); err != nil {
		log.Warn("the driver did not delete the session of a trial", zap.Error(err)) // it is killed
	}
	return g
}

// discard takes a standby down; what cannot be is residue, and a fault of the device.
func (a *agent) discard(d *device, s *standby, log *zap.Logger) []grade {
	err := s.takeDown()
	if err == nil {
		return nil
	}
	log.Error("a standby could not be cleaned up", zap.Error(err))
	a.mu.Lock()
	defer a.mu.Unlock()
	d.residue = append(d.residue, s.residue())
	return []grade{gradeWiped}
}

// clearResidue tries again to remove what is left of sessions and standbys.
func (a *agent) clearResidue(d *device) error {
	a.mu.Lock()
	todo := d.residue
	d.residue = nil
	a.mu.Unlock()
	var left []residue
	var errs []error
	for _, r := range todo {
		if err := r.clear(); err != nil {
			left, errs = append(left, r), append(errs, err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	d.residue = append(left, d.residue...)
	return errors.Join(errs...)
}

// rederive has every device that waits for a session prove anew that it is ready, before a hello lists it: what was known before a
// flap is not trusted. It waits for that, up to helloLimit, and calls in doubt what has not been proved by then.
func (a *agent) rederive(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, helloLimit)
	defer cancel()
	a.mu.Lock()
	defer a.mu.Unlock()
	ask := a.askLocked()
	for ctx.Err() == nil && !a.provedLocked(ask, phaseReady, phaseChecking) {
		settled := a.settled
		a.mu.Unlock()
		select {
		case <-settled:
		case <-ctx.Done():
		}
		a.mu.Lock()
	}
	for _, d := range a.devices {
		if d.ready.phase == phaseReady && d.proved < ask {
			d.ready.doubt(a.cfg.Clock.Now())
			a.tellLocked(d)
		}
	}
}

// onProbe has the devices prove that they are ready, and answers once they have, or are known not to be.
func (a *agent) onProbe(l *link, p wire.Probe) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l.probe, l.ask = p.Seq, a.askLocked()
	a.answerLocked()
}

// askLocked has every device that waits for a session probed; it returns what device.proved must reach.
func (a *agent) askLocked() uint64 {
	a.asked++
	now := a.cfg.Clock.Now()
	for _, d := range a.devices {
		d.ready.recheck(now)
		poke(d.wake)
	}
	return a.asked
}

// provedLocked says whether every device in one of the phases has been found ready since the ask.
func (a *agent) provedLocked(ask uint64, phases ...phase) bool {
	for _, d := range a.devices {
		for _, p := range phases {
			if d.ready.phase == p && (p != phaseReady || d.proved < ask) {
				return false
			}
		}
	}
	return true
}

// settleLocked tells whoever waits for devices that something is known of one.
func (a *agent) settleLocked() {
	close(a.settled)
	a.settled = make(chan struct{})
	a.answerLocked()
}

// answerLocked answers the probes of which all is known. A device that is being checked does not delay an answer.
func (a *agent) answerLocked() {
	for l := range a.links {
		if l.probe == 0 || !a.provedLocked(l.ask, phaseReady) {
			continue
		}
		m := wire.Probed{Seq: l.probe}
		for _, name := range a.order {
			d := a.devices[name]
			state, reason := d.ready.state()
			m.Devices = append(m.Devices, wire.ProbedDevice{Name: name, State: state, Reason: reason, Took: d.took})
		}
		l.probe = 0
		l.post(wire.Control{Probed: &m})
	}
}
