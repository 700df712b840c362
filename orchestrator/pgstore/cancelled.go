package pgstore

import (
	"context"

	"github.com/jackc/pgx/v5"
)

const cancelledSQL = `SELECT id FROM sessions WHERE holder = $1 AND cancelled AND state IN ('starting', 'running', 'finishing')`

// Cancelled implements orchestrator.SessionStore.
func (s *Store) Cancelled(ctx context.Context, holder string) ([]string, error) {
	rows, err := s.pool.Query(ctx, cancelledSQL, holder)
	if err != nil {
		return nil, unavailable(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return ids, unavailable(err)
}
