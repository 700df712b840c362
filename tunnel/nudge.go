package tunnel

import "sync"

// work is what Run does next.
type work struct {
	all    bool            // everything; the rest is part of it
	hosts  map[string]bool // these; what that changes is verified afterwards
	verify bool            // the whole device is read back
	poll   bool            // look for first handshakes of next keys
}

// manyHosts: so many at once are listed in one go.
const manyHosts = 64

// nudges collects what is to be done while something else is being done. What comes in twice is done once.
type nudges struct {
	wake chan struct{} // holds one token: written by add, read by Gateway.Run

	mu  sync.Mutex
	due work
}

func (n *nudges) add(w work) {
	n.mu.Lock()
	n.due.all = n.due.all || w.all
	n.due.verify = n.due.verify || w.verify
	for host := range w.hosts {
		if n.due.hosts == nil {
			n.due.hosts = map[string]bool{}
		}
		n.due.hosts[host] = true
	}
	if len(n.due.hosts) > manyHosts {
		n.due = work{all: true}
	}
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default: // Run has not looked yet
	}
}

func (n *nudges) take() work {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := n.due
	n.due = work{}
	return w
}

// Nudge makes Run reconcile one host soon, or everything when host is empty. It never blocks.
func (g *Gateway) Nudge(host string) {
	if host == "" {
		g.nudges.add(work{all: true})
		return
	}
	g.nudges.add(work{hosts: map[string]bool{host: true}})
}
