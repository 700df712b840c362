package pgstore_test

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
)

var (
	// read is a node that reads a table, or what is in memory: a CTE, or what a statement changed (a tuplestore). It has how many rows it
	// gave each time, how often, and how many of each time were not wanted.
	read = regexp.MustCompile(`(?:Scan (?:using \w+ )?on (sessions|session_events|devices)\b|(CTE|Tuplestore) Scan).*\(actual rows=(\d+) loops=(\d+)\)((?:\n +[^-\s].*)*)`)
	left = regexp.MustCompile(`Rows Removed by \w+(?: \w+)*: (\d+)`)
	// all are indices that sessions are in that have ended.
	all = regexp.MustCompile(`\b(sessions)_(pkey|list|account|host|by_profile)\b`)
)

// mostRead is how many rows of one table a plan may read: far fewer than there are.
const mostRead = 2000

// readers are the tables that a plan reads more of.
func readers(plan string) (tables []string) {
	for _, m := range read.FindAllStringSubmatch(plan, -1) {
		rows, _ := strconv.Atoi(m[3])
		times, _ := strconv.Atoi(m[4])
		for _, more := range left.FindAllStringSubmatch(m[5], -1) {
			n, _ := strconv.Atoi(more[1])
			rows += n
		}
		if rows*times > mostRead {
			tables = append(tables, m[1]+m[2])
		}
	}
	return tables
}

// plans are those of what is done, by what it is called.
type plans struct {
	mu   sync.Mutex
	seen int                            // guarded by mu
	live bool                           // guarded by mu; only live sessions are to be read
	bad  map[string]map[string]struct{} // guarded by mu; plans that read too much, by table
}

func (p *plans) show(plan string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen++
	found := readers(plan)
	if p.live {
		for _, m := range all.FindAllStringSubmatch(plan, -1) {
			found = append(found, m[1])
		}
	}
	for _, table := range found {
		if p.bad[table] == nil {
			p.bad[table] = map[string]struct{}{}
		}
		p.bad[table][plan] = struct{}{}
	}
}

func TestPlans(t *testing.T) { testPlans(t, 20_000) } // what makes an index worth while; TestSoakPlans has 100,000

// testPlans: with 10,000 devices and so many queued sessions, nothing that sessions pass on their way reads all sessions, or all devices.
// What counts all devices has to read them. What looks over the whole fleet reads of sessions those that are live, from their own indices: there
// are as many again that have ended.
func testPlans(t *testing.T, queued int) {
	base := open(t, 20)
	mustCreate(t, base, wish("a")) // has the row of what all want
	mustClaim(t, base)
	begin := time.Now()
	base.Crowd(t, 50, 200, queued, 500)
	base.Ended(t, queued)
	t.Logf("seeded in %s", time.Since(begin))
	p := &plans{bad: map[string]map[string]struct{}{}}
	s := base.Explained(t, p.show)
	for _, step := range []struct {
		name  string
		do    func(*testing.T, *pgstore.Store)
		scans []string // tables that have to be read
		live  bool     // of sessions, those that have not ended are read
	}{
		{"life", life, nil, false},
		{"turns", turns, nil, false},
		{"watch", watch, nil, false},
		{"list", list, nil, false},
		{"fleet", func(t *testing.T, s *pgstore.Store) { must(t, second(s.Fleet(t.Context()))) }, []string{"devices"}, true},
		{"together", func(t *testing.T, s *pgstore.Store) { together(t, base, s) }, []string{"sessions"}, false},
		{"tidy", func(t *testing.T, s *pgstore.Store) { must(t, second(s.Tidy(t.Context()))) }, nil, true},
	} {
		if step.name == "tidy" {
			base.AgeWants(t, 25*time.Hour)
		}
		p.mu.Lock()
		p.seen, p.live, p.bad = 0, step.live, map[string]map[string]struct{}{}
		p.mu.Unlock()
		for range 7 { // the sixth time a statement's plan may be for whatever its parameters are
			step.do(t, s)
		}
		p.mu.Lock()
		if p.seen < 7 {
			t.Errorf("%s: only %d plans were shown", step.name, p.seen)
		}
		for table, found := range p.bad {
			for plan := range found {
				if !slices.Contains(step.scans, table) {
					t.Errorf("%s reads all %s: %s", step.name, table, plan)
				}
			}
		}
		p.mu.Unlock()
	}
}

