package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/pgstore"
)

// lease is how a session's lease stands in the model.
type lease int

const (
	none   lease = iota
	valid        // runs
	recent       // over, and the session can be adopted
	over         // over for longer than that
)

// ttls are lease times that leave a lease in each state; a negative one is over when it begins.
var ttls = map[lease]time.Duration{valid: time.Hour, recent: -orchestrator.AdoptWindow / 2, over: -time.Hour}

// modelled is a session as the model has it.
type modelled struct {
	id     string
	state  string
	term   int64
	holder string
	lease  lease
	device bool
}

// grant is what a holder was given, and may believe in for too long.
type grant struct {
	claim  orchestrator.Claim
	holder string
}

// model is what the database should be, beside the database.
type model struct {
	t        *testing.T
	rand     *rand.Rand
	store    *pgstore.Store
	sessions []*modelled // in order of creation
	grants   []grant
	seq      int64
}

const modelDevices = 3

// TestLeasesFollowTheModel runs random claims, adoptions, renewals, handovers, endings and reaps by three holders, old terms
// and expired leases among them, and after each step compares the database with a model of it.
func TestLeasesFollowTheModel(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := &model{t: t, rand: rand.New(rand.NewPCG(seed, 1)), store: open(t, modelDevices), seq: 1000}
			for step := range 250 {
				name := m.step()
				if t.Failed() {
					t.Fatalf("at step %d, %s", step, name)
				}
				m.compare(name)
			}
		})
	}
}

// step does one thing at random, in the database and in the model.
func (m *model) step() string {
	m.pin()
	steps := []struct {
		name string
		do   func()
	}{
		{"create", m.create}, {"claim", m.claim}, {"claim", m.claim}, {"run", m.run}, {"run", m.run}, {"adopt", m.adopt}, {"adopt", m.adopt},
		{"renew", m.renew}, {"hand over", m.handOver}, {"time passes", m.expire}, {"time passes", m.expire}, {"finishing", m.finishing},
		{"finish", m.finish}, {"requeue", m.requeue}, {"reap", m.reap},
	}
	s := steps[m.rand.IntN(len(steps))]
	s.do()
	return s.name
}

// pin sets every lease anew where the model has it, so that the test may take as long as it likes.
func (m *model) pin() {
	for _, s := range m.sessions {
		if s.lease != none {
			m.store.SetLease(m.t, s.id, ttls[s.lease])
		}
	}
}

func (m *model) anyLease() (lease, time.Duration) {
	l := []lease{valid, valid, recent, over}[m.rand.IntN(4)]
	return l, ttls[l]
}

func (m *model) holder() string { return fmt.Sprint("holder-", m.rand.IntN(3)) }

// pick is a grant at random, most often a late one.
func (m *model) pick() (grant, *modelled) {
	if len(m.grants) == 0 {
		return grant{claim: orchestrator.Claim{Session: "none", Term: 1}}, &modelled{}
	}
	from := max(0, len(m.grants)-6)
	if m.rand.IntN(4) == 0 {
		from = 0
	}
	g := m.grants[from+m.rand.IntN(len(m.grants)-from)]
	i := slices.IndexFunc(m.sessions, func(s *modelled) bool { return s.id == g.claim.Session })
	return g, m.sessions[i]
}

// holds says whether a write under the grant must be taken.
func (g grant) holds(s *modelled, states ...string) bool {
	return g.claim.Term == s.term && slices.Contains(states, s.state)
}

// want compares what a fenced write answered with what it should.
func (m *model) want(err error, held bool) {
	m.t.Helper()
	if held != (err == nil) || err != nil && !errors.Is(err, orchestrator.ErrLeaseLost) {
		m.t.Errorf("answered %v, and holding it is %v", err, held)
	}
}

func (m *model) event(g grant, kind orchestrator.EventKind, r orchestrator.Reason) orchestrator.Event {
	m.seq++
	return orchestrator.Event{Kind: kind, Session: g.claim.Session, Term: g.claim.Term, Seq: m.seq, At: time.Now(), Reason: r}
}

func (m *model) create() {
	n := wish("a")
	n.Queue = time.Hour
	mustCreate(m.t, m.store, n)
	m.sessions = append(m.sessions, &modelled{id: n.ID, state: "queued"})
}

