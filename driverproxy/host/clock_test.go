package host_test

import (
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/host"
)

// clock is time that stands still until the test moves it.
type clock struct {
	mu     sync.Mutex // guards what follows
	now    time.Time
	timers map[chan time.Time]time.Time
}

var _ host.Clock = (*clock)(nil)

func newClock() *clock {
	return &clock{now: time.Unix(1e9, 0), timers: map[chan time.Time]time.Time{}}
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Timer(d time.Duration) (<-chan time.Time, func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fires := make(chan time.Time, 1)
	c.timers[fires] = c.now.Add(d)
	return fires, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.timers, fires)
	}
}

// next moves to when the next timer fires; there may be none, while whoever waits is at work.
func (c *clock) next() {
	c.mu.Lock()
	defer c.mu.Unlock()
	var first chan time.Time
	for fires, at := range c.timers {
		if first == nil || at.Before(c.timers[first]) {
			first = fires
		}
	}
	if first == nil {
		return
	}
	c.now = c.timers[first]
	first <- c.now
	delete(c.timers, first)
}

// waiting says whether anything waits for time to pass.
func (c *clock) waiting() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.timers) > 0
}

// until has time pass until the condition holds, and returns how much did: at least as much as had to.
func (c *clock) until(t *testing.T, what string, holds func() bool) time.Duration {
	t.Helper()
	begin := c.Now()
	eventually(t, what, func() bool {
		if holds() {
			return true
		}
		c.next()
		return false
	})
	return c.Now().Sub(begin)
}
