package pgstore

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
)

// claimSQL is claim_sessions of the migrations, which says how; a host that was removed is not reached. The last row may have no session.
const claimSQL = `
SELECT coalesce((c.claimed).id, ''), coalesce((c.claimed).term, 0), coalesce((c.claimed).account, ''), coalesce((c.claimed).profile, ''),
       coalesce((c.claimed).host, ''), coalesce((c.claimed).device, ''),
       coalesce((c.claimed).recording, false), coalesce((c.claimed).placement, ''), coalesce((c.claimed).want_caps::text, ''),
       coalesce((c.claimed).idle_seconds, 0), coalesce((c.claimed).max_seconds, 0), coalesce((c.claimed).command_seconds, 0), coalesce(c.seq, 0), true,
       coalesce((c.claimed).profile_mode, ''), coalesce((c.claimed).forked_from, ''), coalesce(extract(epoch FROM now() - (c.claimed).created_at), 0)::float8,
       coalesce((c.claimed).waiter, '')
FROM claim_sessions($1, ARRAY (SELECT u.name FROM unnest($2::text[]) AS u(name) JOIN hosts h ON h.name = u.name AND h.revoked_at IS NULL), $3, $4, $5, true) c`

// Claim implements orchestrator.SessionStore.
func (s *Store) Claim(ctx context.Context, holder string, hosts []string, ttl time.Duration, most, concurrent int) (got []orchestrator.Claim, left bool, err error) {
	got, err = s.taken(s.pool.Query(ctx, claimSQL, holder, hosts, ttl.Seconds(), most, limit(concurrent)))
	if last := len(got) - 1; last >= 0 && got[last].Session == "" {
		return got[:last], true, err
	}
	return got, false, err
}

// taken reads what was claimed, and tells of it.
func (s *Store) taken(rows pgx.Rows, err error) ([]orchestrator.Claim, error) {
	if err != nil {
		return nil, unavailable(err)
	}
	claims, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (orchestrator.Claim, error) {
		var waited float64
		var waiter string
		c, _, err := scanClaim(row, &waited, &waiter)
		c.Waiter, c.Waited = waiter, time.Duration(waited*float64(time.Second))
		return c, err
	})
	for _, c := range claims {
		if c.Session != "" {
			s.news.tell(chanSession, c.Session)
		}
	}
	return claims, unavailable(err)
}

// waiterLive is a condition on a row with a waiter: that process announces itself.
const waiterLive = `EXISTS (SELECT FROM replicas r WHERE r.id = waiter AND r.seen_at > now() - interval '` + replicaLive + `')`

// Confirm implements orchestrator.SessionStore.
func (s *Store) Confirm(ctx context.Context, session string, term int64) error {
	_, err := s.pool.Exec(ctx, `
		WITH s AS (UPDATE sessions SET confirmed = $2 WHERE id = $1 AND term = $2 AND state = 'starting' AND confirmed <> $2 RETURNING id)
		SELECT pg_notify('`+chanSession+`', id) FROM s`, session, term)
	return unavailable(err)
}

// Confirmed implements orchestrator.SessionStore.
func (s *Store) Confirmed(ctx context.Context, session string, term int64) (confirmed, gone bool, err error) {
	err = s.pool.QueryRow(ctx, `SELECT confirmed = $2, NOT `+waiterLive+` FROM sessions WHERE id = $1`, session, term).Scan(&confirmed, &gone)
	return confirmed, gone, unavailable(err)
}

// Requeue implements orchestrator.SessionStore. The device refused the session, so it is taken for busy until its host
// says otherwise: the caller asks it to. Asked again after a lost answer, it gives the same one.
func (s *Store) Requeue(ctx context.Context, last orchestrator.Event) (again bool, err error) {
	err = s.pool.QueryRow(ctx, `
		WITH s AS (UPDATE sessions SET state = 'queued', holder = '', lease_until = NULL, host = '', device = '', started_at = NULL
		           WHERE id = $1 AND term = $2 AND state = 'starting' AND NOT cancelled AND queue_until > now() RETURNING id),
		     d AS (UPDATE devices SET session = NULL, state = CASE state WHEN 'ready' THEN 'busy' ELSE state END
		           WHERE session IN (SELECT id FROM s)),
		     e AS (INSERT INTO session_events (session, seq, at, kind, term) SELECT id, $3, $4, $5, $2 FROM s),
		     n AS (SELECT pg_notify('`+chanSession+`', id), pg_notify('`+chanQueue+`', '') FROM s)
		SELECT EXISTS (SELECT FROM n) OR EXISTS (SELECT FROM sessions WHERE id = $1 AND term = $2 AND state = 'queued')`, last.Session, last.Term, last.Seq, last.At, string(last.Kind)).Scan(&again)
	return again, unavailable(err)
}

