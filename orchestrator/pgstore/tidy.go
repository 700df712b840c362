package pgstore

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
)

// keyLife is how long an idempotency key counts.
const keyLife = `interval '24 hours'`

// A tidying deletes rows that nothing needs any more, a batch a transaction. pick names at most $1, and locks what keeps them from being needed
// again; drop deletes those of $1 that are not needed still. It is a statement of its own because its snapshot must be younger than the
// locks. Rows that somebody has locked are left for the next time: nobody waits for a sweep that waits.
type tidying struct {
	batch      int
	pick, drop string
}

// A want is needed by lanes, and by sessions that may be queued again. A Create that has its id from before finds it
// gone when it adds the lane, and asks again; see wantGone.
var tidyWants = tidying{100, `
SELECT w.id::text FROM wants w WHERE w.used_at <= now() - interval '24 hours' AND ` + wantIdle + ` ORDER BY w.used_at LIMIT $1 FOR UPDATE SKIP LOCKED`, `
DELETE FROM wants w WHERE w.id = ANY ($1::text[]::bigint[]) AND ` + wantIdle}

const wantIdle = `NOT EXISTS (SELECT FROM lanes l WHERE l.want = w.id)
    AND NOT EXISTS (SELECT FROM sessions s WHERE s.want = w.id AND s.state IN ('starting', 'running', 'finishing'))`

var tidyKeys = tidying{1000, `
SELECT ctid::text FROM idempotency_keys WHERE created_at <= now() - ` + keyLife + ` ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED`, `
DELETE FROM idempotency_keys WHERE ctid = ANY ($1::text[]::tid[])`}

// Tidy implements orchestrator.SessionStore.
func (s *Store) Tidy(ctx context.Context) (n orchestrator.Tidied, err error) {
	for _, f := range []struct {
		tidying
		n *int
	}{{tidyWants, &n.Wants}, {tidyKeys, &n.Keys}} {
		for more := true; more; {
			var gone int
			gone, more, err = s.tidy(ctx, f.tidying)
			*f.n += gone
			if err != nil {
				return n, unavailable(err)
			}
		}
	}
	return n, nil
}

// tidy is one batch; more says that there may be another. There is not while another orchestrator is at one.
func (s *Store) tidy(ctx context.Context, f tidying) (gone int, more bool, err error) {
	err = pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		var alone bool
		if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock(7236838, 2)`).Scan(&alone); err != nil || !alone {
			return err
		}
		rows, err := tx.Query(ctx, f.pick, f.batch)
		if err != nil {
			return err
		}
		picked, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(picked) == 0 {
			return err
		}
		tag, err := tx.Exec(ctx, f.drop, picked)
		gone, more = int(tag.RowsAffected()), len(picked) == f.batch
		return err
	})
	if err != nil {
		return 0, false, err
	}
	return gone, more, nil
}
