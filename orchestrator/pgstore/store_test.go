package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/orchestrator/pgstore/pgcluster/pgtest"
)

var postgres pgtest.Shared

func TestMain(m *testing.M) { os.Exit(postgres.Run(m)) }

// schema is what the first Open of a database makes.
func schema(ctx context.Context, dsn string) error {
	s, err := pgstore.Open(ctx, dsn, "", zap.NewNop())
	if err == nil {
		s.Close()
	}
	return err
}

// open gives a store on an empty database with two accounts, and a host with so many free devices.
func open(t *testing.T, devices int) *pgstore.Store {
	t.Helper()
	ctx := t.Context()
	s, err := pgstore.Open(ctx, postgres.Filled(t, "schema", schema), "eu-1", zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	for id, placement := range map[string]string{"a": "replicated", "b": "eu"} {
		if _, err := s.PutAccount(ctx, id, api.PutAccount{Recordings: placement}, orchestrator.Act{By: "test"}); err != nil {
			t.Fatal(err)
		}
	}
	if devices > 0 {
		up(t, s, "mac-1", devices)
	}
	return s
}

// up enrols a host and brings it up with so many devices.
func up(t *testing.T, s *pgstore.Store, name string, devices int) {
	t.Helper()
	ctx := t.Context()
	tok := invite(t, s, name, time.Hour)
	if _, err := s.Redeem(ctx, tok.Addr, newOffer(t)); err != nil {
		t.Fatal(err)
	}
	hello := wire.Hello{Protocol: wire.Version, Host: name}
	for i := range devices {
		hello.Devices = append(hello.Devices, wire.Device{Name: fmt.Sprintf("phone-%d", i), Kind: "fake", Model: "iPhone 15", PlatformName: "iOS", State: wire.DeviceReady})
	}
	if err := s.HostUp(ctx, hello); err != nil {
		t.Fatal(err)
	}
}

func wish(account string) orchestrator.NewSession {
	return orchestrator.NewSession{
		ID: uuid.NewString(), Account: account, Recording: true, Idle: time.Minute, Max: time.Hour, Command: time.Minute,
		Queue: time.Minute, QueueLimit: 1000,
	}
}

func mustCreate(t *testing.T, s *pgstore.Store, n orchestrator.NewSession) {
	t.Helper()
	if _, err := s.Create(t.Context(), n); err != nil {
		t.Fatal(err)
	}
}

// claim is a claim of one session, at most.
func claim(ctx context.Context, s *pgstore.Store, holder string, hosts []string, ttl time.Duration) (c orchestrator.Claim, ok bool, err error) {
	got, _, err := s.Claim(ctx, holder, hosts, ttl, 1, 0)
	if err != nil || len(got) == 0 {
		return c, false, err
	}
	return got[0], true, nil
}

func mustClaim(t *testing.T, s *pgstore.Store) orchestrator.Claim {
	t.Helper()
	c, ok, err := claim(t.Context(), s, "test", []string{"mac-1"}, time.Minute)
	if err != nil || !ok {
		t.Fatalf("claim: %v, %v", ok, err)
	}
	return c
}

func finish(s *pgstore.Store, c orchestrator.Claim, r orchestrator.Reason) error {
	return s.Finish(context.Background(), orchestrator.Event{Session: c.Session, Term: c.Term, Seq: c.LastEvent + 1, At: time.Now(), Reason: r}, "", 0)
}

func TestCreateRefuses(t *testing.T) {
	s := open(t, 1)
	p, err := s.CreateProfile(t.Context(), uuid.NewString(), api.CreateProfile{Account: "a", Name: "p"})
	if err != nil {
		t.Fatal(err)
	}
	var invalid *orchestrator.InvalidError
	var full *orchestrator.QueueFullError
	for name, c := range map[string]struct {
		change func(*orchestrator.NewSession)
		is     func(error) bool
	}{
		"unknown account":      {func(n *orchestrator.NewSession) { n.Account = "nobody" }, func(err error) bool { return errors.As(err, &invalid) && invalid.Field == "account" }},
		"unknown profile":      {func(n *orchestrator.NewSession) { n.Profile = "none" }, func(err error) bool { return errors.As(err, &invalid) && invalid.Field == "profile" }},
		"another's profile":    {func(n *orchestrator.NewSession) { n.Account, n.Profile = "b", p.ID }, func(err error) bool { return errors.As(err, &invalid) && invalid.Field == "profile" }},
		"no such model":        {func(n *orchestrator.NewSession) { n.Want.Model = "iPhone 1" }, func(err error) bool { return errors.Is(err, orchestrator.ErrNoSuchDevice) }},
		"no such label":        {func(n *orchestrator.NewSession) { n.Want.Labels = map[string]string{"x": "y"} }, func(err error) bool { return errors.Is(err, orchestrator.ErrNoSuchDevice) }},
		"no room":              {func(n *orchestrator.NewSession) { n.QueueLimit = 0 }, func(err error) bool { return errors.As(err, &full) }},
		"text no database has": {func(n *orchestrator.NewSession) { n.Account = "caf\u00e9' OR 1=1 --" }, func(err error) bool { return errors.As(err, &invalid) }},
	} {
		t.Run(name, func(t *testing.T) {
			n := wish("a")
			c.change(&n)
			if _, err := s.Create(t.Context(), n); !c.is(err) {
				t.Fatalf("got %v", err)
			}
			if _, err := s.Get(t.Context(), n.ID); !errors.Is(err, orchestrator.ErrNotFound) {
				t.Fatalf("a refused session is stored: %v", err)
			}
		})
	}
}

func TestProfileHasOneWriter(t *testing.T) {
	s := open(t, 2)
	p, err := s.CreateProfile(t.Context(), uuid.NewString(), api.CreateProfile{Account: "a", Name: "p"})
	if err != nil {
		t.Fatal(err)
	}
	var won sync.Map
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			n := wish("a")
			n.Profile = p.ID
			_, err := s.Create(context.Background(), n)
			var held *orchestrator.ProfileHeldError
			switch {
			case err == nil:
				won.Store(n.ID, true)
			case !errors.As(err, &held):
				t.Errorf("got %v", err)
			}
		})
	}
	group.Wait()
	winners := 0
	won.Range(func(any, any) bool { winners++; return true })
	if winners != 1 {
		t.Fatalf("%d sessions hold the profile", winners)
	}
	// When it has ended, the next may have it.
	c := mustClaim(t, s)
	if err := finish(s, c, orchestrator.Completed); err != nil {
		t.Fatal(err)
	}
	n := wish("a")
	n.Profile = p.ID
	mustCreate(t, s, n)
}

