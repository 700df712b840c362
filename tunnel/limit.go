package tunnel

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"go.uber.org/zap"
)

// A host that was enrolled may be taken over, and a token may be copied: neither may take the memory or the database of
// an orchestrator from all other hosts.
const (
	hostConns = 512 // a control socket, and for each device a command socket, the lanes of a recording and BiDi connections; pulses, probes
	joinConns = 8   // a host that joins has one after the other
)

// rate is how often something may be done: burst times at once, and once more after every.
type rate struct {
	burst int
	every time.Duration
}

// rates are generous: what a host does is far below, even when all of its sockets are dialled anew.
func rateOf(from netip.Addr) rate {
	if IsJoin(from) {
		return rate{10, time.Second}
	}
	return rate{hostConns, 50 * time.Millisecond}
}

// rekeyRate: every next key changes the device of every gateway.
func rekeyRate() rate { return rate{10, 10 * time.Second} }

// paces knows how often each address did something lately.
type paces struct {
	now func() time.Time

	mu   sync.Mutex
	used map[doing]usage
}

type doing struct {
	from  netip.Addr
	rekey bool
}

// usage is how much of a burst is used at a time.
type usage struct {
	times float64
	at    time.Time
}

func (p *paces) allow(d doing, r rate) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used == nil {
		p.used = map[doing]usage{}
	}
	now, u := p.now(), p.used[d]
	if passed := now.Sub(u.at); passed > 0 { // a clock that was set back gives nothing, and takes nothing
		u.times = max(u.times-float64(passed)/float64(r.every), 0)
	}
	u.at = now
	ok := u.times+1 <= float64(r.burst)
	if ok {
		u.times++
	}
	p.used[d] = u
	return ok
}

// keep forgets addresses that nobody has any more.
func (p *paces) keep(known func(netip.Addr) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for d := range p.used {
		if !known(d.from) {
			delete(p.used, d)
		}
	}
}

// paced refuses hosts that ask too often, and gives an answer only so much time to be taken.
func paced(p *paces, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A socket that is hijacked starts without. Where w knows no deadlines (tests) nothing blocks either.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(serveOne))
		from, ok := remote(r)
		allowed := !ok || p.allow(doing{from: from}, rateOf(from))
		if allowed && ok && r.URL.Path == wire.PathRekey {
			allowed = p.allow(doing{from, true}, rekeyRate())
		}
		if !allowed {
			w.Header().Set("Retry-After", "10")
			refuse(w, http.StatusTooManyRequests, "too-many-requests", "This host asks more often than any host needs to.")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// crowds counts the open connections of each address. The zero value is ready for use.
type crowds struct {
	mu   sync.Mutex
	open map[netip.Addr]int
}

// admit wraps c so that its end is noticed, or closes it and returns nil when its address has too many, or nobody is there any more.
func (k *crowds) admit(c net.Conn, log *zap.Logger) net.Conn {
	peer := c.RemoteAddr()
	if peer == nil { // netstack's answer for a connection that was reset before it was accepted
		_ = c.Close()
		return nil
	}
	at, err := netip.ParseAddrPort(peer.String())
	if err != nil {
		return c
	}
	from, limit := at.Addr().Unmap(), hostConns
	if IsJoin(from) {
		limit = joinConns
	}
	k.mu.Lock()
	if k.open == nil {
		k.open = map[netip.Addr]int{}
	}
	n := k.open[from]
	if n < limit {
		k.open[from]++
	}
	k.mu.Unlock()
	if n < limit {
		return &counted{Conn: c, leave: sync.OnceFunc(func() { k.leave(from) })}
	}
	log.Debug("connection refused: this address has too many", zap.Stringer("from", from), zap.Int("open", n))
	_ = c.Close() // nobody has used it
	return nil
}

func (k *crowds) leave(from netip.Addr) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open[from]--; k.open[from] <= 0 {
		delete(k.open, from)
	}
}

// counted is a connection that counts until it is closed.
type counted struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.leave()
	return c.Conn.Close()
}
