package pgstore

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator/api"
)

// queuesShown is how many accounts' queues are told apart.
const queuesShown = 50

// fleetSQL counts devices and sessions, each in one row of (what, name, number). Sessions that are queued are not read, because their
// number is kept; of the others those alone that have a device.
const fleetSQL = `
WITH alike AS (SELECT host, state, closed, session IS NOT NULL AS used, count(*) AS n FROM devices GROUP BY 1, 2, 3, 4),
dev AS MATERIALIZED (
    SELECT closed, n, CASE WHEN state = 'quarantined' THEN state WHEN NOT ` + connected + ` THEN 'offline'
                WHEN state = 'ready' AND used THEN 'busy' ELSE state END AS state
    FROM alike d)
SELECT 'device', state, sum(n)::bigint FROM dev GROUP BY state
UNION ALL SELECT 'device', 'cordoned', coalesce(sum(n), 0)::bigint FROM dev WHERE closed
UNION ALL SELECT 'session', 'queued', sum(queued) FROM queue_room
UNION ALL SELECT 'session', state, count(*) FROM sessions WHERE state IN ('starting', 'running', 'finishing') GROUP BY state`

// queuesSQL has a row for each account that waits, the longest queue first, and how many there are, and how long the oldest session of all has
// waited. The recursion looks at one session for each priority that is queued in a lane: the first, which is the oldest.
const queuesSQL = `
WITH RECURSIVE firsts AS (
    SELECT l.account, l.want, f.priority, f.created_at FROM lanes l CROSS JOIN LATERAL (
        SELECT s.priority, s.created_at FROM sessions s WHERE s.account = l.account AND s.want = l.want AND s.state = 'queued'
        ORDER BY s.priority DESC, s.created_at LIMIT 1) f
    UNION ALL
    SELECT l.account, l.want, f.priority, f.created_at FROM firsts l CROSS JOIN LATERAL (
        SELECT s.priority, s.created_at FROM sessions s WHERE s.account = l.account AND s.want = l.want AND s.state = 'queued' AND s.priority < l.priority
        ORDER BY s.priority DESC, s.created_at LIMIT 1) f)
SELECT a.account, a.queued, a.active, extract(epoch FROM now() - min(f.created_at))::bigint, count(*) OVER (),
       extract(epoch FROM now() - min(min(f.created_at)) OVER ())::bigint
FROM account_load a JOIN firsts f USING (account) WHERE a.queued > 0
GROUP BY a.account ORDER BY a.queued DESC, a.account LIMIT $1`

// Fleet implements orchestrator.HostStore. All of it is of one snapshot.
func (s *Store) Fleet(ctx context.Context) (api.Fleet, error) {
	f := api.Fleet{Hosts: map[string]int{}, Closed: map[string]int{}, Devices: map[string]int{"cordoned": 0}, Sessions: map[string]int{},
		Queue: api.FleetQueue{Accounts: []api.AccountQueue{}}}
	for _, h := range api.HostStates() {
		f.Hosts[string(h)] = 0
	}
	for _, c := range api.ClosedStates() {
		f.Closed[c] = 0
	}
	for _, d := range api.DeviceStates() {
		f.Devices[d] = 0
	}
	for _, a := range api.ActiveStates() {
		f.Sessions[string(a)] = 0
	}
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		hosts, err := readHosts(ctx, tx, "")
		if err != nil {
			return err
		}
		for _, h := range hosts {
			f.Hosts[string(h.State)]++
			if h.Cordon != nil {
				f.Closed[string(h.Cordon.State)]++
			}
			if h.DampedUntil != nil {
				f.Closed["damped"]++
			}
		}
		var b pgx.Batch
		b.Queue(`SELECT now()`).QueryRow(func(row pgx.Row) error { return row.Scan(&f.At) })
		b.Queue(fleetSQL).Query(func(rows pgx.Rows) error {
			var what, name string
			var n int64
			_, err := pgx.ForEachRow(rows, []any{&what, &name, &n}, func() error {
				if what == "device" {
					f.Devices[name] = int(n)
				} else {
					f.Sessions[name] = int(n)
				}
				return nil
			})
			return err
		})
		b.Queue(queuesSQL, queuesShown).Query(func(rows pgx.Rows) error {
			var q api.AccountQueue
			var all int
			_, err := pgx.ForEachRow(rows, []any{&q.Account, &q.Queued, &q.Active, &q.OldestSeconds, &all, &f.Queue.OldestSeconds}, func() error {
				f.Queue.Accounts = append(f.Queue.Accounts, q)
				f.Queue.More = all - len(f.Queue.Accounts)
				return nil
			})
			return err
		})
		return tx.SendBatch(ctx, &b).Close()
	})
	return f, unavailable(err)
}
