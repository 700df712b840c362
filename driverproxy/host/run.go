package host

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// Reasons for which a session ends from outside; the cause of its context.
var (
	errReleased    = errors.New("released")
	errControlLost = errors.New("the control socket was lost")
	errFenced      = errors.New("a newer term of the session was assigned")
	errShutdown    = errors.New("the agent is shutting down")
	errOrphaned    = errors.New("no orchestrator has wanted the session for too long")
)

// agent is a running host.
type agent struct {
	cfg      Config
	boot     string
	endpoint *socket.Endpoint
	sessions sync.WaitGroup

	mu      sync.Mutex // guards what follows
	closed  bool
	devices map[string]*device
	order   []string // device names, as configured
	terms   terms
	endings []wire.Ended       // the latest sessions that ended by themselves
	ports   map[int]bool       // reserved for drivers
	links   map[*link]struct{} // those that have said hello
	asked   uint64             // how often devices were asked to prove that they are ready
	settled chan struct{}      // closed, and made anew, when one may have
}

// Run is the agent of a host, until ctx ends: then every session is ended and cleaned up before it returns. It fails
// at once for a configuration that cannot work or a state directory that is in use, and never for want of an orchestrator.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Orphan == 0 {
		cfg.Orphan = OrphanLimit
	}
	if len(cfg.Supervisor) == 0 {
		self, err := selfPath()
		if err != nil {
			return fmt.Errorf("host: find this program: %w", err)
		}
		cfg.Supervisor = []string{self, SuperviseCommand}
	}
	lock, err := lockState(cfg.StateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := reapLeftovers(ctx, cfg.StateDir, cfg.safariDriver()); err != nil {
		return err
	}
	a := newAgent(cfg)
	var links, keepers sync.WaitGroup
	defer keepers.Wait()
	for _, d := range a.devices {
		keepers.Go(func() { a.keep(ctx, d) })
	}
	// Links outlive ctx until the sessions have said how they ended.
	hangUp, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer links.Wait()
	defer cancel()
	links.Go(func() { a.keepLinks(hangUp) })
	<-ctx.Done()
	a.endAll(errShutdown)
	a.sessions.Wait()
	return nil
}

func newAgent(cfg Config) *agent {
	if cfg.Clock == nil {
		cfg.Clock = systemClock{}
	}
	a := &agent{
		cfg: cfg, boot: random(), endpoint: &socket.Endpoint{}, settled: make(chan struct{}),
		devices: map[string]*device{}, terms: newTerms(), ports: map[int]bool{}, links: map[*link]struct{}{},
	}
	now := cfg.Clock.Now()
	for _, of := range cfg.Devices {
		d := &device{Device: of, ready: newReadiness(now), wake: make(chan struct{}, 1)}
		if !runsHere(of.Kind, cfg) {
			d.ready.bad(now, gradePlatform)
		}
		d.state, d.reason = d.ready.state()
		a.devices[of.Name] = d
		a.order = append(a.order, of.Name)
	}
	return a
}

func random() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

func (a *agent) sessionDir(mark string) string {
	return filepath.Join(a.cfg.StateDir, "sessions", dirName(mark))
}

// dirName is that of a session's directory.
func dirName(mark string) string { return mark[:min(len(mark), 12)] }

// hello is the first message of a control socket; from now on the link hears of changes.
func (a *agent) hello(l *link) wire.Hello {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.links[l] = struct{}{}
	h := wire.Hello{Protocol: wire.Version, Host: a.cfg.Name, Agent: a.cfg.Agent, Boot: a.boot}
	for _, name := range a.order {
		d := a.devices[name]
		h.Devices = append(h.Devices, d.wire(d.ready.state()))
		if s := d.session; s != nil && s.assigned != nil {
			_, term, _ := s.owner.now()
			h.Sessions = append(h.Sessions, wire.Hosted{Session: s.id, Term: term, Epoch: s.epoch})
		}
	}
	h.Ended = slices.Clone(a.endings)
	return h
}

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
		l.post(wire.Control{Released: &wire.Released{Session: m.Session, Term: m.Term, Failure: a.terms.leftover(m.Session)}})
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
func (a *agent) free(s *session, leftover *wire.Failure) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.returnLocked(s.device, s.met)
	if leftover != nil {
		a.terms.leave(s.id, leftover)
	}
	for _, r := range s.waiting {
		r.link.post(wire.Control{Released: &wire.Released{Session: s.id, Term: r.term, Failure: leftover}})
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

func (a *agent) endAll(cause error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for _, d := range a.devices {
		if d.session != nil {
			d.session.cancel(cause)
		}
	}
}

// termsKept is how many sessions' terms are remembered: far more than a host runs while a late frame can be on its way.
const termsKept = 4096

// terms remembers what became of the latest sessions.
type terms struct {
	of    map[string]*fate
	order []string // oldest first
}

type fate struct {
	newest   int64 // highest term seen
	released int64 // highest term released
	leftover *wire.Failure
}

func newTerms() terms { return terms{of: map[string]*fate{}} }

func (t *terms) get(session string) fate {
	if f := t.of[session]; f != nil {
		return *f
	}
	return fate{}
}

func (t *terms) newest(session string) int64 { return t.get(session).newest }

func (t *terms) released(session string) int64 { return t.get(session).released }

func (t *terms) leftover(session string) *wire.Failure { return t.get(session).leftover }

func (t *terms) see(session string, term int64) {
	f := t.of[session]
	if f == nil {
		f = &fate{}
		t.of[session] = f
		t.order = append(t.order, session)
	}
	f.newest = max(f.newest, term)
	if len(t.order) > termsKept {
		delete(t.of, t.order[0])
		t.order = slices.Delete(t.order, 0, 1)
	}
}

// release and leave are for a session that was seen.
func (t *terms) release(session string, term int64) { t.of[session].released = term }

func (t *terms) leave(session string, f *wire.Failure) {
	if of := t.of[session]; of != nil {
		of.leftover = f
	}
}

// selfPath is this program, also after its file was replaced by a newer version.
func selfPath() (string, error) {
	if _, err := os.Stat("/proc/self/exe"); err == nil {
		return "/proc/self/exe", nil
	}
	return os.Executable()
}
