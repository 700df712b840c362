package stream

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/socket/sockettest"
)

// A stream that nobody uses is pinged from both ends before a middlebox takes it for dead; and a client that does not ping
// by itself lives by its answers.
func TestIdleStreamIsPinged(t *testing.T) {
	for _, silent := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n, here := sockettest.New(), limits()
			if silent {
				here.PingEvery = 0
			}
			accepted := make(chan *socket.Conn, 1)
			stop := n.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				c, err := new(socket.Endpoint).Accept(w, r, limits())
				if err != nil {
					t.Error(err)
				}
				accepted <- c
			}))
			client, err := new(socket.Endpoint).Dial(context.Background(), n.Dial, "ws://server/v1/sessions/s/stream", here)
			if err != nil {
				t.Fatal(err)
			}
			server := <-accepted
			var reading sync.WaitGroup
			for _, c := range []*socket.Conn{client, server} {
				reading.Go(func() {
					if b, err := c.ReadText(); err != nil || string(b) != "still here" {
						t.Errorf("%q, %v", b, err)
					}
				})
			}
			<-time.After(time.Hour)
			us, them := n.Links()[0].Longest(time.Now())
			if them > socket.MaxPing || !silent && us > socket.MaxPing {
				t.Errorf("the client was silent for %v and the server for %v, want at most %v", us, them, socket.MaxPing)
			}
			for _, c := range []*socket.Conn{client, server} {
				if err := c.WriteText(context.Background(), []byte("still here")); err != nil {
					t.Error(err)
				}
			}
			reading.Wait()
			client.Close()
			server.Close()
			stop()
		})
	}
}
