package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
)

// fill claims as an orchestrator does that was woken once: again for as long as it is told that there may be more. It says how many were claimed of whom.
func fill(t *testing.T, s *pgstore.Store, hosts []string) map[string]int {
	t.Helper()
	served := map[string]int{}
	for {
		got, left, err := s.Claim(t.Context(), "test", hosts, time.Minute, 64, 0)
		must(t, err)
		for _, c := range got {
			served[c.Account]++
		}
		if len(got) == 0 && left {
			t.Fatal("others have locked what they have not")
		}
		if !left {
			return served
		}
	}
}

// TestOneWakeFillsAllDevices: whatever is queued before what fits, each free device has a session that fits once an orchestrator was woken.
func TestOneWakeFillsAllDevices(t *testing.T) {
	pinned := func(account, host string, priority int) orchestrator.NewSession {
		n := wish(account)
		n.Want.Host, n.Priority = host, priority
		return n
	}
	for name, c := range map[string]struct {
		devices []int // of each host
		queue   func(create func(n int, w func() orchestrator.NewSession))
		want    map[string]int
	}{
		"each session for one host": {[]int{1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, func(create func(int, func() orchestrator.NewSession)) {
			for h := range 10 {
				create(20, func() orchestrator.NewSession { return pinned("a", fmt.Sprint("mac-", h), 0) })
			}
		}, map[string]int{"a": 10}},
		"one account has much more than its part": {[]int{64}, func(create func(int, func() orchestrator.NewSession)) {
			create(100, func() orchestrator.NewSession { return wish("a") })
			create(1, func() orchestrator.NewSession { return wish("b") })
		}, map[string]int{"a": 63, "b": 1}},
		"two for one device, and one for another": {[]int{1, 1}, func(create func(int, func() orchestrator.NewSession)) {
			create(1, func() orchestrator.NewSession { return pinned("a", "mac-0", 0) })
			create(1, func() orchestrator.NewSession { return pinned("b", "mac-0", 0) })
			create(1, func() orchestrator.NewSession { return pinned("c", "mac-1", 0) })
		}, map[string]int{"a": 1, "c": 1}},
		"many with priority for one device": {[]int{1, 63}, func(create func(int, func() orchestrator.NewSession)) {
			create(70, func() orchestrator.NewSession { return pinned("a", "mac-0", 1) })
			create(63, func() orchestrator.NewSession { return wish("a") })
		}, map[string]int{"a": 64}},
		"two accounts for the same hosts": {[]int{1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, func(create func(int, func() orchestrator.NewSession)) {
			for h := range 10 {
				create(2, func() orchestrator.NewSession { return pinned("a", fmt.Sprint("mac-", h), 0) })
				create(2, func() orchestrator.NewSession { return pinned("b", fmt.Sprint("mac-", h), 0) })
			}
		}, map[string]int{"a": 5, "b": 5}},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, 0)
			must(t, second(s.PutAccount(t.Context(), "c", api.PutAccount{Recordings: "eu"}, orchestrator.Act{By: "test"})))
			var hosts []string
			for h, n := range c.devices {
				hosts = append(hosts, fmt.Sprint("mac-", h))
				up(t, s, hosts[h], n)
			}
			c.queue(func(n int, w func() orchestrator.NewSession) {
				for range n {
					mustCreate(t, s, w())
				}
			})
			served := fill(t, s, hosts)
			if fmt.Sprint(served) != fmt.Sprint(c.want) {
				t.Errorf("%v were claimed, not %v", served, c.want)
			}
			if wrong := s.Counts(t); len(wrong) > 0 {
				t.Error(wrong)
			}
		})
	}
}

