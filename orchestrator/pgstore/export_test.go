package pgstore

import (
	"context"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/place"
)

func (s *Store) exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	if _, err := s.pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// AllCopiesDue has every copy of a recording looked at now.
func (s *Store) AllCopiesDue(t testing.TB) {
	s.exec(t, `UPDATE recording_copies SET check_at = now() - interval '1 second'`)
}

// EndSessionOf ends the session of a recording, with nobody left to say what becomes of that.
func (s *Store) EndSessionOf(t testing.TB, recording string) {
	s.exec(t, `UPDATE sessions SET state = 'ended', reason = 'completed', ended_at = now() WHERE id = (SELECT session FROM recordings WHERE id = $1)`, recording)
}

// DeleteSession is what erasure will do.
func (s *Store) DeleteSession(t testing.TB, id string) {
	s.exec(t, `UPDATE devices SET session = NULL WHERE session = $1`, id)
	s.exec(t, `DELETE FROM sessions WHERE id = $1`, id)
}

// Age makes all that this orchestrator has written about its links so much older.
func (s *Store) Age(t testing.TB, by time.Duration) {
	s.exec(t, `UPDATE host_links SET written_at = written_at - make_interval(secs => $2), heard_at = heard_at - make_interval(secs => $2) WHERE orchestrator = $1`,
		s.name, by.Seconds())
}

