package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/orchestrator/pgstore/pgcluster"

	"go.uber.org/zap"
)

const (
	dispatchDevices = 1000
	dispatchClients = 64 // each has one session after another
	dispatchRounds  = 5
	dispatchRound   = 4 * time.Second
	dispatchConns   = 16 // of a store's pool, and of pgbench

	runningFew, runningMany = 100, 10_000 // devices
	runningSessions         = 300         // of each size

	queueFew, queueMany = 100, 100_000
	queueDevices        = 64
	queueRounds         = 15
)

// benchDispatch measures what it takes to place sessions: orchestrators with their HTTP servers, hosts and clients in this process, a
// real Postgres beside it. All of the orchestrator is real, and so are the hosts' websockets, over loopback TCP. The hosts are
// simulated, see simHost; the drivers are fake; there is no tunnel.
func benchDispatch(ctx context.Context, only string) (_ []figure, err error) {
	var u undo
	defer func() { err = errors.Join(err, u.close()) }()
	dir, cluster, err := openCluster(ctx, &u)
	if err != nil {
		return nil, err
	}
	d := &dispatchBench{dir: dir, cluster: cluster}
	return measureAll(ctx, "dispatch", only, []measurement{{"lifecycles", d.lifecycles}, {"running", d.running}, {"queue", d.queue}, {"replicas", d.replicas}})
}

type dispatchBench struct {
	dir     string
	cluster *pgcluster.Cluster
}

// lifecycles compares whole lives of sessions (New Session, a command, Delete Session; by then all of it is stored) with the simplest
// way to claim a row of a queue, over as many connections to the same cluster.
func (d *dispatchBench) lifecycles(ctx context.Context) (_ []figure, err error) {
	var u undo
	defer func() { err = errors.Join(err, u.close()) }()
	c, err := d.open(ctx, &u, "lifecycles", dispatchDevices, 1)
	if err != nil {
		return nil, err
	}
	if err := d.cluster.CreateDatabase(ctx, "claim"); err != nil {
		return nil, err
	}
	var ours, reference []float64
	for round := range dispatchRounds + 1 {
		mine, err := c.rate(ctx)
		if err != nil {
			return nil, err
		}
		theirs, err := d.claimRate(ctx)
		if err != nil {
			return nil, err
		}
		if round > 0 { // the first warms up
			ours, reference = append(ours, mine), append(reference, theirs)
		}
	}
	fmt.Printf("dispatch lifecycles: %.0f of ours, %.0f claims a second\n", ours, reference)
	if err := c.check(ctx); err != nil {
		return nil, err
	}
	a, b := middle(ours), middle(reference)
	return []figure{atLeast("dispatch/lifecycles-vs-claim", a, b, a/b, "ratio", 0.25)}, nil
}

const claimRows = 200_000 // more than are claimed in a round

// claimRate is pgbench's rate of claiming one row of a queue that has nothing else to it.
func (d *dispatchBench) claimRate(ctx context.Context) (float64, error) {
	_, err := d.cluster.Run(ctx, "claim", `
		DROP TABLE IF EXISTS queue;
		CREATE TABLE queue (id bigint PRIMARY KEY, state text NOT NULL, holder text NOT NULL DEFAULT '', claimed_at timestamptz);
		INSERT INTO queue (id, state) SELECT n, 'queued' FROM generate_series(1, `+strconv.Itoa(claimRows)+`) n;
		CREATE INDEX queue_queued ON queue (id) WHERE state = 'queued';
		ANALYZE queue;`)
	if err != nil {
		return 0, err
	}
	report, err := d.cluster.Pgbench(ctx, "claim", `
		UPDATE queue SET state = 'claimed', holder = 'bench', claimed_at = now()
		WHERE id = (SELECT id FROM queue WHERE state = 'queued' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED);`,
		"-c", strconv.Itoa(dispatchConns), "-j", "2", "-T", strconv.Itoa(int(dispatchRound.Seconds())))
	if err != nil {
		return 0, err
	}
	left, err := d.cluster.Run(ctx, "claim", `SELECT count(*) FROM queue WHERE state = 'queued'`)
	if err != nil {
		return 0, err
	}
	if left == "0" {
		return 0, errors.New("pgbench ran out of rows to claim")
	}
	_, rest, _ := strings.Cut(report, "\ntps = ")
	tps, _, _ := strings.Cut(rest, " ")
	rate, err := strconv.ParseFloat(tps, 64)
	if err != nil {
		return 0, fmt.Errorf("pgbench: %w: %s", err, report)
	}
	return rate, nil
}

