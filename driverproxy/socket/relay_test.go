package socket

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// relayed is a relay with both of its far ends.
type relayed struct {
	client, driver *Conn // the far ends
	clientSaid     atomic.Int64
	driverSaid     atomic.Int64
	cancel         context.CancelCauseFunc
	over           chan struct{} // closed when the relay is over; how is set before
	how            Close
}

func relayBetween(t *testing.T, near, far Limits) *relayed {
	t.Helper()
	a, client := pair(t, near, far)
	driver, b := pair(t, far, near)
	r := &relayed{client: client, driver: driver, over: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(context.Background())
	r.cancel = cancel
	go func() {
		defer close(r.over)
		r.how = Relay(ctx,
			Side{Conn: a, Broken: Close{CloseGoingAway, "the client broke off"}, Seen: func(n int) { r.clientSaid.Add(int64(n)) }},
			Side{Conn: b, Broken: Close{CloseAgain, "the driver broke off"}, Seen: func(n int) { r.driverSaid.Add(int64(n)) }})
	}()
	t.Cleanup(func() {
		cancel(nil)
		r.client.Close()
		r.driver.Close()
		r.ended(t)
	})
	return r
}

func (r *relayed) ended(t *testing.T) Close {
	t.Helper()
	select {
	case <-r.over:
		return r.how
	case <-time.After(limit):
		t.Fatal("the relay does not end")
		return Close{}
	}
}

// closed reads until the socket ends, and returns how.
func closed(t *testing.T, c *Conn) Close {
	t.Helper()
	for {
		_, m, err := c.next()
		if err == nil {
			_, err = io.Copy(io.Discard, m)
		}
		if err != nil {
			return closing(err, Close{Code: -1, Reason: err.Error()})
		}
	}
}

func TestRelayPassesMessagesAsTheyAre(t *testing.T) {
	r := relayBetween(t, relaxed(), relaxed())
	for _, ends := range [][2]*Conn{{r.client, r.driver}, {r.driver, r.client}} {
		for _, kind := range []int{websocket.TextMessage, websocket.BinaryMessage} {
			for _, size := range []int{0, 1, smallPiece - 1, smallPiece, smallPiece + 1, piece, 3 * fragment, 10 << 20} {
				want := noise(size)
				sent := make(chan error, 1)
				go func() { sent <- ends[0].write(context.Background(), kind, [][]byte{want}) }()
				got, m, err := ends[1].next()
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(m)
				if err != nil || got != kind || !bytes.Equal(b, want) {
					t.Errorf("message of kind %d and %d bytes: kind %d, %d bytes, same %v, %v", kind, size, got, len(b), bytes.Equal(b, want), err)
				}
				if err := <-sent; err != nil {
					t.Error(err)
				}
			}
		}
	}
	if a, b := r.clientSaid.Load(), r.driverSaid.Load(); a != b || a < 20<<20 {
		t.Errorf("%d and %d bytes were seen", a, b)
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b) // never fails
	return b
}

// TestRelayHoldsNoMessage has a message that never ends arrive all the same.
func TestRelayHoldsNoMessage(t *testing.T) {
	r := relayBetween(t, relaxed(), relaxed())
	out, err := r.client.begin(websocket.BinaryMessage)
	if err != nil {
		t.Fatal(err)
	}
	defer out.release()
	if err := out.write(noise(1 << 20)); err != nil {
		t.Fatal(err)
	}
	_, m, err := r.driver.next()
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1<<20-4*fragment) // less what may wait for a fragment to be full
	if _, err := io.ReadFull(m, got); err != nil || !bytes.Equal(got, noise(1 << 20)[:len(got)]) {
		t.Errorf("the first bytes of an unfinished message: %v", err)
	}
	r.client.ws.Close() // in its middle
	if _, err := io.Copy(io.Discard, m); closing(err, Close{}) != (Close{CloseGoingAway, "the client broke off"}) {
		t.Errorf("the message was cut off: %v", err)
	}
}

func TestRelayPassesGoodbyes(t *testing.T) {
	for _, how := range []Close{
		{CloseNormal, "done"}, {CloseGoingAway, ""}, {CloseFailed, "ü"}, {CloseAgain, "again"}, {4711, "own"}, {websocket.CloseNoStatusReceived, ""},
	} {
		for _, fromClient := range []bool{true, false} {
			r := relayBetween(t, relaxed(), relaxed())
			from, to := r.client, r.driver
			if !fromClient {
				from, to = to, from
			}
			if err := from.WriteText(t.Context(), []byte("last words")); err != nil {
				t.Fatal(err)
			}
			from.Leave(how)
			if b, err := to.ReadText(); err != nil || string(b) != "last words" {
				t.Errorf("what was said before: %q %v", b, err)
			}
			if got := closed(t, to); got != how {
				t.Errorf("from the client %v: %+v came as %+v", fromClient, how, got)
			}
			if answer := closed(t, from); answer.Code != how.Code {
				t.Errorf("%+v was answered with %+v", how, answer)
			}
			if got := r.ended(t); got != how {
				t.Errorf("the relay ended with %+v, want %+v", got, how)
			}
		}
	}
}

