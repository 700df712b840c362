package pgstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

const quotaSQL = `
SELECT max_active, max_queued, max_creates, weight, active, queued,
       (SELECT coalesce(sum(n), 0) FROM unnest(recent_creates(recent, stretch, extract(epoch FROM now())::bigint / 5)) n)
FROM account_load WHERE account = $1`

// Quota is what an account may have and has. ErrNotFound.
func (s *Store) Quota(ctx context.Context, account string) (api.AccountQuota, error) {
	q, err := readQuota(ctx, s.pool, account, "")
	return q, unavailable(err)
}

func readQuota(ctx context.Context, db querier, account, lock string) (api.AccountQuota, error) {
	q := api.AccountQuota{Account: account}
	err := db.QueryRow(ctx, quotaSQL+lock, account).Scan(&q.Concurrent, &q.Queued, &q.CreatesPerMinute, &q.Weight, &q.Active, &q.QueuedNow, &q.CreatedLately)
	if errors.Is(err, pgx.ErrNoRows) {
		return q, verdict{noAccount(account)}
	}
	return q, err
}

func noAccount(id string) error {
	return &orchestrator.MissingError{What: fmt.Sprintf("there is no account %q; PUT /v1/accounts/{id} creates one", id)}
}

// PutQuota replaces an account's quota, and says in the audit log what it was before. What the account has beyond it, it keeps; what waits
// for room that there is now gets it at once. ErrNotFound.
func (s *Store) PutQuota(ctx context.Context, account string, to api.Quota, by orchestrator.Act) (q api.AccountQuota, err error) {
	to.Weight = max(to.Weight, 1)
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		// Who changes the account's lanes holds this row's lock.
		if q, err = readQuota(ctx, tx, account, ` FOR UPDATE`); err != nil {
			return err
		}
		was := quotaWords(q.Quota)
		q.Quota = to
		var b pgx.Batch
		b.Queue(`UPDATE account_load SET max_active = $2, max_queued = $3, max_creates = $4, weight = $5 WHERE account = $1`,
			account, to.Concurrent, to.Queued, to.CreatesPerMinute, to.Weight)
		b.Queue(`UPDATE lanes SET open = true WHERE account = $1 AND NOT open`, account) // a claim that finds no room shuts them again
		b.Queue(`SELECT pg_notify('` + chanQueue + `', '')`)
		write(&b, by, entry{action: "quota", account: account, detail: quotaWords(to) + "; before: " + was})
		return tx.SendBatch(ctx, &b).Close()
	})
	return q, unavailable(err)
}

// quotaWords is a quota for the audit log.
func quotaWords(q api.Quota) string {
	var parts []string
	for _, l := range []struct {
		name string
		n    *int
	}{{"concurrent", q.Concurrent}, {"queued", q.Queued}, {"creates per minute", q.CreatesPerMinute}} {
		value := "default"
		if l.n != nil {
			value = fmt.Sprint(*l.n)
		}
		parts = append(parts, l.name+" "+value)
	}
	return strings.Join(append(parts, fmt.Sprintf("weight %d", q.Weight)), ", ")
}
