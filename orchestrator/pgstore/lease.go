package pgstore

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/driftstack/fleet/orchestrator"
)

// What every session's holder writes of it, it writes together with what is written of others, see batch.

// lease is a session under a term.
type lease struct {
	session string
	term    int64
}

func (l lease) under() lease { return l }

type leased interface{ under() lease }

// underLease is a batch of writes that each change one row of a session whose term is still the caller's. sql takes sessions and terms as $1
// and $2, and then what more says, and returns a session, its term and a text for each that was changed. Sessions come in the order
// in which everybody locks several.
func underLease[T leased](pool *pgxpool.Pool, sql string, more func([]T) []any) *batch[T, *string] {
	return &batch[T, *string]{run: func(ctx context.Context, calls []T) ([]*string, error) {
		sorted := slices.SortedFunc(slices.Values(calls), func(a, b T) int { return cmp.Compare(a.under().session, b.under().session) })
		args := []any{column(sorted, func(c T) string { return c.under().session }), column(sorted, func(c T) int64 { return c.under().term })}
		rows, err := pool.Query(ctx, sql, append(args, more(sorted)...)...)
		if err != nil {
			return nil, err
		}
		changed := map[lease]*string{}
		var l lease
		var text string
		_, err = pgx.ForEachRow(rows, []any{&l.session, &l.term, &text}, func() error {
			said := text
			changed[l] = &said
			return nil
		})
		return column(calls, func(c T) *string { return changed[c.under()] }), err
	}}
}

// fenced is one such write. ErrLeaseLost.
func fenced[T leased](ctx context.Context, b *batch[T, *string], of T) (string, error) {
	text, err := b.do(ctx, of)
	switch {
	case err != nil:
		return "", err
	case text == nil:
		return "", orchestrator.ErrLeaseLost
	}
	return *text, nil
}

type renewal struct {
	lease
	ttl time.Duration
}

func newRenewals(pool *pgxpool.Pool) *batch[renewal, *string] {
	return underLease(pool, `
		UPDATE sessions s SET lease_until = now() + make_interval(secs => u.ttl)
		FROM unnest($1::text[], $2::bigint[], $3::float8[]) AS u (id, term, ttl)
		WHERE s.id = u.id AND s.term = u.term AND s.state IN ('starting', 'running', 'finishing')
		RETURNING s.id, s.term, CASE WHEN s.cancelled THEN coalesce(nullif(s.end_as, ''), 'cancelled') ELSE '' END`,
		func(of []renewal) []any {
			return []any{column(of, func(r renewal) float64 { return r.ttl.Seconds() })}
		})
}

// Renew implements orchestrator.SessionStore.
func (s *Store) Renew(ctx context.Context, session string, term int64, ttl time.Duration) (orchestrator.Reason, error) {
	end, err := fenced(ctx, s.batches.renewals, renewal{lease{session, term}, ttl})
	return orchestrator.Reason(end), err
}

type running struct {
	lease
	capabilities json.RawMessage
}

func newRunnings(pool *pgxpool.Pool) *batch[running, *string] {
	return underLease(pool, `
		UPDATE sessions s SET state = 'running', running_at = now(), caps = nullif(u.caps, '')::jsonb, want_caps = NULL
		FROM unnest($1::text[], $2::bigint[], $3::text[]) AS u (id, term, caps)
		WHERE s.id = u.id AND s.term = u.term AND s.state = 'starting' RETURNING s.id, s.term, ''`,
		func(of []running) []any {
			return []any{column(of, func(r running) string { return string(r.capabilities) })}
		})
}

// Running implements orchestrator.SessionStore.
func (s *Store) Running(ctx context.Context, session string, term int64, capabilities json.RawMessage) error {
	_, err := fenced(ctx, s.batches.runnings, running{lease{session, term}, capabilities})
	s.news.tell(chanSession, session)
	return err
}

func newFinishings(pool *pgxpool.Pool) *batch[lease, *string] {
	return underLease(pool, `
		UPDATE sessions s SET state = 'finishing' FROM unnest($1::text[], $2::bigint[]) AS u (id, term)
		WHERE s.id = u.id AND s.term = u.term AND s.state IN ('starting', 'running') RETURNING s.id, s.term, ''`,
		func([]lease) []any { return nil })
}

// Finishing implements orchestrator.SessionStore.
func (s *Store) Finishing(ctx context.Context, session string, term int64) error {
	_, err := fenced(ctx, s.batches.finishings, lease{session, term})
	s.news.tell(chanSession, session)
	return err
}

// devicesOf locks the devices of the sessions s, in the order in which everybody locks several.
const devicesOf = `SELECT d.host, d.name FROM devices d WHERE d.session = ANY (ARRAY (SELECT id FROM s)) ORDER BY d.host, d.name FOR UPDATE`

type finish struct {
	lease
	last       orchestrator.Event
	detail     string
	generation int64
}

func newFinishes(pool *pgxpool.Pool) *batch[finish, *string] {
	return underLease(pool, `
		WITH u AS MATERIALIZED (
		    SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::timestamptz[])
		        AS u (id, term, reason, detail, generation, seq, at)),
		s AS (
		    UPDATE sessions SET state = 'ended', reason = u.reason, detail = u.detail, generation = u.generation, ended_at = now(), lease_until = NULL,
		           want_caps = NULL, caps = NULL
		    FROM u WHERE sessions.id = u.id AND sessions.term = u.term AND sessions.state <> 'ended' RETURNING sessions.id, sessions.term),
		held AS MATERIALIZED (`+devicesOf+`),
		d AS (UPDATE devices d SET session = NULL, used_at = now() FROM held WHERE d.host = held.host AND d.name = held.name),
		e AS (
		    INSERT INTO session_events (session, seq, at, kind, term, reason)
		    SELECT u.id, u.seq, u.at, 'ended', u.term, u.reason FROM u JOIN s USING (id, term) ON CONFLICT DO NOTHING)
		SELECT id, term, '' FROM s`,
		func(of []finish) []any {
			return []any{
				column(of, func(f finish) string { return string(f.last.Reason) }), column(of, func(f finish) string { return f.detail }),
				column(of, func(f finish) int64 { return f.generation }), column(of, func(f finish) int64 { return f.last.Seq }),
				column(of, func(f finish) time.Time { return f.last.At }),
			}
		})
}

// Finish implements orchestrator.SessionStore.
func (s *Store) Finish(ctx context.Context, last orchestrator.Event, detail string, generation int64) error {
	_, err := fenced(ctx, s.batches.finishes, finish{lease{last.Session, last.Term}, last, detail, generation})
	s.news.tell(chanSession, last.Session)
	s.news.tell(chanQueue, "")
	return err
}