// TestBatchesOfSeveralWantsAreFair: also where sessions want different devices, of which there are too few, several claimed at once are of whom they would
// be of one by one, and the same.
func TestBatchesOfSeveralWantsAreFair(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	hosts := []string{"mac-0", "mac-1", "mac-2"}
	accounts := []string{"a", "b", "c"}
	ready := func() (*pgstore.Store, map[string]string) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		s := open(t, 0)
		for _, h := range hosts {
			up(t, s, h, 5)
		}
		for _, id := range accounts {
			must(t, second(s.PutAccount(t.Context(), id, api.PutAccount{Recordings: "eu"}, orchestrator.Act{By: "test"})))
			s.Weigh(t, id, 1+rnd.IntN(3))
		}
		names := map[string]string{} // of sessions, alike in both
		for i := range 50 {
			n := wish(accounts[rnd.IntN(3)])
			n.Want.Host, n.Priority = append([]string{"", ""}, hosts...)[rnd.IntN(5)], rnd.IntN(3)
			mustCreate(t, s, n)
			names[n.ID] = fmt.Sprint(n.Account, i)
		}
		return s, names
	}
	take := func(s *pgstore.Store, most int, names map[string]string) (got []string) {
		claims, _, err := s.Claim(t.Context(), "test", hosts, time.Minute, most, 0)
		must(t, err)
		for _, c := range claims {
			got = append(got, names[c.Session])
		}
		return got
	}
	one, ones := ready()
	several, all := ready()
	var singly, together []string
	for range 4 {
		for range 4 {
			singly = append(singly, take(one, 1, ones)...)
		}
		together = append(together, take(several, 4, all)...)
		slices.Sort(singly)
		slices.Sort(together)
		if !slices.Equal(singly, together) {
			t.Fatalf("%v one by one, %v in batches", singly, together)
		}
	}
	if len(singly) == 0 {
		t.Error("nothing was claimed")
	}
}

// TestLockedAccountStopsNobodyElse: who has locked an account's row keeps that one from being served, for so long, and no other.
func TestLockedAccountStopsNobodyElse(t *testing.T) {
	s := open(t, 1)
	first, second := wish("a"), wish("b")
	mustCreate(t, s, first)
	mustCreate(t, s, second)
	let := s.Beside(t).Holding(t, "a", false)
	defer let()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got, left, err := s.Claim(ctx, "test", []string{"mac-1"}, time.Minute, 64, 0)
	if err != nil || len(got) != 1 || got[0].Session != second.ID {
		t.Fatalf("%+v, left %v, %v", got, left, err)
	}
	must(t, finish(s, got[0], orchestrator.Completed))
	s.FreeDevices(t)
	if got, left, err = s.Claim(ctx, "test", []string{"mac-1"}, time.Minute, 64, 0); err != nil || len(got) != 0 || !left {
		t.Errorf("%+v, left %v, %v", got, left, err)
	}
	let()
	if c := mustClaim(t, s); c.Session != first.ID {
		t.Errorf("%+v", c)
	}
}

// TestExplainLocksNothing: it neither waits for those that create and claim nor has them wait: what they lock it reads.
func TestExplainLocksNothing(t *testing.T) {
	s := open(t, 1)
	mustCreate(t, s, wish("a"))
	let := s.Beside(t).Holding(t, "a", true)
	defer let()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if p, err := s.Prospect(ctx, wish("a")); err != nil || p.Refused != nil || p.Queue == nil || p.Queue.Position != 2 {
		t.Errorf("%+v, %v", p, err)
	}
}

// scan is a node of a plan that reads rows, and how many it kept in all.
var scan = regexp.MustCompile(`Scan[^\n]*? on (\w+).*\(actual rows=(\d+) loops=(\d+)\)((?:\n +[^-\s].*)*)`)

// TestClaimReadsWhatFits: a claim reads as much as there is that fits its free devices, not as much as is queued, nor as many shapes as there are.
func TestClaimReadsWhatFits(t *testing.T) {
	base := open(t, 0)
	up(t, base, "mac-1", 1)
	up(t, base, "mac-2", 0)
	hello := wire.Hello{Protocol: wire.Version, Host: "mac-2"}
	for i := range 5 {
		hello.Devices = append(hello.Devices, wire.Device{Name: fmt.Sprint("busy-", i), Kind: "fake", Model: "iPhone 14", PlatformName: "iOS",
			PlatformVersion: fmt.Sprint("18.", i), State: wire.DeviceBusy})
	}
	must(t, base.HostUp(t.Context(), hello))
	base.ManyWants(t, "b", "iPhone 14", 2000)
	var mu sync.Mutex
	read := map[string]int{}
	s := base.Explained(t, func(plan string) {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range scan.FindAllStringSubmatch(plan, -1) {
			rows, _ := strconv.Atoi(m[2])
			times, _ := strconv.Atoi(m[3])
			for _, more := range left.FindAllStringSubmatch(m[4], -1) {
				n, _ := strconv.Atoi(more[1])
				rows += n
			}
			read[m[1]] += rows * times
		}
	})
	take := func(hosts ...string) ([]orchestrator.Claim, map[string]int) {
		t.Helper()
		mu.Lock()
		clear(read)
		mu.Unlock()
		got, _, err := s.Claim(t.Context(), "test", hosts, time.Minute, 64, 0)
		must(t, err)
		mu.Lock()
		defer mu.Unlock()
		return got, maps.Clone(read)
	}
	few := func(what string, read map[string]int, most int) {
		t.Helper()
		for table, n := range read {
			if n > most {
				t.Errorf("%s: %d rows of %s", what, n, table)
			}
		}
	}
	for range 7 {
		n := wish("a")
		n.QueueLimit = 1_000_000
		mustCreate(t, base, n)
		got, rows := take("mac-1", "mac-2")
		if len(got) != 1 || got[0].Session != n.ID {
			t.Fatalf("%+v", got)
		}
		if few("with a device for one", rows, 30); rows["sessions"] == 0 {
			t.Errorf("nothing was seen to be read: %v", rows)
		}
		_, rows = take("mac-1", "mac-2")
		few("with no device for any", rows, 3)
		must(t, finish(base, got[0], orchestrator.Completed))
	}
}

