package pgstore

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
)

// fits says which devices (d) the wants of a session that is created fit; claimSQL says it of one that is queued.
const fits = `($3 = '' OR d.kind = $3) AND ($4 = '' OR d.model = $4) AND ($5 = '' OR d.host = $5) AND d.labels @> $6
	AND ($17 = '' OR lower(d.platform_name) = lower($17))`

// createSQL admits and queues in one statement. Account, profile and device are checked as they are inserted upon; the
// room in the queue is counted as it was when the statement began, so that creates at the same moment may go over it by as
// many as they are.
const createSQL = `
WITH acc AS (SELECT recordings FROM accounts WHERE id = $2),
     pro AS (SELECT id FROM profiles WHERE id = $7 AND account = $2),
     chk AS (SELECT EXISTS (SELECT FROM acc) AS account,
                    $7 = '' OR EXISTS (SELECT FROM pro) AS profile,
                    EXISTS (SELECT FROM devices d WHERE ` + fits + ` AND ` + notRevoked + `) AS device,
                    (SELECT count(*) FROM (SELECT FROM sessions WHERE state = 'queued' LIMIT $15) q) < $15 AS room),
     ins AS (INSERT INTO sessions (id, account, profile, name, want_kind, want_model, want_host, want_labels, want_caps,
                                   recording, placement, idle_seconds, max_seconds, command_seconds, queue_until, labels, want_platform)
             SELECT $1, $2, NULLIF($7, ''), $8, $3, $4, $5, $6, $9, $10, acc.recordings, $11, $12, $13, now() + make_interval(secs => $14), $16, $17
             FROM acc, chk WHERE profile AND device AND room
             RETURNING id, created_at),
     evt AS (INSERT INTO session_events (session, seq, at, kind) SELECT id, 1, now(), 'queued' FROM ins)
SELECT account, profile, device, room, (SELECT created_at FROM ins), (SELECT pg_notify('` + chanQueue + `', '') FROM ins) IS NULL FROM chk`

// Create implements orchestrator.SessionStore.
func (s *Store) Create(ctx context.Context, n orchestrator.NewSession) (time.Time, error) {
	var at *time.Time
	var account, profile, device, room, ignore bool
	err := s.pool.QueryRow(ctx, createSQL, n.ID, n.Account, n.Want.Kind, n.Want.Model, n.Want.Host, object(n.Want.Labels),
		n.Profile, n.Name, jsonOrNull(n.Capabilities), n.Recording,
		int(n.Idle.Seconds()), int(n.Max.Seconds()), int(n.Command.Seconds()), n.Queue.Seconds(), n.QueueLimit, object(n.Labels), n.Want.Platform,
	).Scan(&account, &profile, &device, &room, &at, &ignore)
	switch {
	case violates(err, "sessions_profile"):
		return time.Time{}, &orchestrator.ProfileHeldError{Profile: n.Profile, Holder: s.holder(ctx, n.Profile)}
	case err != nil:
		return time.Time{}, unavailable(err)
	case !account:
		return time.Time{}, &orchestrator.InvalidError{Field: "account", Problem: "no such account; create it with PUT /v1/accounts/{id}"}
	case !profile:
		return time.Time{}, &orchestrator.InvalidError{Field: "profile", Problem: "the account has no such profile; create one with POST /v1/profiles"}
	case !device:
		return time.Time{}, orchestrator.ErrNoSuchDevice
	case !room:
		return time.Time{}, &orchestrator.QueueFullError{Limit: n.QueueLimit, RetryAfter: 5 * time.Second}
	}
	return *at, nil // it was inserted: nothing above says why not
}

// holder is the session that uses a profile; it may have ended a moment ago.
func (s *Store) holder(ctx context.Context, profile string) string {
	var id string
	err := s.pool.QueryRow(ctx, `SELECT id FROM sessions WHERE profile = $1 AND state <> 'ended'`, profile).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) || err != nil {
		return "that has just ended"
	}
	return id
}

// object keeps a map that is not there from becoming JSON's null.
func object(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func jsonOrNull(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return string(b)
}
