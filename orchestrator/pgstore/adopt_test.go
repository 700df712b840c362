package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
)

// mustRun makes a session that runs.
func mustRun(t *testing.T, s *pgstore.Store) orchestrator.Claim {
	t.Helper()
	mustCreate(t, s, wish("a"))
	c := mustClaim(t, s)
	if err := s.Running(t.Context(), c.Session, c.Term, []byte(`{"browserName":"safari"}`)); err != nil {
		t.Fatal(err)
	}
	return c
}

func adopt(t *testing.T, s *pgstore.Store, hosts ...string) (orchestrator.Claim, bool) {
	t.Helper()
	c, ok, err := s.Adopt(t.Context(), "other", hosts, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return c, ok
}

func handOver(s *pgstore.Store, c orchestrator.Claim) error {
	return s.HandOver(context.Background(), orchestrator.Event{Kind: orchestrator.EventHandedOver, Session: c.Session, Term: c.Term, Seq: c.LastEvent + 1, At: time.Now()})
}

func TestAdopt(t *testing.T) {
	s := open(t, 1)
	mine := mustRun(t, s)
	if c, ok := adopt(t, s, "mac-1"); ok {
		t.Fatalf("adopted under a valid lease: %+v", c)
	}
	s.AgeLease(t, mine.Session, time.Minute+time.Second)
	if c, ok := adopt(t, s, "mac-2"); ok {
		t.Fatalf("adopted on a host that is not connected: %+v", c)
	}
	s.AgeRunning(t, mine.Session, 10*time.Minute)
	c, ok := adopt(t, s, "mac-0", "mac-1")
	if !ok || c.Session != mine.Session || c.Term != mine.Term+1 || !c.Adopted || c.Host != mine.Host || c.Device != mine.Device || !c.Recording ||
		c.Account != "a" || c.Idle != time.Minute || c.Max != time.Hour || string(c.Capabilities) != `{"browserName": "safari"}` {
		t.Fatalf("adopted %v %+v after %+v", ok, c, mine)
	}
	if c.Ran < 10*time.Minute || c.Ran > 11*time.Minute {
		t.Errorf("it has been running for %s", c.Ran)
	}
	events, err := s.Events(t.Context(), c.Session, 0, 10)
	if last := events[len(events)-1]; err != nil || last.Kind != "adopted" || last.Seq != c.LastEvent || last.Term != c.Term {
		t.Errorf("log ends with %+v, %v", last, err)
	}
	if _, ok := adopt(t, s, "mac-1"); ok {
		t.Error("adopted twice")
	}
	// The former holder is fenced, in everything.
	for name, err := range map[string]error{
		"renew":     second(s.Renew(t.Context(), mine.Session, mine.Term, time.Minute)),
		"finishing": s.Finishing(t.Context(), mine.Session, mine.Term),
		"finish":    finish(s, mine, orchestrator.Completed),
		"hand over": handOver(s, mine),
	} {
		if !errors.Is(err, orchestrator.ErrLeaseLost) {
			t.Errorf("%s by the former holder: %v", name, err)
		}
	}
	if _, err := s.Renew(t.Context(), c.Session, c.Term, time.Minute); err != nil {
		t.Errorf("the new holder cannot renew: %v", err)
	}
}

// Only what runs is adopted, and only for as long as its host keeps it.
func TestAdoptLeaves(t *testing.T) {
	s := open(t, 4)
	mustCreate(t, s, wish("a"))
	starting := mustClaim(t, s)
	finishing := mustRun(t, s)
	if err := s.Finishing(t.Context(), finishing.Session, finishing.Term); err != nil {
		t.Fatal(err)
	}
	ended := mustRun(t, s)
	if err := finish(s, ended, orchestrator.Completed); err != nil {
		t.Fatal(err)
	}
	forgotten := mustRun(t, s)
	for _, c := range []orchestrator.Claim{starting, finishing, ended} {
		s.AgeLease(t, c.Session, time.Minute+time.Second)
	}
	s.AgeLease(t, forgotten.Session, time.Minute+orchestrator.AdoptWindow+time.Second)
	if c, ok := adopt(t, s, "mac-1"); ok {
		t.Fatalf("adopted %+v", c)
	}
	late := mustRun(t, s) // on the device of the one that ended
	s.AgeLease(t, late.Session, time.Minute+time.Second)
	s.MarkRevoked(t, "mac-1")
	if c, ok := adopt(t, s, "mac-1"); ok {
		t.Fatalf("adopted on a host that was removed: %+v", c)
	}
}

func TestReapLeavesWhatCanBeAdopted(t *testing.T) {
	s := open(t, 2)
	c := mustRun(t, s)
	mustCreate(t, s, wish("a"))
	starting := mustClaim(t, s)
	for _, id := range []string{c.Session, starting.Session} {
		s.AgeLease(t, id, time.Minute+time.Second)
	}
	if n, err := s.Reap(t.Context(), "self", true); len(n) != 1 || err != nil {
		t.Fatalf("reaped %v, %v: the one that was starting should be", n, err)
	}
	if v, err := s.Get(t.Context(), starting.Session); err != nil || v.Reason != "lease_lost" {
		t.Fatalf("%+v, %v", v, err)
	}
	s.AgeLease(t, c.Session, orchestrator.AdoptWindow)
	if n, err := s.Reap(t.Context(), "self", true); len(n) != 1 || err != nil {
		t.Fatalf("reaped %v, %v", n, err)
	}
	if v, err := s.Get(t.Context(), c.Session); err != nil || v.Reason != "lease_lost" {
		t.Fatalf("%+v, %v", v, err)
	}
}

func TestHandedOverSessionIsAdoptedAtOnce(t *testing.T) {
	s := open(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told := make(chan struct{}, 8)
	var listening sync.WaitGroup
	nothing := func(string) {}
	listening.Go(func() {
		s.Listen(ctx, pgstore.Wakes{Queue: func(string) {}, Adopt: func() { told <- struct{}{} }, Hosts: nothing, Session: nothing, Cancel: nothing})
	})
	defer listening.Wait()
	defer cancel()
	wait := func(what string) {
		t.Helper()
		select {
		case <-told:
		case <-time.After(20 * time.Second):
			t.Fatal(what)
		}
	}
	wait("not listening")
	mine := mustRun(t, s)
	if err := handOver(s, mine); err != nil {
		t.Fatal(err)
	}
	wait("nobody is told of the session that was handed over")
	// A renewal that was on its way must not take it back.
	if _, err := s.Renew(t.Context(), mine.Session, mine.Term, time.Hour); !errors.Is(err, orchestrator.ErrLeaseLost) {
		t.Fatalf("renewed after the handover: %v", err)
	}
	c, ok := adopt(t, s, "mac-1")
	if !ok || c.Session != mine.Session || c.Term <= mine.Term+1 {
		t.Fatalf("%v, %+v after %+v", ok, c, mine)
	}
	events, err := s.Events(t.Context(), c.Session, 0, 10)
	if err != nil || len(events) < 2 || events[len(events)-2].Kind != "handed_over" || events[len(events)-1].Kind != "adopted" {
		t.Fatalf("log: %+v, %v", events, err)
	}
	// What has not begun to run cannot be handed over.
	if err := finish(s, c, orchestrator.Completed); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, s, wish("a"))
	if err := handOver(s, mustClaim(t, s)); !errors.Is(err, orchestrator.ErrLeaseLost) {
		t.Fatalf("handed over while it was starting: %v", err)
	}
}

// The device of a session stays its own while its orchestrator is away, whatever its host says of it, and is free when the
// session that was adopted has ended.
func TestDeviceStaysWithItsSession(t *testing.T) {
	ctx := t.Context()
	s := open(t, 1)
	mine := mustRun(t, s)
	mustCreate(t, s, wish("a")) // waits for the device
	hello := func(state wire.DeviceState) {
		t.Helper()
		err := s.HostUp(ctx, wire.Hello{Host: "mac-1", Devices: []wire.Device{{Name: "phone-0", Kind: "fake", Model: "iPhone 15", State: state}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	untaken := func(when string) {
		t.Helper()
		if c, ok, err := claim(ctx, s, "other", []string{"mac-1"}, time.Minute); ok || err != nil {
			t.Fatalf("%s: the device was given to %+v, %v", when, c, err)
		}
	}
	if err := s.AllHostsDown(ctx); err != nil {
		t.Fatal(err)
	}
	untaken("its orchestrator was started anew")
	hello(wire.DeviceBusy)
	untaken("its host came back")
	if err := s.StoreLinks(ctx, "netstack", []orchestrator.LinkReport{{Host: "mac-1"}}); err != nil {
		t.Fatal(err)
	}
	s.AgeLease(t, mine.Session, time.Minute+time.Second)
	untaken("the lease is over")
	if err := s.DevicesChanged(ctx, "mac-1", []wire.Device{wire.Device{Name: "phone-0", Kind: "fake", Model: "iPhone 15", State: wire.DeviceReady}}); err != nil {
		t.Fatal(err)
	}
	untaken("its driver died meanwhile") // whoever adopts it finds that out
	hello(wire.DeviceBusy)
	// A host that is configured without the device keeps it until the session is over.
	if err := s.HostUp(ctx, wire.Hello{Host: "mac-1"}); err != nil {
		t.Fatal(err)
	}
	hello(wire.DeviceBusy)
	c, ok := adopt(t, s, "mac-1")
	if !ok || c.Device != "phone-0" {
		t.Fatalf("%v, %+v", ok, c)
	}
	devices, err := s.Devices(ctx)
	if err != nil || len(devices) != 1 || devices[0].Session != mine.Session || devices[0].State != "busy" {
		t.Fatalf("%+v, %v", devices, err)
	}
	if err := finish(s, c, orchestrator.Completed); err != nil {
		t.Fatal(err)
	}
	untaken("its host has not said that it is clean")
	hello(wire.DeviceReady)
	if next := mustClaim(t, s); next.Session == mine.Session || next.Device != "phone-0" {
		t.Fatalf("%+v", next)
	}
}

// A session that is cancelled while nobody holds it is cancelled by whoever adopts it.
func TestCancelReachesTheNextHolder(t *testing.T) {
	s := open(t, 1)
	mine := mustRun(t, s)
	if err := handOver(s, mine); err != nil {
		t.Fatal(err)
	}
	if err := s.Cancel(t.Context(), mine.Session); err != nil {
		t.Fatal(err)
	}
	c, ok := adopt(t, s, "mac-1")
	if !ok {
		t.Fatal("not adopted")
	}
	if end, err := s.Renew(t.Context(), c.Session, c.Term, time.Minute); end != orchestrator.Cancelled || err != nil {
		t.Fatal(end, err)
	}
}

// Of many that would adopt a session one does, and they pass over each other's.
func TestAdoptersDoNotMeet(t *testing.T) {
	const sessions = 12
	s := open(t, sessions)
	for range sessions {
		c := mustRun(t, s)
		s.AgeLease(t, c.Session, time.Minute+time.Second)
	}
	var mu sync.Mutex
	got := map[string]int64{}
	var adopters sync.WaitGroup
	for i := range 6 {
		adopters.Go(func() {
			for range 2 * sessions {
				c, ok, err := s.Adopt(context.Background(), fmt.Sprint(i), []string{"mac-1"}, time.Minute)
				if err != nil {
					t.Error(err)
				}
				if !ok {
					return
				}
				mu.Lock()
				if got[c.Session] != 0 {
					t.Errorf("session %s adopted as term %d and %d", c.Session, got[c.Session], c.Term)
				}
				got[c.Session] = c.Term
				mu.Unlock()
			}
		})
	}
	adopters.Wait()
	// One that gives up because the last is being taken is not missed: it comes back with the next tick.
	for range sessions {
		if c, ok := adopt(t, s, "mac-1"); ok {
			got[c.Session] = c.Term
		}
	}
	if len(got) != sessions {
		t.Fatalf("%d of %d sessions adopted", len(got), sessions)
	}
}

// Looking for what can be adopted costs the same, however many sessions run.
func TestAdoptUsesTheIndex(t *testing.T) {
	s := open(t, 1)
	s.ManyRunning(t, 5000)
	plan := s.ExplainAdopt(t, []string{"mac-1"})
	if !strings.Contains(plan, "sessions_lease") || strings.Contains(plan, "Seq Scan on sessions") {
		t.Fatalf("the plan does not use sessions_lease:\n%s", plan)
	}
	plan = s.ExplainReap(t)
	if !strings.Contains(plan, "sessions_lease") || strings.Contains(plan, "Seq Scan on sessions") {
		t.Fatalf("the plan of a reap does not use sessions_lease:\n%s", plan)
	}
}

// Another orchestrator's start does not disturb a session, nor does its own.
func TestAdoptionByAnotherStore(t *testing.T) {
	ctx := t.Context()
	dsn := postgres.Database(t)
	stores := map[string]*pgstore.Store{}
	for _, name := range []string{"eu-1", "eu-2"} {
		s, err := pgstore.Open(ctx, dsn, name, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		stores[name] = s
	}
	one, two := stores["eu-1"], stores["eu-2"]
	if _, err := one.PutAccount(ctx, "a", api.PutAccount{Recordings: "eu"}, orchestrator.Act{By: "test"}); err != nil {
		t.Fatal(err)
	}
	up(t, one, "mac-1", 1)
	if err := two.HostUp(ctx, wire.Hello{Host: "mac-1", Devices: []wire.Device{{Name: "phone-0", State: wire.DeviceReady}}}); err != nil {
		t.Fatal(err)
	}
	mine := mustRun(t, one)
	one.HostDown(ctx, "mac-1", errors.New("cut"))
	if err := handOver(one, mine); err != nil {
		t.Fatal(err)
	}
	c, ok := adopt(t, two, "mac-1")
	if !ok || c.Session != mine.Session {
		t.Fatalf("%v, %+v", ok, c)
	}
	if err := one.AllHostsDown(ctx); err != nil {
		t.Fatal(err)
	}
	if devices, err := two.Devices(ctx); err != nil || devices[0].Session != c.Session {
		t.Fatalf("%+v, %v", devices, err)
	}
}
