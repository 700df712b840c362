package lanes

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// Another receiver goes on where the first one stopped acknowledging, although the first still holds its sockets, and has more than it
// acknowledged.
func TestAnotherReceiverGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4, 4, steady(time.Millisecond))
		data := stream(3 << 20)
		chunks := split(data, func() int { return 64 << 10 })
		sent := make(chan error, 1)
		go func() { sent <- w.send(chunks) }()
		former, acked := w.receiver, int64(0)
		for range len(chunks) / 2 {
			v, err := former.Receive(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if c := v.(*wire.Chunk); c.Offset < int64(len(data)/4) {
				acked = c.Offset + int64(len(c.Data))
			}
		}
		if err := former.Ack(t.Context(), acked); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it holds what it did not acknowledge
		w.mu.Lock()
		w.receiver = NewReceiver(w.over, acked)
		w.mu.Unlock()
		w.sender.mu.Lock()
		old := w.sender.lanes[0]
		w.sender.mu.Unlock()
		w.sender.Restart()
		// It wakes up; what it says is not believed, whether it is on its way already or not.
		if err := w.sender.receipt(old, wire.Ack{Offset: int64(len(data)) / 2}.Append(nil)); err != nil {
			t.Error(err)
		}
		_ = former.Ack(context.Background(), int64(len(data))) // its sockets may be closed
		received := make(chan error, 1)
		go func() { received <- w.receiveFrom(data, acked, 1) }()
		if err := <-received; err != nil {
			t.Error(err)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
		former.Close()
		w.stop()
	})
}
