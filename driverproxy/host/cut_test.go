package host_test

import (
	"context"
	"net"
	"sync"
)

// line dials like a net.Dialer, and cuts what it has dialled.
type line struct {
	mu    sync.Mutex
	conns []*wired // in the order of dialling
	next  *budget  // of the connection that is dialled next
	down  bool     // nothing can be dialled
}

// budget is how many bytes a connection carries before it is cut; below 0: any number.
type budget struct{ read, written int }

// wired is a connection that can be cut, in the middle of a message too.
type wired struct {
	net.Conn
	mu   sync.Mutex
	has  budget
	dead bool
}

// Close implements net.Conn.
func (w *wired) Close() error {
	w.mu.Lock()
	w.dead = true
	w.mu.Unlock()
	return w.Conn.Close()
}

func (l *line) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	l.mu.Lock()
	down := l.down
	l.mu.Unlock()
	if down {
		return nil, net.ErrClosed
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &wired{Conn: conn, has: budget{-1, -1}}
	if l.next != nil {
		w.has, l.next = *l.next, nil
	}
	l.conns = append(l.conns, w)
	return w, nil
}

// cut breaks the i-th connection.
func (l *line) cut(i int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.conns[i].Close()
}

// cutAll breaks every connection; with down nothing is dialled any more.
func (l *line) cutAll(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = down
	for _, c := range l.conns {
		_ = c.Close()
	}
}

// alive lists the connections that are not closed.
func (l *line) alive() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []int
	for i, w := range l.conns {
		w.mu.Lock()
		if !w.dead {
			list = append(list, i)
		}
		w.mu.Unlock()
	}
	return list
}

// has says whether one of the connections that are not closed comes from the address.
func (l *line) has(from string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.conns {
		w.mu.Lock()
		alive := !w.dead
		w.mu.Unlock()
		if alive && w.LocalAddr().String() == from {
			return true
		}
	}
	return false
}

func (l *line) dialled() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// limit cuts the i-th connection when it has carried so many bytes more.
func (l *line) limit(i int, b budget) {
	l.mu.Lock()
	w := l.conns[i]
	l.mu.Unlock()
	w.mu.Lock()
	w.has = b
	w.mu.Unlock()
}

func (w *wired) Read(b []byte) (int, error) {
	w.mu.Lock()
	left := w.has.read
	w.mu.Unlock()
	if left == 0 {
		_ = w.Close()
		return 0, net.ErrClosed
	}
	if left > 0 {
		b = b[:min(len(b), left)]
	}
	n, err := w.Conn.Read(b)
	w.spend(&w.has.read, n)
	return n, err
}

func (w *wired) Write(b []byte) (int, error) {
	w.mu.Lock()
	left := w.has.written
	w.mu.Unlock()
	if left < 0 || left >= len(b) {
		n, err := w.Conn.Write(b)
		w.spend(&w.has.written, n)
		return n, err
	}
	n, _ := w.Conn.Write(b[:left])
	_ = w.Close()
	return n, net.ErrClosed
}

func (w *wired) spend(of *int, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if *of > 0 {
		*of = max(0, *of-n)
	}
}
