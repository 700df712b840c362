package pgstore

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// PutAccount creates the account or changes where its future recordings are kept.
func (s *Store) PutAccount(ctx context.Context, id string, a api.PutAccount) (api.Account, error) {
	v := api.Account{ID: id, Recordings: a.Recordings}
	err := s.pool.QueryRow(ctx, `
		WITH a AS (INSERT INTO accounts (id, recordings) VALUES ($1, $2)
		           ON CONFLICT (id) DO UPDATE SET recordings = $2 RETURNING created_at),
		     l AS (INSERT INTO account_load (account) SELECT $1 FROM a ON CONFLICT (account) DO NOTHING)
		SELECT created_at FROM a`, id, a.Recordings).Scan(&v.CreatedAt)
	return v, unavailable(err)
}

// Account is one account. ErrNotFound.
func (s *Store) Account(ctx context.Context, id string) (api.Account, error) {
	v := api.Account{ID: id}
	err := s.pool.QueryRow(ctx, `SELECT recordings, created_at FROM accounts WHERE id = $1`, id).Scan(&v.Recordings, &v.CreatedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return v, orchestrator.ErrNotFound
	}
	return v, unavailable(err)
}
