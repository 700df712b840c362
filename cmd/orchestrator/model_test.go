package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
	"github.com/driftstack/fleet/orchestrator/pgstore"
)

// seedEnv replays a run: what is done to whom, and when, follows from it. What that meets does not.
const seedEnv = "MODEL_SEED"

// step is something that is done to the fleet.
type step struct {
	at   time.Duration
	what string
	run  func(*fleet) error
}

// schedule makes the steps of so long, out of a seed.
func schedule(rng *rand.Rand, long time.Duration, replicas, hosts int) (steps []step) {
	var free [16]time.Duration // when a replica is done with what was done to it
	for at := time.Second; at < long; at += time.Duration(300+rng.IntN(1500)) * time.Millisecond {
		n, pause := rng.IntN(replicas), time.Duration(200+rng.IntN(3000))*time.Millisecond
		kind := rng.IntN(10)
		if kind == 3 || kind == 4 {
			pause = leaseTime + time.Duration(rng.IntN(4000))*time.Millisecond // beyond the lease
		}
		if kind == 9 {
			h := rng.IntN(hosts)
			steps = append(steps, step{at, fmt.Sprintf("restart the agent of mac-%d", h+1), func(f *fleet) error {
				f.hosts[h].halt()
				f.hosts[h].start()
				return nil
			}})
			continue
		}
		if at < free[n] {
			continue
		}
		name := fmt.Sprintf("eu-%d", n+1)
		signal := func(what string, at time.Duration, s syscall.Signal, wait, start bool) {
			steps = append(steps, step{at, what + " " + name, func(f *fleet) error {
				if start {
					return f.replicas[n].start()
				}
				return f.replicas[n].signal(s, wait)
			}})
		}
		switch {
		case kind < 5:
			signal("SIGSTOP", at, syscall.SIGSTOP, false, false)
			signal("SIGCONT", at+pause, syscall.SIGCONT, false, false)
		case kind < 7:
			signal("SIGKILL", at, syscall.SIGKILL, true, false)
			signal("start", at+pause, 0, false, true)
		default:
			signal("SIGTERM", at, syscall.SIGTERM, true, false)
			signal("start", at+pause, 0, false, true)
		}
		free[n] = at + pause + 2*time.Second
	}
	return steps
}

// customer is a client that starts sessions, sends commands to whichever orchestrator, and ends its sessions, or forgets them.
type customer struct {
	f        *fleet
	rng      *rand.Rand
	account  string
	profile  string
	sessions []string
}

func (c *customer) any() *client.Client { return c.f.replicas[c.rng.IntN(len(c.f.replicas))].client }

func (c *customer) run(ctx context.Context) {
	for ctx.Err() == nil {
		id, ok := c.create(ctx)
		if !ok {
			rest(ctx, 200*time.Millisecond)
			continue
		}
		c.sessions = append(c.sessions, id)
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		v, err := c.any().Wait(call, id, api.Running)
		cancel()
		if err != nil || v.State == api.Ended {
			continue
		}
		for range 1 + c.rng.IntN(30) {
			if ctx.Err() != nil || !c.command(ctx, id) {
				break
			}
		}
		switch c.rng.IntN(4) {
		case 0: // forgotten: it idles to its end
		case 1:
			c.bounded(ctx, func(ctx context.Context) { _, _ = c.any().Cancel(ctx, id) }) // it may have ended, or be unreachable
		default:
			c.bounded(ctx, func(ctx context.Context) {
				_, _ = c.any().Do(ctx, id, webdriver.Command{Method: http.MethodDelete})
			})
		}
	}
}

func (c *customer) bounded(ctx context.Context, f func(context.Context)) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	f(ctx)
}

func (c *customer) create(ctx context.Context) (id string, ok bool) {
	off := false
	r := api.CreateSession{Account: c.account, Recording: &off, Timeouts: api.Timeouts{IdleSeconds: 3, MaxSeconds: 60, QueueSeconds: 5}}
	if c.rng.IntN(3) == 0 {
		r.Profile = c.profile
	}
	c.bounded(ctx, func(ctx context.Context) {
		v, err := c.any().CreateSession(ctx, r)
		id, ok = v.ID, err == nil
	})
	return id, ok
}

// command sends one; false: the session has ended.
func (c *customer) command(ctx context.Context, session string) (more bool) {
	n := c.f.use.send(session)
	c.bounded(ctx, func(ctx context.Context) {
		body := fmt.Sprintf(`{"script":"return arguments[0]","args":[%d]}`, n)
		a, err := c.any().Do(ctx, session, webdriver.Command{Method: http.MethodPost, Path: "/execute/sync", Body: []byte(body)})
		var w *webdriver.Error
		switch {
		case err == nil:
			var got int
			if json.Unmarshal(a.Body, &struct {
				Value *int `json:"value"`
			}{&got}) != nil || got != n {
				c.f.t.Errorf("command %d is answered %s", n, a.Body)
			}
			c.f.use.told(n, answered)
			more = true
		case errors.As(err, &w) && w.Data["outcome"] == "not_run":
			c.f.use.told(n, notRun)
			more = true
		case errors.As(err, &w) && w.Code == webdriver.InvalidSessionID && w.Data["outcome"] == nil:
			c.f.use.told(n, unknown) // it ended meanwhile
		case errors.Is(err, syscall.ECONNREFUSED):
			c.f.use.told(n, notRun)
			more = true
			rest(ctx, 50*time.Millisecond)
		default:
			more = true
		}
	})
	return more
}

