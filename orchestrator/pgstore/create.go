package pgstore

import (
	"cmp"
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// fits says which devices (d) the wants of a session that is created fit; claimSQL says it of one that is queued. Arguments: kind,
// model, host, labels, platform, browser, bidi.
const fits = `($1 = '' OR d.kind = $1) AND ($2 = '' OR d.model = $2) AND ($3 = '' OR d.host = $3) AND d.labels @> $4
	AND ($5 = '' OR lower(d.platform_name) = lower($5)) AND ($6 = '' OR d.browser = $6) AND (d.bidi OR NOT $7)`

// createSQL admits and queues in one statement. Account, profile and device are checked as they are inserted upon; the
// room in the queue is counted as it was when the statement began, so that creates at the same moment may go over it by as
// many as they are.
const createSQL = `
WITH acc AS (SELECT recordings FROM accounts WHERE id = $9),
     pro AS (SELECT id, name, archetype, description FROM profiles WHERE id = CASE $20::text WHEN 'fork' THEN $21::text ELSE $10 END AND account = $9 AND deleted_at IS NULL),
     chk AS (SELECT EXISTS (SELECT FROM acc) AS account,
                    $10 = '' OR EXISTS (SELECT FROM pro) AS profile,
                    EXISTS (SELECT FROM devices d WHERE ` + fits + ` AND ` + notRevoked + `) AS device,
                    (SELECT count(*) FROM (SELECT FROM sessions WHERE state = 'queued' LIMIT $18) q) < $18 AS room),
     frk AS (INSERT INTO profiles (id, account, name, archetype, description)
             SELECT $10, $9, left(pro.name, 249) || ' (fork)', pro.archetype, pro.description FROM pro, chk WHERE $20 = 'fork' AND profile AND device AND room),
     ins AS (INSERT INTO sessions (id, account, profile, name, want_kind, want_model, want_host, want_labels, want_platform, want_browser,
                                   want_bidi, want_caps, recording, placement, idle_seconds, max_seconds, command_seconds, queue_until, labels,
                                   profile_mode, forked_from)
             SELECT $8, $9, NULLIF($10, ''), $11, $1, $2, $3, $4, $5, $6,
                    $7, $12, $13, acc.recordings, $14, $15, $16, now() + make_interval(secs => $17), $19, $20, NULLIF($21, '')
             FROM acc, chk WHERE profile AND device AND room
             RETURNING id, created_at),
     evt AS (INSERT INTO session_events (session, seq, at, kind) SELECT id, 1, now(), 'queued' FROM ins)
SELECT account, profile, device, room, (SELECT created_at FROM ins), (SELECT pg_notify('` + chanQueue + `', '') FROM ins) IS NULL FROM chk`

// Create implements orchestrator.SessionStore.
func (s *Store) Create(ctx context.Context, n orchestrator.NewSession) (time.Time, error) {
	var at *time.Time
	var account, profile, device, room, ignore bool
	err := s.pool.QueryRow(ctx, createSQL, n.Want.Kind, n.Want.Model, n.Want.Host, object(n.Want.Labels), n.Want.Platform, n.Browser, n.BiDi,
		n.ID, n.Account, n.Profile, n.Name, jsonOrNull(n.Capabilities), n.Recording,
		int(n.Idle.Seconds()), int(n.Max.Seconds()), int(n.Command.Seconds()), n.Queue.Seconds(), n.QueueLimit, object(n.Labels),
		string(cmp.Or(n.Mode, api.ProfileExclusive)), n.ForkOf,
	).Scan(&account, &profile, &device, &room, &at, &ignore)
	switch {
	case violates(err, "sessions_profile"):
		held, err := holder(ctx, s.pool, n.Profile)
		if held == nil && err == nil { // it has ended a moment ago
			held = &orchestrator.ProfileHeldError{Profile: n.Profile}
		}
		if err != nil {
			return time.Time{}, unavailable(err)
		}
		return time.Time{}, held
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

// Offers implements orchestrator.SessionStore.
func (s *Store) Offers(ctx context.Context, want api.DeviceWant) ([]webdriver.Offer, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT DISTINCT d.browser, d.bidi, d.platform_name FROM devices d WHERE `+fits+` AND `+notRevoked+`
		ORDER BY d.browser, d.bidi, d.platform_name`, want.Kind, want.Model, want.Host, object(want.Labels), want.Platform, "", false)
	if err != nil {
		return nil, unavailable(err)
	}
	offers, err := pgx.CollectRows(rows, pgx.RowToStructByPos[webdriver.Offer])
	return offers, unavailable(err)
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
