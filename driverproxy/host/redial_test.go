package host

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/socket"
)

// TestRedial: a socket that had been welcomed is replaced at once, but not again and again.
func TestRedial(t *testing.T) {
	r := newRedial()
	step := func(what string, welcomed bool, held time.Duration, atOnce bool) {
		t.Helper()
		if wait := r.after(welcomed, held); (wait == 0) != atOnce || wait > 5*time.Second {
			t.Errorf("%s: redialled after %s", what, wait)
		}
	}
	step("never welcomed", false, time.Second, false)
	step("welcomed", true, time.Minute, true)
	step("welcomed and lost again", true, time.Second, false)
	step("held for long", true, time.Minute, true)
	step("refused", false, 0, false)
	step("welcomed for a moment", true, 0, false)
	// A dial that takes long to fail ends when the orchestrator can be reached again: nothing is to be waited for besides.
	for range 20 {
		r.after(false, 0)
	}
	if wait := r.after(false, slowFail); wait > shortPause {
		t.Errorf("after a long dial: redialled after %s", wait)
	}
	if wait := r.after(false, slowFail-1); wait <= shortPause {
		t.Errorf("after many refusals: redialled after %s", wait)
	}
}

// TestOrchestratorsFollowed: a new one is dialled, one that is dropped is not any more, one that stays is left alone.
func TestOrchestratorsFollowed(t *testing.T) {
	var mu sync.Mutex
	list, changed := []string{"a:1", "b:1"}, make(chan struct{})
	set := func(addrs ...string) {
		mu.Lock()
		defer mu.Unlock()
		list = addrs
		close(changed)
		changed = make(chan struct{})
	}
	began, ended := make(chan string), make(chan string)
	a := &agent{endpoint: &socket.Endpoint{}, links: map[*link]struct{}{}, cfg: Config{
		Log: zap.NewNop(),
		Orchestrators: func() ([]string, <-chan struct{}) {
			mu.Lock()
			defer mu.Unlock()
			return list, changed
		},
		Dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
			began <- addr
			<-ctx.Done() // far away
			ended <- addr
			return nil, errors.New("cut off")
		},
	}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.keepLinks(ctx) }()
	want := func(from chan string, addrs ...string) {
		t.Helper()
		left := map[string]bool{}
		for _, a := range addrs {
			left[a] = true
		}
		for range addrs {
			select {
			case a := <-from:
				if !left[a] {
					t.Fatalf("%s came instead of %v", a, left)
				}
				delete(left, a)
			case <-time.After(8 * time.Second): // less than a dial takes to give up by itself
				t.Fatalf("%v did not come", left)
			}
		}
	}
	want(began, "a:1", "b:1")
	set("b:1", "c:1")
	want(ended, "a:1")
	want(began, "c:1")
	cancel()
	want(ended, "b:1", "c:1")
	<-done
}