// Cancel implements orchestrator.SessionStore.
func (s *Store) Cancel(ctx context.Context, session string) error {
	var found bool
	err := s.pool.QueryRow(ctx, `
		WITH s AS (SELECT id, state FROM sessions WHERE id = $1 FOR UPDATE),
		     q AS (UPDATE sessions SET state = 'ended', reason = 'cancelled', ended_at = now(), want_caps = NULL FROM s
		           WHERE sessions.id = s.id AND s.state = 'queued' RETURNING sessions.id),
		     e AS (INSERT INTO session_events (session, seq, at, kind, reason) SELECT id, 1 + (SELECT max(seq) FROM session_events e WHERE e.session = q.id), now(), 'ended', 'cancelled' FROM q),
		     r AS (UPDATE sessions SET cancelled = true FROM s
		           WHERE sessions.id = s.id AND s.state NOT IN ('queued', 'ended') RETURNING sessions.id),
		     n AS (SELECT pg_notify('`+chanCancel+`', id) FROM r UNION ALL SELECT pg_notify('`+chanSession+`', id) FROM q)
		SELECT EXISTS (SELECT FROM s), (SELECT count(*) FROM n) < 0`, session).Scan(&found, new(bool))
	if err != nil {
		return unavailable(err)
	}
	if !found {
		return orchestrator.ErrNotFound
	}
	return nil
}

// late is a condition on sessions: nobody holds it any more, its time in the queue is up, or its client's orchestrator is gone.
const late = `((state = 'queued' AND queue_until <= now())
    OR (state = 'queued' AND waiter <> '' AND waiter = ANY (ARRAY (SELECT waiter FROM gone)))
    OR (state IN ('starting', 'running', 'finishing') AND lease_until <= now()
        AND (state <> 'running' OR lease_until <= now() - make_interval(secs => $1))))`

// reapReason is as what such a session ends.
const reapReason = `CASE WHEN state <> 'queued' THEN 'lease_lost' WHEN queue_until > now() THEN 'cancelled'
    WHEN EXISTS (SELECT FROM lanes n WHERE n.account = sessions.account AND n.want = sessions.want AND NOT n.open) THEN 'quota' ELSE 'device_unavailable' END`

// reapSQL ends late sessions, up to 1000 of a kind. Where $3 says so, those are ended as well whose waiter is gone, other than $2. The recursion looks at
// one row a waiter. Each kind is read in its index's order: sessions that ended long ago have the planner believe that most are late.
const reapSQL = `
WITH RECURSIVE waiters AS (
    (SELECT waiter FROM sessions WHERE state = 'queued' AND waiter <> '' AND $3 ORDER BY waiter LIMIT 1)
    UNION ALL
    SELECT (SELECT s.waiter FROM sessions s WHERE s.state = 'queued' AND s.waiter <> '' AND s.waiter > w.waiter ORDER BY s.waiter LIMIT 1)
    FROM waiters w WHERE w.waiter IS NOT NULL),
gone AS MATERIALIZED (SELECT waiter FROM waiters WHERE waiter <> $2 AND NOT ` + waiterLive + `),
seen AS MATERIALIZED (
    (SELECT id FROM sessions WHERE state = 'queued' AND queue_until <= now() ORDER BY queue_until LIMIT 1000)
    UNION
    SELECT s.id FROM gone CROSS JOIN LATERAL (
        SELECT id FROM sessions WHERE state = 'queued' AND waiter <> '' AND waiter = gone.waiter ORDER BY waiter LIMIT 1000) s
    UNION
    (SELECT id FROM sessions WHERE state IN ('starting', 'running', 'finishing') AND lease_until <= now() ORDER BY lease_until LIMIT 1000)),
late AS MATERIALIZED (
    SELECT s.id FROM seen CROSS JOIN LATERAL (SELECT id FROM sessions WHERE id = seen.id AND ` + late + ` FOR UPDATE SKIP LOCKED) s),
s AS (
    UPDATE sessions SET state = 'ended', ended_at = now(), lease_until = NULL, want_caps = NULL, caps = NULL, reason = ` + reapReason + `,
           detail = CASE ` + reapReason + ` WHEN 'cancelled' THEN 'the orchestrator that its client waited at is gone'
               WHEN 'quota' THEN 'its account had as many sessions on devices as it may have at once' ELSE detail END
    WHERE id = ANY (ARRAY (SELECT id FROM late)) RETURNING id, reason, term),
held AS MATERIALIZED (` + devicesOf + `),
d AS (UPDATE devices d SET session = NULL FROM held WHERE d.host = held.host AND d.name = held.name),
e AS (
    INSERT INTO session_events (session, seq, at, kind, term, reason)
    SELECT id, 1 + (SELECT max(seq) FROM session_events e WHERE e.session = s.id), now(), 'ended', term, reason FROM s
    ON CONFLICT DO NOTHING)
SELECT reason, pg_notify('` + chanSession + `', id) IS NULL, pg_notify('` + chanQueue + `', '') IS NULL FROM s`

// Reap implements orchestrator.SessionStore. Whoever adopts a running session has AdoptWindow for it. The device of a session
// that is ended here is free once its host says so: the host ends what nobody comes for.
func (s *Store) Reap(ctx context.Context, self string, waiters bool) ([]orchestrator.Reason, error) {
	rows, err := s.pool.Query(ctx, reapSQL, orchestrator.AdoptWindow.Seconds(), self, waiters)
	if err != nil {
		return nil, unavailable(err)
	}
	var reason orchestrator.Reason
	var ended []orchestrator.Reason
	_, err = pgx.ForEachRow(rows, []any{&reason, new(bool), new(bool)}, func() error {
		ended = append(ended, reason)
		return nil
	})
	return ended, unavailable(err)
}
