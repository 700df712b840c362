package host_test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/drivertest/safari"
	"github.com/driftstack/fleet/driverproxy/wire"
)

const tenants = "https://shop.example" // where the sessions of these tests are

// keeps is a phone on which what a session stores is there in the next, unless it is deleted.
func keeps(t *testing.T) *iphone {
	t.Helper()
	i := newIPhone(t)
	i.set(t, safari.Keeps, "")
	i.run(t, i.cfg)
	return i
}

// tenant is a session that has been at a site and has stored something there, as a cookie and in localStorage.
func (i *iphone) tenant(t *testing.T, id string) *driverproxy.Session {
	t.Helper()
	i.stores(t, drivertest.Stored{Local: map[string]map[string]string{tenants: {"token": id}}}) // the driver runs no scripts
	s := assign(t, i.stack, first(id, 1))
	do[any](t, s, "POST", "/url", map[string]string{"url": tenants + "/account/"})
	do[any](t, s, "POST", "/cookie", map[string]any{"cookie": map[string]any{"name": "login", "value": id}})
	return s
}

func (i *iphone) stores(t *testing.T, s drivertest.Stored) {
	t.Helper()
	if err := i.Keep(s); err != nil {
		t.Fatal(err)
	}
}

// left is what the phone still has.
func (i *iphone) left(t *testing.T) (cookies, items int) {
	t.Helper()
	s, err := i.Kept()
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range s.Local {
		items += len(list)
	}
	return len(s.Cookies), items
}

// token says whether the phone has what a tenant stored.
func (i *iphone) token(t *testing.T) bool {
	t.Helper()
	s, err := i.Kept()
	if err != nil {
		t.Fatal(err)
	}
	_, there := s.Local[tenants]["token"]
	return there
}

func wantWiped(t *testing.T, s *driverproxy.Session, want wire.Wiped) {
	t.Helper()
	if got := s.Wiped(); got == nil || *got != want {
		t.Errorf("wiped %+v, want %+v", got, want)
	}
}

// TestSessionIsWiped: what a session has stored is deleted by its end, also where the driver would keep it, and without Delete All
// Cookies. One that was nowhere costs nothing.
func TestSessionIsWiped(t *testing.T) {
	t.Parallel()
	i := keeps(t)
	i.set(t, safari.Sullen, "")
	s := i.tenant(t, "s1")
	do[any](t, s, "POST", "/window/new", map[string]string{"type": "tab"})
	release(t, s)
	wantWiped(t, s, wire.Wiped{Origins: 1, Verified: 1})
	if cookies, items := i.left(t); cookies+items != 0 {
		t.Errorf("%d cookies and %d items of localStorage are left", cookies, items)
	}
	i.ready(t, "phone")
	if n := i.count(t, "DELETE/window"); n != 1 {
		t.Errorf("%d windows were closed, want the other one", n)
	}
	before := i.count(t, "POST/url")
	idle := assign(t, i.stack, first("s2", 1))
	release(t, idle)
	if n := i.count(t, "POST/url"); n != before || idle.Wiped() != nil {
		t.Errorf("%d pages were opened for a session that was nowhere, and %+v wiped", n-before, idle.Wiped())
	}
}

// TestCookiesThatStay quarantine the device before anybody else has it, until they are gone.
func TestCookiesThatStay(t *testing.T) {
	t.Parallel()
	i := keeps(t)
	s := i.tenant(t, "s1")
	i.set(t, safari.Clings, "")
	var f *wire.Failure
	if err := s.Release(t.Context()); !errors.As(err, &f) || f.Code != wire.FailureCleanup || strings.Contains(f.Message, "shop.example") {
		t.Errorf("Release: %v, want cleanup_failed and no site", err)
	}
	wantWiped(t, s, wire.Wiped{Origins: 1, Left: 1})
	eventually(t, "quarantine", i.quarantined)
	if reason := i.dir.reason("phone"); !strings.Contains(reason, "clean-up failed") {
		t.Errorf("reason %q", reason)
	}
	i.refused(t, "next", wire.FailureDevice)
	tried := i.count(t, "session")
	i.clock.until(t, "trials", func() bool { return i.count(t, "session") >= tried+2 })
	if !i.quarantined() {
		t.Fatal("readmitted although the cookies are there")
	}
	i.clear(t, safari.Clings)
	i.clear(t, safari.Keeps)
	i.clock.until(t, "readmission", i.isReady)
	i.works(t, "after")
}

