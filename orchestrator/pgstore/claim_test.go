package pgstore_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

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
