package pgstore_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
)

var ada = orchestrator.Act{By: "ada", Reason: "new macOS"}

// audited are the lines of the audit log, oldest first, without their times.
func audited(t *testing.T, s *pgstore.Store) (lines []string) {
	t.Helper()
	page, err := s.Audit(t.Context(), pgstore.AuditFilter{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range slices.Backward(page.Entries) {
		what := strings.TrimSuffix(e.Host+"/"+e.Device, "/")
		session := ""
		if e.Session != "" {
			session = " session"
		}
		lines = append(lines, strings.TrimSpace(e.Actor+" "+e.Action+" "+what+session+": "+e.Reason+"; "+e.Detail))
	}
	return lines
}

func claimable(t *testing.T, s *pgstore.Store) bool {
	t.Helper()
	_, ok, err := claim(t.Context(), s, "test", []string{"mac-1", "mac-2"}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func cordonOf(t *testing.T, s *pgstore.Store, host string) *api.Cordon {
	t.Helper()
	h, err := s.Host(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	return h.Cordon
}

// must is for what has no other result.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCordonKeepsNewSessionsOff(t *testing.T) {
	s := open(t, 2)
	ctx := t.Context()
	mustCreate(t, s, wish("a"))
	running := mustClaim(t, s)
	must(t, s.CordonHost(ctx, "mac-1", ada))
	must(t, s.CordonHost(ctx, "mac-1", orchestrator.Act{By: "bob"})) // changes nothing
	if c := cordonOf(t, s, "mac-1"); c == nil || c.State != api.Cordoned || c.By != "ada" || c.Reason != "new macOS" || c.Until != nil {
		t.Errorf("cordon is %+v", c)
	}
	mustCreate(t, s, wish("a"))
	if claimable(t, s) {
		t.Error("a session was put on a cordoned host")
	}
	if free, err := s.DeviceFree(ctx); err != nil || free {
		t.Errorf("a device of a cordoned host is offered: %v %v", free, err)
	}
	if end, err := s.Renew(ctx, running.Session, running.Term, time.Minute); err != nil || end != "" {
		t.Errorf("the session that ran is to end as %q: %v", end, err)
	}
	// A new hello, also with a device that was not there before, opens nothing.
	must(t, s.HostUp(ctx, wire.Hello{Host: "mac-1", Devices: []wire.Device{{Name: "phone-0", State: wire.DeviceBusy}, {Name: "phone-1", State: wire.DeviceReady}, {Name: "new", State: wire.DeviceReady}}}))
	if claimable(t, s) {
		t.Error("a session was put on a cordoned host that came back")
	}
	must(t, s.UncordonHost(ctx, "mac-1", ada))
	must(t, s.UncordonHost(ctx, "mac-1", ada))
	if cordonOf(t, s, "mac-1") != nil || !claimable(t, s) {
		t.Error("the host is still closed")
	}
	want := []string{"ada cordon mac-1: new macOS;", "ada uncordon mac-1: new macOS; 1 session on it"}
	if got := audited(t, s); !slices.Equal(got, want) {
		t.Errorf("audit:\n%s", strings.Join(got, "\n"))
	}
}

func TestCordonOfADevice(t *testing.T) {
	s := open(t, 2)
	ctx := t.Context()
	must(t, s.CordonDevice(ctx, "mac-1", "phone-0", ada))
	must(t, s.CordonDevice(ctx, "mac-1", "phone-0", ada))
	mustCreate(t, s, wish("a"))
	mustCreate(t, s, wish("a"))
	if c := mustClaim(t, s); c.Device != "phone-1" {
		t.Errorf("a session was put on %s", c.Device)
	}
	if claimable(t, s) {
		t.Error("a session was put on a cordoned device")
	}
	// The host's cordon and its own are apart.
	must(t, s.CordonHost(ctx, "mac-1", ada))
	must(t, s.UncordonHost(ctx, "mac-1", ada))
	if claimable(t, s) {
		t.Error("opening the host opened the device")
	}
	h, err := s.Host(ctx, "mac-1")
	must(t, err)
	if d := h.DeviceList[0]; d.Cordon == nil || d.Cordon.By != "ada" || h.DeviceList[1].Cordon != nil {
		t.Errorf("devices %+v", h.DeviceList)
	}
	must(t, s.UncordonDevice(ctx, "mac-1", "phone-0", ada))
	if !claimable(t, s) {
		t.Error("the device is still closed")
	}
	if got := audited(t, s); len(got) != 4 || got[0] != "ada cordon mac-1/phone-0: new macOS;" {
		t.Errorf("audit:\n%s", strings.Join(got, "\n"))
	}
}

func TestDrainEndsWhatIsLeft(t *testing.T) {
	s := open(t, 2)
	ctx := t.Context()
	up(t, s, "mac-2", 1)
	mustCreate(t, s, wish("a"))
	mustCreate(t, s, wish("a"))
	elsewhere := wish("a")
	elsewhere.Want.Host = "mac-2"
	mustCreate(t, s, elsewhere)
	var on []orchestrator.Claim
	for range 3 {
		c, ok, err := claim(ctx, s, "test", []string{"mac-1", "mac-2"}, time.Minute)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		on = append(on, c)
	}
	must(t, s.DrainHost(ctx, "mac-1", time.Hour, ada))
	drained := func(c orchestrator.Claim) bool {
		t.Helper()
		end, err := s.Renew(ctx, c.Session, c.Term, time.Minute)
		must(t, err)
		return end == orchestrator.Drained
	}
	sessionsOn := 0
	for _, c := range on {
		if c.Host == "mac-1" {
			sessionsOn++
		}
	}
	if n, err := s.EndDrained(ctx); err != nil || n != 0 || slices.ContainsFunc(on, drained) {
		t.Errorf("before the deadline %d sessions are to end: %v", n, err)
	}
	if c := cordonOf(t, s, "mac-1"); c.State != api.Draining || c.Until == nil || time.Until(*c.Until) > time.Hour {
		t.Errorf("%+v", c)
	}
	s.PassDrain(t, "mac-1")
	if n, err := s.EndDrained(ctx); err != nil || n != sessionsOn {
		t.Errorf("%d sessions are to end, of %d: %v", n, sessionsOn, err)
	}
	if n, err := s.EndDrained(ctx); err != nil || n != 0 {
		t.Errorf("told again: %d %v", n, err)
	}
	for _, c := range on {
		if drained(c) != (c.Host == "mac-1") {
			t.Errorf("session on %s: to end as drained: %v", c.Host, c.Host != "mac-1")
		}
		if c.Host == "mac-1" {
			must(t, finish(s, c, orchestrator.Drained))
		}
	}
	if c := cordonOf(t, s, "mac-1"); c.State != api.Drained {
		t.Errorf("%+v", c)
	}
	// Drained already: another drain is one as well, with its own deadline.
	must(t, s.DrainHost(ctx, "mac-1", 2*time.Hour, ada))
	if c := cordonOf(t, s, "mac-1"); c.State != api.Drained || time.Until(*c.Until) < time.Hour {
		t.Errorf("%+v", c)
	}
	// Removed, and back under its name, it is as any other.
	must(t, s.Revoke(ctx, "mac-1", 0, ada))
	if c := cordonOf(t, s, "mac-1"); c != nil {
		t.Errorf("a removed host is %+v", c)
	}
	for _, err := range []error{s.CordonHost(ctx, "mac-1", ada), s.DrainHost(ctx, "mac-1", time.Hour, ada), s.UncordonHost(ctx, "mac-1", ada)} {
		var conflict *orchestrator.ConflictError
		if !errors.As(err, &conflict) || !strings.Contains(conflict.Problem, "was removed") {
			t.Errorf("of a removed host: %v", err)
		}
	}
	up(t, s, "mac-1", 1)
	mustCreate(t, s, wish("a"))
	if !claimable(t, s) {
		t.Error("a host that joined anew is closed")
	}
	got := audited(t, s)
	for _, want := range []string{"ada drain mac-1: new macOS; deadline 1h0m0s, 2 sessions on it", "driftstack end-drained mac-1 session: ; the deadline of the drain has passed",
		"ada drain mac-1: new macOS; deadline 2h0m0s, 0 sessions on it", "ada remove mac-1: new macOS; 0 sessions on it"} {
		if !slices.Contains(got, want) && sessionsOn == 2 {
			t.Errorf("not in the audit log: %q\n%s", want, strings.Join(got, "\n"))
		}
	}
}

func TestOperatingOnNothing(t *testing.T) {
	s := open(t, 1)
	ctx := t.Context()
	for what, err := range map[string]error{
		"there is no host \"mac-9\"":                     s.DrainHost(ctx, "mac-9", time.Hour, ada),
		"there is no host \"mac-8\"":                     s.CordonHost(ctx, "mac-8", ada),
		"there is no host \"mac-7\"":                     s.UncordonHost(ctx, "mac-7", ada),
		"there is no host \"mac-6\"":                     s.Revoke(ctx, "mac-6", 0, ada),
		"there is no device \"x\" on host \"mac-1\"":     s.CordonDevice(ctx, "mac-1", "x", ada),
		"there is no device \"y\" on host \"mac-1\"":     s.UncordonDevice(ctx, "mac-1", "y", ada),
		"there is no device \"phone-0\" on host \"m\"; ": second(s.ForceRelease(ctx, "m", "phone-0", ada)),
	} {
		if !errors.Is(err, orchestrator.ErrNotFound) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	var conflict *orchestrator.ConflictError
	if _, err := s.ForceRelease(ctx, "mac-1", "phone-0", ada); !errors.As(err, &conflict) || !strings.Contains(conflict.Problem, "its host says that it is ready") {
		t.Errorf("a free device: %v", err)
	}
	if got := audited(t, s); len(got) != 0 {
		t.Errorf("nothing was done, and the audit log has %q", got)
	}
}

func TestForceRelease(t *testing.T) {
	s := open(t, 1)
	ctx := t.Context()
	mustCreate(t, s, wish("a"))
	c := mustClaim(t, s)
	must(t, s.Running(ctx, c.Session, c.Term, nil))
	for range 2 { // the second time changes nothing
		if of, err := s.ForceRelease(ctx, "mac-1", "phone-0", ada); err != nil || of != c.Session {
			t.Fatalf("%q, %v", of, err)
		}
	}
	if end, err := s.Renew(ctx, c.Session, c.Term, time.Minute); err != nil || end != orchestrator.ForceReleased {
		t.Errorf("its holder is told %q, %v", end, err)
	}
	if d, err := s.Devices(ctx); err != nil || d[0].Session != c.Session {
		t.Errorf("the device is free before its host has said so: %+v %v", d, err)
	}
	must(t, finish(s, c, orchestrator.ForceReleased))

	// Nobody has the session any more, and nobody may adopt it.
	mustCreate(t, s, wish("a"))
	c = mustClaim(t, s)
	must(t, s.Running(ctx, c.Session, c.Term, nil))
	s.SetLease(t, c.Session, -time.Second)
	if of, err := s.ForceRelease(ctx, "mac-1", "phone-0", ada); err != nil || of != c.Session {
		t.Fatalf("%q, %v", of, err)
	}
	v, err := s.Get(ctx, c.Session)
	if must(t, err); v.State != api.Ended || v.Reason != "force_released" {
		t.Errorf("an orphan is %s %s", v.State, v.Reason)
	}
	if _, ok, err := s.Adopt(ctx, "other", []string{"mac-1"}, time.Minute); ok || err != nil {
		t.Errorf("it was adopted: %v", err)
	}
	log, err := s.Events(ctx, c.Session, 0, 100)
	if must(t, err); log[len(log)-1].Kind != "ended" || log[len(log)-1].Reason != "force_released" {
		t.Errorf("its log ends with %+v", log[len(log)-1])
	}
	want := []string{"ada force-release mac-1/phone-0 session: new macOS; running; its session was told to end",
		"ada force-release mac-1/phone-0 session: new macOS; running; nobody had its session any more"}
	if got := audited(t, s); !slices.Equal(got, want) {
		t.Errorf("audit:\n%s", strings.Join(got, "\n"))
	}
}

func TestAuditIsAppendOnly(t *testing.T) {
	s := open(t, 1)
	ctx := t.Context()
	for range 3 {
		must(t, s.DrainHost(ctx, "mac-1", time.Hour, ada))
	}
	for _, sql := range []string{`UPDATE audit SET actor = 'eve'`, `DELETE FROM audit`, `TRUNCATE audit`} {
		if err := s.Try(t, sql); err == nil || !strings.Contains(err.Error(), "append-only") {
			t.Errorf("%s: %v", sql, err)
		}
	}
	first, err := s.Audit(ctx, pgstore.AuditFilter{Host: "mac-1", Limit: 2})
	if err != nil || len(first.Entries) != 2 || first.Next == 0 {
		t.Fatalf("%+v %v", first, err)
	}
	rest, err := s.Audit(ctx, pgstore.AuditFilter{Host: "mac-1", Limit: 2, Before: first.Next})
	if err != nil || len(rest.Entries) != 1 || rest.Next != 0 || rest.Entries[0].ID >= first.Entries[1].ID {
		t.Errorf("%+v %v", rest, err)
	}
	if none, err := s.Audit(ctx, pgstore.AuditFilter{Host: "mac-2", Limit: 2}); err != nil || none.Entries == nil || len(none.Entries) != 0 {
		t.Errorf("%+v %v", none, err)
	}
}

// TestNoClaimAfterACordon: whoever cordons a host and then counts its sessions has counted all that there will be.
func TestNoClaimAfterACordon(t *testing.T) {
	s := open(t, 8)
	for range 64 {
		mustCreate(t, s, wish("a"))
	}
	ctx, stop := context.WithCancel(context.Background())
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for ctx.Err() == nil {
				c, ok, err := claim(context.Background(), s, "test", []string{"mac-1"}, time.Minute)
				if err != nil {
					t.Error(err)
					return
				}
				if ok && c.LastEvent%2 == 0 {
					if err := finish(s, c, orchestrator.Completed); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	for range 20 {
		must(t, s.CordonHost(t.Context(), "mac-1", ada))
		before, err := s.Host(t.Context(), "mac-1")
		must(t, err)
		for range 3 {
			after, err := s.Host(t.Context(), "mac-1")
			if must(t, err); after.Sessions > before.Sessions {
				t.Fatalf("%d sessions after the cordon, then %d", before.Sessions, after.Sessions)
			}
			before = after
		}
		must(t, s.UncordonHost(t.Context(), "mac-1", ada))
		for range 8 {
			mustCreate(t, s, wish("a"))
		}
	}
	stop()
	group.Wait()
}

// TestDampedHostShows: with its reason, and no device of it is offered.
func TestDampedHostShows(t *testing.T) {
	ctx := t.Context()
	dsn := postgres.Database(t)
	var replicas []*pgstore.Store
	for _, name := range []string{"eu-1", "eu-2"} {
		r, err := pgstore.Open(ctx, dsn, name, zap.NewNop())
		must(t, err)
		t.Cleanup(r.Close)
		replicas = append(replicas, r)
	}
	s, other := replicas[0], replicas[1]
	up(t, s, "mac-1", 1)
	store(t, s, orchestrator.LinkReport{Host: "mac-1", Damping: &driverproxy.Damping{Left: 8 * time.Minute, Losses: 3}})
	h := hostOf(t, s)
	if h.State != api.HostDegraded || !strings.Contains(h.Reason, "link to eu-1 was lost 3 times lately: no new sessions over it before ") {
		t.Errorf("%s: %s", h.State, h.Reason)
	}
	if h.DampedUntil == nil || time.Until(*h.DampedUntil) > 8*time.Minute || time.Until(*h.DampedUntil) < 7*time.Minute || h.Links[0].Losses != 3 {
		t.Errorf("%+v", h)
	}
	if free, err := s.DeviceFree(ctx); err != nil || free {
		t.Errorf("its device is offered: %v", err)
	}
	// Another orchestrator's link is quiet: it gives it sessions.
	must(t, other.HostUp(ctx, wire.Hello{Host: "mac-1", Devices: []wire.Device{{Name: "phone-0", State: wire.DeviceReady}}}))
	if h := hostOf(t, s); h.DampedUntil != nil || !strings.Contains(h.Reason, "link to eu-1 was lost 3 times") {
		t.Errorf("%+v", h)
	}
	if free, err := s.DeviceFree(ctx); err != nil || !free {
		t.Errorf("its device is not offered: %v", err)
	}
	store(t, s, orchestrator.LinkReport{Host: "mac-1"})
	if h := hostOf(t, s); h.State != api.HostUp || h.Links[0].DampedUntil != nil || h.Links[0].Losses != 0 {
		t.Errorf("quiet again: %s: %s %+v", h.State, h.Reason, h.Links)
	}
}
