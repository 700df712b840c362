package pgstore

import (
	"context"
	"embed"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/driftstack/fleet/profilestate"
)

//go:embed keymigrations/*.sql
var keyMigrations embed.FS

var (
	_ profilestate.KeyStore = (*Keys)(nil)
	_ profilestate.Ledger   = (*Store)(nil)
)

// Keys is the database of wrapped keys, which has nothing else in it: no dump of the other one holds a key. It is safe for
// concurrent use.
type Keys struct{ pool *pgxpool.Pool }

// OpenKeys is OpenKeysAt wherever dsn says: for tests and tools.
func OpenKeys(ctx context.Context, dsn string) (*Keys, error) {
	return openKeys(ctx, dsn, nil)
}

// OpenKeysAt connects, and brings the schema up to date. It refuses the database that a [Store] is in.
func OpenKeysAt(ctx context.Context, at Place) (*Keys, error) {
	return openKeys(ctx, at.DSN, at.dial())
}

func openKeys(ctx context.Context, dsn string, dial pgconn.DialFunc) (*Keys, error) {
	pool, err := connect(ctx, dsn, dial, 4)
	if err != nil {
		return nil, err
	}
	var shared bool
	err = pool.QueryRow(ctx, `SELECT to_regclass('sessions') IS NOT NULL`).Scan(&shared)
	if err == nil && shared {
		err = errors.New("this is the main database: wrapped keys are kept in one of their own, so that no dump has both")
	}
	if err == nil {
		err = migrate(ctx, pool, keyMigrations, "keymigrations")
	}
	if err != nil {
		pool.Close()
		return nil, err
	}
	return &Keys{pool}, nil
}

// Close waits for running statements and closes every connection.
func (k *Keys) Close() { k.pool.Close() }

// Keys implements profilestate.KeyStore.
func (k *Keys) Keys(ctx context.Context, ref profilestate.Ref) (w profilestate.WrappedKeys, err error) {
	w.Account.Account, w.Profile.Ref = ref.Account, ref
	err = k.pool.QueryRow(ctx, `
		SELECT coalesce(a.epoch, 0), coalesce(a.root, ''), a.wrapped, coalesce(p.epoch, 0), p.wrapped,
		       coalesce((SELECT epoch FROM destroyed_keys WHERE account = $1 AND profile = ''), 0)
		FROM (SELECT 1) one LEFT JOIN account_keys a ON a.account = $1 LEFT JOIN profile_keys p ON p.account = $1 AND p.profile = $2`, ref.Account, ref.Profile).
		Scan(&w.Account.Epoch, &w.Account.Root, &w.Account.Wrapped, &w.Profile.Epoch, &w.Profile.Wrapped, &w.Destroyed)
	return w, unavailable(err)
}

// PutAccountKey implements profilestate.KeyStore.
func (k *Keys) PutAccountKey(ctx context.Context, key profilestate.AccountKey) (profilestate.AccountKey, error) {
	_, err := k.pool.Exec(ctx, `
		INSERT INTO account_keys (account, epoch, root, wrapped) VALUES ($1, $2, $3, $4)
		ON CONFLICT (account) DO UPDATE SET epoch = $2, root = $3, wrapped = $4, changed_at = now() WHERE account_keys.epoch < $2`,
		key.Account, key.Epoch, key.Root, key.Wrapped)
	if err != nil {
		return key, unavailable(err)
	}
	w, err := k.Keys(ctx, profilestate.Ref{Account: key.Account})
	return w.Account, err
}

