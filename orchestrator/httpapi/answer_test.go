package httpapi

import (
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// one is a listener with one connection.
type one struct {
	conn chan net.Conn
	done chan struct{}
}

func (l one) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l one) Close() error   { close(l.done); return nil }
func (l one) Addr() net.Addr { return &net.TCPAddr{} }

// A client that takes no answer is waited for as long as a body may take, and then the answer's memory is free again.
func TestClientThatTakesNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, end := net.Pipe()
		l := one{make(chan net.Conn, 1), make(chan struct{})}
		l.conn <- end
		begin, answered := time.Now(), make(chan time.Duration, 1)
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			writeAnswer(w, webdriver.Answer{Status: 200, Body: make([]byte, 30<<20)})
			answered <- time.Since(begin)
		})}
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = s.Serve(l) // until Close
		}()
		if _, err := io.WriteString(client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if took := <-answered; took != bodyLimit {
			t.Errorf("the answer was given up after %v", took)
		}
		_ = client.Close()
		_ = s.Close()
		<-served
	})
}
