package orchestrator

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/tunnel"
)

const (
	reportEvery = 10 * time.Second // without news; a third of what a report counts for
	reportLimit = 10 * time.Second
	slowBeat    = time.Second // a heartbeat that takes longer is news
)

// pulseCounts is how long a pulse says that a tunnel works: a host sends one every 15 s.
const pulseCounts = 45 * time.Second

// LinkReport is what this orchestrator knows of its link to a connected host, or of the tunnel to one that is not connected.
type LinkReport struct {
	Host      string
	Pulses    bool          // it is not connected, and its last pulse was Silent ago
	Silent    time.Duration // since its last heartbeat: the database has a clock of its own
	RoundTrip time.Duration // of a heartbeat; 0: not known
	Damping   *driverproxy.Damping
	Tunnel    tunnel.PeerStatus
}

// health is what the loops of this file share.
type health struct {
	wake chan struct{} // has room for one

	mu     sync.Mutex
	doubt  map[string]bool              // guarded by mu; hosts that may have been removed; "" is all
	tunnel map[string]tunnel.PeerStatus // guarded by mu; as last read, by host
}

func newHealth() *health {
	return &health{wake: make(chan struct{}, 1), doubt: map[string]bool{}, tunnel: map[string]tunnel.PeerStatus{}}
}

// WakeHost says that a host, or any when name is empty, was invited, joined or removed.
func (o *Orchestrator) WakeHost(name string) {
	o.health.mu.Lock()
	o.health.doubt[name] = true
	o.health.mu.Unlock()
	poke(o.health.wake)
}

// evict cuts off hosts that were removed: at once when it is told, and on a tick in case it was not.
func (o *Orchestrator) evict(ctx context.Context) {
	look := time.NewTicker(reportEvery)
	defer look.Stop()
	again := time.NewTimer(tick)
	defer again.Stop()
	for failed := false; ; {
		o.health.mu.Lock()
		doubt := o.health.doubt
		o.health.doubt = map[string]bool{}
		o.health.mu.Unlock()
		if len(doubt) > 0 {
			call, cancel := context.WithTimeout(ctx, reportLimit)
			err := o.evictSome(call, doubt)
			cancel()
			if err != nil && ctx.Err() == nil {
				if !failed {
					o.log.Warn("whether hosts were removed is not known; looking again", zap.Error(err))
				}
				for name := range doubt {
					o.doubt(name)
				}
			}
			if failed = err != nil; failed {
				again.Reset(tick)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-o.health.wake:
		case <-look.C:
			o.doubt("")
		case <-again.C: // what failed before
		}
	}
}

func (o *Orchestrator) doubt(name string) {
	o.health.mu.Lock()
	defer o.health.mu.Unlock()
	o.health.doubt[name] = true
}

func (o *Orchestrator) evictSome(ctx context.Context, doubt map[string]bool) error {
	names := slices.Collect(maps.Keys(doubt))
	if doubt[""] {
		names = o.deps.Fleet.Hosts()
	}
	if len(names) == 0 {
		return nil
	}
	unwelcome, err := o.deps.Hosts.Unwelcome(ctx, names)
	for _, name := range unwelcome {
		if o.deps.Fleet.Drop(name, ErrRemoved) {
			o.log.Info("host cut off: it was removed", zap.String("host", name))
		}
	}
	return err
}

// reportHealth stores the state of all links every reportEvery, and within a tick of news.
func (o *Orchestrator) reportHealth(ctx context.Context) {
	look := time.NewTicker(tick)
	defer look.Stop()
	var last []news
	var due time.Time
	for failed := false; ; {
		if now, links := o.deps.Now(), o.newsOfLinks(); !now.Before(due) || !slices.Equal(links, last) {
			call, cancel := context.WithTimeout(ctx, reportLimit)
			err := o.report(call)
			cancel()
			if err != nil && !failed && ctx.Err() == nil {
				o.log.Warn("the state of the links cannot be stored; trying again", zap.Error(err))
			}
			if failed = err != nil; !failed {
				last, due = links, now.Add(reportEvery)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}

// news is what is reported without delay when it changes.
type news struct {
	host  string
	since time.Time
	late  bool
	slow  bool
	lost  int // while it is damped
}

func (o *Orchestrator) newsOfLinks() []news {
	links := o.deps.Fleet.Links()
	all := make([]news, 0, len(links))
	for _, l := range links {
		n := news{l.Host, l.Since, l.Late, l.RoundTrip > slowBeat, 0}
		if l.Damping != nil {
			n.lost = l.Damping.Losses
		}
		all = append(all, n)
	}
	return all
}

// report stores the state of all links. A tunnel that cannot be read now does not keep the heartbeats from being stored.
func (o *Orchestrator) report(ctx context.Context) error {
	backend := ""
	if o.deps.Tunnel != nil {
		backend = o.deps.Tunnel.Backend()
		if err := o.readTunnel(ctx); err != nil {
			o.log.Warn("the tunnel does not say how its peers are", zap.Error(err))
		}
	}
	return o.deps.Hosts.StoreLinks(ctx, backend, o.linkReports())
}

func (o *Orchestrator) readTunnel(ctx context.Context) error {
	peers, err := o.deps.Tunnel.Status(ctx)
	if err != nil {
		return err
	}
	byHost := make(map[string]tunnel.PeerStatus, len(peers))
	for _, p := range peers {
		byHost[p.Host] = p
	}
	o.health.mu.Lock()
	defer o.health.mu.Unlock()
	o.health.tunnel = byHost
	return nil
}

// linkReports is the state of the control sockets now, and of the tunnel when it was last read: also of hosts that send
// pulses and are not connected, whose trouble is neither the network nor that they are off.
func (o *Orchestrator) linkReports() []LinkReport {
	now, links := o.deps.Now(), o.deps.Fleet.Links()
	o.health.mu.Lock()
	defer o.health.mu.Unlock()
	all := make([]LinkReport, 0, len(links))
	connected := make(map[string]bool, len(links))
	for _, l := range links {
		connected[l.Host] = true
		all = append(all, LinkReport{Host: l.Host, Silent: max(now.Sub(l.Heard), 0), RoundTrip: l.RoundTrip, Damping: l.Damping, Tunnel: o.health.tunnel[l.Host]})
	}
	for name, p := range o.health.tunnel {
		if silent := now.Sub(p.PulsedAt); !connected[name] && silent < pulseCounts {
			all = append(all, LinkReport{Host: name, Pulses: true, Silent: max(silent, 0), Tunnel: p})
		}
	}
	return all
}