// TestKilledDriverLeavesThePhoneToBeLookedAt: with its driver a session loses the way to its browser. What that still has is found before
// the next client is there; and although it is deleted then, a phone that keeps anything stays in quarantine, for the canaries.
func TestKilledDriverLeavesThePhoneToBeLookedAt(t *testing.T) {
	t.Parallel()
	i := keeps(t)
	s := i.tenant(t, "s1")
	if err := syscall.Kill(pidOf(i.state, safari.Program), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	within(t, "the session ends", s.Done())
	release(t, s)
	wantWiped(t, s, wire.Wiped{Origins: 1, Unverified: 1})
	i.refused(t, "next", wire.FailureDevice)
	i.clock.until(t, "quarantine", i.quarantined)
	tried := i.count(t, "session")
	i.clock.until(t, "trials", func() bool { return i.count(t, "session") >= tried+3 })
	if !i.quarantined() {
		t.Fatal("readmitted although the phone keeps what sessions store")
	}
	if _, items := i.left(t); items > 2 || i.token(t) { // canaries
		t.Errorf("%d items are left", items)
	}
	i.clear(t, safari.Keeps)
	i.clock.until(t, "readmission", i.isReady)
	i.works(t, "after")
}

// TestSiteThatBreaksTheBrowser: what was not looked at for that is looked at before the next client is there.
func TestSiteThatBreaksTheBrowser(t *testing.T) {
	t.Parallel()
	i := keeps(t)
	s := i.tenant(t, "s1")
	do[any](t, s, "POST", "/url", map[string]string{"url": "https://breaks.example/"})
	i.set(t, safari.Fragile, "")
	if err := syscall.Kill(pidOf(i.state, safari.Program), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	within(t, "the session ends", s.Done())
	release(t, s)
	wantWiped(t, s, wire.Wiped{Origins: 2, Unverified: 2})
	i.clock.until(t, "quarantine", i.quarantined)
	i.clock.until(t, "what the session has left is found", func() bool { return !i.token(t) })
	if !i.quarantined() {
		t.Fatal("readmitted although the phone keeps what sessions store")
	}
	i.clear(t, safari.Keeps)
	i.clock.until(t, "readmission", i.isReady)
	i.works(t, "after")
}

// TestSiteThatBreaksEveryBrowser costs its device a quarantine and a few visits, not more. What it may have left is not known then; a phone that keeps anything
// is not had for that, for the canaries at a site that answers.
func TestSiteThatBreaksEveryBrowser(t *testing.T) {
	t.Parallel()
	for _, quirk := range []safari.Quirk{safari.Fragile, safari.Deadly} {
		t.Run(string(quirk), func(t *testing.T) {
			t.Parallel()
			i := keeps(t)
			s := assign(t, i.stack, first("s1", 1))
			do[any](t, s, "POST", "/url", map[string]string{"url": "https://breaks.example/"})
			i.set(t, quirk, "")
			if err := syscall.Kill(pidOf(i.state, safari.Program), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			within(t, "the session ends", s.Done())
			release(t, s)
			i.clock.until(t, "quarantine", i.quarantined)
			i.clock.until(t, "it is given up", func() bool { return i.count(t, "break") >= 3 })
			tried := i.count(t, "session")
			i.clock.until(t, "trials", func() bool { return i.count(t, "session") >= tried+4 })
			if !i.quarantined() {
				t.Fatal("readmitted although the phone keeps what sessions store")
			}
			i.clear(t, safari.Keeps)
			i.clock.until(t, "readmission", i.isReady)
			if n := i.count(t, "break"); n != 3 {
				t.Errorf("the site was gone to %d times, want 3", n)
			}
			i.works(t, "after")
		})
	}
}

// TestUnreachableCanarySite: where no canary can be planted nothing is proved, and a device that has something to prove is not had.
func TestUnreachableCanarySite(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	i.run(t, i.cfg)
	s := i.tenant(t, "s1")
	i.set(t, safari.Silent, "")
	if err := syscall.Kill(pidOf(i.state, safari.Program), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	within(t, "the session ends", s.Done())
	release(t, s)
	i.clock.until(t, "quarantine", i.quarantined)
	tried := i.count(t, "session")
	i.clock.until(t, "trials", func() bool { return i.count(t, "session") >= tried+2 })
	if !i.quarantined() {
		t.Fatal("readmitted without a canary")
	}
	i.clear(t, safari.Silent)
	i.clock.until(t, "readmission", i.isReady)
	i.works(t, "after")
}

// TestKilledDriverOfACleanPhone: where nothing is left the device is had again after two sessions of the host's own.
func TestKilledDriverOfACleanPhone(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	i.run(t, i.cfg)
	s := i.tenant(t, "s1")
	tried := i.count(t, "session")
	if err := syscall.Kill(pidOf(i.state, safari.Program), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	release(t, s)
	i.clock.until(t, "ready", i.isReady)
	if n := i.count(t, "session") - tried; n != 2 {
		t.Errorf("the host had %d sessions of its own, want 2", n)
	}
	i.works(t, "after")
}

// TestSessionThatIsNotEnded: a phone's browser is gone with the driver's session only.
func TestSessionThatIsNotEnded(t *testing.T) {
	t.Parallel()
	i := newIPhone(t)
	i.run(t, i.cfg)
	s := i.tenant(t, "s1")
	i.set(t, safari.Stuck, "")
	var f *wire.Failure
	if err := s.Release(t.Context()); !errors.As(err, &f) || f.Code != wire.FailureCleanup {
		t.Errorf("Release: %v, want cleanup_failed", err)
	}
	wantWiped(t, s, wire.Wiped{Origins: 1, Verified: 1})
	eventually(t, "quarantine", i.quarantined)
	tried := i.count(t, "session")
	i.clock.until(t, "trials", func() bool { return i.count(t, "session") >= tried+2 })
	if !i.quarantined() {
		t.Fatal("readmitted although its sessions do not end")
	}
	i.clear(t, safari.Stuck)
	i.clock.until(t, "readmission", i.isReady)
	i.works(t, "after")
}

// TestSilentSite is no fault of the device, which is had again at once; the site is looked at when there is occasion.
func TestSilentSite(t *testing.T) {
	t.Parallel()
	i := keeps(t)
	s := i.tenant(t, "s1")
	i.set(t, safari.Silent, "")
	release(t, s)
	wantWiped(t, s, wire.Wiped{Origins: 1, Unverified: 1})
	i.ready(t, "phone")
	i.clear(t, safari.Silent)
	for n := range 2 { // the second session has the driver killed, and what the first has left is found
		other := assign(t, i.stack, first(fmt.Sprint("other-", n), 1))
		do[any](t, other, "POST", "/url", map[string]string{"url": "https://other.example/"})
		if n == 1 {
			if err := syscall.Kill(pidOf(i.state, safari.Program), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		release(t, other)
		if n == 0 {
			i.ready(t, "phone")
		}
	}
	i.clock.until(t, "quarantine", i.quarantined)
	i.clock.until(t, "what the first session has left is found", func() bool { return !i.token(t) })
	i.clear(t, safari.Keeps)
	i.clock.until(t, "readmission", i.isReady)
}
