package orchestrator

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// Those that are silent are taken for gone only once the database has been asked again and again for long enough: not after an
// outage, nor after a pause of our own.
func TestSteady(t *testing.T) {
	var s steady
	now := time.Unix(1000, 0)
	run := func(d time.Duration) (enough bool) {
		for end := now.Add(d); now.Before(end); {
			now = now.Add(tick)
			enough = s.longEnough(now)
		}
		return enough
	}
	if run(settled) || !run(2*tick) {
		t.Error("from the start")
	}
	now = now.Add(time.Minute) // stopped
	if run(tick) || run(settled-tick) || !run(2*tick) {
		t.Error("after a pause")
	}
	s = steady{} // as reap does after an error
	if run(settled) || !run(2*tick) {
		t.Error("after an outage")
	}
}

// reaped counts how often it is asked to end what nobody holds.
type reaped struct {
	SessionStore
	calls int
}

func (r *reaped) Reap(context.Context, string, bool) ([]Reason, error) {
	r.calls++
	return nil, nil
}

// After a pause in which every lease ran out, those that had sessions hand them over before anything is taken for nobody's.
func TestNothingIsReapedAfterAPause(t *testing.T) {
	for _, ttl := range []time.Duration{2 * time.Second, 15 * time.Second, 30 * time.Second} {
		now := time.Unix(1000, 0)
		r := &reaped{}
		o := New(Deps{Log: zap.NewNop(), Sessions: r, LeaseTTL: ttl, Now: func() time.Time { return now }})
		look := func(after time.Duration) int {
			now = now.Add(after)
			before := r.calls
			o.reap(t.Context())
			return r.calls - before
		}
		if look(0) != 1 || look(tick) != 1 || look(3*tick) != 1 {
			t.Error("without a pause it is not looked")
		}
		for _, pause := range []time.Duration{time.Hour, -time.Hour} {
			awake := time.Duration(0)
			for got := look(pause); got == 0; got = look(tick) {
				awake += tick
			}
			if renewed := ttl / 3; awake <= renewed || awake > renewed+2*tick {
				t.Errorf("leases of %s are reaped after %s, when holders may take %s to renew them", ttl, awake, renewed)
			}
		}
	}
}

// A machine that sleeps has a clock that stands still, and one that does not: what pauses are told by has no reading of the former.
func TestPausesAreOfTheWallClock(t *testing.T) {
	o := New(Deps{Log: zap.NewNop(), Sessions: &reaped{}})
	o.reap(t.Context())
	for what, at := range map[string]time.Time{"looked": o.looked, "answering": o.answering.last} {
		if at.IsZero() || at != at.Round(0) { // unlike Equal it sees the reading
			t.Errorf("%s: %v", what, at)
		}
	}
}

// unconfirmed is a store in which nobody says that a client is there, until confirm is closed; its waiter is silent and not known to be gone.
type unconfirmed struct {
	SessionStore
	confirm chan struct{}
	asked   int
}

func (u *unconfirmed) Confirmed(context.Context, string, int64) (confirmed, gone bool, err error) {
	u.asked++
	select {
	case <-u.confirm:
		return true, false, nil
	default:
		return false, false, ErrUnavailable // which is no answer either
	}
}

// A claim waits for its confirmation, also when the notification of it is lost, and not for ever.
func TestAwaitedHasALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &unconfirmed{confirm: make(chan struct{})}
		o := New(Deps{ID: "here", Log: zap.NewNop(), Sessions: u})
		wait := func(waiter string) (time.Duration, error) {
			began := time.Now()
			err := o.awaited(t.Context(), newLive(Claim{Session: "s", Term: 1, Waiter: waiter}, o.journal, time.Now))
			return time.Since(began), err
		}
		if took, err := wait("there"); took != confirmLimit || !errors.Is(err, errNobodyWaits) || u.asked < 5 {
			t.Errorf("unconfirmed: %s, %v, asked %d times", took, err, u.asked)
		}
		if took, err := wait("here"); took != confirmLimit || !errors.Is(err, errNobodyWaits) {
			t.Errorf("here, and its client has left: %s, %v", took, err)
		}
		time.AfterFunc(2500*time.Millisecond, func() { close(u.confirm) })
		if took, err := wait("there"); took != 3*time.Second || err != nil {
			t.Errorf("confirmed, and not told: %s, %v", took, err)
		}
		o.attend("s", true)
		for _, waiter := range []string{"here", ""} {
			if took, err := wait(waiter); took != 0 || err != nil {
				t.Errorf("%q: %s, %v", waiter, took, err)
			}
		}
	})
}

// silent is a store in which the waiter of every session has been silent for too long, and confirms after a while.
type silent struct {
	SessionStore
	confirm <-chan struct{}
	away    bool // the database
}

func (s *silent) Confirmed(context.Context, string, int64) (confirmed, gone bool, err error) {
	select {
	case <-s.confirm:
		return true, true, nil
	default:
		return false, true, nil
	}
}

func (s *silent) Reap(context.Context, string, bool) ([]Reason, error) {
	if s.away {
		return nil, ErrUnavailable
	}
	return nil, nil
}

// After an outage nobody has had the time to say that it is there: who is silent then is waited for, as anybody is, and costs no client
// its session. Otherwise who is silent is gone.
func TestSilentAfterAnOutageIsNotGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		confirm := make(chan struct{})
		s := &silent{confirm: confirm}
		o := New(Deps{ID: "here", Log: zap.NewNop(), Sessions: s})
		wait := func() (time.Duration, error) {
			began := time.Now()
			err := o.awaited(t.Context(), newLive(Claim{Session: "s", Term: 1, Waiter: "there"}, o.journal, time.Now))
			return time.Since(began), err
		}
		reaps := func(long time.Duration) {
			for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(tick) {
				o.reap(t.Context())
			}
		}
		reaps(settled + 2*tick)
		if took, err := wait(); took != 0 || !errors.Is(err, errNobodyWaits) {
			t.Errorf("gone: %s, %v", took, err)
		}
		for _, pause := range []func(){
			func() { s.away = true; reaps(tick); s.away = false },
			func() { time.Sleep(time.Minute) },
			func() { reaps(settled + 2*tick); time.Sleep(time.Minute); reaps(2 * tick) },
		} {
			pause()
			if took, err := wait(); took != confirmLimit || !errors.Is(err, errNobodyWaits) {
				t.Errorf("silent: %s, %v", took, err)
			}
		}
		time.AfterFunc(2500*time.Millisecond, func() { close(confirm) })
		if took, err := wait(); took != 3*time.Second || err != nil {
			t.Errorf("it was silent, and is there: %s, %v", took, err)
		}
	})
}
