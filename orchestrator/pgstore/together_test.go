package pgstore_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
)

// TestCreatesTogether: what is created in one statement goes over no limit, and only those are refused that would.
func TestCreatesTogether(t *testing.T) {
	s := open(t, 1)
	many := func(n int, account string, l orchestrator.Limits) (list []orchestrator.NewSession) {
		for range n {
			w := wish(account)
			w.Limits = l
			list = append(list, w)
		}
		return list
	}
	two := orchestrator.Limits{Queued: 2}
	full, _, _ := s.CreateTogether(t, slices.Concat(many(2, "a", two), many(1, "b", two), many(1, "a", two))...)
	if !slices.Equal(full, []bool{false, false, false, true}) {
		t.Errorf("over the queue's quota: %v", full)
	}
	_, over, _ := s.CreateTogether(t, many(3, "b", orchestrator.Limits{CreatesPerMinute: 3})...)
	if !slices.Equal(over, []bool{false, false, true}) {
		t.Errorf("over the creates' quota: %v", over)
	}

	// The queue has room for 16 in pieces of one: each alone.
	small := many(2, "a", orchestrator.Limits{})
	small[0].QueueLimit, small[1].QueueLimit = 16, 16
	if _, _, together := s.CreateTogether(t, small...); together {
		t.Error("two went where there is room for one")
	}
	// Five are queued. Whichever pieces have room, a queue of three has none.
	none := wish("a")
	none.QueueLimit = 3
	for range 5 {
		var is *orchestrator.QueueFullError
		if _, err := s.Create(t.Context(), none); !errors.As(err, &is) {
			t.Fatalf("got %v", err)
		}
	}
	if wrong := s.Counts(t); len(wrong) > 0 {
		t.Error(wrong)
	}
}

// TestBatchesOfClaimsAreFair: several claimed at once are of whom they would be of one by one.
func TestBatchesOfClaimsAreFair(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	const each, claims = 30, 48
	accounts := []string{"a", "b", "c"}
	weights := []int{1 + rnd.IntN(5), 1 + rnd.IntN(5), 1 + rnd.IntN(5)}
	ready := func() *pgstore.Store {
		s := open(t, claims)
		for i, id := range accounts {
			_, err := s.PutAccount(t.Context(), id, api.PutAccount{Recordings: "eu"}, orchestrator.Act{By: "test"})
			must(t, err)
			must(t, second(s.PutQuota(t.Context(), id, api.Quota{Weight: weights[i]}, orchestrator.Act{By: "ada"})))
		}
		for range each {
			for _, id := range accounts {
				mustCreate(t, s, wish(id))
			}
		}
		return s
	}
	take := func(s *pgstore.Store, most int, served map[string]int) {
		got, _, err := s.Claim(t.Context(), "test", []string{"mac-1"}, time.Minute, most, 0)
		must(t, err)
		if len(got) != most {
			t.Fatalf("%d were claimed, not %d", len(got), most)
		}
		for _, c := range got {
			served[c.Account]++
		}
	}
	one, several := ready(), ready()
	singly, together := map[string]int{}, map[string]int{}
	for left := claims; left > 0; {
		n := min(left, 1+rnd.IntN(12))
		left -= n
		for range n {
			take(one, 1, singly)
		}
		take(several, n, together)
		for _, id := range accounts {
			if d := singly[id] - together[id]; d < -1 || d > 1 { // of those whose turn comes at the same moment one may be before the other
				t.Fatalf("weights %v: after %d claims %v one by one, %v in batches", weights, claims-left, singly, together)
			}
		}
	}
}

// TestEndsAndNewsLockInOrder: sessions that end together, and news of their devices that come together, never wait for one another in a circle.
func TestEndsAndNewsLockInOrder(t *testing.T) {
	base := open(t, 0)
	hosts := []string{"mac-1", "mac-2", "mac-3", "mac-4"}
	for _, h := range hosts {
		up(t, base, h, 10)
	}
	stores := make([]*pgstore.Store, 2)
	for i := range stores {
		var err error
		if stores[i], err = pgstore.Open(t.Context(), base.DSN(), fmt.Sprint("eu-", i+1), zap.NewNop()); err != nil {
			t.Fatal(err)
		}
		defer stores[i].Close()
	}
	for range 15 {
		for range 40 {
			mustCreate(t, base, wish("a"))
		}
		claims, _, err := base.Claim(t.Context(), "test", hosts, time.Minute, 40, 0)
		if must(t, err); len(claims) != 40 {
			t.Fatalf("%d sessions were claimed", len(claims))
		}
		rand.Shuffle(len(claims), func(i, j int) { claims[i], claims[j] = claims[j], claims[i] })
		var all sync.WaitGroup
		for i, c := range claims {
			all.Go(func() {
				if err := finish(stores[i%2], c, orchestrator.Completed); err != nil {
					t.Error(err)
				}
			})
		}
		for _, h := range hosts {
			for _, s := range stores {
				all.Go(func() {
					for _, state := range []wire.DeviceState{wire.DeviceBusy, wire.DeviceReady} {
						var news []wire.Device
						for n := range 10 {
							news = append(news, wire.Device{Name: fmt.Sprint("phone-", n), Kind: "fake", Model: "iPhone 15", PlatformName: "iOS", State: state})
						}
						if err := s.DevicesChanged(t.Context(), h, news); err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
		all.Wait()
	}
	for _, s := range stores {
		s.Close() // what they count is known then
	}
	if n := base.Deadlocks(t); n > 0 {
		t.Errorf("%d deadlocks", n)
	}
}

// TestBatchIsSharedOut: eight accounts that wait alike have two of sixteen devices each, and one that comes then is behind nobody who has had two.
func TestBatchIsSharedOut(t *testing.T) {
	s := open(t, 24)
	var accounts []string
	for i := range 8 {
		accounts = append(accounts, string(rune('a'+i)))
	}
	newcomer := "z"
	for _, id := range append(slices.Clone(accounts), newcomer) {
		must(t, second(s.PutAccount(t.Context(), id, api.PutAccount{Recordings: "eu"}, orchestrator.Act{By: "test"})))
	}
	take := func(most int) map[string]int {
		t.Helper()
		got, _, err := s.Claim(t.Context(), "test", []string{"mac-1"}, time.Minute, most, 0)
		must(t, err)
		served := map[string]int{}
		for _, c := range got {
			served[c.Account]++
		}
		return served
	}
	for range 5 {
		for _, id := range accounts {
			mustCreate(t, s, wish(id))
		}
	}
	served := take(16)
	for _, id := range accounts {
		if served[id] != 2 {
			t.Fatalf("%v", served)
		}
	}
	for range 5 {
		mustCreate(t, s, wish(newcomer))
	}
	// It begins where the others were served last: one before their third, and one beside it.
	if served = take(1); served[newcomer] != 1 {
		t.Errorf("the newcomer waits behind %v", served)
	}
	if served = take(7); served[newcomer] > 1 {
		t.Errorf("the newcomer has %d of 7", served[newcomer])
	}
}
