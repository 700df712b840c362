package host

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/inert"
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
	looked := false
	if j.needs&proofWiped != 0 && (len(j.pages) > 0 || d.keeps(a.cfg)) {
		more, bad := a.inspect(limited, d, s, j.pages, log)
		if more || len(bad) > 0 {
			return result{more: more, bad: bad}
		}
		s, looked = nil, true
	}
	if j.needs&proofAlone != 0 {
		if err := reapDrivers(limited, a.cfg.safariDriver()); err != nil {
			log.Warn("leftover drivers could not be looked for", zap.Error(err))
			return result{bad: []grade{gradePaired}, standby: s}
		}
	}
	if j.needs&proofSession != 0 && !looked {
		if bad := a.trial(limited, d, s, log, nil); len(bad) > 0 {
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

// keeps says whether the device's browser may keep something that no directory of a session has.
func (d *device) keeps(cfg Config) bool {
	k, _ := newKind(d.Device, cfg) // was checked when the agent started
	return !k.contained()
}

// inquiry is what is known of the pages in question while a device proves that nothing is left of sessions.
type inquiry struct {
	asked  []string       // that were gone to and stay in question: not again before the device has been free
	breaks map[string]int // how often a page has cost a session its browser
}

// mostBreaks of a page: then it is given up, lest a site that kills drivers has a device for ever.
const mostBreaks = 3

// inspect looks whether anything is left of sessions at the pages: in a session of its own, which finds what they have left and leaves canaries, and
// in another one, which finds those if this browser keeps anything beyond a session. So that canaries are left and looked for whatever becomes of the pages, it
// goes to a site of ours as well, and without one that held them in both sessions nothing is proved. A site that does not answer stays in question, and
// keeps nobody from having the device; so does one that has cost a browser too often, which is told and forgotten. Where there was no time for all
// of them there is more to look at.
func (a *agent) inspect(ctx context.Context, d *device, s *standby, pages []string, log *zap.Logger) (more bool, bad []grade) {
	pages = without(pages, d.inquiry.asked)
	if d.keeps(a.cfg) {
		pages = append(pages, inert.Target(a.cfg.canarySite(), "/")) // the last is gone to first
	}
	look := func(s *standby, pages []string, leave bool) (found sweep, bad []grade) {
		bad = a.trial(ctx, d, s, log, func(driver *driver) grade {
			if found = sweepUp(ctx, driver, pages, true, leave); found.Left > 0 {
				return gradeWiped
			}
			return gradeNone
		})
		log.Info("looked for what sessions have left in the browser", found.sites())
		return found, bad
	}
	found, bad := look(s, pages, true)
	proved, again := without(pages, found.question), sweep{}
	if len(bad) == 0 && len(proved) > 0 {
		again, bad = look(nil, proved, false)
		proved = without(proved, again.question)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, page := range d.brokeLocked(append(found.breaks, again.breaks...)) {
		log.Error("a site costs every session that goes to it its browser: it is given up, and what sessions have left there is not known", zap.Int("times", d.inquiry.breaks[page]))
		delete(d.inquiry.breaks, page)
	}
	if len(bad) > 0 {
		d.inquiry.asked = nil
		return false, bad
	}
	more, why := d.learnLocked(d.keeps(a.cfg), pages, proved, found, again)
	if why != "" {
		log.Warn(why)
		bad = []grade{gradeWiped}
	}
	return more, bad
}

// learnLocked takes in what both sessions have found at the pages, and says whether there is more to look at, or why nothing is proved. Of a browser that
// keeps nothing beyond the session's directory, that directory's end is proof enough: a site that is down has no such device.
func (d *device) learnLocked(keeps bool, pages, proved []string, found, again sweep) (more bool, why string) {
	d.pages = without(d.pages, proved)
	for _, page := range proved { // it breaks none any more
		delete(d.inquiry.breaks, page)
	}
	unasked := append(found.unasked, again.unasked...)
	switch {
	case found.broken || again.broken:
		return false, "the browser broke while it was asked what sessions have left in it"
	case keeps && len(proved) == 0:
		return false, "no site has held a canary: the device is free once one does; can it reach the canary site?"
	case len(unasked) > 0:
		d.inquiry.asked = append(d.inquiry.asked, without(pages, append(unasked, proved...))...)
		return true, ""
	}
	d.inquiry.asked = nil
	return false, ""
}

// brokeLocked counts what has cost a session its browser and has it gone to after all others. It returns what has done so too often, which is in question
// no more.
func (d *device) brokeLocked(pages []string) (over []string) {
	if len(pages) == 0 {
		return nil
	}
	pages = without(pages, without(pages, d.pages)) // the canary site is nobody's
	if d.inquiry.breaks == nil {
		d.inquiry.breaks = map[string]int{}
	}
	for _, p := range pages {
		if d.inquiry.breaks[p]++; d.inquiry.breaks[p] >= mostBreaks {
			over = append(over, p)
		}
	}
	d.pages = append(without(pages, over), without(d.pages, pages)...)
	return over
}

func without(list, some []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(some, s) })
}

// trial starts a session, has something done in it, unless that is nil, and ends it and the driver that had it. It says what is wrong.
func (a *agent) trial(ctx context.Context, d *device, s *standby, log *zap.Logger, do func(*driver) grade) []grade {
	if s == nil {
		var bad []grade
		if s, bad = a.newStandby(ctx, d, log); len(bad) > 0 {
			return bad
		}
	}
	g := s.try(ctx, log, do)
	bad := a.discard(d, s, log)
	if g != gradeNone {
		bad = append(bad, g)
	}
	return bad
}

// try starts a session and ends it.
func (s *standby) try(ctx context.Context, log *zap.Logger, do func(*driver) grade) grade {
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
	if do != nil {
		g = cmp.Or(do(s.driver), g)
	}
	if _, err := s.driver.quit(ctx); err != nil {
		log.Warn("the driver did not delete the session of a trial", zap.Error(err)) // it is killed
		if !s.kind.contained() {
			return gradeWiped
		}
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