func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// model runs customers on a fleet to which things happen, and looks at what is left of it.
func model(t *testing.T, long time.Duration, shared bool) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(seedEnv); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		must(t, err)
	}
	t.Logf("replay with %s=%d", seedEnv, seed)
	f := newFleet(t, 3, 2, 2, shared)
	steps := schedule(rand.New(rand.NewPCG(seed, 0)), long, len(f.replicas), len(f.hosts))

	for account, q := range quotas() {
		_, err := f.replicas[0].client.PutQuota(t.Context(), account, api.PutQuota{Quota: q})
		must(t, err)
	}
	var customers []*customer
	for i := range 6 {
		c := &customer{f: f, rng: rand.New(rand.NewPCG(seed, uint64(i+1))), account: []string{"a", "b"}[i%2]}
		p, err := f.replicas[0].client.CreateProfile(t.Context(), api.CreateProfile{Account: c.account, Name: fmt.Sprint(i)})
		must(t, err)
		c.profile = p.ID
		customers = append(customers, c)
	}
	begin := time.Now()
	phase := func(what string) { t.Logf("%6s %s", time.Since(begin).Round(100*time.Millisecond), what) }
	f.live(long, customers, steps, func() bool { return false })
	phase("mend")
	f.mend()
	was := f.use.count(answered)
	f.live(time.Minute, customers, nil, func() bool { return f.use.count(answered) >= was+20 }) // it works as before
	if now := f.use.count(answered); now < was+20 {
		t.Errorf("only %d commands were answered once all was well again", now-was)
	}
	phase("settle")
	f.settle()
	phase("check")
	f.check()
}

// live lets customers be served for so long, or until it is enough, while things happen.
func (f *fleet) live(long time.Duration, customers []*customer, steps []step, enough func() bool) {
	ctx, stop := context.WithTimeout(f.t.Context(), long)
	defer stop()
	begin := time.Now()
	var all sync.WaitGroup
	for _, c := range customers {
		all.Go(func() { c.run(ctx) })
	}
	all.Go(func() { f.happen(ctx, begin, steps) })
	for ctx.Err() == nil && !enough() {
		f.withinQuotas(false)
		rest(ctx, 100*time.Millisecond)
	}
	stop()
	all.Wait()
}

// quotas are what accounts may have: less than their customers would take, of devices and of room in the queue.
func quotas() map[string]api.Quota {
	two, three := 2, 3
	return map[string]api.Quota{"a": {Concurrent: &three, Queued: &two}, "b": {Concurrent: &two, Queued: &two}}
}

// withinQuotas holds what accounts have against what they may have, as it is counted and as sessions are; over says that nothing is left.
func (f *fleet) withinQuotas(over bool) {
	f.t.Helper()
	for account, most := range quotas() {
		v, err := f.store.Quota(f.t.Context(), account)
		must(f.t, err)
		queued := *most.Queued + *most.Concurrent // what a device gave back is let in again
		if v.Active > *most.Concurrent || v.QueuedNow > queued || over && v.Active+v.QueuedNow > 0 {
			f.t.Errorf("account %s has %d sessions on devices and %d queued", account, v.Active, v.QueuedNow)
		}
		for state, most := range map[api.SessionState]int{api.Running: *most.Concurrent, api.Queued: queued} {
			list, err := f.store.List(f.t.Context(), pgstore.SessionFilter{Account: account, State: string(state), Limit: 100})
			must(f.t, err)
			if n := len(list.Sessions); n > most {
				f.t.Errorf("%d sessions of account %s are %s, and may be %d", n, account, state, most)
			}
			f.most[account+" "+string(state)] = max(f.most[account+" "+string(state)], len(list.Sessions))
		}
	}
}

// heldApart goes through all that sessions had devices for: no two had one at once, and no account had more than it may have, at no time.
func (f *fleet) heldApart(sessions []api.Session) {
	f.t.Helper()
	const slack = 300 * time.Millisecond // times are those of transactions' beginnings: one that waits for another has the earlier one
	type change struct {
		at time.Time
		by int
	}
	of := map[string][]change{}
	for _, s := range sessions {
		if s.StartedAt == nil || s.EndedAt.Sub(*s.StartedAt) <= slack {
			continue
		}
		for _, who := range []string{"account " + s.Account, "device " + s.Host + "/" + s.Device} {
			of[who] = append(of[who], change{*s.StartedAt, 1}, change{s.EndedAt.Add(-slack), -1})
		}
	}
	for who, changes := range of {
		slices.SortFunc(changes, func(a, b change) int { return cmp.Or(a.at.Compare(b.at), a.by-b.by) })
		most, now := 1, 0
		if account, ok := strings.CutPrefix(who, "account "); ok {
			most = *quotas()[account].Concurrent
		}
		for _, c := range changes {
			if now += c.by; now > most {
				f.t.Errorf("%s: %d sessions at once, at %s", who, now, c.at.Format(time.TimeOnly))
			}
		}
	}
}

