package pgstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/place"
)

// PutAccount creates the account or changes where its recordings are kept, and says so in the audit log. To keep them in the EU and the US holds for those
// to come; to keep them in the EU only has the US copies of all that there are removed.
func (s *Store) PutAccount(ctx context.Context, id string, a api.PutAccount, by orchestrator.Act) (api.Account, error) {
	var v api.Account
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var was string
		err := tx.QueryRow(ctx, `SELECT recordings FROM accounts WHERE id = $1 FOR UPDATE`, id).Scan(&was)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		if _, err := tx.Exec(ctx, `
			WITH a AS (INSERT INTO accounts (id, recordings) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET recordings = $2 RETURNING id)
			INSERT INTO account_load (account) SELECT id FROM a ON CONFLICT (account) DO NOTHING`, id, a.Recordings); err != nil {
			return err
		}
		if was != "" && was != a.Recordings {
			detail := was + " to " + a.Recordings
			if a.Recordings == string(place.EUOnly) {
				n, err := withdraw(ctx, tx, id)
				if err != nil {
					return err
				}
				detail += fmt.Sprintf("; US copies to remove: %d", n)
			}
			var b pgx.Batch
			write(&b, by, entry{action: "placement", account: id, detail: detail})
			if err := tx.SendBatch(ctx, &b).Close(); err != nil {
				return err
			}
		}
		v, err = readAccount(ctx, tx, id)
		return err
	})
	return v, unavailable(err)
}

// Account is one account. ErrNotFound.
func (s *Store) Account(ctx context.Context, id string) (api.Account, error) {
	v, err := readAccount(ctx, s.pool, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return v, orchestrator.ErrNotFound
	}
	return v, unavailable(err)
}

func readAccount(ctx context.Context, db querier, id string) (api.Account, error) {
	v := api.Account{ID: id}
	err := db.QueryRow(ctx, `
		SELECT recordings, created_at, (SELECT count(*) FROM recording_copies c JOIN recordings r ON r.id = c.recording
		                                WHERE r.account = a.id AND c.state = 'removing')
		FROM accounts a WHERE id = $1`, id).Scan(&v.Recordings, &v.CreatedAt, &v.Removing)
	return v, err
}
