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
		INSERT INTO accounts (id, recordings) VALUES ($1, $2)
		ON CONFLICT (id) DO UPDATE SET recordings = $2 RETURNING created_at`, id, a.Recordings).Scan(&v.CreatedAt)
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

// CreateProfile adds an empty profile.
func (s *Store) CreateProfile(ctx context.Context, id string, p api.CreateProfile) (api.Profile, error) {
	v := api.Profile{ID: id, Account: p.Account, Name: p.Name, Archetype: p.Archetype, Description: p.Description}
	err := s.pool.QueryRow(ctx, `
		INSERT INTO profiles (id, account, name, archetype, description) VALUES ($1, $2, $3, $4, $5) RETURNING created_at`,
		id, p.Account, p.Name, p.Archetype, p.Description).Scan(&v.CreatedAt)
	if violates(err, "profiles_account_fkey") {
		return v, &orchestrator.InvalidError{Field: "account", Problem: "no such account; create it with PUT /v1/accounts/{id}"}
	}
	return v, unavailable(err)
}

// Profiles lists the profiles of an account, or of all; id, when set, picks one.
func (s *Store) Profiles(ctx context.Context, account, id string) ([]api.Profile, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT p.id, p.account, p.name, p.archetype, p.description, p.generation, p.bytes, coalesce(s.id, ''), p.created_at
		FROM profiles p LEFT JOIN sessions s ON s.profile = p.id AND s.state <> 'ended'
		WHERE ($1 = '' OR p.account = $1) AND ($2 = '' OR p.id = $2) ORDER BY p.created_at DESC, p.id LIMIT 1000`, account, id)
	if err != nil {
		return nil, unavailable(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[api.Profile])
	return list, unavailable(err)
}
