package pgstore

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator/api"
)

// queuesShown is how many accounts' queues are told apart.
const queuesShown = 50

// fleetSQL counts devices and sessions, each in one row of (what, name, number). Only sessions that have not ended are read, each
// kind from its own index.
const fleetSQL = `
WITH dev AS MATERIALIZED (
    SELECT closed, CASE WHEN state = 'quarantined' THEN state WHEN NOT ` + connected + ` THEN 'offline'
                WHEN state = 'ready' AND session IS NOT NULL THEN 'busy' ELSE state END AS state
    FROM devices d)
SELECT 'device', state, count(*) FROM dev GROUP BY state
UNION ALL SELECT 'device', 'cordoned', count(*) FROM dev WHERE closed
UNION ALL SELECT 'session', 'queued', count(*) FROM sessions WHERE state = 'queued'
UNION ALL SELECT 'session', state, count(*) FROM sessions WHERE state IN ('starting', 'running', 'finishing') GROUP BY state
UNION ALL SELECT 'oldest', '', coalesce(extract(epoch FROM now() - min(created_at)), 0)::bigint FROM sessions WHERE state = 'queued'`

// queuesSQL has a row for each account that waits, the longest queue first, and how many there are.
const queuesSQL = `
WITH q AS (
    SELECT account, count(*) AS n, extract(epoch FROM now() - min(created_at))::bigint AS oldest, count(*) OVER () AS all_of
    FROM sessions WHERE state = 'queued' GROUP BY account ORDER BY count(*) DESC, account LIMIT $1),
active AS (SELECT account, count(*) AS n FROM sessions WHERE state IN ('starting', 'running', 'finishing') GROUP BY account)
SELECT account, q.n, coalesce(active.n, 0), q.oldest, q.all_of FROM q LEFT JOIN active USING (account) ORDER BY q.n DESC, account`

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
				switch what {
				case "device":
					f.Devices[name] = int(n)
				case "session":
					f.Sessions[name] = int(n)
				default:
					f.Queue.OldestSeconds = n
				}
				return nil
			})
			return err
		})
		b.Queue(queuesSQL, queuesShown).Query(func(rows pgx.Rows) error {
			var q api.AccountQueue
			var all int
			_, err := pgx.ForEachRow(rows, []any{&q.Account, &q.Queued, &q.Active, &q.OldestSeconds, &all}, func() error {
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
