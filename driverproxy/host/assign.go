package host

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// This file is what orchestrators ask of the agent's sessions over their control sockets, and what they are told of them.

// assign runs a session, or answers why not. It returns at once.
func (a *agent) assign(l *link, m wire.Assign) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed { // Run is waiting for the sessions, or has stopped to
		shutdown := &wire.Failure{Code: wire.FailureShutdown, Message: "the agent is shutting down"}
		l.post(wire.Control{Assigned: &wire.Assigned{Session: m.Session, Term: m.Term, Failure: shutdown}})
		return
	}
	a.sessions.Go(func() {
		ctx, cancel := context.WithCancelCause(context.Background())
		defer cancel(nil)
		s, failure := a.claim(l, m, cancel)
		if failure != nil {
			l.post(wire.Control{Assigned: &wire.Assigned{Session: m.Session, Term: m.Term, Failure: failure}})
			return
		}
		s.run(ctx)
	})
}

// claim takes the device. A session of an older term that still has it is ended first.
func (a *agent) claim(l *link, m wire.Assign, cancel context.CancelCauseFunc) (*session, *wire.Failure) {
	if m.Session == "" || m.Term <= 0 {
		return nil, &wire.Failure{Code: wire.FailureStaleTerm, Message: "a session and a term above 0 are required"}
	}
	a.mu.Lock()
	if newest := a.terms.newest(m.Session); m.Term <= newest {
		a.mu.Unlock()
		return nil, &wire.Failure{Code: wire.FailureStaleTerm, Message: fmt.Sprintf("term %d was seen", newest)}
	}
	a.terms.see(m.Session, m.Term)
	former := a.sessionLocked(m.Session)
	a.mu.Unlock()
	if former != nil {
		former.cancel(errFenced)
		<-former.over // bounded by its clean-up
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	d := a.devices[m.Device]
	switch {
	case a.closed:
		return nil, &wire.Failure{Code: wire.FailureShutdown, Message: "the agent is shutting down"}
	case !l.alive():
		return nil, &wire.Failure{Code: wire.FailureShutdown, Message: "the control socket was lost"}
	case a.terms.newest(m.Session) != m.Term, a.terms.released(m.Session) >= m.Term:
		return nil, &wire.Failure{Code: wire.FailureStaleTerm, Message: "a newer term came or the session was released meanwhile"}
	case d == nil:
		return nil, &wire.Failure{Code: wire.FailureDevice, Message: "the host has no such device"}
	case !d.ready.claim():
		state, _ := d.ready.state()
		return nil, &wire.Failure{Code: wire.FailureDevice, Message: "the device is " + string(state)}
	}
	s := newSession(a, l, d, m, cancel)
	d.session = s
	a.tellLocked(d)
	return s, nil
}

func (a *agent) sessionLocked(id string) *session {
	for _, d := range a.devices {
		if d.session != nil && d.session.id == id {
			return d.session
		}
	}
	return nil
}

func (a *agent) session(id string) *session {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sessionLocked(id)
}

// tellLocked tells every orchestrator what has become of a device, if that changes who may have it.
func (a *agent) tellLocked(d *device) {
	state, reason := d.ready.state()
	if state == d.state && (reason == d.reason || state == wire.DeviceBusy) {
		return
	}
	d.state, d.reason = state, reason
	changed := d.wire(state, reason)
	for l := range a.links {
		l.post(wire.Control{Device: &changed})
	}
}

// release answers at once for a session the host does not have; otherwise the session does when it is over.
func (a *agent) release(l *link, m wire.Release) {
	stale := &wire.Failure{Code: wire.FailureStaleTerm, Message: "a newer term was seen"}
	a.mu.Lock()
	defer a.mu.Unlock()
	if newest := a.terms.newest(m.Session); m.Term < newest {
		l.post(wire.Control{Released: &wire.Released{Session: m.Session, Term: m.Term, Failure: stale}})
		return
	}
	// An assign of this term that is still on its way to the device must not get it.
	a.terms.see(m.Session, m.Term)
	a.terms.release(m.Session, m.Term)
	s := a.sessionLocked(m.Session)
	if s == nil {
		wiped, leftover := a.terms.left(m.Session)
		l.post(wire.Control{Released: &wire.Released{Session: m.Session, Term: m.Term, Failure: leftover, Wiped: wiped}})
		return
	}
	s.waiting = append(s.waiting, reply{l, m.Term})
	s.cancel(errReleased)
}

type reply struct {
	link *link
	term int64
}

// free gives the device back when the session's clean-up has ended, and answers whoever waits for that. The device is ready
// once its next standby is.
func (a *agent) free(s *session, wiped *wire.Wiped, leftover *wire.Failure) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.returnLocked(s.device, s.met)
	a.terms.leave(s.id, wiped, leftover)
	for _, r := range s.waiting {
		r.link.post(wire.Control{Released: &wire.Released{Session: s.id, Term: r.term, Failure: leftover, Wiped: wiped}})
	}
}

