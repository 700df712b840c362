package pgstore_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/profilestate"
)

func prospect(t *testing.T, s *pgstore.Store, n orchestrator.NewSession) orchestrator.Prospect {
	t.Helper()
	p, err := s.Prospect(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// free are the devices that have nothing against them, as HOST/DEVICE, in order.
func free(p orchestrator.Prospect) (names []string) {
	for _, c := range p.Candidates {
		if len(c.Misses)+len(c.Reasons) == 0 {
			names = append(names, c.Device.Host+"/"+c.Device.Name)
		}
	}
	return names
}

func damp(t *testing.T, s *pgstore.Store, host string) {
	t.Helper()
	if err := s.StoreLinks(t.Context(), "netstack", []orchestrator.LinkReport{{Host: host, Damping: &driverproxy.Damping{Losses: 4, Left: time.Minute}}}); err != nil {
		t.Fatal(err)
	}
}

// TestProspectIsWhatIsClaimed: in random fleets, for random wants, what a claim does is what was said before it, and nothing was
// created by saying it.
func TestProspectIsWhatIsClaimed(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	s := open(t, 0)
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	by := orchestrator.Act{By: "test"}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	reach := []string{"mac-0", "mac-1", "mac-2"}
	for i := range 4 {
		up(t, s, fmt.Sprintf("mac-%d", i), 1)
	}
	damp(t, s, "mac-3") // which is why it is not in reach
	started, queued, refused := 0, 0, 0
	for range 60 {
		for _, host := range append(reach, "mac-3") {
			hello := wire.Hello{Protocol: wire.Version, Host: host}
			for d := range 3 {
				hello.Devices = append(hello.Devices, wire.Device{Name: fmt.Sprintf("phone-%d", d), Kind: pick("fake", "safaridriver"), Model: pick("iPhone 15", "iPhone 14"),
					PlatformName: "iOS", PlatformVersion: pick("17.4", "17.5", "18.0", "beta"), Country: pick("US", "DE"), Labels: map[string]string{"pool": pick("x", "y")},
					State: wire.DeviceState(pick("ready", "ready", "ready", "busy", "quarantined")), BiDi: r.IntN(2) == 0})
			}
			must(s.HostUp(t.Context(), hello))
		}
		damp(t, s, "mac-3")
		for _, host := range reach {
			if must(s.UncordonHost(t.Context(), host, by)); r.IntN(3) == 0 {
				must(s.DrainHost(t.Context(), host, time.Hour, by))
			}
			for d := range 3 {
				if must(s.UncordonDevice(t.Context(), host, fmt.Sprintf("phone-%d", d), by)); r.IntN(4) == 0 {
					must(s.CordonDevice(t.Context(), host, fmt.Sprintf("phone-%d", d), by))
				}
			}
		}
		s.ShuffleDevices(t)
		n := wish("a")
		n.Limits.Concurrent = 4
		n.Want = api.DeviceWant{Kind: pick("", "", "", "", "none", "fake"), Model: pick("", "", "iPhone 15"), OSVersion: pick("", "", "17", ">=17.5 <18", "18"), Country: pick("", "", "US"), Host: pick("", "", "mac-1", "mac-3")}
		if r.IntN(3) == 0 {
			n.Want.Labels = map[string]string{"pool": pick("x", "y")}
		}
		n.BiDi = r.IntN(4) == 0
		p := prospect(t, s, n)
		if got, err := s.List(t.Context(), pgstore.SessionFilter{State: "queued", Limit: 9}); err != nil || len(got.Sessions) > 0 {
			t.Fatalf("queued: %+v, %v", got.Sessions, err)
		}
		if _, err := s.Create(t.Context(), n); fmt.Sprint(err) != fmt.Sprint(p.Refused) {
			t.Fatalf("%+v: told %v, got %v", n.Want, p.Refused, err)
		} else if err != nil {
			refused++
			continue
		}
		got, _, err := s.Claim(t.Context(), "test", reach, time.Minute, 1, n.Limits.Concurrent)
		must(err)
		switch {
		case p.Starts != (len(got) == 1):
			t.Fatalf("%+v: told it starts %v (%+v), claimed %+v\n%+v", n.Want, p.Starts, p.Queue, got, p.Candidates)
		case !p.Starts:
			queued++
			must(s.Cancel(t.Context(), n.ID))
		case got[0].Host+"/"+got[0].Device != free(p)[0]:
			t.Fatalf("%+v: told %v, claimed %s/%s", n.Want, free(p), got[0].Host, got[0].Device)
		default:
			if started++; started%3 > 0 {
				must(finish(s, got[0], orchestrator.Completed))
			}
		}
	}
	if started == 0 || queued == 0 || refused == 0 {
		t.Errorf("%d started, %d queued, %d refused", started, queued, refused)
	}
	if wrong := s.Counts(t); len(wrong) > 0 {
		t.Error(wrong)
	}
}

// A profile is a reason where no orchestrator that may give the device a session has the profile's volume; a fork's is that of what
// it begins with.
func TestProspectOfAProfile(t *testing.T) {
	s := open(t, 1)
	ref := profile(t, s)
	if err := s.Publish(t.Context(), profilestate.Writer{}, ref, head(t, s, ref), generation(1, 0, "", "one")); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []api.ProfileMode{api.ProfileExclusive, api.ProfileReadonly, api.ProfileFork} {
		n := wish(ref.Account)
		if n.Profile, n.Mode = ref.Profile, mode; mode == api.ProfileFork {
			n.Profile, n.ForkOf = "of its own", ref.Profile
		}
		for volume, keys := range map[string]string{"another": "[profile]", "v": "[]"} {
			has(t, s, volume)
			p := prospect(t, s, n)
			var got []api.Key
			for _, r := range p.Candidates[0].Reasons {
				got = append(got, r.Key)
			}
			if fmt.Sprint(got) != keys || p.Starts != (volume == "v") || p.Refused != nil {
				t.Errorf("%s on %s: %v, starts %v, %v", mode, volume, got, p.Starts, p.Refused)
			}
		}
	}
	if l, err := s.Profiles(t.Context(), ref.Account, ""); err != nil || len(l) != 1 {
		t.Errorf("explaining a fork made a profile: %+v, %v", l, err)
	}
}

// placeOf is where a queued session is.
func placeOf(t *testing.T, s *pgstore.Store, id string, concurrent int) api.QueuePlace {
	t.Helper()
	p, ok, err := s.QueuePlace(t.Context(), id, concurrent)
	if err != nil || !ok {
		t.Fatalf("place: %v, %v", ok, err)
	}
	return p
}

// TestPlaceIsTheOrderOfClaims: with accounts of several weights and wants that compete, the positions that are told are the order in
// which the sessions are claimed, as devices become free one by one.
func TestPlaceIsTheOrderOfClaims(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	s := open(t, 1)
	for i, account := range []string{"a", "b", "c"} {
		if _, err := s.PutAccount(t.Context(), account, api.PutAccount{Recordings: "eu"}, orchestrator.Act{By: "test"}); err != nil {
			t.Fatal(err)
		}
		s.Weigh(t, account, i+1)
	}
	var ids []string
	for range 30 {
		n := wish([]string{"a", "b", "c"}[r.IntN(3)])
		n.Want.Model = []string{"", "iPhone 15"}[r.IntN(2)]
		n.Priority = r.IntN(2)
		mustCreate(t, s, n)
		ids = append(ids, n.ID)
	}
	if p := prospect(t, s, wish("a")); p.Starts || p.Queue == nil || p.Queue.Position < 2 {
		t.Errorf("a device is free for a session that comes after others: %+v, %+v", p.Starts, p.Queue)
	}
	claimed := 0
	for len(ids) > 0 {
		at := map[int]string{}
		for _, id := range ids {
			at[placeOf(t, s, id, 0).Position] = id
		}
		if len(at) != len(ids) || at[1] == "" || at[len(ids)] == "" {
			t.Fatalf("of %d sessions, after %d: positions %v", len(ids), claimed, at)
		}
		c := mustClaim(t, s)
		if c.Session != at[1] {
			t.Fatalf("after %d, position 1 is %s, but claimed is %s, which was told %+v", claimed, at[1], c.Session, placeOf(t, s, at[1], 0))
		}
		if err := finish(s, c, orchestrator.Completed); err != nil {
			t.Fatal(err)
		}
		claimed++
		ids = slices.DeleteFunc(ids, func(id string) bool { return id == c.Session })
	}
}

// TestExpectedWait: nothing is said before anything has ended; then it is position times duration over devices, or the account's
// own turn where its quota is what it waits for.
func TestExpectedWait(t *testing.T) {
	s := open(t, 2)
	for range 2 {
		mustCreate(t, s, wish("a"))
	}
	running := []orchestrator.Claim{mustClaim(t, s), mustClaim(t, s)}
	first, second := wish("b"), wish("b")
	mustCreate(t, s, first)
	mustCreate(t, s, second)
	if p := placeOf(t, s, second.ID, 0); p.ExpectedWaitSeconds != nil || p.Position != 2 || p.Devices != 2 || p.WaitsFor != api.WaitsForDevice {
		t.Errorf("before anything has ended: %+v", p)
	}
	s.AgeStarted(t, running[0].Session, 100*time.Second)
	if err := finish(s, running[0], orchestrator.Completed); err != nil {
		t.Fatal(err)
	}
	if c := mustClaim(t, s); c.Session != first.ID {
		t.Fatal("another was claimed")
	}
	if p := placeOf(t, s, second.ID, 0); p.Position != 1 || p.ExpectedWaitSeconds == nil || *p.ExpectedWaitSeconds < 50 || *p.ExpectedWaitSeconds > 51 {
		t.Errorf("one of two devices, each taken for 100 s: %+v", p)
	}
	if p := placeOf(t, s, second.ID, 1); p.WaitsFor != api.WaitsForQuota || p.ExpectedWaitSeconds != nil {
		t.Errorf("over the quota of an account none of whose sessions has ended: %+v", p)
	}
	if _, ok, err := s.QueuePlace(t.Context(), first.ID, 0); ok || err != nil {
		t.Errorf("of a session that was claimed: %v, %v", ok, err)
	}
	// A cordoned device is none, and one that is free makes no wait.
	if err := s.CordonDevice(t.Context(), "mac-1", "phone-0", orchestrator.Act{By: "test"}); err != nil {
		t.Fatal(err)
	}
	if p := placeOf(t, s, second.ID, 0); p.Devices != 1 {
		t.Errorf("with a device cordoned: %+v", p)
	}
}
