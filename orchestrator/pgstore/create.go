package pgstore

import (
	"cmp"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// enrolled is a condition on a row s of shapes: a device that is not removed has it, on the host that is wanted as $3. The order is the
// index's: it keeps the planner from reading all devices, which looks cheap where the first one has the shape.
const enrolled = `(SELECT true FROM devices d WHERE d.shape = s.id AND ($3 = '' OR d.host = $3) AND ` + notRevoked + ` ORDER BY d.host LIMIT 1) IS NOT NULL`

// createSQL admits and queues in one statement. The account's row is locked before its limits are looked at, and then a piece of
// the queue's room that is not full, so that both are as they are now, not as they were when the statement began: racing
// creates go over neither. The triggers on sessions count what is inserted.
//
// $1 to $10 is what is wanted, $11 its id.
const createSQL = `
WITH old AS (SELECT session, request = $28 AS same FROM idempotency_keys
             WHERE $27 <> '' AND account = $13 AND key = $27 AND created_at > now() - interval '24 hours'),
     pro AS (SELECT id, name, archetype, description FROM profiles
             WHERE id = CASE $32::text WHEN 'fork' THEN $33::text ELSE $14 END AND account = $13 AND deleted_at IS NULL),
     held AS (SELECT id FROM sessions WHERE $14 <> '' AND profile = $14 AND state <> 'ended' AND profile_mode <> 'readonly' AND $32 <> 'readonly'),
     chk AS (SELECT EXISTS (SELECT FROM accounts WHERE id = $13) AS account,
                    $14 = '' OR EXISTS (SELECT FROM pro) AS profile,
                    EXISTS (SELECT FROM shapes s WHERE misfits(` + wantRow + `, s) = '{}' AND ` + enrolled + `) AS device,
                    EXISTS (SELECT FROM held) AS held, (SELECT session FROM old) AS old, coalesce((SELECT same FROM old), false) AS same),
     load AS (SELECT l.account, l.queued, coalesce(l.max_queued, $25) AS max_queued, coalesce(l.max_creates, $26) AS max_creates,
                     recent_creates(l.recent, l.stretch, extract(epoch FROM now())::bigint / 5) AS recent
              FROM account_load l, chk
              WHERE l.account = $13 AND chk.account AND profile AND device AND NOT chk.held AND chk.old IS NULL FOR UPDATE OF l),
     quota AS (SELECT account, max_queued, max_creates, recent, queued < max_queued AS queue_ok,
                      (SELECT coalesce(sum(n), 0) FROM unnest(recent) n) < max_creates AS creates_ok FROM load),
     room AS (SELECT piece FROM queue_room
              WHERE EXISTS (SELECT FROM quota WHERE queue_ok AND creates_ok)
                AND (SELECT sum(queued) FROM queue_room) < $24 -- where the limit was higher before, pieces have more than their part
                AND queued < $24 / 16 + (piece < $24 % 16)::integer
              ORDER BY (piece + $23) % 16 LIMIT 1 FOR UPDATE),
     frk AS (INSERT INTO profiles (id, account, name, archetype, description)
             SELECT $14, $13, left(pro.name, 249) || ' (fork)', pro.archetype, pro.description FROM pro, room WHERE $32 = 'fork'),
     ins AS (INSERT INTO sessions (id, account, profile, name, want_kind, want_model, want_host, want_labels, want_platform, want_browser,
                                   want_bidi, want_os, want_country, want, want_caps, recording, placement, idle_seconds, max_seconds,
                                   command_seconds, queue_until, labels, priority, piece, profile_mode, forked_from, waiter)
             SELECT $12, $13, NULLIF($14, ''), $15, $1, $2, $3, $9, $31, $7, $8, $29, $10, $11, $16, $17, a.recordings, $18, $19,
                    $20, now() + make_interval(secs => $21), $22, $30, room.piece, $32, NULLIF($33, ''), $34
             FROM accounts a, room WHERE a.id = $13
             RETURNING id, created_at),
     evt AS (INSERT INTO session_events (session, seq, at, kind) SELECT id, 1, now(), 'queued' FROM ins),
     key AS (INSERT INTO idempotency_keys (account, key, request, session) SELECT $13, $27, $28, id FROM ins WHERE $27 <> '')
SELECT chk.account, profile, device, held, coalesce(old, ''), same,
       coalesce((SELECT queue_ok FROM quota), true), coalesce((SELECT creates_ok FROM quota), true),
       coalesce((SELECT max_queued FROM quota), 0), coalesce((SELECT max_creates FROM quota), 0), coalesce((SELECT recent FROM quota), '{}'),
       (SELECT created_at FROM ins) FROM chk`

// admission is what createSQL says.
type admission struct {
	account, profile, device, held, same, queueOK, createsOK bool
	old                                                      string
	maxQueued, maxCreates                                    int
	recent                                                   []int
	at                                                       *time.Time
}

// Create implements orchestrator.SessionStore.
func (s *Store) Create(ctx context.Context, n orchestrator.NewSession) (time.Time, error) {
	w, err := wantedOf(n.Want, n.Browser, n.BiDi)
	if err != nil {
		return time.Time{}, err
	}
	// A second look sees what the first one waited for: the same request under the same key, or a lock that two waited for in a
	// circle. The third is for a key that is old and not swept yet.
	for attempt := 0; ; attempt++ {
		at, err := s.create(ctx, n, w)
		switch {
		case err == nil || attempt == 2:
		case violates(err, "idempotency_keys_pkey"):
			if _, err := s.pool.Exec(ctx, `DELETE FROM idempotency_keys WHERE account = $1 AND key = $2 AND created_at <= now() - interval '24 hours'`,
				n.Account, n.Key.Key); err != nil {
				return time.Time{}, unavailable(err)
			}
			continue
		case deadlocked(err), n.Key.Key != "" && attempt == 0 && refused(err):
			continue
		}
		return at, err
	}
}

// refused says that an error may be the doing of the same request, which was let in meanwhile.
func refused(err error) bool {
	var full *orchestrator.QueueFullError
	var quota *orchestrator.QuotaError
	var held *orchestrator.ProfileHeldError
	return errors.As(err, &full) || errors.As(err, &quota) || errors.As(err, &held)
}

func deadlocked(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "40P01"
}

func (s *Store) create(ctx context.Context, n orchestrator.NewSession, w wanted) (time.Time, error) {
	want, err := s.want(ctx, w)
	if err != nil {
		return time.Time{}, err
	}
	v, err := admit(ctx, s.pool, n, w, want)
	at, err := s.verdict(ctx, n, v, err)
	if err == nil {
		s.news.tell(chanQueue, "")
	}
	return at, err
}

// admit is createSQL, in a transaction that its caller commits or undoes.
func admit(ctx context.Context, on querier, n orchestrator.NewSession, w wanted, want int64) (v admission, err error) {
	err = on.QueryRow(ctx, createSQL, append(w.args(), want,
		n.ID, n.Account, n.Profile, n.Name, jsonOrNull(n.Capabilities), n.Recording,
		int(n.Idle.Seconds()), int(n.Max.Seconds()), int(n.Command.Seconds()), n.Queue.Seconds(), object(n.Labels),
		rand.IntN(16), n.QueueLimit, limit(n.Limits.Queued), limit(n.Limits.CreatesPerMinute),
		n.Key.Key, n.Key.Request[:], n.Want.OSVersion, n.Priority, n.Want.Platform,
		string(cmp.Or(n.Mode, api.ProfileExclusive)), n.ForkOf, n.Waiter)...,
	).Scan(&v.account, &v.profile, &v.device, &v.held, &v.old, &v.same, &v.queueOK, &v.createsOK, &v.maxQueued, &v.maxCreates, &v.recent, &v.at)
	return v, err
}

// verdict is what admit has come to.
func (s *Store) verdict(ctx context.Context, n orchestrator.NewSession, v admission, err error) (time.Time, error) {
	switch {
	case violates(err, "sessions_profile"):
		return time.Time{}, s.held(ctx, n.Profile)
	case err != nil:
		return time.Time{}, unavailable(err)
	case v.holds():
		return time.Time{}, s.held(ctx, n.Profile)
	}
	return v.judge(n)
}

// holds says that the profile is held, and nothing else was wrong before that.
func (v admission) holds() bool {
	return v.account && v.old == "" && v.profile && v.device && v.held
}

// held says who holds a profile that was held when the session was to be created.
func (s *Store) held(ctx context.Context, profile string) error {
	held, err := holder(ctx, s.pool, profile)
	if err != nil {
		return unavailable(err)
	}
	if held == nil { // it has ended a moment ago
		return &orchestrator.ProfileHeldError{Profile: profile}
	}
	return held
}

// judge says why nothing was inserted, or when something was. Who holds the profile is for held to say.
func (v admission) judge(n orchestrator.NewSession) (time.Time, error) {
	var err error
	switch {
	case v.at != nil:
		return *v.at, nil
	case !v.account:
		err = &orchestrator.InvalidError{Field: "account", Problem: "no such account; create it with PUT /v1/accounts/{id}"}
	case v.old != "" && v.same:
		err = &orchestrator.RepeatedError{Session: v.old}
	case v.old != "":
		err = &orchestrator.ConflictError{Problem: "the Idempotency-Key was used for another request within 24 hours; a new request needs a new key"}
	case !v.profile:
		err = &orchestrator.InvalidError{Field: "profile", Problem: "the account has no such profile; create one with POST /v1/profiles"}
	case !v.device:
		err = orchestrator.ErrNoSuchDevice
	case !v.queueOK:
		err = &orchestrator.QuotaError{Quota: orchestrator.QuotaQueued, Limit: v.maxQueued, RetryAfter: 5 * time.Second}
	case !v.createsOK:
		err = &orchestrator.QuotaError{Quota: orchestrator.QuotaCreates, Limit: v.maxCreates, RetryAfter: v.slides()}
	default:
		err = &orchestrator.QueueFullError{Limit: n.QueueLimit, RetryAfter: 5 * time.Second}
	}
	return time.Time{}, err
}

// slides is how long until the oldest creates are no longer recent.
func (v admission) slides() time.Duration {
	for i := len(v.recent) - 1; i >= 0; i-- {
		if v.recent[i] > 0 {
			return time.Duration(len(v.recent)-i) * 5 * time.Second
		}
	}
	return time.Minute
}

// limit is a limit as the statements take it: zero is none.
func limit(n int) int {
	if n <= 0 {
		return math.MaxInt32
	}
	return n
}

// Offers implements orchestrator.SessionStore.
func (s *Store) Offers(ctx context.Context, want api.DeviceWant) ([]webdriver.Offer, error) {
	w, err := wantedOf(want, "", false)
	if err != nil {
		return nil, err
	}
	rows, err := s.pool.Query(ctx, `
		SELECT DISTINCT s.browser, s.bidi, s.platform_name FROM shapes s WHERE misfits(`+wantRow+`, s) = '{}' AND `+enrolled+`
		ORDER BY s.browser, s.bidi, s.platform_name`, w.args()...)
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
