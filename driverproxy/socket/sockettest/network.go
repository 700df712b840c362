// Package sockettest is a network in memory for tests of websockets. Nothing in it waits for the system, so that the clock of
// a testing/synctest bubble runs on while everybody waits, and it writes down what each end sends by itself, and when.
//
// Out of scope: what is in a frame.
package sockettest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"
)

// Network is one server, and those who dial it. Serve it with an http.Server; close that in the end.
type Network struct {
	Slow func(bytes int) time.Duration // how long a write of a dialler takes; nil: no time

	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once

	mu    sync.Mutex // guards what follows
	links []*Link
}

// Link is one connection. Its times are those of the pings and messages that an end began to send; answers to pings, which are
// the other end's doing, do not count.
type Link struct {
	mu     sync.Mutex // guards what follows
	path   string
	dialer []time.Time
	server []time.Time
}

// New returns a Network without connections.
func New() *Network {
	return &Network{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Serve serves the network until the returned function is called, which waits.
func (n *Network) Serve(h http.Handler) (stop func()) {
	s := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(listener{n}) // always an error, and always that of Close
	}()
	return func() {
		_ = s.Close() // a listener in memory
		<-done
	}
}

// Dial has the type of net.Dialer.DialContext.
func (n *Network) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	a, b := net.Pipe()
	l := &Link{}
	dialer, server := newEnd(a, l.addDialer, n.Slow), newEnd(b, l.addServer, nil)
	select {
	case n.conns <- server:
	case <-n.closed:
		return nil, errors.Join(net.ErrClosed, dialer.Close(), server.Close())
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), dialer.Close(), server.Close())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links = append(n.links, l)
	return dialer, nil
}

// Links lists the connections in the order in which they were dialled.
func (n *Network) Links() []*Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]*Link(nil), n.links...)
}

// Path is what was dialled, with its query.
func (l *Link) Path() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.path
}

// Longest are the longest silences of either end from its first frame until now.
func (l *Link) Longest(now time.Time) (dialer, server time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return longest(l.dialer, now), longest(l.server, now)
}

func longest(at []time.Time, now time.Time) (d time.Duration) {
	if len(at) == 0 {
		return 1<<63 - 1
	}
	for i, t := range at {
		next := now
		if i+1 < len(at) {
			next = at[i+1]
		}
		d = max(d, next.Sub(t))
	}
	return d
}

func (l *Link) addDialer(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if line, ok := bytes.CutPrefix(b, []byte("GET ")); ok && l.path == "" {
		path, _, _ := bytes.Cut(line, []byte(" "))
		l.path = string(path)
	}
	l.dialer = note(l.dialer, b)
}

func (l *Link) addServer(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.server = note(l.server, b)
}

// note takes down a frame that is no pong. The upgrade counts too: it is where the silence begins.
func note(at []time.Time, b []byte) []time.Time {
	const pong = 0x8a
	if len(b) == 0 || b[0] == pong {
		return at
	}
	return append(at, time.Now())
}

// end is an end of a connection. A pipe alone has no buffer: two ends that answer each other's pings at once would wait for
// each other, as over a real network they do not.
type end struct {
	net.Conn
	sent   func([]byte)
	slow   func(int) time.Duration
	out    chan []byte
	closed chan struct{}
	once   sync.Once
	pumped chan struct{}
}

func newEnd(c net.Conn, sent func([]byte), slow func(int) time.Duration) *end {
	e := &end{Conn: c, sent: sent, slow: slow, out: make(chan []byte, 256), closed: make(chan struct{}), pumped: make(chan struct{})}
	go e.pump()
	return e
}

// pump ends with the end, which waits for it.
func (e *end) pump() {
	defer close(e.pumped)
	for {
		var b []byte
		select {
		case b = <-e.out:
		default:
			select {
			case b = <-e.out:
			case <-e.closed: // and nothing is left
				return
			}
		}
		if _, err := e.Conn.Write(b); err != nil {
			return
		}
	}
}

// Write: websockets write each frame at once, so that a write begins with a frame's first byte.
func (e *end) Write(b []byte) (int, error) {
	e.sent(b)
	if e.slow != nil {
		<-time.After(e.slow(len(b)))
	}
	select {
	case e.out <- bytes.Clone(b):
		return len(b), nil
	case <-e.pumped:
		return 0, net.ErrClosed
	}
}

// Close delivers what was written before, unless nobody reads it within a second.
func (e *end) Close() error {
	e.once.Do(func() {
		_ = e.Conn.SetWriteDeadline(time.Now().Add(time.Second)) // a pipe has them
		close(e.closed)
	})
	<-e.pumped
	return e.Conn.Close()
}

// Addresses of a pipe have no host, and whoever serves may look at it.
func (e *end) RemoteAddr() net.Addr { return loopback() }
func (e *end) LocalAddr() net.Addr  { return loopback() }

func loopback() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

type listener struct{ n *Network }

func (l listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.n.conns:
		return c, nil
	case <-l.n.closed:
		return nil, net.ErrClosed
	}
}

func (l listener) Close() error {
	l.n.once.Do(func() { close(l.n.closed) })
	return nil
}

func (l listener) Addr() net.Addr { return loopback() }
