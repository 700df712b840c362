package tunnel

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/lanes"
	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/tunnel/tunneltest"
)

// TestRecordingAcrossTheOcean sends a recording at 130 ms round trip and 0.1 % loss: more sockets come, one is cut, and every
// byte arrives once.
func TestRecordingAcrossTheOcean(t *testing.T) {
	const fleetPort = 8444
	reg := &registry{}
	w := startWorld(t, reg, worldConfig{number: 1, dir: t.TempDir(), fleet: 8443})
	relay, err := tunneltest.OpenRelay(tunneltest.RelayConfig{Target: w.info.Endpoint, Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := relay.Close(); err != nil {
			t.Error(err)
		}
	})
	through := w.info
	through.Endpoint = relay.Addr()
	token := reg.mustInvite(t, 300, "mac-1", through)
	w.settle(t)
	link := openTestLink(t, LinkConfig{StateDir: t.TempDir(), Token: token})

	// The orchestrator's end.
	var endpoint socket.Endpoint
	receiver := lanes.NewReceiver(make(chan struct{}), 0)
	listener, err := w.Listen(t.Context(), fleetPort)
	if err != nil {
		t.Fatal(err)
	}
	var handlers sync.WaitGroup
	server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		handlers.Add(1)
		defer handlers.Done()
		n, err := strconv.Atoi(r.URL.Query().Get("lane"))
		if err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
		c, err := endpoint.Accept(rw, r, socket.Session(wire.MaxChunkData+1024))
		if err != nil {
			return
		}
		defer c.Close()
		_ = receiver.Serve(n, c) // a lane that was cut is part of the test
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		_ = server.Close()
		<-served
		handlers.Wait()
	}()
	defer receiver.Close()

	relay.SetDelay(65 * time.Millisecond)
	relay.SetLoss(0.001)
	defer relay.SetDelay(0) // closing need not take long
	video := make([]byte, 6<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(video) // never fails
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	// The host's end.
	var mu sync.Mutex
	conns := map[int]net.Conn{} // by lane
	dials := 0
	dial := func(ctx context.Context, lane int) (lanes.Socket, error) {
		remember := func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := link.DialContext(ctx, network, addr)
			if err == nil {
				mu.Lock()
				conns[lane] = c
				dials++
				mu.Unlock()
			}
			return c, err
		}
		url := fmt.Sprintf("ws://%s%s?lane=%d", net.JoinHostPort(w.info.Addr.String(), strconv.Itoa(fleetPort)), wire.PathRecording, lane)
		c, err := endpoint.Dial(ctx, remember, url, socket.Session(wire.MaxChunkData+1024))
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	firstLane, err := dial(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	sender := lanes.NewSender(firstLane, lanes.Config{Dial: dial})
	defer sender.Finish(time.Second)
	sent := make(chan error, 1)
	go func() {
		for at := 0; at < len(video); at += 32 << 10 {
			data := video[at:min(at+32<<10, len(video))]
			chunk := wire.Chunk{Offset: int64(at), CRC: wire.Checksum(data), Data: data}
			if err := sender.Send(ctx, chunk.Append(nil)); err != nil {
				sent <- err
				return
			}
		}
		sent <- sender.Send(ctx, wire.End{Total: int64(len(video))}.Append(nil))
	}()

	var got []byte
	for cut := false; ; {
		v, err := receiver.Receive(ctx)
		if err != nil {
			t.Fatalf("after %d bytes: %v", len(got), err)
		}
		if _, over := v.(*wire.End); over {
			break
		}
		got = append(got, v.(*wire.Chunk).Data...)
		if err := receiver.Ack(ctx, int64(len(got))); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		if !cut && len(got) > 1<<20 && len(conns) > 1 {
			cut = true
			_ = conns[0].Close()
		}
		mu.Unlock()
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got, video) {
		t.Errorf("%d bytes of %d arrived, and not those that were sent", len(got), len(video))
	}
	mu.Lock()
	defer mu.Unlock()
	if dials < 3 {
		t.Errorf("%d sockets were dialled: a backlog opens more, and one was cut", dials)
	}
	if s := relay.Stats(); s.Lost == 0 {
		t.Errorf("the relay lost nothing: %+v", s)
	}
}
