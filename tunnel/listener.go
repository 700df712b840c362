package tunnel

import (
	"errors"
	"net"
	"sync"
	"time"
)

// listener outlives the device it listens on.
type listener struct {
	addr  net.Addr
	admit func(net.Conn) net.Conn // nil is a connection that is refused

	mu     sync.Mutex
	inner  net.Listener  // nil while there is none that works
	change chan struct{} // closed when inner or closed changes
	closed bool
}

var _ net.Listener = (*listener)(nil)

func newListener(inner net.Listener, admit func(net.Conn) net.Conn) *listener {
	return &listener{addr: inner.Addr(), admit: admit, inner: inner, change: make(chan struct{})}
}

// Addr implements net.Listener: the address stays.
func (l *listener) Addr() net.Addr { return l.addr }

// Accept implements net.Listener. It waits while the device is being restored.
func (l *listener) Accept() (net.Conn, error) {
	for {
		l.mu.Lock()
		inner, change, closed := l.inner, l.change, l.closed
		l.mu.Unlock()
		if closed {
			return nil, net.ErrClosed
		}
		if inner == nil {
			<-change
			continue
		}
		c, err := inner.Accept()
		if err == nil {
			if c = l.admit(c); c == nil {
				continue
			}
			return c, nil
		}
		var passing interface{ Temporary() bool } // too many open files, for example: a server waits and goes on
		if errors.As(err, &passing) && passing.Temporary() {
			return nil, err
		}
		if !errors.Is(err, net.ErrClosed) { // no memory for one more connection, for example, or its device has ended
			await(change, acceptPause)
			continue
		}
		l.mu.Lock()
		if l.inner == inner {
			l.inner = nil
		}
		l.mu.Unlock()
	}
}

// acceptPause follows an error that says nothing about the next connection.
const acceptPause = 50 * time.Millisecond

// await waits for c, but no longer than the limit.
func await(c <-chan struct{}, limit time.Duration) {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-c:
	case <-t.C:
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.closed = true
	close(l.change)
	if l.inner == nil {
		return nil
	}
	return l.inner.Close()
}

// renew puts the listener on another device, at the port it has.
func (l *listener) renew(listen func(port uint16) (net.Listener, error)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	if l.inner != nil {
		_ = l.inner.Close() // a port has one listener
		l.inner = nil
	}
	inner, err := listen(uint16(l.addr.(*net.TCPAddr).Port))
	if err != nil {
		return err
	}
	l.inner = inner
	close(l.change)
	l.change = make(chan struct{})
	return nil
}
