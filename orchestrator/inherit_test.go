package orchestrator

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// keptOnes are commands of a former holder; each takes a while.
type keptOnes struct {
	list []driverproxy.Kept
	each time.Duration

	mu    sync.Mutex
	acked []uint64
}

func (k *keptOnes) Kept() []driverproxy.Kept { return k.list }
func (k *keptOnes) Await(ctx context.Context, _ driverproxy.Kept) (webdriver.Answer, driverproxy.Receipt, error) {
	select {
	case <-time.After(k.each):
		return null(), driverproxy.Receipt{}, nil
	case <-ctx.Done():
		return webdriver.Answer{}, driverproxy.Receipt{}, ctx.Err()
	}
}
func (k *keptOnes) Acknowledge(seq uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.acked = append(k.acked, seq)
}

func (k *keptOnes) acknowledged() []uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.acked)
}

// What W3C clients sent to the former holder is seen to its end: it counts as running, and its answer is let go. What a
// client's stream sent is left to the stream.
func TestInheritedCommands(t *testing.T) {
	c := someClaim()
	c.Adopted, c.Idle = true, 10*time.Second
	k := &keptOnes{each: 8 * time.Second, list: []driverproxy.Kept{{Seq: 4}, {Seq: 5, Origin: wire.Origin{Number: 1}}, {Seq: 6}}}
	end, took := serveUntil(t, c, takes(0), func(ctx context.Context, s stint) {
		stop := s.l.inheritFrom(ctx, k)
		defer stop()
		<-s.l.closed
	})
	if got := k.acknowledged(); !slices.Equal(got, []uint64{4, 6}) {
		t.Errorf("acknowledged %v", got)
	}
	if end.Reason != Idle || took < 16*time.Second {
		t.Errorf("ended as %s after %s: the commands took 16 s", end.Reason, took)
	}

	k = &keptOnes{each: time.Hour, list: []driverproxy.Kept{{Seq: 4}}}
	end, took = serveUntil(t, c, takes(0), func(ctx context.Context, s stint) {
		stop := s.l.inheritFrom(ctx, k)
		defer stop()
		<-s.l.closed
	})
	if end.Reason != CommandDeadline || took != c.Command {
		t.Errorf("ended as %s after %s", end.Reason, took)
	}

	// A session that is left again leaves what still runs to the next.
	k = &keptOnes{each: time.Hour, list: []driverproxy.Kept{{Seq: 4}}}
	serveUntil(t, c, takes(0), func(ctx context.Context, s stint) {
		stop := s.l.inheritFrom(ctx, k)
		s.lose(ErrLeaseLost)
		<-s.l.closed
		stop()
	})
	if got := k.acknowledged(); len(got) != 0 {
		t.Errorf("acknowledged %v", got)
	}
}

// A session that is not adopted has nothing to inherit.
func TestNothingIsInheritedByANewSession(t *testing.T) {
	k := &keptOnes{list: []driverproxy.Kept{{Seq: 4}}}
	serveUntil(t, someClaim(), takes(0), func(ctx context.Context, s stint) {
		s.l.inheritFrom(ctx, k)()
		s.l.quit()
	})
	if got := k.acknowledged(); len(got) != 0 {
		t.Errorf("acknowledged %v", got)
	}
}