func (m *model) claim() {
	held := 0
	first := -1
	for i, s := range m.sessions {
		if s.device {
			held++
		}
		if s.state == "queued" && first < 0 {
			first = i
		}
	}
	to, ttl := m.anyLease()
	holder := m.holder()
	c, ok, err := claim(context.Background(), m.store, holder, []string{"mac-1"}, ttl)
	if want := first >= 0 && held < modelDevices; err != nil || ok != want {
		m.t.Errorf("claimed %v, want %v: %v", ok, want, err)
	}
	if !ok {
		return
	}
	s := m.sessions[first]
	if c.Session != s.id || c.Term != s.term+1 || c.Adopted {
		m.t.Errorf("claimed %+v, want %+v", c, s)
	}
	s.state, s.term, s.holder, s.lease, s.device = "starting", c.Term, holder, to, true
	m.grants = append(m.grants, grant{c, holder})
}

func (m *model) run() {
	g, s := m.pick()
	held := g.holds(s, "starting")
	m.want(m.store.Running(context.Background(), g.claim.Session, g.claim.Term, nil), held)
	if held {
		s.state = "running"
	}
}

func (m *model) adopt() {
	orphans := 0
	for _, s := range m.sessions {
		if s.state == "running" && s.lease == recent {
			orphans++
		}
	}
	to, ttl := m.anyLease()
	holder := m.holder()
	c, ok, err := m.store.Adopt(context.Background(), holder, []string{"mac-1"}, ttl)
	if err != nil || ok != (orphans > 0) {
		m.t.Errorf("adopted %v of %d: %v", ok, orphans, err)
	}
	if !ok {
		return
	}
	i := slices.IndexFunc(m.sessions, func(s *modelled) bool { return s.id == c.Session })
	s := m.sessions[i]
	if s.state != "running" || s.lease != recent || c.Term != s.term+1 || !c.Adopted {
		m.t.Errorf("adopted %+v of %+v", c, s)
	}
	s.term, s.holder, s.lease = c.Term, holder, to
	m.grants = append(m.grants, grant{c, holder})
}

func (m *model) renew() {
	g, s := m.pick()
	to, ttl := m.anyLease()
	_, err := m.store.Renew(context.Background(), g.claim.Session, g.claim.Term, ttl)
	held := g.holds(s, "starting", "running", "finishing")
	m.want(err, held)
	if held {
		s.lease = to
	}
}

func (m *model) handOver() {
	g, s := m.pick()
	held := g.holds(s, "running")
	m.want(m.store.HandOver(context.Background(), m.event(g, orchestrator.EventHandedOver, "")), held)
	if held {
		s.term, s.holder, s.lease = s.term+1, "", recent
	}
}

// expire is time that passes for one session.
func (m *model) expire() {
	if len(m.sessions) == 0 {
		return
	}
	s := m.sessions[m.rand.IntN(len(m.sessions))]
	if s.lease != none && s.lease < over {
		s.lease++
		m.store.SetLease(m.t, s.id, ttls[s.lease])
	}
}

func (m *model) finishing() {
	g, s := m.pick()
	held := g.holds(s, "starting", "running")
	m.want(m.store.Finishing(context.Background(), g.claim.Session, g.claim.Term), held)
	if held {
		s.state = "finishing"
	}
}

func (m *model) finish() {
	g, s := m.pick()
	held := g.holds(s, "starting", "running", "finishing", "queued") // one whose requeue was not answered may be ended
	m.want(m.store.Finish(context.Background(), m.event(g, orchestrator.EventEnded, orchestrator.Completed), "", 0), held)
	if held {
		s.state, s.lease, s.device = "ended", none, false
	}
}

func (m *model) requeue() {
	g, s := m.pick()
	held := g.holds(s, "starting")
	again, err := m.store.Requeue(context.Background(), m.event(g, orchestrator.EventRequeued, ""))
	if want := held || g.holds(s, "queued"); err != nil || again != want {
		m.t.Errorf("queued again %v, want %v: %v", again, want, err)
	}
	if held {
		s.state, s.holder, s.lease, s.device = "queued", "", none, false
		m.store.FreeDevices(m.t) // its host says that it is ready after all
	}
}

