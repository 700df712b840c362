package orchestrator

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/profilestate"
)

// stint is a session that is served inside a synctest bubble, by an orchestrator that can be stopped and can lose its lease.
type stint struct {
	l    *live
	stop func()      // as SIGTERM does
	lose func(error) // the session's context ends with it

	running *sync.WaitGroup // what the test has begun
}

func serveUntil(t *testing.T, c Claim, d *scripted, f func(ctx context.Context, s stint)) (end *EndError, took time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d.done = make(chan struct{})
		j := newJournal(&memory{}, zap.NewNop())
		go j.run(context.Background())
		defer j.close()
		stopping, begin := make(chan struct{}), time.Now()
		ctx, lose := context.WithCancelCause(context.Background())
		defer lose(nil)
		s := stint{l: newLive(c, j, time.Now), stop: func() { close(stopping) }, lose: lose, running: new(sync.WaitGroup)}
		over := make(chan struct{})
		go func() {
			defer close(over)
			end = s.l.serve(ctx, d, stopping)
			took = time.Since(begin)
		}()
		f(t.Context(), s)
		<-over
		s.running.Wait()
	})
	return end, took
}

func someClaim() Claim {
	return Claim{Session: "s", Term: 3, Idle: 10 * time.Minute, Max: time.Hour, Command: time.Minute}
}

func outcome(a webdriver.Answer) any {
	var w *webdriver.Error
	if errors.As(a.Err(), &w) && w.Code == webdriver.UnknownError {
		return w.Data["outcome"]
	}
	return "answered " + string(a.Body)
}

// A command that runs is answered by who took it, and one that comes later is told to come again.
func TestHandoverWaitsForWhatRuns(t *testing.T) {
	end, took := serveUntil(t, someClaim(), takes(4*time.Second), func(ctx context.Context, s stint) {
		s.running.Go(func() {
			if a := s.l.do(ctx, post("/refresh", `{}`)); a.Status != 200 {
				t.Errorf("the command that ran: %d %s", a.Status, a.Body)
			}
		})
		synctest.Wait()
		s.stop()
		synctest.Wait()
		if a := s.l.do(ctx, post("/refresh", `{}`)); outcome(a) != "not_run" {
			t.Errorf("a command that came later: %s", a.Body)
		}
		if s.l.quit() {
			t.Error("the session was quit while it is handed over")
		}
	})
	if !end.left || took != 4*time.Second {
		t.Errorf("left %v after %s", end.left, took)
	}
}

// A command that takes long does not keep its orchestrator: whoever adopts the session finds it running.
func TestHandoverDoesNotWaitForEver(t *testing.T) {
	end, took := serveUntil(t, someClaim(), takes(50*time.Second), func(ctx context.Context, s stint) {
		s.running.Go(func() { s.l.do(ctx, post("/refresh", `{}`)) })
		synctest.Wait()
		s.stop()
	})
	if !end.left || took != settleLimit {
		t.Errorf("left %v after %s", end.left, took)
	}
}

// A session that was quit, or whose driver dies, has ended and is not handed over.
func TestHandoverOfWhatEnds(t *testing.T) {
	end, _ := serveUntil(t, someClaim(), takes(0), func(_ context.Context, s stint) {
		<-s.l.serving
		s.l.quit()
		s.stop()
	})
	if end.left || end.Reason != Completed {
		t.Errorf("quit before: %+v", end)
	}
	d := takes(time.Hour)
	d.err = &wire.Failure{Code: wire.FailureDriver, Message: "the browser exited"}
	end, _ = serveUntil(t, someClaim(), d, func(ctx context.Context, s stint) {
		s.running.Go(func() { s.l.do(ctx, post("/refresh", `{}`)) })
		synctest.Wait()
		s.stop()
		synctest.Wait()
		close(d.done)
	})
	if end.left || end.Reason != DriverFailed {
		t.Errorf("died meanwhile: %+v", end)
	}
}

