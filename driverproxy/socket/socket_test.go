package socket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"
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
	quick.Silence, pinging.PingEvery = 300*time.Millisecond, 20*time.Millisecond
	a, b := pair(t, quick, pinging)
	var reads sync.WaitGroup
	defer reads.Wait()
	reads.Go(func() { _, _ = b.ReadBinary() }) // answers nothing, reads pongs
	later := time.AfterFunc(time.Second, func() { _ = b.WriteBinary(context.Background(), []byte("x")) })
	defer later.Stop()
	if m, err := a.ReadBinary(); err != nil || string(m) != "x" {
		t.Errorf("after three times the silence: %q %v", m, err)
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
	c.Expire(20 * time.Millisecond)
	c.Expire(time.Hour) // only ever shortens
	if err := d.WriteBinary(t.Context(), []byte("x")); err != nil {
		t.Fatal(err)
	}
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
