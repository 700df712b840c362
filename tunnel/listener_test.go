package tunnel

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// pokedListener fails once, as a kernel that is short of memory does.
type pokedListener struct {
	net.Listener
	failed bool
}

func (l *pokedListener) Accept() (net.Conn, error) {
	if !l.failed {
		l.failed = true
		return nil, syscall.ENOBUFS
	}
	return l.Listener.Accept()
}

// TestListenerOutlivesError: one connection that could not be accepted is no reason to accept none any more.
func TestListenerOutlivesError(t *testing.T) {
	inner, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(&pokedListener{Listener: inner}, func(c net.Conn) net.Conn { return c })
	c, err := net.Dial("tcp4", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted := make(chan error, 1)
	go func() {
		got, err := l.Accept()
		if err == nil {
			err = got.Close()
		}
		accepted <- err
	}()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) { // its end, once it was accepted
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-accepted; err != nil {
		t.Error(err)
	}
}
