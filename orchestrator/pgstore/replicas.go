package pgstore

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/driftstack/fleet/orchestrator"
)

const (
	replicaLive = `15 seconds` // a few announcements may be late
	replicaKept = `1 day`
)

// reachesProfile is a condition on a row s of sessions: the orchestrator $1 has the files of its profile; see the migrations.
const reachesProfile = `(s.profile IS NULL OR reaches_profile($1, s.profile, s.forked_from))`

// AnnounceReplica implements orchestrator.ReplicaStore. Of one name only the newest process is: the tunnel's gateway lets no two run.
func (s *Store) AnnounceReplica(ctx context.Context, r orchestrator.Replica) ([]orchestrator.Replica, error) {
	var others []orchestrator.Replica
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `
			INSERT INTO replicas (id, orchestrator, url, volume) VALUES ($1, $2, $3, $4)
			ON CONFLICT (id) DO UPDATE SET url = $3, volume = $4, seen_at = now()`, r.ID, s.name, r.URL, r.Volume); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `
			DELETE FROM replicas WHERE orchestrator = $1 AND id <> $2 OR seen_at < now() - interval '`+replicaKept+`'`, s.name, r.ID); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `
			SELECT id, orchestrator, url, volume FROM replicas
			WHERE id <> $1 AND seen_at > now() - interval '`+replicaLive+`' ORDER BY orchestrator`, r.ID)
		if err != nil {
			return err
		}
		others, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (o orchestrator.Replica, err error) {
			return o, row.Scan(&o.ID, &o.Name, &o.URL, &o.Volume)
		})
		return err
	})
	return others, unavailable(err)
}

// WithdrawReplica implements orchestrator.ReplicaStore.
func (s *Store) WithdrawReplica(ctx context.Context, id string) error {
	_, err := s.pool.Exec(ctx, `DELETE FROM replicas WHERE id = $1`, id)
	return unavailable(err)
}

// newWheres reads who has sessions; one that is not there has no answer. A lease that ran out is nobody's.
func newWheres(pool *pgxpool.Pool) *batch[string, *orchestrator.Whereabouts] {
	return &batch[string, *orchestrator.Whereabouts]{run: func(ctx context.Context, ids []string) ([]*orchestrator.Whereabouts, error) {
		rows, err := pool.Query(ctx, `
			SELECT s.id, s.state, coalesce(s.holder, ''), coalesce(r.orchestrator, ''), coalesce(r.url, '')
			FROM (SELECT id, state, CASE WHEN lease_until > now() AND state IN ('starting', 'running', 'finishing') THEN holder END AS holder
			      FROM sessions WHERE id = ANY ($1)) s LEFT JOIN replicas r ON r.id = s.holder`, ids)
		if err != nil {
			return nil, err
		}
		found := map[string]*orchestrator.Whereabouts{}
		var id string
		var w orchestrator.Whereabouts
		_, err = pgx.ForEachRow(rows, []any{&id, &w.State, &w.Holder.ID, &w.Holder.Name, &w.Holder.URL}, func() error {
			where := w
			found[id] = &where
			return nil
		})
		return column(ids, func(id string) *orchestrator.Whereabouts { return found[id] }), err
	}}
}

// Whereabouts implements orchestrator.ReplicaStore.
func (s *Store) Whereabouts(ctx context.Context, session string) (orchestrator.Whereabouts, error) {
	return single(s.batches.wheres.do(ctx, session))
}