func TestRelayTellsWhoIsLeft(t *testing.T) {
	r := relayBetween(t, relaxed(), relaxed())
	r.client.ws.Close()
	if got := closed(t, r.driver); got != (Close{CloseGoingAway, "the client broke off"}) || r.ended(t) != got {
		t.Errorf("the driver is told %+v", got)
	}
	r = relayBetween(t, relaxed(), relaxed())
	r.driver.ws.Close()
	if got := closed(t, r.client); got != (Close{CloseAgain, "the driver broke off"}) || r.ended(t) != got {
		t.Errorf("the client is told %+v", got)
	}
	r = relayBetween(t, relaxed(), relaxed())
	r.cancel(&Close{CloseNormal, "the session has ended"})
	for _, c := range []*Conn{r.client, r.driver} {
		if got := closed(t, c); got != (Close{CloseNormal, "the session has ended"}) {
			t.Errorf("told %+v", got)
		}
	}
	r.ended(t)
}

// TestRelayEndsWithoutAnswer has ends that say nothing more.
func TestRelayEndsWithoutAnswer(t *testing.T) {
	r := relayBetween(t, relaxed(), relaxed())
	r.cancel(&Close{CloseNormal, "the session has ended"})
	r.ended(t) // nobody reads, so nobody answers
}

// TestRelayEndsBesideAStuckReader ends relays of which one side takes nothing, long before Limits.Stuck: with the session, and
// when the side that takes nothing says goodbye itself.
func TestRelayEndsBesideAStuckReader(t *testing.T) {
	for what, end := range map[string]func(*relayed){
		"the session's end": func(r *relayed) { r.cancel(&Close{CloseNormal, "over"}) },
		"a goodbye":         func(r *relayed) { r.client.Leave(Close{CloseNormal, "over"}) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			limits := relaxed()
			limits.Stuck, limits.Silence, limits.PingEvery = 10*limit, 10*limit, time.Second
			r := relayBetween(t, limits, limits)
			go func() {
				for r.driver.WriteBinary(context.Background(), make([]byte, 1<<20)) == nil {
				}
			}()
			stalled(t, &r.driverSaid)
			end(r)
			if got := r.ended(t); got != (Close{CloseNormal, "over"}) {
				t.Errorf("the relay ended with %+v", got)
			}
		})
	}
}

func TestRelayRefusesLongMessages(t *testing.T) {
	near := relaxed()
	near.MaxMessage = 1 << 20
	r := relayBetween(t, near, relaxed())
	go func() { _ = r.client.WriteText(context.Background(), noise(2<<20)) }() // it breaks off somewhere
	if got := closed(t, r.driver); got.Code != CloseTooBig {
		t.Errorf("the driver is told %+v", got)
	}
	if got := closed(t, r.client); got.Code != CloseTooBig {
		t.Errorf("the client is told %+v", got)
	}
}

// TestRelayIsAsSlowAsItsReader also has pings all the time: they must neither be lost in the traffic nor break a full socket.
func TestRelayIsAsSlowAsItsReader(t *testing.T) {
	limits := relaxed()
	limits.PingEvery = time.Millisecond
	r := relayBetween(t, limits, limits)
	const all, each = 64 << 20, 1 << 20
	message := noise(each)
	sent := make(chan error, 1)
	go func() {
		for range all / each {
			if err := r.driver.WriteBinary(context.Background(), message); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	stalled(t, &r.driverSaid)
	if said := r.driverSaid.Load(); said > all/2 {
		t.Errorf("%d of %d bytes were taken while nobody reads", said, all)
	}
	for i := range all / each {
		b, err := r.client.ReadBinary()
		if err != nil || !bytes.Equal(b, message) {
			t.Fatalf("message %d: %d bytes, %v", i, len(b), err)
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// stalled waits until a counter has begun to count, and stands still.
func stalled(t *testing.T, c *atomic.Int64) {
	t.Helper()
	deadline := time.After(limit)
	again := time.NewTicker(300 * time.Millisecond)
	defer again.Stop()
	for before := int64(0); ; {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatal("it does not come to a halt")
		}
		now := c.Load()
		if now == before && now > 0 {
			return
		}
		before = now
	}
}

func TestRelayGivesUpOnAStuckReader(t *testing.T) {
	near := relaxed()
	near.Stuck = 200 * time.Millisecond
	r := relayBetween(t, near, relaxed())
	go func() {
		for r.driver.WriteBinary(context.Background(), make([]byte, 1<<20)) == nil {
		}
	}()
	if got := closed(t, r.driver); got != (Close{CloseGoingAway, "the client broke off"}) {
		t.Errorf("the driver is told %+v", got)
	}
	r.ended(t)
}

func TestCloseAsCause(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(&Close{4000, "why"})
	if got := closing(context.Cause(ctx), Close{}); got != (Close{4000, "why"}) {
		t.Errorf("%+v", got)
	}
	if got := closing(errors.New("x"), Close{Code: 1}); got.Code != 1 {
		t.Errorf("%+v", got)
	}
}
