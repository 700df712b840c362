package host

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// device is a device, who has it and what is known of it; agent.mu guards it.
type device struct {
	Device
	state   wire.DeviceState // what the orchestrators were told
	reason  string
	session *session
	ready   readiness
	standby *standby      // nil: there is none, or a step or a session has it
	step    chan struct{} // not nil: the keeper is at work with the device; closed when it is done
	wake    chan struct{} // buffered: the keeper is to look again
	residue []residue     // what is left of sessions and standbys
	pages   []string      // at which sessions were, and of which nobody knows that nothing is left; the latest last
	inquiry inquiry       // into the pages; the keeper's alone
	began   uint64        // agent.asked when the last step began
	proved  uint64        // the same of the last that found the device ready
	took    time.Duration // of the driver's last answer
}

// job is what the keeper does next: it discards a standby, probes, or waits.
type job struct {
	discard *standby
	probe   bool
	needs   proof
	pages   []string                   // to look at, of the device
	standby *standby                   // to probe; nil: there is none
	wait    time.Duration              // 0: until woken
	exits   [exitKinds]<-chan struct{} // what must not exit meanwhile
}

// result is what a job has come to.
type result struct {
	bad     []grade       // what is wrong; a probe without has shown what was needed, unless there is
	more    bool          // to look at: it is to be repeated
	standby *standby      // to keep
	took    time.Duration // of the driver's answer
}

// keep is what happens to a device while no session has it, until ctx ends: a standby is started, probed and replaced, and what
// is wrong with the device is found out and got over. Only it starts standbys; it and sessions take them.
func (a *agent) keep(ctx context.Context, d *device) {
	log := a.cfg.Log.With(zap.String("device", d.Name))
	for ctx.Err() == nil {
		switch j := a.next(d, log); {
		case j.discard != nil:
			a.done(ctx, d, j, result{bad: a.discard(d, j.discard, log)}, log)
		case j.probe:
			a.done(ctx, d, j, a.probe(ctx, d, j, log), log)
		default:
			a.rest(ctx, d, j)
		}
	}
	a.mu.Lock()
	last := d.standby
	d.standby = nil
	a.mu.Unlock()
	if last != nil {
		a.discard(d, last, log) // what is left is for the next agent
	}
}

func (a *agent) next(d *device, log *zap.Logger) job {
	a.mu.Lock()
	defer a.mu.Unlock()
	if d.session != nil {
		return job{}
	}
	now := a.cfg.Clock.Now()
	if s := d.standby; s != nil {
		gone, old := s.gone(), now.Sub(s.since) >= standbyAge
		switch {
		case s.spoiled:
		case gone != "":
			log.Warn("the standby died", zap.String("gone", gone))
			d.ready.bad(now, gradeCrashes)
		case old:
			d.ready.doubt(now)
		}
		if s.spoiled || gone != "" || old {
			a.tellLocked(d)
			d.standby, d.step = nil, make(chan struct{})
			return job{discard: s}
		}
	}
	probe, needs, at := d.ready.next(now)
	if probe {
		j := job{probe: true, needs: needs, standby: d.standby, pages: slices.Clone(d.pages)}
		d.standby, d.step, d.began = nil, make(chan struct{}), a.asked
		return j
	}
	var j job
	if !at.IsZero() {
		j.wait = at.Sub(now)
	}
	if d.standby != nil {
		for i, e := range d.standby.exits {
			j.exits[i] = e.gone
		}
	}
	return j
}

// done takes in what a job has come to. That it failed says nothing when ctx has ended.
func (a *agent) done(ctx context.Context, d *device, j job, r result, log *zap.Logger) {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(d.step)
	d.step, d.standby = nil, r.standby
	if ctx.Err() != nil {
		return
	}
	now, before := a.cfg.Clock.Now(), d.ready.phase
	for _, g := range r.bad {
		d.ready.bad(now, g)
	}
	if j.probe && len(r.bad) == 0 && !r.more {
		d.ready.good(now, j.needs|proofStatus)
		d.proved, d.took = d.began, r.took
	}
	if j.probe && d.began != a.asked { // it was asked again meanwhile
		d.ready.recheck(now)
	}
	if after := d.ready.phase; after != before && (after == phaseQuarantined || before == phaseQuarantined) {
		state, reason := d.ready.state()
		log.Info("the device is "+string(state), zap.String("reason", reason))
	}
	a.tellLocked(d)
	a.settleLocked()
}

// rest waits until there may be something to do.
func (a *agent) rest(ctx context.Context, d *device, j job) {
	var due <-chan time.Time
	if j.wait > 0 {
		c, stop := a.cfg.Clock.Timer(j.wait)
		defer stop()
		due = c
	}
	select {
	case <-j.exits[0]:
	case <-j.exits[1]:
	case <-j.exits[2]:
	case <-d.wake:
	case <-due:
	case <-ctx.Done():
	}
}

// returnLocked takes the device back from a session, with what that has found out about it.
func (a *agent) returnLocked(d *device, m met) {
	now := a.cfg.Clock.Now()
	d.session = nil
	if m.good != 0 {
		d.ready.good(now, m.good)
	}
	for _, g := range m.bad {
		d.ready.bad(now, g)
	}
	d.residue = append(d.residue, m.residue...)
	d.questionLocked(m.question)
	d.ready.demand(m.needs)
	d.ready.free(now)
	if state, reason := d.ready.state(); state == wire.DeviceQuarantined {
		a.cfg.Log.Warn("the device is quarantined", zap.String("device", d.Name), zap.String("reason", reason))
	}
	a.tellLocked(d)
	a.settleLocked()
	poke(d.wake)
}

// questionLocked remembers pages to look at once there is a session to look with.
func (d *device) questionLocked(pages []string) {
	d.pages = append(without(d.pages, pages), pages...)
	d.pages = slices.Delete(d.pages, 0, max(0, len(d.pages)-inQuestion))
}

// take waits for what the keeper is doing with the device, and then has its standby; nil if there is none.
func (a *agent) take(ctx context.Context, d *device) *standby {
	a.mu.Lock()
	defer a.mu.Unlock()
	for d.step != nil {
		step := d.step
		a.mu.Unlock()
		select {
		case <-step:
		case <-ctx.Done():
		}
		a.mu.Lock()
		if ctx.Err() != nil {
			return nil
		}
	}
	s := d.standby
	d.standby = nil
	return s
}

// poke puts a token into a channel of capacity 1.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
