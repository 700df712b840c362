package pgstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

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

// reach is how a table leads to an account, by the first of these columns that it has. One that has none is nobody's in particular.
var reach = []struct{ column, of string }{
	{"account", `$1`},
	{"profile", `SELECT id FROM profiles WHERE account = $1`},
	{"recording", `SELECT id FROM recordings WHERE account = $1`},
	{"session", `SELECT id FROM sessions WHERE account = $1`},
}

// Rows counts rows by table, up to most and one more in each: of the columns in which the register has something of a customer, those that hold something. With an account, only its
// own are counted, in the tables that lead to accounts.
func (s *Store) Rows(ctx context.Context, account string, most int) (map[string]int64, error) {
	return rowsOf(ctx, s.pool, residency.Main, account, most)
}

// Rows likewise.
func (k *Keys) Rows(ctx context.Context, account string, most int) (map[string]int64, error) {
	return rowsOf(ctx, k.pool, residency.Keys, account, most)
}

func rowsOf(ctx context.Context, db querier, of residency.Database, account string, most int) (map[string]int64, error) {
	var parts []string
	for _, table := range customerTables(of) {
		where := table.holds
		if account != "" {
			if table.reach == "" {
				continue
			}
			where += " AND " + table.reach
		}
		parts = append(parts, fmt.Sprintf(`SELECT '%s', (SELECT count(*) FROM (SELECT FROM %s WHERE %s LIMIT %d) x)`, table.name, pgx.Identifier{table.name}.Sanitize(), where, most+1))
	}
	args := []any{}
	if account != "" {
		args = append(args, account)
	}
	rows, err := db.Query(ctx, strings.Join(parts, " UNION ALL "), args...)
	if err != nil {
		return nil, unavailable(err)
	}
	counts := map[string]int64{}
	var name string
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&name, &n}, func() error {
		counts[name] = n
		return nil
	})
	return counts, unavailable(err)
}

type customerTable struct{ name, holds, reach string }

// customerTables are the tables in which something of a customer is.
func customerTables(of residency.Database) (list []customerTable) {
	columns, theirs := map[string][]string{}, map[string][]string{}
	for _, c := range residency.Schema() {
		if c.Database != of {
			continue
		}
		columns[c.Table] = append(columns[c.Table], c.Names...)
		if c.Category != residency.None {
			theirs[c.Table] = append(theirs[c.Table], c.Names...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(theirs)) {
		t := customerTable{name: name, holds: "true"}
		if len(theirs[name]) < len(columns[name]) {
			t.holds = "num_nonnulls(" + strings.Join(theirs[name], ", ") + ") > 0"
		}
		if name == "accounts" {
			t.reach = "id = $1"
		}
		for _, r := range reach {
			if t.reach == "" && slices.Contains(columns[name], r.column) {
				t.reach = r.column + " IN (" + r.of + ")"
			}
		}
		list = append(list, t)
	}
	return list
}

// Asked is what Postgres says of itself, and of where it sends itself.
func (s *Store) Asked(ctx context.Context) (residency.Asked, error) { return saysOf(ctx, s.pool) }

// Asked likewise.
func (k *Keys) Asked(ctx context.Context) (residency.Asked, error) { return saysOf(ctx, k.pool) }

func saysOf(ctx context.Context, db querier) (a residency.Asked, err error) {
	err = db.QueryRow(ctx, `
		SELECT coalesce(host(inet_server_addr()), ''), 'PostgreSQL ' || current_setting('server_version'),
		       coalesce((SELECT array_agg(coalesce(host(client_addr), 'an address that this user may not see') ORDER BY client_addr) FROM pg_stat_replication
		                 WHERE client_addr IS NOT NULL OR state IS NULL), '{}')`).Scan(&a.Address, &a.Version, &a.Standbys)
	return a, unavailable(err)
}

// Copies are those of recordings in each region that a copy was ever meant for.
func (s *Store) Copies(ctx context.Context, account string) ([]residency.Copies, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT c.region, count(*) FILTER (WHERE c.state IN ('verified', 'repairing', 'removing')), coalesce(sum(r.bytes) FILTER (WHERE c.state IN ('verified', 'repairing', 'removing')), 0)::bigint,
		       count(*) FILTER (WHERE c.state = 'removing'), max(greatest(c.checked_at, c.verified_at))
		FROM recording_copies c JOIN recordings r ON r.id = c.recording
		WHERE $1 = '' OR r.account = $1 GROUP BY c.region ORDER BY c.region`, account)
	if err != nil {
		return nil, unavailable(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[residency.Copies])
	return list, unavailable(err)
}