// PutProfileKey implements profilestate.KeyStore. The account's key cannot be rotated meanwhile.
func (k *Keys) PutProfileKey(ctx context.Context, key profilestate.ProfileKey) (profilestate.ProfileKey, error) {
	_, err := k.pool.Exec(ctx, `
		WITH a AS (SELECT account FROM account_keys WHERE account = $1 AND epoch = $3 FOR SHARE)
		INSERT INTO profile_keys (account, profile, epoch, wrapped) SELECT account, $2, $3, $4 FROM a
		ON CONFLICT (account, profile) DO UPDATE SET epoch = $3, wrapped = $4, changed_at = now() WHERE profile_keys.epoch < $3`,
		key.Account, key.Profile, key.Epoch, key.Wrapped)
	if err != nil {
		return key, unavailable(err)
	}
	w, err := k.Keys(ctx, key.Ref)
	if err == nil && w.Profile.Epoch != key.Epoch {
		err = profilestate.ErrConflict
	}
	return w.Profile, err
}

// Rewrap implements profilestate.KeyStore.
func (k *Keys) Rewrap(ctx context.Context, root string, limit int, f func(profilestate.AccountKey) (profilestate.AccountKey, error)) (n int, err error) {
	err = pgx.BeginFunc(ctx, k.pool, func(tx pgx.Tx) error {
		list, err := accountKeys(ctx, tx, `SELECT account, epoch, root, wrapped FROM account_keys WHERE root <> $1 ORDER BY account LIMIT $2 FOR UPDATE`, root, limit)
		if err != nil {
			return err
		}
		batch := &pgx.Batch{}
		for _, w := range list {
			if w, err = f(w); err != nil {
				return verdict{err}
			}
			batch.Queue(`UPDATE account_keys SET root = $2, wrapped = $3, changed_at = now() WHERE account = $1`, w.Account, w.Root, w.Wrapped)
		}
		n = len(list)
		return tx.SendBatch(ctx, batch).Close()
	})
	if err != nil {
		n = 0
	}
	return n, unavailable(err)
}

// RotateAccount implements profilestate.KeyStore.
func (k *Keys) RotateAccount(ctx context.Context, account string, f func(profilestate.AccountKey, []profilestate.ProfileKey) (profilestate.AccountKey, []profilestate.ProfileKey, error)) error {
	return unavailable(pgx.BeginFunc(ctx, k.pool, func(tx pgx.Tx) error {
		was, err := accountKeys(ctx, tx, `SELECT account, epoch, root, wrapped FROM account_keys WHERE account = $1 FOR UPDATE`, account)
		if err != nil {
			return err
		}
		if len(was) == 0 {
			return verdict{profilestate.ErrNoKey}
		}
		list, err := profileKeys(ctx, tx, `SELECT account, profile, epoch, wrapped FROM profile_keys WHERE account = $1`, account)
		if err != nil {
			return err
		}
		next, profiles, err := f(was[0], list)
		if err != nil {
			return verdict{err}
		}
		batch := &pgx.Batch{}
		batch.Queue(`UPDATE account_keys SET epoch = $2, root = $3, wrapped = $4, changed_at = now() WHERE account = $1`, account, next.Epoch, next.Root, next.Wrapped)
		for _, p := range profiles {
			batch.Queue(`UPDATE profile_keys SET epoch = $3, wrapped = $4, changed_at = now() WHERE account = $1 AND profile = $2`, account, p.Profile, p.Epoch, p.Wrapped)
		}
		return tx.SendBatch(ctx, batch).Close()
	}))
}