func (m *model) reap() {
	late := 0
	for _, s := range m.sessions {
		if s.state == "running" && s.lease == over || (s.state == "starting" || s.state == "finishing") && s.lease >= recent {
			s.state, s.lease, s.device = "ended", none, false
			late++
		}
	}
	if n, err := m.store.Reap(context.Background(), "self", true); err != nil || len(n) != late {
		m.t.Errorf("reaped %v, want %d: %v", n, late, err)
	}
}

func (m *model) compare(step string) {
	m.t.Helper()
	rows := m.store.Leases(m.t)
	for _, s := range m.sessions {
		var left lease
		r := rows[s.id]
		switch {
		case r.Left == nil:
		case *r.Left > 0:
			left = valid
		case *r.Left > -orchestrator.AdoptWindow:
			left = recent
		default:
			left = over
		}
		if holder := s.holder; r.State != s.state || r.Term != s.term || left != s.lease || r.Device != s.device || s.state != "ended" && r.Holder != holder {
			m.t.Fatalf("after %s the database has %+v (lease %d), the model %+v", step, r, left, *s)
		}
	}
}

// span is a time for which a holder trusts a lease, by its own clock.
type span struct {
	term       int64
	holder     int
	from, till time.Time
}

// TestNeverTwoHolders has three holders race for the same sessions in real time, with leases so short that they run out all the
// time, and looks at when each of them trusted its lease.
func TestNeverTwoHolders(t *testing.T) {
	const sessions, holders, ttl = 3, 3, 60 * time.Millisecond
	s := open(t, sessions)
	for range sessions {
		c := mustRun(t, s)
		if err := handOver(s, c); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	spans := map[string][]*span{}
	note := func(session string, p *span) {
		mu.Lock()
		defer mu.Unlock()
		spans[session] = append(spans[session], p)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var racing sync.WaitGroup
	for h := range holders {
		racing.Go(func() {
			dice := rand.New(rand.NewPCG(uint64(h), 2))
			mine := map[string]orchestrator.Claim{}
			for ctx.Err() == nil {
				begin := time.Now()
				c, ok, err := s.Adopt(context.WithoutCancel(ctx), fmt.Sprint(h), []string{"mac-1"}, ttl)
				if err != nil {
					t.Error(err)
					return
				}
				if ok {
					mine[c.Session] = c
					note(c.Session, &span{c.Term, h, time.Now(), begin.Add(ttl)})
				}
				for id, c := range mine {
					switch dice.IntN(12) {
					case 0, 1, 2, 3, 4:
						begin := time.Now()
						if _, err := s.Renew(context.WithoutCancel(ctx), id, c.Term, ttl); err == nil {
							note(id, &span{c.Term, h, time.Now(), begin.Add(ttl)})
						} else {
							delete(mine, id)
						}
					case 5:
						delete(mine, id)
						mu.Lock()
						for _, p := range spans[id] {
							if p.term == c.Term && p.till.After(time.Now()) {
								p.till = time.Now()
							}
						}
						mu.Unlock()
						err := handOver(s, c)
						if err != nil && !errors.Is(err, orchestrator.ErrLeaseLost) {
							t.Error(err)
						}
					}
				}
				if _, err := s.Reap(context.WithoutCancel(ctx), "self", true); err != nil {
					t.Error(err)
				}
			}
		})
	}
	racing.Wait()
	changes := 0
	for id, list := range spans {
		slices.SortFunc(list, func(a, b *span) int { return a.from.Compare(b.from) })
		for i, p := range list[1:] {
			before := list[i]
			switch {
			case p.term < before.term:
				t.Errorf("%s: term %d of holder %d after %d of holder %d", id, p.term, p.holder, before.term, before.holder)
			case p.term > before.term && p.from.Before(before.till):
				t.Errorf("%s: holder %d trusts term %d for another %s while holder %d has term %d", id, before.holder, before.term,
					before.till.Sub(p.from), p.holder, p.term)
			case p.term > before.term:
				changes++
			}
		}
	}
	if changes < sessions*holders {
		t.Errorf("only %d changes of holders: nothing was shown", changes)
	}
	t.Logf("%d changes of holders", changes)
}
