package host

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
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
	cfg.Orphan, cfg.SlowStart = cmp.Or(cfg.Orphan, OrphanLimit), cmp.Or(cfg.SlowStart, SlowStart)
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
	if err := reapLeftovers(ctx, cfg.StateDir, cfg.safariDriver(), record.kill); err != nil {
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
		devices: map[string]*device{}, terms: newTerms(), links: map[*link]struct{}{},
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

// selfPath is this program, also after its file was replaced by a newer version.
func selfPath() (string, error) {
	if _, err := os.Stat("/proc/self/exe"); err == nil {
		return "/proc/self/exe", nil
	}
	return os.Executable()
}
