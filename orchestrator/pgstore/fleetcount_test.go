package pgstore_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// TestFleetCounts: every state is there, and the longest queues are told apart.
func TestFleetCounts(t *testing.T) {
	s := open(t, 3)
	ctx := t.Context()
	up(t, s, "mac-2", 1)
	invite(t, s, "mac-3", time.Hour)
	empty, err := s.Fleet(ctx)
	must(t, err)
	want := api.Fleet{
		Hosts:    map[string]int{"invited": 1, "registered": 0, "up": 2, "degraded": 0, "stale": 0, "revoked": 0},
		Closed:   map[string]int{"cordoned": 0, "draining": 0, "drained": 0, "damped": 0},
		Devices:  map[string]int{"ready": 4, "busy": 0, "quarantined": 0, "offline": 0, "cordoned": 0},
		Sessions: map[string]int{"queued": 0, "starting": 0, "running": 0, "finishing": 0},
		Queue:    api.FleetQueue{Accounts: []api.AccountQueue{}},
	}
	ignore := cmpopts.IgnoreFields(api.Fleet{}, "At")
	if d := cmp.Diff(want, empty, ignore); d != "" || time.Since(empty.At).Abs() > time.Minute {
		t.Errorf("idle (-want +got), as of %s:\n%s", empty.At, d)
	}
	for range 2 {
		mustCreate(t, s, wish("a"))
	}
	running := mustClaim(t, s)
	must(t, s.Running(ctx, running.Session, running.Term, nil))
	mustClaim(t, s)
	for range 3 {
		mustCreate(t, s, wish("b"))
	}
	mustCreate(t, s, wish("a"))
	must(t, s.DrainHost(ctx, "mac-1", time.Hour, ada))
	must(t, s.DevicesChanged(ctx, "mac-2", []wire.Device{wire.Device{Name: "phone-0", State: wire.DeviceQuarantined, Reason: "locked"}}))
	store(t, s, orchestrator.LinkReport{Host: "mac-2"})
	busy, err := s.Fleet(ctx)
	must(t, err)
	want.Closed["draining"] = 1
	want.Devices = map[string]int{"ready": 1, "busy": 2, "quarantined": 1, "offline": 0, "cordoned": 3}
	want.Sessions = map[string]int{"queued": 4, "starting": 1, "running": 1, "finishing": 0}
	want.Queue.Accounts = []api.AccountQueue{{Account: "b", Queued: 3}, {Account: "a", Queued: 1, Active: 2}}
	if d := cmp.Diff(want, busy, ignore, cmpopts.IgnoreFields(api.AccountQueue{}, "OldestSeconds"), cmpopts.IgnoreFields(api.FleetQueue{}, "OldestSeconds")); d != "" {
		t.Errorf("busy (-want +got):\n%s", d)
	}
	// More accounts than are told apart.
	for i := range 60 {
		name := fmt.Sprintf("c-%02d", i)
		_, err := s.PutAccount(ctx, name, api.PutAccount{Recordings: "eu"}, orchestrator.Act{By: "test"})
		must(t, err)
		mustCreate(t, s, wish(name))
	}
	crowd, err := s.Fleet(ctx)
	must(t, err)
	if q := crowd.Queue; len(q.Accounts) != 50 || q.More != 12 || q.Accounts[0].Account != "b" || crowd.Sessions["queued"] != 64 {
		t.Errorf("%d accounts told apart, %d more, first %+v; %d queued", len(q.Accounts), q.More, q.Accounts[0], crowd.Sessions["queued"])
	}
}