// Without its lease an orchestrator leaves the session within the margin that the lease has, and does not end it; nothing else
// makes it leave.
func TestLostLeaseLeavesTheSession(t *testing.T) {
	for _, c := range []struct {
		cause error
		left  bool
		as    Reason
	}{{ErrLeaseLost, true, LeaseLost}, {errCancelled, false, Cancelled}} {
		end, took := serveUntil(t, someClaim(), takes(time.Minute), func(ctx context.Context, s stint) {
			s.running.Go(func() { s.l.do(ctx, post("/refresh", `{}`)) })
			synctest.Wait()
			s.lose(c.cause)
			<-s.l.closed
			if a := s.l.do(ctx, post("/refresh", `{}`)); c.left && outcome(a) != "not_run" {
				t.Errorf("a command after %v: %s", c.cause, a.Body)
			}
		})
		if end.left != c.left || end.Reason != c.as || took >= leaseMargin || c.left != (took > 0) {
			t.Errorf("%v: left %v as %s after %s", c.cause, end.left, end.Reason, took)
		}
	}
}

// The time a session may run counts from when it first ran, the time it may idle from its adoption.
func TestTimesOfAnAdoptedSession(t *testing.T) {
	c := someClaim()
	c.Adopted, c.Ran = true, 45*time.Minute
	busy := func(ctx context.Context, s stint) {
		for range 20 {
			s.l.do(ctx, post("/refresh", `{}`))
		}
	}
	if end, took := serveUntil(t, c, takes(time.Minute-time.Second), busy); end.Reason != Deadline || took != 15*time.Minute {
		t.Errorf("ended as %s after %s", end.Reason, took)
	}
	if end, took := serveUntil(t, c, takes(0), func(context.Context, stint) {}); end.Reason != Idle || took != c.Idle {
		t.Errorf("ended as %s after %s", end.Reason, took)
	}
	c.Ran = 2 * time.Hour
	if end, took := serveUntil(t, c, takes(0), func(context.Context, stint) {}); end.Reason != Deadline || took != 0 {
		t.Errorf("ended as %s after %s", end.Reason, took)
	}
}

// An adopted session's profile is looked for on all its sites, since nobody knows where the session has been.
func TestPagesOfAnAdoptedSession(t *testing.T) {
	c := someClaim()
	o := New(Deps{Log: zap.NewNop()})
	snapshot := &profilestate.Snapshot{Origins: []profilestate.Origin{{Origin: "https://shop.example"}, {Origin: "https://bank.example"}}}
	for _, adopted := range []bool{false, true} {
		c.Adopted = adopted
		l := newLive(c, o.journal, time.Now)
		l.visit("https://shop.example/cart?x")
		want := []string{"https://shop.example/cart"}
		if adopted {
			want = append(want, "https://shop.example", "https://bank.example")
		}
		if got := (&openedProfile{o: o, l: l, snapshot: snapshot}).pages(); !slices.Equal(got, want) {
			t.Errorf("adopted %v: %v", adopted, got)
		}
	}
}

// What ends an attempt to start or to adopt, and what becomes of the session then.
func TestWhatEndsAnAttempt(t *testing.T) {
	o := New(Deps{Log: zap.NewNop()})
	lost, lose := context.WithCancelCause(t.Context())
	lose(ErrLeaseLost)
	stopped, stop := context.WithCancelCause(t.Context())
	stop(errDrained)
	for name, c := range map[string]struct {
		ctx     context.Context
		err     error
		adopted bool
		as      Reason
		left    bool
	}{
		"lost lease while starting":    {lost, context.Canceled, false, LeaseLost, false},
		"lost lease while adopting":    {lost, context.Canceled, true, LeaseLost, true},
		"stopped while starting":       {stopped, context.Canceled, false, Drained, false},
		"stopped while adopting":       {stopped, context.Canceled, true, LeaseLost, true},
		"the host does not have it":    {t.Context(), &wire.Failure{Code: wire.FailureGone}, true, HostLost, false},
		"too much is unacknowledged":   {t.Context(), driverproxy.ErrOverflow, true, StreamOverflow, false},
		"the host says so":             {t.Context(), &wire.Failure{Code: wire.FailureOverflow}, true, StreamOverflow, false},
		"the profile cannot be opened": {t.Context(), errors.New("damaged"), false, ProfileConflict, false},
	} {
		claim := someClaim()
		claim.Adopted = c.adopted
		end := o.ended(c.ctx, newLive(claim, o.journal, time.Now), name, ProfileConflict, c.err)
		if end.Reason != c.as || end.left != c.left {
			t.Errorf("%s: %s, left %v", name, end.Reason, end.left)
		}
	}
}