// Promoting makes a generation current as MakeCurrent does, and calls f before that is committed.
func (s *Store) Promoting(t testing.TB, profile string, number int64, f func()) {
	err := pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error {
		for _, sql := range []string{
			`SELECT FROM profiles WHERE id = $1 AND $2::bigint > 0 FOR UPDATE`,
			`UPDATE generations SET state = 'good', reason = '' WHERE profile = $1 AND number = $2`,
			`UPDATE profiles SET generation = $2 WHERE id = $1`,
		} {
			if _, err := tx.Exec(t.Context(), sql, profile, number); err != nil {
				return err
			}
		}
		f()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Waiting is how many statements wait for a lock.
func (s *Store) Waiting(t testing.TB) (n int) {
	if err := s.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// AgeCreates makes an account's creates so much older, in steps of 5 s.
func (s *Store) AgeCreates(t testing.TB, account string, by time.Duration) {
	s.exec(t, `UPDATE account_load SET stretch = stretch - $2 WHERE account = $1`, account, int64(by/(5*time.Second)))
}

// AgeKey makes a host's key so old.
func (s *Store) AgeKey(t testing.TB, host string, age time.Duration) {
	s.exec(t, `UPDATE hosts SET rotated_at = now() - make_interval(secs => $2), created_at = now() - make_interval(secs => $2) WHERE name = $1`, host, age.Seconds())
}

// Rotating are the hosts that are asked for a new key.
func (s *Store) Rotating(t testing.TB) (hosts []string) {
	if err := s.pool.QueryRow(t.Context(), `SELECT coalesce(array_agg(name ORDER BY name), '{}') FROM hosts WHERE rotate`).Scan(&hosts); err != nil {
		t.Fatal(err)
	}
	return hosts
}

// CutListener ends the connection that listens, and says whether there was one.
func (s *Store) CutListener(t testing.TB) bool {
	var n int
	if err := s.pool.QueryRow(t.Context(), `
		SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE 'LISTEN %'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// AddGateway lists an orchestrator that is alive.
func (s *Store) AddGateway(t testing.TB, orchestrator string, number int) {
	s.exec(t, `INSERT INTO gateways (orchestrator, number, endpoint, fleet_port, public_key) VALUES ($1, $2, 'x:1', 7700, $1)`, orchestrator, number)
}

// MarkRevoked does what removal does to the host's row, and nothing else.
func (s *Store) MarkRevoked(t testing.TB, host string) {
	s.exec(t, `UPDATE hosts SET revoked_at = now(), number = NULL, public_key = NULL, join_public_key = NULL, psk = NULL WHERE name = $1`, host)
}

// Tables are all that a dump of the database has.
func (s *Store) Tables(t testing.TB) (names []string) {
	t.Helper()
	if err := s.pool.QueryRow(t.Context(), `SELECT array_agg(tablename ORDER BY tablename) FROM pg_tables WHERE schemaname = 'public'`).Scan(&names); err != nil {
		t.Fatal(err)
	}
	return names
}

// Dump is every value of a table, as bytes: text as it is, what looks like base64 decoded as well.
func (s *Store) Dump(t testing.TB, table string) [][]byte {
	t.Helper()
	rows, err := s.pool.Query(context.Background(), `SELECT * FROM `+table)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out [][]byte
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range values {
			switch v := v.(type) {
			case []byte:
				out = append(out, v)
			case string:
				out = append(out, []byte(v))
				if b, err := base64.StdEncoding.DecodeString(v); err == nil {
					out = append(out, b)
				}
			}
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// Hang has the database answer nothing about a table until the test is over.
func (s *Store) Hang(t testing.TB, table string) {
	t.Helper()
	tx, err := s.pool.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(context.Background(), `LOCK TABLE `+table+` IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
}

// AgeGateway makes an orchestrator one that was heard of so much earlier.
func (s *Store) AgeGateway(t testing.TB, orchestrator string, by time.Duration) {
	s.exec(t, `UPDATE gateways SET seen_at = seen_at - make_interval(secs => $2) WHERE orchestrator = $1`, orchestrator, by.Seconds())
}

// AgeBeats makes the answer to pulses an old one.
func (s *Store) AgeBeats() {
	s.beats.mu.Lock()
	defer s.beats.mu.Unlock()
	old := *s.beats.last
	old.at = old.at.Add(-time.Minute)
	s.beats.last = &old
}

// AgeLease makes a session's lease run out so much earlier.
func (s *Store) AgeLease(t testing.TB, session string, by time.Duration) {
	s.exec(t, `UPDATE sessions SET lease_until = lease_until - make_interval(secs => $2) WHERE id = $1`, session, by.Seconds())
}

// AgeRunning makes a session one that began to run so much earlier.
func (s *Store) AgeRunning(t testing.TB, session string, by time.Duration) {
	s.exec(t, `UPDATE sessions SET running_at = running_at - make_interval(secs => $2) WHERE id = $1`, session, by.Seconds())
}

// ManyRunning adds sessions that run under a valid lease, each on a device of its own, and as many that have ended.
func (s *Store) ManyRunning(t testing.TB, n int) {
	s.exec(t, `INSERT INTO sessions (id, account, recording, placement, idle_seconds, max_seconds, command_seconds, queue_until, state, lease_until, host, device, running_at)
		SELECT 'many-' || i, 'a', false, 'eu', 60, 3600, 60, now(), 'running', now() + interval '1 hour', 'mac-1', 'many-' || i, now() FROM generate_series(1, $1) i`, n)
	s.exec(t, `INSERT INTO sessions (id, account, recording, placement, idle_seconds, max_seconds, command_seconds, queue_until, state, reason, ended_at)
		SELECT 'over-' || i, 'a', false, 'eu', 60, 3600, 60, now(), 'ended', 'completed', now() FROM generate_series(1, $1) i`, n)
	s.exec(t, `INSERT INTO devices (host, name, kind, model, platform_name, platform_version, state, session)
		SELECT 'mac-1', 'many-' || i, '', '', '', '', 'busy', 'many-' || i FROM generate_series(1, $1) i`, n)
	s.exec(t, `ANALYZE sessions, devices`)
}

// ExplainAdopt and ExplainReap are the plans of the statements.
func (s *Store) ExplainAdopt(t testing.TB, hosts []string) string {
	return s.explain(t, adoptSQL, "test", hosts, 60.0, 60.0, place.MemberStates())
}

func (s *Store) ExplainReap(t testing.TB) string { return s.explain(t, reapSQL, 60.0, "self", true) }

// ExplainCancelled is the plan of the statement.
func (s *Store) ExplainCancelled(t testing.TB) string { return s.explain(t, cancelledSQL, "test") }

func (s *Store) explain(t testing.TB, sql string, args ...any) (plan string) {
	t.Helper()
	rows, err := s.pool.Query(t.Context(), `EXPLAIN `+sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// PassQueued has the time pass that so many queued sessions of an account may wait.
func (s *Store) PassQueued(t testing.TB, account string, n int) {
	s.exec(t, `UPDATE sessions SET queue_until = now() WHERE id IN (SELECT id FROM sessions WHERE account = $1 AND state = 'queued' LIMIT $2)`, account, n)
}

// Profiled has so many queued sessions of an account read a profile that they share.
func (s *Store) Profiled(t testing.TB, account string, n int) {
	s.exec(t, `INSERT INTO profiles (id, account, name) VALUES ('shared', $1, 'shared') ON CONFLICT DO NOTHING`, account)
	s.exec(t, `UPDATE sessions SET profile = 'shared', profile_mode = 'readonly'
		WHERE id IN (SELECT id FROM sessions WHERE account = $1 AND state = 'queued' LIMIT $2)`, account, n)
}

// SetLease makes a session's lease one with so much left.
func (s *Store) SetLease(t testing.TB, session string, left time.Duration) {
	s.exec(t, `UPDATE sessions SET lease_until = now() + make_interval(secs => $2) WHERE id = $1`, session, left.Seconds())
}

// FreeDevices makes every device one that its host calls ready.
func (s *Store) FreeDevices(t testing.TB) {
	s.exec(t, `UPDATE devices SET state = 'ready'`)
}

// Lease is how a session is held.
type Lease struct {
	ID, State string
	Term      int64
	Holder    string
	Left      *time.Duration
	Device    bool // it has one
}

// Leases are those of all sessions.
func (s *Store) Leases(t testing.TB) map[string]Lease {
	t.Helper()
	rows, err := s.pool.Query(t.Context(), `
		SELECT id, state, term, holder, lease_until - now(), EXISTS (SELECT FROM devices d WHERE d.session = sessions.id) FROM sessions`)
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Lease])
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]Lease{}
	for _, l := range list {
		all[l.ID] = l
	}
	return all
}

// PassDrain makes the deadline of a host's drain one that has just passed.
func (s *Store) PassDrain(t testing.TB, host string) {
	s.exec(t, `UPDATE hosts SET drain_until = now() WHERE name = $1`, host)
}

// Try runs a statement as whoever may write to the database could.
func (s *Store) Try(t testing.TB, sql string) error {
	_, err := s.pool.Exec(t.Context(), sql)
	return err
}

// Counts are what the triggers have counted, beside what there is: accounts and pieces of room where they differ.
func (s *Store) Counts(t testing.TB) (wrong []string) {
	t.Helper()
	rows, err := s.pool.Query(t.Context(), `
		SELECT format('%s: %s queued, %s active, but the sessions are %s and %s', l.account, l.queued, l.active, c.queued, c.active)
		FROM account_load l CROSS JOIN LATERAL (
			SELECT count(*) FILTER (WHERE state = 'queued') AS queued, count(*) FILTER (WHERE state IN ('starting', 'running', 'finishing')) AS active
			FROM sessions WHERE account = l.account) c
		WHERE (l.queued, l.active) <> (c.queued, c.active)
		UNION ALL
		SELECT format('piece %s has %s, but the sessions are %s', piece, queued, c.n)
		FROM queue_room r CROSS JOIN LATERAL (SELECT count(*) AS n FROM sessions WHERE state = 'queued' AND piece = r.piece) c
		WHERE queued <> c.n`)
	if err != nil {
		t.Fatal(err)
	}
	if wrong, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		t.Fatal(err)
	}
	return wrong
}

// AgeKeys makes every idempotency key so much older.
func (s *Store) AgeKeys(t testing.TB, by time.Duration) {
	s.exec(t, `UPDATE idempotency_keys SET created_at = created_at - make_interval(secs => $1)`, by.Seconds())
}

// AgeWants makes every want one that was last asked for so much earlier.
func (s *Store) AgeWants(t testing.TB, by time.Duration) {
	s.exec(t, `UPDATE wants SET used_at = used_at - make_interval(secs => $1)`, by.Seconds())
}

// Kept is how many rows there are of what Tidy deletes.
func (s *Store) Kept(t testing.TB) (n orchestrator.Tidied) {
	t.Helper()
	if err := s.pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM idempotency_keys), (SELECT count(*) FROM wants)`).
		Scan(&n.Keys, &n.Wants); err != nil {
		t.Fatal(err)
	}
	return n
}

// Litter adds so many old wants, and so many old keys.
func (s *Store) Litter(t testing.TB, wants, keys int) {
	t.Helper()
	s.exec(t, `
		INSERT INTO wants (digest, kind, model, host, platform, browser, bidi, labels, country, used_at)
		SELECT sha256(i::text::bytea), '', '', '', '', '', false, jsonb_build_object('i', i), '', now() - interval '25 hours' FROM generate_series(1, $1::int) i`, wants)
	s.exec(t, `
		INSERT INTO idempotency_keys (account, key, request, session, created_at)
		SELECT 'a', i, '', '', now() - interval '25 hours' FROM generate_series(1, $1::int) i`, keys)
}

// Beside is another orchestrator's store of the same database.
func (s *Store) Beside(t testing.TB) *Store {
	t.Helper()
	o, err := Open(t.Context(), s.pool.Config().ConnString(), "eu-2", s.log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	return o
}

// Tidying is another orchestrator that deletes a batch, until done is called.
func (s *Store) Tidying(t testing.TB) (done func()) {
	t.Helper()
	tx, err := s.pool.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), `SELECT pg_advisory_xact_lock(7236838, 2)`)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() { _ = tx.Rollback(t.Context()) }
}

// Laneless is how many queued sessions nobody would find.
func (s *Store) Laneless(t testing.TB) (n int) {
	t.Helper()
	if err := s.pool.QueryRow(t.Context(), `
		SELECT count(*) FROM sessions s WHERE state = 'queued' AND NOT EXISTS (SELECT FROM lanes l WHERE l.account = s.account AND l.want = s.want)`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Ended adds so many sessions that ended, as if they had come through the store. Statistics are fresh.
func (s *Store) Ended(t testing.TB, sessions int) {
	t.Helper()
	s.exec(t, `ALTER TABLE sessions DISABLE TRIGGER USER`)
	s.exec(t, `
		INSERT INTO sessions (id, account, want, recording, placement, idle_seconds, max_seconds, command_seconds, queue_until, created_at, state, reason, host, device,
		    started_at, ended_at)
		SELECT 'ended-' || n, CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END, (SELECT min(id) FROM wants), false, 'eu', 60, 3600, 60, now(), now() - interval '2 hours' - n * interval '1 ms',
		    'ended', 'completed', 'crowd-' || 1 + n % 50, 'phone-' || 1 + n % 200, now(), now() FROM generate_series(1, $1::int) n`, sessions)
	s.exec(t, `ALTER TABLE sessions ENABLE TRIGGER USER`)
	s.exec(t, `ANALYZE sessions`)
}

// Explained is the same store, with every plan that was carried out shown, those inside functions and triggers too, and how many rows it read.
func (s *Store) Explained(t testing.TB, show func(plan string)) *Store {
	t.Helper()
	cfg := s.pool.Config()
	cfg.MaxConns = 2 // so that statements come often enough to each for a plan of their own to be given up
	cfg.ConnConfig.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if strings.Contains(n.Message, "plan:") {
			show(n.Message)
		}
	}
	cfg.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.Exec(ctx, `LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;
			SET auto_explain.log_level = notice; SET auto_explain.log_analyze = on; SET auto_explain.log_timing = off`)
		return err
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	e := &Store{pool: pool, name: s.name, log: s.log, news: newNews(pool, s.log), batches: newBatches(pool)}
	t.Cleanup(e.Close)
	return e
}

// Unanalysed has nobody look at the tables any more, so that plans stay.
func (s *Store) Unanalysed(t testing.TB) {
	for _, table := range []string{"sessions", "session_events", "devices", "lanes", "account_load"} {
		s.exec(t, `ALTER TABLE `+table+` SET (autovacuum_enabled = off)`)
	}
}

// Grow adds queued sessions, each with its event, and as many that have ended.
func (s *Store) Grow(t testing.TB, prefix string, n int) {
	s.exec(t, `
		INSERT INTO sessions (id, account, want, recording, placement, idle_seconds, max_seconds, command_seconds, queue_until, piece, state, reason, ended_at)
		SELECT $2 || s || n, 'b', (SELECT min(id) FROM wants), false, 'eu', 60, 3600, 60, now() + interval '1 hour', n % 16, s,
		    CASE s WHEN 'ended' THEN 'completed' ELSE '' END, CASE s WHEN 'ended' THEN now() END
		FROM unnest('{queued,ended}'::text[]) s, generate_series(1, $1::int) n`, n, prefix)
	s.exec(t, `INSERT INTO session_events (session, seq, at, kind) SELECT id, 1, now(), 'queued' FROM sessions ON CONFLICT DO NOTHING`)
}

// Deadlocks is how many there have been in the database, once all other connections to it are closed.
func (s *Store) Deadlocks(t testing.TB) (n int) {
	t.Helper()
	if err := s.pool.QueryRow(t.Context(), `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// DSN is how to connect to its database.
func (s *Store) DSN() string { return s.pool.Config().ConnString() }

// Crowd adds hosts with devices, queued sessions of both accounts and running ones, as if they had come through the store. Statistics are fresh.
func (s *Store) Crowd(t testing.TB, hosts, devicesEach, queued, running int) {
	t.Helper()
	s.exec(t, `INSERT INTO hosts (name, number, public_key) SELECT 'crowd-' || n, 1000 + n, 'key-' || n FROM generate_series(1, $1::int) n`, hosts)
	s.exec(t, `INSERT INTO host_links (host, orchestrator) SELECT 'crowd-' || n, 'eu-1' FROM generate_series(1, $1::int) n`, hosts)
	s.exec(t, `
		INSERT INTO devices (host, name, kind, model, platform_name, platform_version, state, shape)
		SELECT 'crowd-' || h, 'phone-' || n, 'fake', 'iPhone 15', 'iOS', '', 'ready', (SELECT min(id) FROM shapes)
		FROM generate_series(1, $1::int) h, generate_series(1, $2::int) n`, hosts, devicesEach)
	s.exec(t, `ALTER TABLE sessions DISABLE TRIGGER USER`) // one row at a time they take longer than the test may
	const columns = `INSERT INTO sessions (id, account, want, recording, placement, idle_seconds, max_seconds, command_seconds, queue_until, piece, created_at, state,
		term, holder, lease_until, host, device, started_at)
		SELECT $2 || n, CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END, (SELECT min(id) FROM wants), false, 'eu', 60, 3600, 60, now() + interval '1 hour', n % 16,
		    now() - n * interval '1 ms', $3, `
	s.exec(t, columns+`0, '', NULL, '', '', NULL FROM generate_series(1, $1::int) n`, queued, "queued-", "queued")
	s.exec(t, columns+`1, 'other', now() + interval '1 hour', 'crowd-' || 1 + n % 50, 'phone-' || 1 + n / 50, now() FROM generate_series(1, $1::int) n`, running, "running-", "running")
	s.exec(t, `ALTER TABLE sessions ENABLE TRIGGER USER`)
	s.exec(t, `UPDATE devices d SET session = s.id FROM sessions s WHERE s.host = d.host AND s.device = d.name AND s.state = 'running'`)
	s.exec(t, `INSERT INTO session_events (session, seq, at, kind) SELECT id, 1, now(), 'queued' FROM sessions ON CONFLICT DO NOTHING`)
	s.exec(t, `UPDATE account_load l SET queued = (SELECT count(*) FROM sessions WHERE account = l.account AND state = 'queued'),
		active = (SELECT count(*) FROM sessions WHERE account = l.account AND state = 'running')`)
	s.exec(t, `INSERT INTO lanes (account, want, pass) SELECT DISTINCT account, want, 0 FROM sessions WHERE state = 'queued' ON CONFLICT DO NOTHING`)
	s.exec(t, `UPDATE queue_room r SET queued = (SELECT count(*) FROM sessions WHERE piece = r.piece AND state = 'queued')`)
	s.exec(t, `ANALYZE`)
}

// Weigh gives an account a weight.
func (s *Store) Weigh(t testing.TB, account string, weight int) {
	s.exec(t, `UPDATE account_load SET weight = $2 WHERE account = $1`, account, weight)
}

// AgeCreated makes a session one that was queued so much earlier.
func (s *Store) AgeCreated(t testing.TB, session string, by time.Duration) {
	s.exec(t, `UPDATE sessions SET created_at = created_at - make_interval(secs => $2) WHERE id = $1`, session, by.Seconds())
}

// AgeStarted makes a session one that has had its device for so much longer.
func (s *Store) AgeStarted(t testing.TB, session string, by time.Duration) {
	s.exec(t, `UPDATE sessions SET started_at = started_at - make_interval(secs => $2) WHERE id = $1`, session, by.Seconds())
}

// ShuffleDevices makes each device one that was used last at another time.
func (s *Store) ShuffleDevices(t testing.TB) {
	s.exec(t, `UPDATE devices SET used_at = now() - random() * interval '1 day'`)
}

// ManyQueued adds accounts with so many queued sessions each, half of which want a model, and devices of another host. The triggers do not see
// them: what they count is put there.
func (s *Store) ManyQueued(t testing.TB, accounts, sessions, devices int, want, model int64) {
	s.exec(t, `INSERT INTO accounts (id, recordings) SELECT 'm' || i, 'eu' FROM generate_series(1, $1) i`, accounts)
	s.exec(t, `INSERT INTO account_load (account, queued, busy_ms) SELECT 'm' || i, $2, 60000 FROM generate_series(1, $1) i`, accounts, sessions)
	s.exec(t, `INSERT INTO lanes (account, want, pass) SELECT 'm' || i, w, 0 FROM generate_series(1, $1) i, unnest(ARRAY[$2, $3]::bigint[]) w`, accounts, want, model)
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{`SET LOCAL session_replication_role = replica`, `
		INSERT INTO sessions (id, account, recording, placement, idle_seconds, max_seconds, command_seconds, queue_until, want, created_at)
		SELECT 'm' || a || '-' || i, 'm' || a, false, 'eu', 60, 3600, 60, now() + interval '1 hour', CASE WHEN i % 2 = 0 THEN ` + strconv.FormatInt(want, 10) + ` ELSE ` + strconv.FormatInt(model, 10) + ` END,
		       now() - make_interval(secs => i) FROM generate_series(1, ` + strconv.Itoa(accounts) + `) a, generate_series(1, ` + strconv.Itoa(sessions) + `) i`} {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.exec(t, `INSERT INTO devices (host, name, kind, model, platform_name, platform_version, state, shape)
		SELECT d.host, 'many-' || i, d.kind, d.model, d.platform_name, d.platform_version, 'busy', d.shape FROM devices d, generate_series(1, $1) i WHERE d.name = 'phone-0'`, devices)
	s.exec(t, `ANALYZE sessions, devices, lanes, account_load`)
}

// WantOf is the want of a session.
func (s *Store) WantOf(t testing.TB, session string) (id int64) {
	if err := s.pool.QueryRow(t.Context(), `SELECT want FROM sessions WHERE id = $1`, session).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

// ExplainPlace is the plan of a place in the queue.
func (s *Store) ExplainPlace(t testing.TB, session string) string {
	return s.explain(t, placeSQL, session, []int64{1}, 1<<30)
}

// AgeReplica makes a process one that announced itself so much earlier.
func (s *Store) AgeReplica(t testing.TB, id string, by time.Duration) {
	s.exec(t, `UPDATE replicas SET seen_at = seen_at - make_interval(secs => $2) WHERE id = $1`, id, by.Seconds())
}

// AllowedAnywhere says whether a session may be given a device in any country, as far as its account goes.
func (s *Store) AllowedAnywhere(t testing.TB, session string) (anywhere bool) {
	t.Helper()
	if err := s.pool.QueryRow(t.Context(), `SELECT w.countries = '{}' FROM sessions s JOIN wants w ON w.id = s.want WHERE s.id = $1`, session).Scan(&anywhere); err != nil {
		t.Fatal(err)
	}
	return anywhere
}

// CreateTogether creates sessions of what is not yet wanted by any, in one statement, and says which were refused for a quota or the queue's room. together is
// whether one statement did it.
func (s *Store) CreateTogether(t testing.TB, sessions ...orchestrator.NewSession) (queueFull, createsFull []bool, together bool) {
	t.Helper()
	var of []creation
	for _, n := range sessions {
		w, err := wantedOf(n.Want, n.Browser, n.BiDi)
		if err != nil {
			t.Fatal(err)
		}
		want, err := s.want(context.Background(), w)
		if err != nil {
			t.Fatal(err)
		}
		of = append(of, creation{n, want})
	}
	all, err := s.batches.creates.run(context.Background(), of)
	if errors.Is(unavailable(err), errAlone) {
		return nil, nil, false
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range all {
		queueFull, createsFull = append(queueFull, !v.queueOK), append(createsFull, !v.createsOK)
		if (v.at == nil) != (!v.queueOK || !v.createsOK) {
			t.Errorf("%+v", v)
		}
	}
	return queueFull, createsFull, true
}

// Holding is somebody who has locked an account's row, and all of the queue's room, until let is called.
func (s *Store) Holding(t testing.TB, account string, room bool) (let func()) {
	t.Helper()
	tx, err := s.pool.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), `SELECT FROM account_load WHERE account = $1 FOR UPDATE`, account)
	}
	if err == nil && room {
		_, err = tx.Exec(t.Context(), `SELECT FROM queue_room FOR UPDATE`)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() { _ = tx.Rollback(context.Background()) }
}

// ManyWants queues so many sessions of an account, each of which wants another range of versions of a model.
func (s *Store) ManyWants(t testing.TB, account, model string, n int) {
	t.Helper()
	s.exec(t, `
		INSERT INTO wants (digest, kind, model, host, platform, least, browser, bidi, labels, country)
		SELECT sha256(($1 || i)::bytea), '', $1, '', '', ARRAY[0, 0, 0, i], '', false, '{}', '' FROM generate_series(1, $2::int) i`, model, n)
	s.exec(t, `
		INSERT INTO sessions (id, account, want, recording, placement, idle_seconds, max_seconds, command_seconds, queue_until, piece)
		SELECT gen_random_uuid()::text, $2, w.id, false, 'eu', 60, 3600, 60, now() + interval '1 hour', w.id % 16 FROM wants w WHERE w.model = $1 ORDER BY w.id`, model, account)
	s.exec(t, `INSERT INTO session_events (session, seq, at, kind) SELECT id, 1, now(), 'queued' FROM sessions ON CONFLICT DO NOTHING`)
	s.exec(t, `ANALYZE`)
}

// VirtualTime is the pass of the account that was served last.
func (s *Store) VirtualTime(t testing.TB) (at int64) {
	t.Helper()
	if err := s.pool.QueryRow(t.Context(), `SELECT last_value FROM virtual_time`).Scan(&at); err != nil {
		t.Fatal(err)
	}
	return at
}

// ClaimUndone is a claim whose transaction is undone.
func (s *Store) ClaimUndone(t testing.TB, hosts []string) {
	t.Helper()
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), claimSQL, "test", hosts, 60.0, 64, 1000); err != nil {
		t.Fatal(err)
	}
}

// Unfit is how many pairs of a want and a shape are taken to fit and do not, or the other way round, and how many pairs fit.
func (s *Store) Unfit(t testing.TB) (wrong, right int) {
	t.Helper()
	if err := s.pool.QueryRow(t.Context(), `
		SELECT count(*) FILTER (WHERE (misfits(w, s) = '{}') <> (x.want IS NOT NULL)), count(*) FILTER (WHERE misfits(w, s) = '{}' AND x.host = w.host)
		FROM wants w CROSS JOIN shapes s LEFT JOIN want_shapes x ON x.want = w.id AND x.shape = s.id`).Scan(&wrong, &right); err != nil {
		t.Fatal(err)
	}
	return wrong, right
}