// Count implements profilestate.KeyStore.
func (k *Keys) Count(ctx context.Context) (profilestate.KeyCount, error) {
	n := profilestate.KeyCount{AccountsByRoot: make(map[string]int)}
	err := k.pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM profile_keys), (SELECT count(*) FROM destroyed_keys)`).Scan(&n.Profiles, &n.Destroyed)
	if err != nil {
		return n, unavailable(err)
	}
	rows, err := k.pool.Query(ctx, `SELECT root, count(*) FROM account_keys GROUP BY root`)
	if err != nil {
		return n, unavailable(err)
	}
	var root string
	var count int
	_, err = pgx.ForEachRow(rows, []any{&root, &count}, func() error {
		n.AccountsByRoot[root] = count
		return nil
	})
	return n, unavailable(err)
}

// Export implements profilestate.KeyStore.
func (k *Keys) Export(ctx context.Context) (d profilestate.KeyDump, err error) {
	err = pgx.BeginTxFunc(ctx, k.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
		if d.Accounts, err = accountKeys(ctx, tx, `SELECT account, epoch, root, wrapped FROM account_keys`); err != nil {
			return err
		}
		if d.Profiles, err = profileKeys(ctx, tx, `SELECT account, profile, epoch, wrapped FROM profile_keys`); err != nil {
			return err
		}
		d.Destroyed, err = destroyed(ctx, tx)
		return err
	})
	return d, unavailable(err)
}

// Import implements profilestate.KeyStore. What there is stays: it is newer than a backup.
func (k *Keys) Import(ctx context.Context, d profilestate.KeyDump) (n int, err error) {
	err = pgx.BeginFunc(ctx, k.pool, func(tx pgx.Tx) error {
		if err := record(ctx, tx, d.Destroyed); err != nil {
			return err
		}
		batch := &pgx.Batch{}
		count := func(q *pgx.QueuedQuery) {
			q.Exec(func(tag pgconn.CommandTag) error { n += int(tag.RowsAffected()); return nil })
		}
		for _, a := range d.Accounts {
			count(batch.Queue(`INSERT INTO account_keys (account, epoch, root, wrapped)
				SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT FROM destroyed_keys WHERE account = $1 AND profile = '' AND epoch >= $2) ON CONFLICT DO NOTHING`,
				a.Account, a.Epoch, a.Root, a.Wrapped))
		}
		for _, p := range d.Profiles { // of another epoch than the account's key it would not open
			count(batch.Queue(`INSERT INTO profile_keys (account, profile, epoch, wrapped)
				SELECT a.account, $2, $3, $4 FROM account_keys a WHERE a.account = $1 AND a.epoch = $3
				AND NOT EXISTS (SELECT FROM destroyed_keys WHERE account = $1 AND profile IN ('', $2) AND epoch >= $3) ON CONFLICT DO NOTHING`,
				p.Account, p.Profile, p.Epoch, p.Wrapped))
		}
		return tx.SendBatch(ctx, batch).Close()
	})
	if err != nil {
		n = 0
	}
	return n, unavailable(err)
}

// Destroyed implements profilestate.Ledger.
func (k *Keys) Destroyed(ctx context.Context) ([]profilestate.Destroyed, error) {
	lines, err := destroyed(ctx, k.pool)
	return lines, unavailable(err)
}

// RecordDestroyed implements profilestate.Ledger: the keys go with it.
func (k *Keys) RecordDestroyed(ctx context.Context, lines []profilestate.Destroyed) error {
	if err := pgx.BeginFunc(ctx, k.pool, func(tx pgx.Tx) error { return record(ctx, tx, lines) }); err != nil {
		return unavailable(err)
	}
	// The rows' old versions are given up too, as far as Postgres does that: its log keeps them for a while.
	_, err := k.pool.Exec(ctx, `VACUUM account_keys, profile_keys`)
	return unavailable(err)
}

// record writes lines and removes the keys that they name.
func record(ctx context.Context, tx pgx.Tx, lines []profilestate.Destroyed) error {
	if len(lines) == 0 {
		return nil
	}
	if _, err := tx.Exec(ctx, recordDestroyed, columns(lines)...); err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	_, err := tx.Exec(ctx, `
		DELETE FROM profile_keys k USING destroyed_keys d WHERE d.account = k.account AND d.profile IN ('', k.profile) AND k.epoch <= d.epoch`)
	if err == nil {
		_, err = tx.Exec(ctx, `DELETE FROM account_keys k USING destroyed_keys d WHERE d.account = k.account AND d.profile = '' AND k.epoch <= d.epoch`)
	}
	return err
}

func accountKeys(ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]profilestate.AccountKey, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[profilestate.AccountKey])
}

func profileKeys(ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]profilestate.ProfileKey, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (p profilestate.ProfileKey, err error) {
		return p, row.Scan(&p.Account, &p.Profile, &p.Epoch, &p.Wrapped)
	})
}
