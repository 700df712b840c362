package driverproxy

import (
	"errors"
	"maps"
	"math"
	"slices"
	"time"
)

// A host that loses its control socket again and again is damped, as flapping routes are (RFC 2439): each loss adds one to its
// penalty, which halves every dampHalf. From dampFrom on it gets no new sessions, until the penalty is down to dampUntil: 8
// minutes after three losses in a row, 13 after six, 20 at most. A goodbye is no loss.
const (
	dampHalf  = 5 * time.Minute
	dampFrom  = 2.5
	dampUntil = 1.0
	dampMost  = 16.0
	dampForgo = 0.1 // a penalty below is forgotten
)

// Damping is that a host's control socket was lost too often lately.
type Damping struct {
	Left   time.Duration // until it gets new sessions again, if it loses no more
	Losses int           // since its penalty was last forgotten
}

// dampers has the penalties of hosts. Its methods are called under the Fleet's mu.
type dampers map[string]*damper

type damper struct {
	penalty float64 // as of at
	at      time.Time
	losses  int
	damped  bool
}

// now is the penalty at a time. A clock that was set back does not raise it.
func (d *damper) now(t time.Time) float64 {
	return d.penalty * math.Exp2(-max(t.Sub(d.at), 0).Seconds()/dampHalf.Seconds())
}

// lost counts one loss.
func (ds dampers) lost(host string, now time.Time) {
	maps.DeleteFunc(ds, func(_ string, d *damper) bool { return d.now(now) < dampForgo })
	d := ds[host]
	if d == nil {
		d = &damper{}
		ds[host] = d
	}
	d.penalty, d.at = min(d.now(now)+1, dampMost), now
	d.losses++
	d.damped = d.damped && d.penalty > dampUntil || d.penalty >= dampFrom
}

// damping is nil for a host that is not damped.
func (ds dampers) damping(host string, now time.Time) *Damping {
	d := ds[host]
	if d == nil || !d.damped {
		return nil
	}
	p := d.now(now)
	if p <= dampUntil {
		d.damped = false
		return nil
	}
	return &Damping{Left: time.Duration(math.Log2(p/dampUntil) * float64(dampHalf)), Losses: d.losses}
}

// countLossLocked counts the loss of a control socket that neither end has closed as it should. The caller holds f.mu.
func (f *Fleet) countLossLocked(h *hostConn, cause error) {
	if !f.closed && !h.dropped && !errors.Is(cause, ErrGoodbye) {
		f.damped.lost(h.name, f.cfg.Now())
	}
}

// Open names the connected hosts that may have new sessions, sorted: those that are not damped.
func (f *Fleet) Open() []string {
	names := f.Hosts()
	f.mu.Lock()
	defer f.mu.Unlock()
	damped := f.dampedLocked(f.cfg.Now())
	return slices.DeleteFunc(names, func(name string) bool { return damped[name] != nil })
}

// dampedLocked are the connected hosts that are damped. When they are more than half of all, and more than one, it is our own
// line that flaps, and none is: a fleet must not stop for that. The caller holds f.mu.
func (f *Fleet) dampedLocked(now time.Time) map[string]*Damping {
	damped, up := map[string]*Damping{}, 0
	for name, h := range f.hosts {
		if !h.up {
			continue
		}
		up++
		if d := f.damped.damping(name, now); d != nil {
			damped[name] = d
		}
	}
	if len(damped) > max(1, up/2) {
		return nil
	}
	return damped
}