// lost ends the sessions that came over the link and have not started. The others wait for their orchestrator, or another.
func (a *agent) lost(l *link) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.links, l)
	for _, d := range a.devices {
		if d.session == nil || d.session.assigned != nil {
			continue
		}
		if of, _, _ := d.session.owner.now(); of == l {
			d.session.cancel(errControlLost)
		}
	}
}

// assigned tells the orchestrator that the session runs; from now on it outlives its link.
func (a *agent) assigned(s *session, capabilities json.RawMessage) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.assigned = capabilities
	l, term, _ := s.owner.now()
	l.post(wire.Control{Assigned: &wire.Assigned{Session: s.id, Term: term, Capabilities: capabilities}})
	if !l.alive() {
		s.cancel(errControlLost) // before the orchestrator could know of it
	}
}

// endingsKept is how many endings the next hello tells, of those that nobody may have heard of.
const endingsKept = 64

// ended tells the orchestrator why a session ended: now, and in the next hello.
func (a *agent) ended(s *session, why wire.Failure) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l, term, _ := s.owner.now()
	e := wire.Ended{Session: s.id, Term: term, Failure: why}
	a.endings = append(a.endings, e)
	a.endings = slices.Delete(a.endings, 0, max(0, len(a.endings)-endingsKept))
	s.assigned = nil // hello does not list it any more
	l.post(wire.Control{Ended: &e})
}

// welcomed gives the link the sessions of its orchestrator, which lost them with the link before it.
func (a *agent) welcomed(l *link, epoch string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l.epoch = epoch
	for _, d := range a.devices {
		if s := d.session; s != nil && s.epoch == epoch {
			_, term, _ := s.owner.now()
			s.owner.change(l, term)
		}
	}
}

// adopt gives a session to the orchestrator of the link.
func (a *agent) adopt(l *link, m wire.Adopt) {
	a.mu.Lock()
	defer a.mu.Unlock()
	answer := &wire.Assigned{Session: m.Session, Term: m.Term}
	s := a.sessionLocked(m.Session)
	switch newest := a.terms.newest(m.Session); {
	case m.Term <= newest:
		answer.Failure = &wire.Failure{Code: wire.FailureStaleTerm, Message: fmt.Sprintf("term %d was seen", newest)}
	case s == nil || s.assigned == nil:
		answer.Failure = &wire.Failure{Code: wire.FailureGone, Message: "the host does not run the session"}
	default:
		a.terms.see(m.Session, m.Term)
		answer.Capabilities, answer.Visited, s.epoch = s.assigned, s.visits.Pages(), l.epoch
		s.owner.change(l, m.Term)
		s.bidi.handOver()
		if s.recording != nil {
			s.recording.conn.Restart()
		}
		s.log.Info("another orchestrator has the session", zap.Int64("new_term", m.Term))
	}
	l.post(wire.Control{Assigned: answer})
}
