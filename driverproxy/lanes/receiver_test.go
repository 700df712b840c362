package lanes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// dying is the socket of a host that is gone: what it sent can be read still, and nothing can be written.
type dying struct {
	sent   chan []byte
	last   error // of reads, after what was sent
	closed chan struct{}
	once   sync.Once

	mu      sync.Mutex
	expires []time.Duration
}

func newDying(last error) *dying {
	return &dying{sent: make(chan []byte), last: last, closed: make(chan struct{})}
}

func (d *dying) ReadBinary() ([]byte, error) {
	select {
	case <-d.closed:
		return nil, io.ErrClosedPipe
	case b, ok := <-d.sent:
		if !ok {
			return nil, d.last
		}
		return b, nil
	}
}

func (d *dying) WriteBinary(context.Context, ...[]byte) error { return errCut }
func (d *dying) Bye(string)                                   {}
func (d *dying) Close()                                       { d.once.Do(func() { close(d.closed) }) }
func (d *dying) Expire(t time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.expires = append(d.expires, t)
}

// TestWhatALostHostSentIsRead although neither a Held nor an Ack can be written to it any more.
func TestWhatALostHostSentIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d := NewReceiver(make(chan struct{}), 0), newDying(io.EOF)
		var serving sync.WaitGroup
		serving.Go(func() { _ = r.Serve(0, d) })
		next := func(want string) {
			t.Helper()
			got := "the end"
			v, err := r.Receive(t.Context())
			if c, ok := v.(*wire.Chunk); ok {
				got = string(c.Data)
			}
			if err != nil || got != want {
				t.Errorf("received %q %v, want %q", got, err, want)
			}
		}
		send := func(b []byte) {
			t.Helper()
			select {
			case d.sent <- b:
			case <-time.After(time.Minute):
				t.Error("the lane is not read any more")
			}
		}
		send(chunk(3, "def").Append(nil)) // Held cannot be said
		send(chunk(0, "abc").Append(nil))
		next("abc")
		if err := r.Ack(t.Context(), 3); err != nil {
			t.Errorf("Ack: %v, and Receive is who tells of a loss", err)
		}
		next("def")
		send(chunk(9, "jkl").Append(nil))
		send(chunk(6, "ghi").Append(nil))
		next("ghi")
		next("jkl")
		send(wire.End{Total: 12}.Append(nil))
		next("the end")
		if fmt.Sprint(d.expires) != fmt.Sprint([]time.Duration{lastWords}) {
			t.Errorf("reads are bounded %v, want once, by %v", d.expires, lastWords)
		}
		r.Close()
		serving.Wait()
	})
}

// TestAGoodbyeEndsTheWait at once, although the lane was found broken by a write before its reader came to the goodbye.
func TestAGoodbyeEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d := NewReceiver(make(chan struct{}), 0), newDying(&websocket.CloseError{Code: websocket.CloseNormalClosure})
		var serving sync.WaitGroup
		serving.Go(func() { _ = r.Serve(0, d) })
		d.sent <- chunk(0, "abc").Append(nil)
		if _, err := r.Receive(t.Context()); err != nil {
			t.Error(err)
		}
		_ = r.Ack(t.Context(), 3)
		close(d.sent)
		began := time.Now()
		if _, err := r.Receive(t.Context()); !errors.Is(err, ErrLost) || time.Since(began) > 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		r.Close()
		serving.Wait()
	})
}

// full is the socket of a host that takes nothing.
type full struct{ *dying }

func (f full) WriteBinary(context.Context, ...[]byte) error {
	<-f.closed
	return io.ErrClosedPipe
}

// TestAHostThatTakesNothingHoldsUpNobody: whoever seals the recording ends the Ack that waits.
func TestAHostThatTakesNothingHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewReceiver(make(chan struct{}), 0)
		var serving sync.WaitGroup
		for lane := range 2 {
			serving.Go(func() { _ = r.Serve(lane, full{newDying(io.EOF)}) })
		}
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		if err := r.Ack(ctx, 3); err == nil || time.Since(began) != time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		serving.Wait()
	})
}
