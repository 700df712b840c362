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

const executionSQL = `SELECT profile_execution FROM account_load WHERE account = $1`

// errExecution is of a session whose account's setting was changed while it was created. It is created again, and unavailable if that
// goes on.
var errExecution = fmt.Errorf("%w: where the account's profiles may be used is being changed", orchestrator.ErrUnavailable)

// ProfileExecution is where an account's sessions with a profile may run. ErrNotFound.
func (s *Store) ProfileExecution(ctx context.Context, account string) (api.ProfileExecution, error) {
	v, err := readExecution(ctx, s.pool, account, "")
	return v, unavailable(err)
}

func readExecution(ctx context.Context, db querier, account, lock string) (api.ProfileExecution, error) {
	v := api.ProfileExecution{Account: account}
	err := db.QueryRow(ctx, executionSQL+lock, account).Scan(&v.ProfileExecution)
	if errors.Is(err, pgx.ErrNoRows) {
		return v, verdict{noAccount(account)}
	}
	return v, err
}

// PutProfileExecution says where the account's sessions with a profile may run, and in the audit log what it was before. What is queued and could
// still be given a device elsewhere is ended; what runs goes on. ErrNotFound.
func (s *Store) PutProfileExecution(ctx context.Context, account string, to api.Execution, by orchestrator.Act) (v api.ProfileExecution, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		// Creates and claims lock this row before they look at a session.
		if v, err = readExecution(ctx, tx, account, ` FOR UPDATE`); err != nil {
			return err
		}
		was := v.ProfileExecution
		v.ProfileExecution = to
		var b pgx.Batch
		b.Queue(`UPDATE account_load SET profile_execution = $2 WHERE account = $1`, account, string(to))
		if to == api.ExecutionEU {
			// Those that are locked are being ended by somebody else.
			b.Queue(`
				WITH q AS (SELECT s.id FROM sessions s JOIN wants w ON w.id = s.want
				           WHERE s.account = $1 AND s.state = 'queued' AND s.profile IS NOT NULL AND w.countries = '{}' FOR UPDATE OF s SKIP LOCKED),
				     s AS (UPDATE sessions SET state = 'ended', reason = 'cancelled', ended_at = now(), want_caps = NULL,
				                  detail = 'its account now requires devices in the EU for sessions with a profile (profile_execution eu); create it again'
				           FROM q WHERE sessions.id = q.id RETURNING sessions.id),
				     e AS (INSERT INTO session_events (session, seq, at, kind, reason)
				           SELECT id, 1 + (SELECT max(seq) FROM session_events e WHERE e.session = s.id), now(), 'ended', 'cancelled' FROM s)
				SELECT pg_notify('`+chanSession+`', id) FROM s`, account)
		}
		write(&b, by, entry{action: "profile_execution", account: account, detail: string(to) + "; before: " + string(was)})
		return tx.SendBatch(ctx, &b).Close()
	})
	return v, unavailable(err)
}

// wantedBy is what a session wants, with what its account requires.
func wantedBy(ctx context.Context, db querier, n orchestrator.NewSession) (wanted, error) {
	w, err := wantedOf(n.Want, n.Browser, n.BiDi)
	if err != nil || n.Profile == "" {
		return w, err
	}
	var allowed api.Execution
	switch err := db.QueryRow(ctx, executionSQL, n.Account).Scan(&allowed); {
	case errors.Is(err, pgx.ErrNoRows): // which is said elsewhere
	case err != nil:
		return w, unavailable(err)
	case allowed == api.ExecutionEU:
		w.Countries = place.MemberStates()
	}
	return w, nil
}
