package pgstore

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/profilestate"
)

// recordDestroyed writes lines into a ledger: accounts, profiles, epochs, times. A higher epoch stays.
const recordDestroyed = `
	INSERT INTO destroyed_keys (account, profile, epoch, at)
	SELECT account, profile, max(epoch), max(at) FROM unnest($1::text[], $2::text[], $3::bigint[], $4::timestamptz[]) l (account, profile, epoch, at)
	GROUP BY account, profile
	ON CONFLICT (account, profile) DO UPDATE SET epoch = excluded.epoch, at = excluded.at WHERE destroyed_keys.epoch < excluded.epoch`

func columns(lines []profilestate.Destroyed) []any {
	n := len(lines)
	accounts, profiles, epochs, at := make([]string, n), make([]string, n), make([]int64, n), make([]time.Time, n)
	for i, l := range lines {
		accounts[i], profiles[i], epochs[i], at[i] = l.Account, l.Profile, l.Epoch, l.At
	}
	return []any{accounts, profiles, epochs, at}
}

// Destroyed implements profilestate.Ledger: the one apart from the keys.
func (s *Store) Destroyed(ctx context.Context) ([]profilestate.Destroyed, error) {
	lines, err := destroyed(ctx, s.pool)
	return lines, unavailable(err)
}

// RecordDestroyed implements profilestate.Ledger.
func (s *Store) RecordDestroyed(ctx context.Context, lines []profilestate.Destroyed) error {
	_, err := s.pool.Exec(ctx, recordDestroyed, columns(lines)...)
	return unavailable(err)
}

func destroyed(ctx context.Context, q interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}) ([]profilestate.Destroyed, error) {
	rows, err := q.Query(ctx, `SELECT account, profile, epoch, at FROM destroyed_keys ORDER BY account, profile`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[profilestate.Destroyed])
}
