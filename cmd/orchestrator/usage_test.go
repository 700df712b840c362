package main

import (
	"encoding/json"
	"slices"
	"sync"
	"testing"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// usage sees which driver of which device has a session, and what the clients were told of their commands.
type usage struct {
	t *testing.T

	mu       sync.Mutex // guards what follows
	drivers  map[string][]*used
	commands map[int]*command
	next     int
}

// used is a driver of a device; it is one session's.
type used struct {
	*drivertest.Driver
	open bool
	ever int
}

// command is what became of one, as its client was told.
type command struct {
	session string
	fate    fate
}

type fate string

const (
	answered fate = "answered"
	notRun   fate = "not run"
	unknown  fate = "unknown"
)

func newUsage(t *testing.T) *usage {
	return &usage{t: t, drivers: map[string][]*used{}, commands: map[int]*command{}}
}

func (u *usage) driver(device string) *drivertest.Driver {
	d := &used{Driver: drivertest.New()}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.drivers[device] = append(u.drivers[device], d)
	d.OnSession(func(open bool) {
		u.mu.Lock()
		defer u.mu.Unlock()
		d.open = open
		if !open {
			return
		}
		d.ever++
		for _, other := range u.drivers[device] {
			if other != d && other.open && !dead(other.Driver) {
				u.t.Errorf("%s has two sessions at once", device)
			}
		}
	})
	return d.Driver
}

func dead(d *drivertest.Driver) bool {
	select {
	case <-d.Dead():
		return true
	default:
		return false
	}
}

// send numbers a command of a session.
func (u *usage) send(session string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.next++
	u.commands[u.next] = &command{session: session, fate: unknown}
	return u.next
}

func (u *usage) told(number int, f fate) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.commands[number].fate = f
}

func (u *usage) count(of fate) (n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, c := range u.commands {
		if c.fate == of {
			n++
		}
	}
	return n
}

// check compares what clients were told with what drivers did. It gives the number of commands of each fate.
func (u *usage) check() map[fate]int {
	u.mu.Lock()
	defer u.mu.Unlock()
	ran, of := map[int]int{}, map[string]*used{}
	for device, drivers := range u.drivers {
		for _, d := range drivers {
			if d.open && !dead(d.Driver) {
				u.t.Errorf("%s is left with a session", device)
			}
			if d.ever > 1 {
				u.t.Errorf("a driver of %s had %d sessions", device, d.ever)
			}
			var order []int
			for _, e := range d.Executed() {
				var body struct {
					Args []int `json:"args"`
				}
				if e.Route != webdriver.RouteExecuteScript || json.Unmarshal([]byte(e.Body), &body) != nil || len(body.Args) != 1 {
					continue
				}
				n := body.Args[0]
				ran[n]++
				order = append(order, n)
				c := u.commands[n]
				if had := of[c.session]; had != nil && had != d {
					u.t.Errorf("session %s was on two devices, or twice on one", c.session)
				}
				of[c.session] = d
			}
			if !slices.IsSorted(order) {
				u.t.Errorf("%s executed %v: a command of an older term came after one of a newer", device, order)
			}
		}
	}
	fates := map[fate]int{}
	sessions := map[*used]string{}
	for s, d := range of {
		if was := sessions[d]; was != "" {
			u.t.Errorf("sessions %s and %s were on one driver", was, s)
		}
		sessions[d] = s
	}
	for n, c := range u.commands {
		fates[c.fate]++
		switch {
		case ran[n] > 1:
			u.t.Errorf("command %d of %s was executed %d times", n, c.session, ran[n])
		case c.fate == answered && ran[n] == 0:
			u.t.Errorf("command %d of %s was answered and not executed", n, c.session)
		case c.fate == notRun && ran[n] > 0:
			u.t.Errorf("command %d of %s was executed, and its client was told that it was not", n, c.session)
		}
	}
	return fates
}