// TestPlansOfANewDatabase: plans that were made when there were a few sessions, and are kept, are good for thousands.
func TestPlansOfANewDatabase(t *testing.T) {
	base := open(t, 20)
	base.Unanalysed(t)
	mustCreate(t, base, wish("b"))
	base.Grow(t, "few-", 30)
	p := &plans{bad: map[string]map[string]struct{}{}}
	s := base.Explained(t, p.show)
	for range 7 {
		life(t, s)
		turns(t, s)
	}
	base.Grow(t, "many-", 5000)
	p.mu.Lock()
	p.seen, p.bad = 0, map[string]map[string]struct{}{}
	p.mu.Unlock()
	for range 7 {
		life(t, s)
		turns(t, s)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen == 0 {
		t.Error("no plan was shown")
	}
	for table, found := range p.bad {
		for plan := range found {
			t.Errorf("reads too many %s: %s", table, plan)
		}
	}
}

// reach is all hosts: there is a tunnel from each to every orchestrator.
func reach() []string {
	hosts := []string{"mac-1"}
	for n := range 50 {
		hosts = append(hosts, fmt.Sprintf("crowd-%d", n+1))
	}
	return hosts
}

// life is what a session passes.
func life(t *testing.T, s *pgstore.Store) {
	ctx := t.Context()
	n := wish("a")
	n.QueueLimit, n.Key = 1_000_000, orchestrator.Idempotency{Key: uuid.NewString()}
	must(t, second(s.Offers(ctx, n)))
	mustCreate(t, s, n)
	got, _, err := s.Claim(ctx, "test", reach(), time.Minute, 2, 0)
	must(t, err)
	if len(got) != 2 {
		t.Fatalf("%d sessions were claimed", len(got))
	}
	c := got[0]
	must(t, second(s.Renew(ctx, c.Session, c.Term, time.Minute)))
	must(t, s.Running(ctx, c.Session, c.Term, nil))
	must(t, s.AppendEvents(ctx, []orchestrator.Event{{Session: c.Session, Term: c.Term, Seq: c.LastEvent + 1, At: time.Now(), Kind: orchestrator.EventRunning}}))
	must(t, s.Finishing(ctx, c.Session, c.Term))
	must(t, finish(s, c, orchestrator.Completed))
	must(t, s.DevicesChanged(ctx, c.Host, []wire.Device{wire.Device{Name: c.Device, Kind: "fake", Model: "iPhone 15", PlatformName: "iOS", State: wire.DeviceReady}}))
	again := orchestrator.Event{Session: got[1].Session, Term: got[1].Term, Seq: got[1].LastEvent + 1, At: time.Now(), Kind: orchestrator.EventRequeued}
	must(t, second(s.Requeue(ctx, again)))
}

// turns is what happens to a session otherwise.
func turns(t *testing.T, s *pgstore.Store) {
	ctx := t.Context()
	c, ok, err := claim(ctx, s, "test", reach(), time.Minute)
	if err != nil || !ok {
		t.Fatalf("claim: %v %v", ok, err)
	}
	must(t, s.Running(ctx, c.Session, c.Term, nil))
	must(t, s.HandOver(ctx, orchestrator.Event{Session: c.Session, Term: c.Term, Seq: c.LastEvent + 1, At: time.Now(), Kind: orchestrator.EventHandedOver}))
	if c, ok, err = s.Adopt(ctx, "test", reach(), time.Minute); err != nil || !ok {
		t.Fatalf("adopt: %v %v", ok, err)
	}
	must(t, s.Cancel(ctx, c.Session))
	must(t, finish(s, c, orchestrator.Cancelled))
	n := wish("b")
	n.QueueLimit, n.Queue = 1_000_000, 0
	mustCreate(t, s, n)
	ended, err := s.Reap(ctx, "self", true)
	if must(t, err); len(ended) != 1 {
		t.Fatalf("%d sessions were reaped", len(ended))
	}
}

// watch is what orchestrators do every second, with nothing to do, and when hosts come.
func watch(t *testing.T, s *pgstore.Store) {
	ctx := t.Context()
	must(t, second(s.Reap(ctx, "self", true)))
	must(t, second(s.EndDrained(ctx)))
	must(t, second(s.Cancelled(ctx, "self")))
	must(t, second(s.Reclaim(ctx, "self", []string{"queued-1"}, time.Minute, 64)))
	must(t, second(s.DeviceFree(ctx)))
	must(t, second(s.Whereabouts(ctx, "queued-1")))
	if _, ok, err := s.Adopt(ctx, "test", reach(), time.Minute); err != nil || ok {
		t.Fatalf("adopt: %v %v", ok, err)
	}
	must(t, s.HostUp(ctx, wire.Hello{Protocol: wire.Version, Host: "crowd-50", Devices: []wire.Device{{Name: "phone-200", Kind: "fake", State: wire.DeviceBusy}}}))
}

func list(t *testing.T, s *pgstore.Store) {
	ctx := t.Context()
	must(t, second(s.Get(ctx, "queued-1")))
	for _, f := range []pgstore.SessionFilter{{}, {Account: "a"}, {Host: "crowd-1"}, {State: "running"}, {State: "queued", Account: "b"}, {Profile: "none"}, {Labels: api.Labels{"a": "b"}}} {
		f.Limit = 20
		page, err := s.List(ctx, f)
		must(t, err)
		if page.Next != "" {
			f.Cursor = page.Next
			must(t, second(s.List(ctx, f)))
		}
	}
}

// together is what ends many sessions with one statement: what is read grows as they do, not with their square.
func together(t *testing.T, base, s *pgstore.Store) {
	const many = 300
	base.PassQueued(t, "b", many)
	ended, err := s.Reap(t.Context(), "self", true)
	if must(t, err); len(ended) != many {
		t.Errorf("%d sessions were reaped", len(ended))
	}
	base.Profiled(t, "b", many)
	for _, to := range []api.Execution{api.ExecutionEU, api.ExecutionAny} {
		must(t, second(s.PutProfileExecution(t.Context(), "b", to, orchestrator.Act{})))
	}
}

// TestListOfALiveState: those few are listed without reading the many that have ended.
func TestListOfALiveState(t *testing.T) {
	base := open(t, 1)
	mustCreate(t, base, wish("a"))
	base.Ended(t, 20_000)
	p := &plans{live: true, bad: map[string]map[string]struct{}{}}
	s := base.Explained(t, p.show)
	for _, state := range api.ActiveStates() {
		page, err := s.List(t.Context(), pgstore.SessionFilter{State: string(state), Limit: 20})
		if must(t, err); (len(page.Sessions) == 1) != (state == api.Queued) {
			t.Errorf("%d are %s", len(page.Sessions), state)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen != len(api.ActiveStates()) || len(p.bad) != 0 {
		t.Errorf("%d plans, too much read by: %v", p.seen, p.bad)
	}
}
