package host

import "time"

// Clock is the time by which devices are judged: when they are probed, how long a quarantine lasts. How long a driver may take to
// answer follows the system's clock.
type Clock interface {
	Now() time.Time
	// Timer's channel gets a value when d has passed, unless stop was called before.
	Timer(d time.Duration) (c <-chan time.Time, stop func())
}

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

func (systemClock) Timer(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTimer(d)
	return t.C, func() { t.Stop() }
}