// TestRequeueKeepsItsPlace: what gave its device back unused is next, as it was, before those that would have come after it.
func TestRequeueKeepsItsPlace(t *testing.T) {
	s := open(t, 1)
	first, other, others := wish("a"), wish("a"), wish("b")
	other.Want.Host, others.Want.Host, other.Priority = "mac-1", "mac-1", -1 // another lane
	mustCreate(t, s, first)
	mustCreate(t, s, other)
	mustCreate(t, s, others)
	for range 3 {
		c := mustClaim(t, s)
		if c.Session != first.ID {
			t.Fatalf("claimed %+v, not the first", c)
		}
		again, err := s.Requeue(t.Context(), orchestrator.Event{Session: c.Session, Term: c.Term, Seq: c.LastEvent + 1, At: time.Now(), Kind: orchestrator.EventRequeued})
		if err != nil || !again {
			t.Fatalf("%v, %v", again, err)
		}
		s.FreeDevices(t)
		if p := placeOf(t, s, first.ID, 0); p.Position != 1 {
			t.Errorf("its place is %d", p.Position)
		}
	}
	must(t, s.Cancel(t.Context(), first.ID))
	c := mustClaim(t, s)
	if c.Session != other.ID {
		t.Errorf("its account has not the turn back in another lane: %+v", c)
	}
	must(t, finish(s, c, orchestrator.Completed))
	if c = mustClaim(t, s); c.Session != others.ID {
		t.Errorf("its account is served again before the other: %+v", c)
	}
}

// TestUndoneClaimMovesNoTime: a claim that does not come to be leaves whose turn it is as it was.
func TestUndoneClaimMovesNoTime(t *testing.T) {
	s := open(t, 3)
	for range 3 {
		mustCreate(t, s, wish("a"))
	}
	at := s.VirtualTime(t)
	s.ClaimUndone(t, []string{"mac-1"})
	if now := s.VirtualTime(t); now != at {
		t.Errorf("%d, it was %d", now, at)
	}
	for range 3 {
		mustClaim(t, s)
	}
	if now := s.VirtualTime(t); now != at+2_000_000 {
		t.Errorf("after three were served %d, from %d", now, at)
	}
}

// TestWantsAndShapesMeet: of wants and shapes that come at once, from several orchestrators, each is known to fit each that it fits, also while old wants are forgotten.
func TestWantsAndShapesMeet(t *testing.T) {
	const each = 25
	s := open(t, 1)
	s.Litter(t, 300, 0)
	stores := []*pgstore.Store{s, s.Beside(t)}
	var all sync.WaitGroup
	for i, o := range stores {
		all.Go(func() {
			for n := range each {
				w := wish("a")
				w.Want.OSVersion = fmt.Sprintf(">=%d.%d", i, n)
				if _, err := o.Create(t.Context(), w); err != nil && !errors.Is(err, orchestrator.ErrNoSuchDevice) {
					t.Error(err)
				}
			}
		})
		all.Go(func() {
			for n := range each {
				d := wire.Device{Name: "phone-0", Kind: "fake", PlatformName: "iOS", PlatformVersion: fmt.Sprintf("%d.%d", 1+i, n), State: wire.DeviceBusy}
				if err := o.DevicesChanged(t.Context(), "mac-1", []wire.Device{d}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Go(func() {
		if _, err := s.Tidy(t.Context()); err != nil {
			t.Error(err)
		}
	})
	all.Wait()
	if wrong, right := s.Unfit(t); wrong != 0 || right < 2*each*each {
		t.Errorf("%d pairs are wrong, %d right", wrong, right)
	}
}
