package tunnel

import (
	"net"
	"sync/atomic"
	"time"
)

// tracked is a connection to a gateway that the link knows of: what is read from it is a sign of life of the gateway, and
// a connection that has died with a gateway's session is closed so that its owner dials anew.
type tracked struct {
	net.Conn
	g      *remoteGateway
	own    bool          // of the link's own pulses
	opened time.Duration // since the link was opened, like all below
	read   atomic.Int64
	wrote  atomic.Int64
}

// track makes c one of g's. It is a sign of life itself: someone answered.
func (g *remoteGateway) track(c net.Conn, own bool) *tracked {
	at := g.since()
	t := &tracked{Conn: c, g: g, own: own, opened: at}
	g.heard.Store(int64(at))
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conns[t] = struct{}{}
	return t
}

func (c *tracked) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		at := int64(c.g.since())
		c.read.Store(at)
		c.g.heard.Store(at)
	}
	return n, err
}

func (c *tracked) Write(b []byte) (int, error) {
	c.wrote.Store(int64(c.g.since()))
	return c.Conn.Write(b)
}

func (c *tracked) Close() error {
	c.g.mu.Lock()
	delete(c.g.conns, c)
	c.g.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite ends the sending half.
func (c *tracked) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return net.ErrClosed
}

// since is the monotonic time that signs of life are compared in.
func (g *remoteGateway) since() time.Duration { return time.Since(g.began) }

// heardSince says whether anything was read since then: the gateway is there, whatever else it does not do.
func (g *remoteGateway) heardSince(at time.Duration) bool { return time.Duration(g.heard.Load()) > at }

// quiet is for how long nothing was read.
func (g *remoteGateway) quiet() time.Duration { return g.since() - time.Duration(g.heard.Load()) }

// silent is for how long nothing was read, when there is a connection on which something should be.
func (g *remoteGateway) silent() (_ time.Duration, waiting bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		if !c.own {
			return g.quiet(), true
		}
	}
	return 0, false
}

// closeConns closes the connections that die says are dead, and says how many.
func (g *remoteGateway) closeConns(die func(*tracked) bool) int {
	var dead []*tracked
	g.mu.Lock()
	for c := range g.conns {
		if die(c) {
			dead = append(dead, c)
		}
	}
	g.mu.Unlock()
	for _, c := range dead {
		_ = c.Close() // its owner sees the end and dials anew
	}
	return len(dead)
}
