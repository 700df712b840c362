package pgstore

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/driftstack/fleet/orchestrator/residency"
)

// Servers are all that a database may be connected to under a DSN, with what the environment adds to it as libpq has it.
func Servers(dsn string) (all []residency.Server, err error) {
	cfg, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	for _, f := range append([]*pgconn.FallbackConfig{{Host: cfg.Host, Port: cfg.Port, TLSConfig: cfg.TLSConfig}}, cfg.Fallbacks...) {
		v := residency.Server{Host: f.Host, Port: f.Port}
		_, v.Address = pgconn.NetworkAddress(f.Host, f.Port)
		if f.TLSConfig != nil && !f.TLSConfig.InsecureSkipVerify {
			v.Verified = f.TLSConfig.ServerName
		}
		all = append(all, v)
	}
	return all, nil
}

// Columns are those of all tables and views that are not Postgres' own, whoever made them.
func (s *Store) Columns(ctx context.Context) ([]residency.Column, error) {
	return liveColumns(ctx, s.pool)
}

// Columns likewise.
func (k *Keys) Columns(ctx context.Context) ([]residency.Column, error) {
	return liveColumns(ctx, k.pool)
}

func liveColumns(ctx context.Context, db querier) ([]residency.Column, error) {
	rows, err := db.Query(ctx, `
		SELECT CASE n.nspname WHEN 'public' THEN '' ELSE n.nspname || '.' END || c.relname, a.attname
		FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND a.attnum > 0 AND NOT a.attisdropped
		  AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\_%'
		ORDER BY 1, 2`)
	if err != nil {
		return nil, unavailable(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[residency.Column])
	return list, unavailable(err)
}