// happen does the steps when they are due. Those of different replicas do not wait for one another.
func (f *fleet) happen(ctx context.Context, begin time.Time, steps []step) {
	lanes := map[string]chan step{}
	var running sync.WaitGroup
	defer running.Wait()
	for _, s := range steps {
		to := s.what[strings.LastIndexByte(s.what, ' ')+1:]
		if lanes[to] == nil {
			lane := make(chan step, len(steps))
			lanes[to] = lane
			defer close(lane)
			running.Go(func() {
				for s := range lane {
					rest(ctx, time.Until(begin.Add(s.at)))
					if ctx.Err() != nil {
						return
					}
					f.t.Logf("%6s %s", time.Since(begin).Round(10*time.Millisecond), s.what)
					if err := s.run(f); err != nil {
						f.t.Error(err)
					}
				}
			})
		}
		lanes[to] <- s
	}
}

// mend has everything run again.
func (f *fleet) mend() {
	for _, r := range f.replicas {
		must(f.t, r.signal(syscall.SIGCONT, false))
		must(f.t, r.start())
	}
	for _, r := range f.replicas {
		r.ready(f.t)
	}
	for _, h := range f.hosts {
		h.start()
	}
}

// settle waits until no session is left.
func (f *fleet) settle() {
	f.eventually("every session has ended", 100*time.Second, func() bool {
		list, err := f.store.List(f.t.Context(), pgstore.SessionFilter{Limit: 10000})
		must(f.t, err)
		for _, s := range list.Sessions {
			if s.State != api.Ended {
				return false
			}
		}
		return true
	})
	f.eventually("every device is free", 60*time.Second, func() bool {
		devices, err := f.store.Devices(f.t.Context())
		must(f.t, err)
		for _, d := range devices {
			if d.State != "ready" || d.Session != "" {
				return false
			}
		}
		return len(devices) == 4
	})
}

// check holds what is left against what must be.
func (f *fleet) check() {
	f.t.Helper()
	list, err := f.store.List(f.t.Context(), pgstore.SessionFilter{Limit: 10000})
	must(f.t, err)
	reasons, moves := map[string]int{}, map[string]int{}
	for _, s := range list.Sessions {
		reasons[s.Reason]++
		events, err := f.store.Events(f.t.Context(), s.ID, 0, 10000)
		must(f.t, err)
		endings, term, seq := 0, int64(0), int64(0)
		for _, e := range events {
			switch e.Kind {
			case string(orchestrator.EventEnded):
				endings++
			case "adopted", "handed_over":
				moves[e.Kind]++
			}
			if endings > 0 && e.Kind != string(orchestrator.EventEnded) {
				f.t.Errorf("session %s: %s after its end", s.ID, e.Kind)
			}
			if e.Term != 0 && e.Term < term || e.Seq <= seq {
				f.t.Errorf("session %s: event %d (%s) of term %d after term %d", s.ID, e.Seq, e.Kind, e.Term, term)
			}
			term, seq = max(term, e.Term), e.Seq
		}
		if endings != 1 {
			f.t.Errorf("session %s has %d endings", s.ID, endings)
		}
		if s.Reason == string(orchestrator.Internal) {
			f.t.Errorf("session %s ended as internal: %s", s.ID, s.Detail)
		}
	}
	f.withinQuotas(true)
	f.heldApart(list.Sessions)
	f.t.Logf("at most %v", f.most)
	fates := f.use.check()
	f.t.Logf("%d sessions: %v; moved: %v; commands: %v", len(list.Sessions), reasons, moves, fates)
	for i, r := range f.replicas {
		log, err := os.ReadFile(r.log)
		must(f.t, err)
		if says := strings.Contains(string(log), "another orchestrator has a volume of its own"); says == f.shared && i > 0 {
			f.t.Errorf("%s says of the volume that it is shared: %v", r.name, !says)
		}
		for _, bad := range []string{"panic in", "DATA RACE", "a defect of ours"} {
			if strings.Contains(string(log), bad) {
				f.t.Errorf("%s: %s", r.name, bad)
			}
		}
	}
}

// Whatever happens to processes and hosts, every session ends once, no device is used by two at once, and nothing is left busy.
func TestModel(t *testing.T) {
	t.Parallel() // it waits, mostly
	model(t, 8*time.Second, true)
}