func TestClaimsNeverShareADevice(t *testing.T) {
	const devices, sessions = 3, 40
	s := open(t, devices)
	for range sessions {
		mustCreate(t, s, wish("a"))
	}
	var mu sync.Mutex
	busy := map[string]string{}
	seen := map[string]bool{}
	var group sync.WaitGroup
	deadline, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for w := range 6 {
		group.Go(func() {
			for deadline.Err() == nil {
				c, ok, err := claim(deadline, s, fmt.Sprint(w), []string{"mac-1"}, time.Minute)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if !ok {
					done := len(seen) == sessions
					mu.Unlock()
					if done {
						return
					}
					continue
				}
				if busy[c.Device] != "" || seen[c.Session] {
					t.Errorf("session %s, device %s: claimed twice", c.Session, c.Device)
				}
				busy[c.Device], seen[c.Session] = c.Session, true
				mu.Unlock()
				if err := s.Running(deadline, c.Session, c.Term, nil); err != nil {
					t.Error(err)
				}
				mu.Lock()
				if busy[c.Device] != c.Session {
					t.Errorf("device %s was given to %s under %s", c.Device, busy[c.Device], c.Session)
				}
				delete(busy, c.Device)
				mu.Unlock()
				if err := finish(s, c, orchestrator.Completed); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if len(seen) != sessions {
		t.Fatalf("%d of %d sessions ran", len(seen), sessions)
	}
}

func TestTermFencesEveryWrite(t *testing.T) {
	s := open(t, 1)
	n := wish("a")
	mustCreate(t, s, n)
	c := mustClaim(t, s)
	if err := s.Running(t.Context(), c.Session, c.Term, []byte(`{"browserName":"safari"}`)); err != nil {
		t.Fatal(err)
	}
	old := c
	old.Term--
	for name, err := range map[string]error{
		"running":   s.Running(t.Context(), c.Session, old.Term, nil),
		"finishing": s.Finishing(t.Context(), c.Session, old.Term),
		"finish":    finish(s, old, orchestrator.Completed),
		"renew":     second(s.Renew(t.Context(), c.Session, old.Term, time.Minute)),
	} {
		if !errors.Is(err, orchestrator.ErrLeaseLost) {
			t.Errorf("%s under an old term: %v", name, err)
		}
	}
	if err := s.AppendEvents(t.Context(), []orchestrator.Event{{Session: c.Session, Term: old.Term, Seq: 99, At: time.Now(), Kind: orchestrator.EventRunning}}); err != nil {
		t.Fatal(err)
	}
	if events, err := s.Events(t.Context(), c.Session, 2, 10); err != nil || len(events) != 0 {
		t.Fatalf("events of an old term are stored: %v, %v", events, err)
	}
	if err := finish(s, c, orchestrator.Completed); err != nil {
		t.Fatal(err)
	}
	if err := finish(s, c, orchestrator.Idle); !errors.Is(err, orchestrator.ErrLeaseLost) {
		t.Fatalf("a second ending: %v", err)
	}
	v, err := s.Get(t.Context(), c.Session)
	if err != nil || v.State != api.Ended || v.Reason != "completed" {
		t.Fatalf("got %+v, %v", v, err)
	}
}

func second[A any](_ A, err error) error { return err }

func TestReapEndsWhatNobodyHolds(t *testing.T) {
	s := open(t, 1)
	late := wish("a")
	late.Queue = -time.Second
	held, lost := wish("a"), wish("a")
	mustCreate(t, s, lost)
	if _, ok, err := claim(t.Context(), s, "test", []string{"mac-1"}, -time.Second); !ok || err != nil {
		t.Fatal(ok, err)
	}
	mustCreate(t, s, late)
	mustCreate(t, s, held)
	if n, err := s.Reap(t.Context(), "self", true); len(n) != 2 || err != nil {
		t.Fatalf("reaped %v, %v", n, err)
	}
	for id, want := range map[string]string{late.ID: "device_unavailable", lost.ID: "lease_lost", held.ID: ""} {
		v, err := s.Get(t.Context(), id)
		if err != nil || v.Reason != want {
			t.Errorf("got reason %q, want %q (%v)", v.Reason, want, err)
		}
		events, err := s.Events(t.Context(), id, 0, 10)
		if err != nil || (want != "" && events[len(events)-1].Reason != want) {
			t.Errorf("log ends with %+v, %v", events, err)
		}
	}
	if c := mustClaim(t, s); c.Session != held.ID {
		t.Fatal("the device was not freed")
	}
}

func TestCancel(t *testing.T) {
	s := open(t, 1)
	running, queued := wish("a"), wish("a")
	mustCreate(t, s, running)
	c := mustClaim(t, s)
	mustCreate(t, s, queued)
	for _, id := range []string{running.ID, queued.ID} {
		if err := s.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if v, err := s.Get(t.Context(), queued.ID); err != nil || v.Reason != "cancelled" {
		t.Fatalf("queued: %+v, %v", v, err)
	}
	if end, err := s.Renew(t.Context(), c.Session, c.Term, time.Minute); err != nil || end != orchestrator.Cancelled {
		t.Fatalf("running: %v, %v", end, err)
	}
	if err := s.Cancel(t.Context(), "none"); !errors.Is(err, orchestrator.ErrNotFound) {
		t.Fatalf("unknown: %v", err)
	}
}

func TestRequeuedSessionRunsElsewhere(t *testing.T) {
	s := open(t, 2)
	n := wish("a")
	mustCreate(t, s, n)
	first := mustClaim(t, s)
	back := orchestrator.Event{Session: first.Session, Term: first.Term, Seq: first.LastEvent + 1, At: time.Now(), Kind: orchestrator.EventRequeued}
	for range 2 { // the first answer may be lost
		if again, err := s.Requeue(t.Context(), back); !again || err != nil {
			t.Fatal(again, err)
		}
	}
	second := mustClaim(t, s)
	if second.Session != first.Session || second.Term <= first.Term || second.Device == first.Device || second.LastEvent != back.Seq+1 {
		t.Fatalf("claimed %+v after %+v", second, first)
	}
	if again, err := s.Requeue(t.Context(), back); again || err != nil {
		t.Fatalf("under an old term: %v, %v", again, err)
	}
	if err := s.Cancel(t.Context(), n.ID); err != nil {
		t.Fatal(err)
	}
	back.Term = second.Term
	if again, err := s.Requeue(t.Context(), back); again || err != nil {
		t.Fatalf("after a cancel: %v, %v", again, err)
	}
}

// What one orchestrator says of a host does not take it from another.
func TestReplicasKeepTheirHostsApart(t *testing.T) {
	ctx := t.Context()
	dsn := postgres.Database(t)
	var replicas []*pgstore.Store
	for _, name := range []string{"eu-1", "eu-2"} {
		s, err := pgstore.Open(ctx, dsn, name, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		replicas = append(replicas, s)
	}
	one, two := replicas[0], replicas[1]
	up(t, one, "mac-1", 1)
	ready := func() bool {
		free, err := one.DeviceFree(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return free
	}
	if err := two.AllHostsDown(ctx); err != nil || !ready() {
		t.Fatalf("the start of another took the host away: %v", err)
	}
	if err := two.HostUp(ctx, wire.Hello{Host: "mac-1", Devices: []wire.Device{{Name: "phone-0", State: wire.DeviceReady}}}); err != nil {
		t.Fatal(err)
	}
	two.HostDown(ctx, "mac-1", errors.New("cut"))
	if !ready() {
		t.Fatal("another's lost socket took the host away")
	}
	one.HostDown(ctx, "mac-1", errors.New("cut"))
	if ready() {
		t.Fatal("nobody is connected to the host, and its device is free")
	}
}

func TestListPages(t *testing.T) {
	s := open(t, 1)
	want := map[string]bool{}
	for range 25 {
		n := wish("a")
		mustCreate(t, s, n)
		want[n.ID] = true
	}
	mustCreate(t, s, wish("b"))
	f := pgstore.SessionFilter{Account: "a", Limit: 10}
	for pages := 0; ; pages++ {
		l, err := s.List(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range l.Sessions {
			if !want[v.ID] {
				t.Fatalf("%s came twice, or is another account's", v.ID)
			}
			delete(want, v.ID)
		}
		if l.Next == "" {
			break
		}
		f.Cursor = l.Next
	}
	if len(want) != 0 {
		t.Fatalf("%d sessions are on no page", len(want))
	}
	var invalid *orchestrator.InvalidError
	if _, err := s.List(t.Context(), pgstore.SessionFilter{Limit: 1, Cursor: "?"}); !errors.As(err, &invalid) {
		t.Fatalf("a bad cursor: %v", err)
	}
}

// TestDeviceThatIsNotListedAnyMore is there for its session alone: nobody is matched to it, and with the session it goes.
func TestDeviceThatIsNotListedAnyMore(t *testing.T) {
	s := open(t, 1)
	mustCreate(t, s, wish("a"))
	c := mustClaim(t, s)
	must(t, s.HostUp(t.Context(), wire.Hello{Protocol: wire.Version, Host: c.Host}))
	devices := func() []api.Device {
		h, err := s.Host(t.Context(), c.Host)
		must(t, err)
		return h.DeviceList
	}
	if list := devices(); len(list) != 1 || list[0].State != string(wire.DeviceQuarantined) || !strings.Contains(list[0].Reason, "does not have it any more") {
		t.Errorf("while its session runs: %+v", list)
	}
	if _, err := s.Create(t.Context(), wish("a")); !errors.Is(err, orchestrator.ErrNoSuchDevice) {
		t.Errorf("a session that only it could have: %v", err)
	}
	must(t, finish(s, c, orchestrator.Completed))
	if list := devices(); len(list) != 0 {
		t.Errorf("afterwards: %+v", list)
	}
	hello := wire.Hello{Protocol: wire.Version, Host: c.Host, Devices: []wire.Device{{Name: c.Device, Kind: "fake", State: wire.DeviceReady}}}
	must(t, s.HostUp(t.Context(), hello))
	mustCreate(t, s, wish("a"))
	mustClaim(t, s)
}
