package socket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"github.com/driftstack/fleet/driverproxy/socket/sockettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const limit = 30 * time.Second

func relaxed() Limits { return Limits{MaxMessage: 32 << 20, Silence: limit, Stuck: limit} }

// pair returns the accepted and the dialled end.
func pair(t *testing.T, accepted, dialled Limits) (*Conn, *Conn) {
	t.Helper()
	var e Endpoint
	conns := make(chan *Conn, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := e.Accept(w, r, accepted)
		if err != nil {
			t.Error(err)
		}
		conns <- c
	}))
	t.Cleanup(server.Close)
	b, err := e.Dial(t.Context(), (&net.Dialer{}).DialContext, "ws"+strings.TrimPrefix(server.URL, "http"), dialled)
	if err != nil {
		t.Fatal(err)
	}
	a := <-conns
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestMessages(t *testing.T) {
	a, b := pair(t, relaxed(), relaxed())
	for _, c := range [][2]*Conn{{a, b}, {b, a}} {
		for _, size := range []int{0, 1, fragment - 1, fragment, fragment + 1, 10 << 20} {
			want := bytes.Repeat([]byte("xyz7"), size/4+1)[:size]
			sent := make(chan error, 1)
			go func() { sent <- c[0].WriteBinary(context.Background(), want[:size/2], want[size/2:]) }()
			got, err := c[1].ReadBinary()
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes: got %d, %v", size, len(got), err)
			}
			if err := <-sent; err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
	}
	if err := a.WriteText(t.Context(), []byte("text")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReadBinary(); err == nil {
		t.Error("a text message was taken for a binary one")
	}
}

// allocated is what f allocates, which is at least what it held at its peak.
func allocated(f func()) float64 {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return float64(after.TotalAlloc-before.TotalAlloc) / (1 << 20)
}

// A long message is in the memory of either end once: sending it takes none, and receiving it not much more than it is long.
func TestLongMessageIsHeldOnce(t *testing.T) {
	long := relaxed()
	long.MaxMessage = 128 << 20
	a, b := pair(t, long, long)
	message := make([]byte, 100<<20)
	for name, c := range map[string][2]*Conn{"down": {a, b}, "up": {b, a}} {
		got := allocated(func() {
			var sending sync.WaitGroup
			sending.Go(func() {
				if err := c[0].WriteBinary(t.Context(), message[:1000], message[1000:]); err != nil {
					t.Error(err)
				}
			})
			if m, err := c[1].ReadBinary(); err != nil || len(m) != len(message) {
				t.Errorf("%s: %d bytes, %v", name, len(m), err)
			}
			sending.Wait()
		})
		if got > 125 {
			t.Errorf("%s: %.0f MiB were allocated for a message of 100 MiB", name, got)
		}
	}
}

// Whatever a peer says about a message's length, the message is what is read.
func TestWrongAnnouncement(t *testing.T) {
	a, b := pair(t, relaxed(), relaxed())
	want := bytes.Repeat([]byte("xyz7"), 100_000)
	for _, says := range []string{"x", "-1", "0", "1", "399999", "400001", "99999999999999999999"} {
		sent := make(chan error, 1)
		go func() {
			err := b.ws.WriteControl(websocket.PongMessage, []byte(announcement+says), time.Now().Add(limit))
			if err == nil {
				err = b.ws.WriteMessage(websocket.BinaryMessage, want)
			}
			sent <- err
		}()
		if got, err := a.ReadBinary(); err != nil || !bytes.Equal(got, want) {
			t.Errorf("announced as %q: %d bytes, %v", says, len(got), err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
}

// piped runs f with the accepted and the dialled end of a socket, on a clock of its own.
func piped(t *testing.T, n *sockettest.Network, accepted, dialled Limits, f func(a, b *Conn)) {
	t.Helper()
	var e Endpoint
	conns := make(chan *Conn, 1)
	stop := n.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := e.Accept(w, r, accepted)
		if err != nil {
			t.Error(err)
		}
		conns <- c
	}))
	defer stop()
	b, err := e.Dial(t.Context(), n.Dial, "ws://pipe/path", dialled)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	a := <-conns
	defer a.Close()
	f(a, b)
}

// A message that takes longer than the silence is read for as long as its bytes move.
func TestSlowMessageIsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quick, patient := relaxed(), relaxed()
		quick.Silence = 2 * time.Second
		n := sockettest.New()
		n.Slow = func(bytes int) time.Duration { return time.Duration(bytes) * time.Second / (640 << 10) }
		piped(t, n, quick, patient, func(a, b *Conn) {
			message, sent, begin := make([]byte, 8<<20), make(chan error, 1), time.Now()
			go func() { sent <- b.WriteBinary(t.Context(), message) }()
			if m, err := a.ReadBinary(); err != nil || len(m) != len(message) || time.Since(begin) < 5*quick.Silence {
				t.Errorf("%d bytes after %v, %v", len(m), time.Since(begin), err)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
		})
	})
}