// running measures how long New Session takes, of one client that has one session after another, and how that grows with the fleet.
func (d *dispatchBench) running(ctx context.Context) (_ []figure, err error) {
	var u undo
	defer func() { err = errors.Join(err, u.close()) }()
	sizes := []int{runningFew, dispatchDevices, runningMany}
	clients := make([]*dispatchClient, len(sizes))
	for i, n := range sizes {
		c, err := d.open(ctx, &u, fmt.Sprintf("running_%d", n), n, 1)
		if err != nil {
			return nil, err
		}
		if clients[i], err = c.client(ctx, &u, 0); err != nil {
			return nil, err
		}
	}
	took := make([][]time.Duration, len(sizes))
	for n := range runningSessions + 20 {
		for i, c := range clients {
			one, err := c.live()
			if err != nil {
				return nil, err
			}
			if n >= 20 { // the first warm up
				took[i] = append(took[i], one)
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	few, some, many := micros(median(took[0]))/1000, micros(median(took[1]))/1000, micros(median(took[2]))/1000
	return []figure{
		atMost("dispatch/create-to-running-p50", some, 0, some, "ms", 10),
		atMost("dispatch/growth-devices", many, few, many/few, "ratio", 2),
	}, nil
}

// queue measures how the time of a claim grows with the queue: of the store alone, 64 sessions at once and one at a time.
func (d *dispatchBench) queue(ctx context.Context) (_ []figure, err error) {
	var u undo
	defer func() { err = errors.Join(err, u.close()) }()
	few, err := d.openQueue(ctx, &u, queueFew)
	if err != nil {
		return nil, err
	}
	many, err := d.openQueue(ctx, &u, queueMany)
	if err != nil {
		return nil, err
	}
	var a, b []time.Duration
	for round := range queueRounds + 1 {
		one, err1 := few.claim(ctx)
		two, err2 := many.claim(ctx)
		if err := errors.Join(err1, err2, ctx.Err()); err != nil {
			return nil, err
		}
		if round > 0 {
			a, b = append(a, one...), append(b, two...)
		}
	}
	reference, ours := micros(median(a)), micros(median(b))
	return []figure{atMost("dispatch/growth-queue", ours, reference, ours/reference, "ratio", 2)}, nil
}

// replicas compares two orchestrators with one, on the same machine. The clients of two go to either, whoever has their session.
func (d *dispatchBench) replicas(ctx context.Context) (_ []figure, err error) {
	var u undo
	defer func() { err = errors.Join(err, u.close()) }()
	one, err := d.open(ctx, &u, "one", dispatchDevices, 1)
	if err != nil {
		return nil, err
	}
	two, err := d.open(ctx, &u, "two", dispatchDevices, 2)
	if err != nil {
		return nil, err
	}
	var ours, reference []float64
	for round := range dispatchRounds + 1 {
		a, err1 := two.rate(ctx)
		b, err2 := one.rate(ctx)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		if round > 0 {
			ours, reference = append(ours, a), append(reference, b)
		}
	}
	fmt.Printf("dispatch replicas: %.0f lifecycles a second with two, %.0f with one\n", ours, reference)
	if err := errors.Join(one.check(ctx), two.check(ctx)); err != nil {
		return nil, err
	}
	a, b := middle(ours), middle(reference)
	return []figure{atLeast("dispatch/two-replicas", a, b, a/b, "ratio", 0.9)}, nil
}

// rate is the lifecycles a second of dispatchClients clients together.
func (c *crew) rate(ctx context.Context) (_ float64, err error) {
	var u undo
	defer func() { err = errors.Join(err, u.close()) }()
	errs, lives := make([]error, dispatchClients), make([]int, dispatchClients)
	var all sync.WaitGroup
	clients := make([]*dispatchClient, dispatchClients)
	for i := range clients {
		if clients[i], err = c.client(ctx, &u, i); err != nil {
			return 0, err
		}
	}
	begin := time.Now()
	for i, client := range clients {
		all.Go(func() {
			for time.Since(begin) < dispatchRound && ctx.Err() == nil && errs[i] == nil {
				_, errs[i] = client.live()
				lives[i]++
			}
		})
	}
	all.Wait()
	sum := 0
	for _, n := range lives {
		sum += n
	}
	return float64(sum) / time.Since(begin).Seconds(), errors.Join(append(errs, ctx.Err())...)
}

// queueBench is a queue of so many sessions and devices for some of them, in a database of its own.
type queueBench struct {
	bench    *dispatchBench
	database string
	store    *pgstore.Store
	length   int
	hosts    []string
}

func (d *dispatchBench) openQueue(ctx context.Context, u *undo, length int) (*queueBench, error) {
	q := &queueBench{bench: d, database: fmt.Sprintf("queue_%d", length), length: length}
	var err error
	if q.store, err = d.openStore(ctx, u, q.database, "bench"); err != nil {
		return nil, err
	}
	members, err := enrol(ctx, &tunnelBench{dir: d.dir, cluster: d.cluster}, q.database, 1)
	if err != nil {
		return nil, err
	}
	q.hosts = []string{members[0].name}
	if err := q.store.HostUp(ctx, helloOf(members[0].name, queueDevices)); err != nil {
		return nil, err
	}
	// One session through the store has the row of what all of them want.
	n := orchestrator.NewSession{ID: "first", Account: accountName(0), Idle: time.Hour, Max: time.Hour, Command: time.Hour, Queue: time.Hour, QueueLimit: 1 << 30}
	if _, err := q.store.Create(ctx, n); err != nil {
		return nil, err
	}
	return q, q.fill(ctx)
}

// fill queues what is missing.
func (q *queueBench) fill(ctx context.Context) error {
	_, err := q.bench.cluster.Run(ctx, q.database, `
		ALTER TABLE sessions DISABLE TRIGGER USER; -- one row at a time they take a minute
		INSERT INTO sessions (id, account, want, recording, placement, idle_seconds, max_seconds, command_seconds, queue_until, piece)
		SELECT gen_random_uuid()::text, 'account-' || n % `+strconv.Itoa(dispatchAccounts)+`, (SELECT min(id) FROM wants), false, 'eu', 3600, 3600, 3600, now() + interval '1 hour', n % 16
		FROM generate_series(1, `+strconv.Itoa(q.length)+` - (SELECT count(*) FROM sessions WHERE state = 'queued')) n;
		INSERT INTO session_events (session, seq, at, kind) SELECT id, 1, now(), 'queued' FROM sessions WHERE state = 'queued' ON CONFLICT DO NOTHING;
		ALTER TABLE sessions ENABLE TRIGGER USER;
		UPDATE account_load l SET queued = (SELECT count(*) FROM sessions WHERE account = l.account AND state = 'queued');
		INSERT INTO lanes (account, want, pass) SELECT DISTINCT s.account, s.want, l.pass FROM sessions s JOIN account_load l USING (account)
			WHERE s.state = 'queued' ON CONFLICT DO NOTHING;
		UPDATE queue_room r SET queued = (SELECT count(*) FROM sessions WHERE piece = r.piece AND state = 'queued');`)
	return err
}

// claim is how long a claim takes, for each of several: one session at a time, and then for as many as there are devices left, each
// its part of the time that all take.
func (q *queueBench) claim(ctx context.Context) ([]time.Duration, error) {
	var took []time.Duration
	var claims []orchestrator.Claim
	for _, most := range []int{1, 1, 1, 1, queueDevices - 4} {
		begin := time.Now()
		got, _, err := q.store.Claim(ctx, "bench", q.hosts, time.Hour, most, 0)
		if err != nil {
			return nil, err
		}
		if len(got) != most {
			return nil, fmt.Errorf("%d sessions were claimed, not %d", len(got), most)
		}
		if most == 1 {
			took = append(took, time.Since(begin))
		}
		claims = append(claims, got...)
	}
	for _, c := range claims {
		end := orchestrator.Event{Kind: orchestrator.EventEnded, Reason: orchestrator.Completed, Session: c.Session, Term: c.Term, Seq: c.LastEvent + 1, At: time.Now()}
		if err := q.store.Finish(ctx, end, "", 0); err != nil {
			return nil, err
		}
	}
	return took, q.fill(ctx)
}

func (d *dispatchBench) openStore(ctx context.Context, u *undo, database, name string) (*pgstore.Store, error) {
	if err := d.cluster.CreateDatabase(ctx, database); err != nil {
		return nil, err
	}
	store, err := pgstore.Open(ctx, d.cluster.DSN(database), name, zap.NewNop())
	if err != nil {
		return nil, err
	}
	u.add(func() error { store.Close(); return nil })
	for i := range dispatchAccounts {
		if _, err := store.PutAccount(ctx, accountName(i), api.PutAccount{Recordings: "eu"}, orchestrator.Act{By: "bench"}); err != nil {
			return nil, err
		}
	}
	return store, os.MkdirAll(filepath.Join(d.dir, database), 0o700)
}
