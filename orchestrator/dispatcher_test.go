package orchestrator

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
)

// looked is a store in which a session is as it was set, which no notification tells of.
type looked struct {
	SessionStore
	state api.SessionState
	at    time.Time // from then on
}

func (l *looked) Get(context.Context, string) (api.Session, error) {
	if time.Now().Before(l.at) {
		return api.Session{State: api.Queued}, nil
	}
	return api.Session{State: l.state}, nil
}

// TestLostNotificationCostsATick, to whoever takes sessions and to whoever waits for one.
func TestLostNotificationCostsATick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &looked{state: api.Running}
		o := New(Deps{Log: zap.NewNop(), Sessions: l, LeaseTTL: 15 * time.Second})
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		queued := time.Now().Add(10*tick + tick/2)
		taken := make(chan time.Time, 1)
		looks := 0
		get := func(context.Context, []string) ([]Claim, time.Duration, error) {
			looks++
			if time.Now().Before(queued) {
				return nil, tick, nil
			}
			return []Claim{{Session: "s"}}, tick, nil
		}
		go o.take(ctx, o.queued, func() []string { return []string{"mac-1"} }, get, func(Claim, time.Time) {
			taken <- time.Now()
			stop()
		})
		if late := (<-taken).Sub(queued); late > tick {
			t.Errorf("claimed %s late", late)
		}
		if looks != 12 { // at once, and with each tick
			t.Errorf("looked %d times in 11 s", looks)
		}
		l.at = time.Now().Add(10*tick + tick/2)
		if _, err := o.Wait(t.Context(), "s", IsRunning); err != nil || time.Since(l.at) > tick {
			t.Errorf("seen %s late, %v", time.Since(l.at), err)
		}
	})
}

// TestWakesForWhatIsLeftToOthers: of sessions that others are to claim first, who claims is woken for the last one too, once that has been left to them.
func TestWakesForWhatIsLeftToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := New(Deps{ID: "here", Log: zap.NewNop()})
		ctx, stop := context.WithCancel(t.Context())
		var loop sync.WaitGroup
		loop.Go(func() { o.wakeLater(ctx) })
		woken := func() bool {
			synctest.Wait()
			select {
			case <-o.queued:
				return true
			default:
				return false
			}
		}
		o.WakeQueue("here") // it has been told
		o.WakeQueue("there")
		time.Sleep(waiterFirst / 2)
		o.WakeQueue("there")
		if woken() {
			t.Error("woken at once")
		}
		time.Sleep(waiterFirst / 2)
		if !woken() {
			t.Error("not woken for the first")
		}
		time.Sleep(waiterFirst)
		if !woken() {
			t.Error("not woken for the second")
		}
		time.Sleep(time.Minute)
		if woken() {
			t.Error("woken for nothing")
		}
		o.WakeQueue("")
		if !woken() {
			t.Error("not woken for what is anybody's")
		}
		o.WakeQueue("there")
		synctest.Wait()
		begin := time.Now()
		stop()
		if loop.Wait(); time.Since(begin) > 0 {
			t.Errorf("%s pass until it has stopped", time.Since(begin))
		}
	})
}

// queues is a store in which every session is queued.
type queues struct{ SessionStore }

func (queues) Offers(context.Context, NewSession) ([]webdriver.Offer, error) {
	return []webdriver.Offer{{Browser: "safari", Platform: "iOS"}}, nil
}

func (queues) Create(context.Context, NewSession) (time.Time, error) { return time.Unix(1, 0), nil }

// TestWaiterWakesItself: who makes a session for a client of its own is not told of it by the database, and claims at once.
func TestWaiterWakesItself(t *testing.T) {
	o := New(Deps{ID: "here", Log: zap.NewNop(), Sessions: queues{}, QueueLimit: 1})
	wants, err := webdriver.ParseNewSession([]byte(`{"capabilities":{}}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.CreateFirst(t.Context(), api.CreateSession{Account: "a"}, wants); err != nil {
		t.Fatal(err)
	}
	select {
	case <-o.queued:
	default:
		t.Error("nobody is woken")
	}
}

// deaf is a store that loses the answer to a claim, which it carried out.
type deaf struct {
	SessionStore
	claims, given int
}

func (d *deaf) Claim(context.Context, string, []string, time.Duration, int, int) ([]Claim, bool, error) {
	d.claims++
	return nil, false, ErrUnavailable
}

func (d *deaf) Reclaim(context.Context, string, []string, time.Duration, int) ([]Claim, error) {
	if d.given++; d.given > 1 {
		return nil, nil
	}
	return []Claim{{Session: "s"}}, nil
}

// TestLostClaimIsTakenUpWithoutHosts: also when none is open to claims any more.
func TestLostClaimIsTakenUpWithoutHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &deaf{}
		o := New(Deps{Log: zap.NewNop(), Sessions: d})
		ctx, stop := context.WithTimeout(t.Context(), 10*tick)
		defer stop()
		open := []string{"mac-1"}
		var taken []string
		o.take(ctx, o.queued, func() []string { defer func() { open = nil }(); return open }, o.claimMany, func(c Claim, _ time.Time) { taken = append(taken, c.Session) })
		if len(taken) != 1 || d.claims != 1 {
			t.Errorf("taken up: %q; %d claims", taken, d.claims)
		}
	})
}

// locked is a store in which there is one session to claim, once others have let go of it.
type locked struct {
	SessionStore
	until  time.Time
	claims int
}

func (l *locked) Claim(context.Context, string, []string, time.Duration, int, int) (got []Claim, left bool, err error) {
	switch l.claims++; {
	case time.Now().Before(l.until):
		return nil, true, nil
	case !l.until.IsZero():
		l.until = time.Time{}
		return []Claim{{Session: "s"}}, true, nil
	}
	return nil, false, nil
}

// TestLockedIsClaimedSoon: what others had locked is asked for again after a moment, and not all the time; what may be left after some were claimed, at once.
func TestLockedIsClaimedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &locked{until: time.Now().Add(10*lockedPause - lockedPause/2)}
		late := l.until
		o := New(Deps{Log: zap.NewNop(), Sessions: l})
		ctx, stop := context.WithTimeout(t.Context(), tick)
		defer stop()
		o.take(ctx, o.queued, func() []string { return []string{"mac-1"} }, o.claimMany, func(Claim, time.Time) {
			if d := time.Since(late); d > lockedPause {
				t.Errorf("claimed %s late", d)
			}
		})
		if l.claims != 12 || !l.until.IsZero() { // ten that got nothing, the one, and the one at once after it
			t.Errorf("%d claims", l.claims)
		}
	})
}