// Sockets of a session that nobody uses are pinged from either end, and live.
func TestIdleSocketIsPinged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := sockettest.New()
		piped(t, n, Session(1<<20), Session(1<<20), func(a, b *Conn) {
			var reading sync.WaitGroup
			for _, c := range []*Conn{a, b} {
				reading.Go(func() {
					if m, err := c.ReadBinary(); err != nil || string(m) != "still here" {
						t.Errorf("%q, %v", m, err)
					}
				})
			}
			<-time.After(time.Hour)
			dialer, server := n.Links()[0].Longest(time.Now())
			if dialer > MaxPing || server > MaxPing {
				t.Errorf("silent for %v and %v, want at most %v", dialer, server, MaxPing)
			}
			for _, c := range []*Conn{a, b} {
				if err := c.WriteBinary(t.Context(), []byte("still here")); err != nil {
					t.Error(err)
				}
			}
			reading.Wait()
		})
	})
}

func TestManyWriters(t *testing.T) {
	a, b := pair(t, relaxed(), relaxed())
	const writers, each = 8, 50
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for range each {
				if err := a.WriteBinary(context.Background(), bytes.Repeat([]byte{byte(i)}, 1000*i), []byte{byte(i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range writers * each {
		m, err := b.ReadBinary()
		if err != nil {
			t.Fatal(err)
		}
		if i := int(m[0]); len(m) != 1000*i+1 || bytes.Count(m, m[:1]) != len(m) {
			t.Fatal("two messages are mixed")
		}
	}
	wg.Wait()
}

func TestTooLong(t *testing.T) {
	small := relaxed()
	small.MaxMessage = 1000
	a, b := pair(t, relaxed(), small)
	if err := b.WriteBinary(t.Context(), make([]byte, 1001)); err == nil {
		t.Error("a message above the limit was sent")
	}
	if err := a.WriteBinary(t.Context(), make([]byte, 1001)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReadBinary(); !errors.Is(err, websocket.ErrReadLimit) {
		t.Errorf("a message above the limit: %v", err)
	}
}

func timedOut(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func TestSilence(t *testing.T) {
	quick := relaxed()
	quick.Silence = 50 * time.Millisecond
	a, _ := pair(t, quick, relaxed())
	if _, err := a.ReadBinary(); !timedOut(err) {
		t.Errorf("silence: %v, want a timeout", err)
	}
}

// TestPingsAreLife has an end that only pings, which the other takes for life as long as it is read from.
func TestPingsAreLife(t *testing.T) {
	quick, pinging := relaxed(), relaxed()
	quick.Silence, pinging.PingEvery = 3*time.Second, 20*time.Millisecond
	a, b := pair(t, quick, pinging)
	var reads sync.WaitGroup
	defer reads.Wait()
	reads.Go(func() { _, _ = b.ReadBinary() }) // answers nothing, reads pongs
	later := time.AfterFunc(6*time.Second, func() { _ = b.WriteBinary(context.Background(), []byte("x")) })
	defer later.Stop()
	if m, err := a.ReadBinary(); err != nil || string(m) != "x" {
		t.Errorf("after twice the silence: %q %v", m, err)
	}
	a.Close()
	b.Close()
}

func TestStuckPeer(t *testing.T) {
	quick := relaxed()
	quick.Stuck = 100 * time.Millisecond
	a, _ := pair(t, quick, relaxed())
	if err := a.WriteBinary(t.Context(), make([]byte, 32<<20)); !timedOut(err) { // nobody reads
		t.Errorf("a stuck peer: %v, want a timeout", err)
	}
}

func TestContextBoundsTheTurn(t *testing.T) {
	a, b := pair(t, relaxed(), relaxed())
	a.writer <- struct{}{} // someone writes
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := a.WriteBinary(ctx, []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for the turn: %v", err)
	}
	closed := make(chan error, 1)
	go func() { closed <- a.WriteBinary(context.Background(), []byte("x")) }()
	a.Close()
	if err := <-closed; !errors.Is(err, ErrClosed) {
		t.Errorf("closed while waiting: %v", err)
	}
	if _, err := b.ReadBinary(); err == nil {
		t.Error("something was sent")
	}
}

func TestByeAndExpire(t *testing.T) {
	a, b := pair(t, relaxed(), relaxed())
	a.Bye(strings.Repeat("why ", 100))
	if _, err := b.ReadBinary(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) || !strings.Contains(err.Error(), "why") {
		t.Errorf("bye: %v", err)
	}
	e, f := pair(t, relaxed(), relaxed())
	e.Bye("a\x00\x1b[2J") // becomes a reason in the database
	if _, err := f.ReadBinary(); fmt.Sprint(err) != "websocket: close 1000 (normal): a  [2J" {
		t.Errorf("bye with control characters: %q", err)
	}
	c, d := pair(t, relaxed(), relaxed())
	if err := d.WriteBinary(t.Context(), []byte("x")); err != nil {
		t.Fatal(err)
	}
	c.Expire(2 * time.Second)
	c.Expire(time.Hour)                       // only ever shortens
	if _, err := c.ReadBinary(); err != nil { // what has come is read
		t.Error(err)
	}
	if _, err := c.ReadBinary(); !timedOut(err) {
		t.Errorf("expired: %v, want a timeout", err)
	}
}

func TestRefusalSaysWhy(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "not you", http.StatusForbidden) }))
	defer server.Close()
	var e Endpoint
	_, err := e.Dial(t.Context(), (&net.Dialer{}).DialContext, "ws"+strings.TrimPrefix(server.URL, "http"), relaxed())
	if err == nil || !strings.Contains(err.Error(), "403: not you") {
		t.Errorf("refused: %v", err)
	}
}
