// Package pgstore holds all SQL of the project: sessions and their leases, events, accounts, profiles' metadata, hosts
// and devices, recordings' states. Every write that belongs to a running session is fenced by its term.
//
// Statements go from row to row by indices, see connect, in the order in which they are given them. Those that lock several rows lock sessions before
// devices, devices before accounts (account_load, then their lanes) and accounts before pieces of the queue's room, each kind in its own order. A claim
// begins with the accounts; it waits for no session or device, and for 10 ms for an account, and passes over those that are locked. Wants and shapes are added
// by statements of their own.
//
// Out of scope: payload. No table has a column for a page, a cookie or a script. Capabilities, which customers write, are
// kept until the session runs, sealed by who calls, and what the driver matched while it runs; a session's name and labels as long as it is listed.
package pgstore

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/residency"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Channels of LISTEN/NOTIFY. A payload is an identifier or empty. What happens in every session's life is told by [news].
const (
	chanQueue   = "driftstack_queue"   // a session was queued or a device became free; payload: the orchestrator that is to claim it, or empty
	chanAdopt   = "driftstack_adopt"   // a session was handed over
	chanSession = "driftstack_session" // payload: a session whose state or log changed
	chanCancel  = "driftstack_cancel"  // payload: a session that shall end
	chanHosts   = "driftstack_hosts"   // payload: a host that was invited, joined, rotated or removed
	chanGateway = "driftstack_gateway" // payload: an orchestrator whose gateway is to do something
)

// Store is the database. It is safe for concurrent use.
type Store struct {
	pool *pgxpool.Pool
	name string // of this orchestrator
	log  *zap.Logger

	wants  remembered
	shapes remembered

	beats beats
	news  *news

	batches batches
}

// Place is a database, and the way there. DSN is a URL or a keyword/value string as libpq takes it.
type Place struct {
	DSN string
	Way residency.InEU
}

func (p Place) dial() pgconn.DialFunc { return p.Way.Pin().DialContext }

// Open is OpenAt wherever dsn says: for tests and tools.
func Open(ctx context.Context, dsn, name string, log *zap.Logger) (*Store, error) {
	return openStore(ctx, dsn, nil, name, log)
}

// OpenAt connects, and brings the schema up to date. name is this orchestrator's, unique among its replicas.
func OpenAt(ctx context.Context, at Place, name string, log *zap.Logger) (*Store, error) {
	return openStore(ctx, at.DSN, at.dial(), name, log)
}

func openStore(ctx context.Context, dsn string, dial pgconn.DialFunc, name string, log *zap.Logger) (*Store, error) {
	pool, err := connect(ctx, dsn, dial, 16)
	if err != nil {
		return nil, err
	}
	s := &Store{pool: pool, name: name, log: log, batches: newBatches(pool)}
	var keys bool
	err = pool.QueryRow(ctx, `SELECT to_regclass('account_keys') IS NOT NULL`).Scan(&keys)
	if err == nil && keys {
		err = errors.New("this is the database of the wrapped keys, which has nothing else in it")
	}
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("database: %w", err)
	}
	if err := migrate(ctx, pool, migrations, "migrations"); err != nil {
		pool.Close()
		return nil, err
	}
	s.news = newNews(pool, log)
	return s, nil
}

// connect opens a pool of at least that many connections. Without a dial function they go to wherever the DSN says.
func connect(ctx context.Context, dsn string, dial pgconn.DialFunc, conns int32) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("database URL: %w", err)
	}
	if dial != nil {
		cfg.ConnConfig.DialFunc = dial
		cfg.ConnConfig.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil } // it is given names
	}
	if cfg.ConnConfig.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = 5 * time.Second
	}
	// No statement here takes long; one that does must not hold its caller for ever.
	cfg.ConnConfig.RuntimeParams["statement_timeout"] = "30000"
	// A process that is stopped in a transaction must not stop the others' for ever.
	cfg.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = "30000"
	// Each statement is planned once a connection, for whatever it will be asked, and goes from row to row by indices. Plans by statistics are
	// those of what a table was when they were made: of an empty one, in the first minutes of a database.
	cfg.ConnConfig.RuntimeParams["plan_cache_mode"] = "force_generic_plan"
	for _, way := range []string{"enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"} {
		cfg.ConnConfig.RuntimeParams[way] = "off"
	}
	cfg.ConnConfig.RuntimeParams["application_name"] = "driftstack"
	cfg.MaxConns = max(cfg.MaxConns, conns)
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	return pool, nil
}

// Close waits for running statements and closes every connection.
func (s *Store) Close() {
	s.beats.close()
	s.batches.close()
	s.news.close()
	s.pool.Close()
}

// Ping says whether the database answers.
func (s *Store) Ping(ctx context.Context) error { return unavailable(s.pool.Ping(ctx)) }

func migrate(ctx context.Context, pool *pgxpool.Pool, files embed.FS, folder string) error {
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	dir, err := fs.Sub(files, folder)
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, dir)
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	// Two orchestrators may start at once.
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	defer conn.Release()
	const lock = 0x64726966 // "drif"
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", lock); err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	defer conn.Exec(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", lock)
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	return nil
}

// narrowed is conditions with their arguments. What is not asked for is no condition, so that each plan is for what is.
type narrowed struct {
	where string
	args  []any
}

// by adds a condition on a value that is asked for; %d is its place among the arguments.
func (n *narrowed) by(condition string, value any, asked bool) {
	if asked {
		n.args = append(n.args, value)
		n.where += fmt.Sprintf(" AND "+condition, len(n.args))
	}
}

// unavailable marks errors of the connection, as opposed to answers of the database, and text that no database can hold
// as the caller's mistake.
func unavailable(err error) error {
	var pg *pgconn.PgError
	var own verdict
	switch {
	case errors.As(err, &own):
		return own.error
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, pgx.ErrNoRows):
		return err
	case errors.As(err, &pg) && (pg.Code == "22021" || pg.Code == "22P05"):
		return &orchestrator.InvalidError{Field: "text", Problem: "it must be UTF-8 and must not contain the character U+0000"}
	case errors.As(err, &pg):
		// Class 57: operator intervention; 53: insufficient resources; 40: undone for another's sake, as in a deadlock; 08: connection.
		if c := pg.Code[:2]; c != "57" && c != "53" && c != "40" && c != "08" {
			return err
		}
	}
	return fmt.Errorf("%w: %w", orchestrator.ErrUnavailable, err)
}

// verdict is an error inside a transaction that the database has nothing to do with.
type verdict struct{ error }

// violates says whether err is a violation of the named constraint or unique index.
func violates(err error, constraint string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.ConstraintName == constraint
}
