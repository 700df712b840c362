package pgstore

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// enrolled is a condition on a row s of shapes and a row w of wants: a device that is not removed has the shape, on the host that is wanted. The order is
// the index's: it keeps the planner from reading all devices, which looks cheap where the first one has the shape.
const enrolled = `(SELECT true FROM devices d WHERE d.shape = s.id AND (w.host = '' OR d.host = w.host) AND ` + notRevoked + ` ORDER BY d.host LIMIT 1) IS NOT NULL`

// createSQL admits and queues several in one statement. Their accounts' rows are locked before their limits are looked at, and then a piece of
// the queue's room that has enough of it, so that both are as they are now, not as they were when the statement began: racing
// creates go over neither. The trigger on sessions counts what is inserted. Where no piece has room for all, none is queued.
const createSQL = admitWants + `wants w WHERE w.id IN (SELECT n.want FROM n)` + admitLoad + ` FOR UPDATE` + admitRoom + ` FOR UPDATE),
     frk AS (
         INSERT INTO profiles (id, account, name, archetype, description)
         SELECT n.profile, n.account, left(c.of_name, 249) || ' (fork)', c.archetype, c.description
         FROM n JOIN chk c USING (place) JOIN let USING (place), room WHERE n.mode = 'fork'),
     ins AS (
         INSERT INTO sessions (id, account, profile, name, want_kind, want_model, want_host, want_labels, want_platform, want_browser, want_bidi, want_os, want_country,
                               want, want_caps, recording, placement, idle_seconds, max_seconds, command_seconds, queue_until, labels, priority, piece, profile_mode,
                               forked_from, waiter)
         SELECT n.id, n.account, nullif(n.profile, ''), n.name, w.kind, w.model, w.host, w.labels, n.platform, w.browser, w.bidi, n.os, w.country,
                n.want, nullif(n.caps, '')::jsonb, n.recording, c.recordings, n.idle, n.longest, n.command, now() + make_interval(secs => n.queue), n.labels::jsonb,
                n.priority, room.piece, n.mode, nullif(n.fork_of, ''), n.waiter
         FROM n JOIN chk c USING (place) JOIN let USING (place) JOIN wants w ON w.id = n.want, room
         RETURNING id, created_at),
     evt AS (INSERT INTO session_events (session, seq, at, kind) SELECT id, 1, now(), 'queued' FROM ins),
     key AS (INSERT INTO idempotency_keys (account, key, request, session) SELECT n.account, n.key, n.request, n.id FROM n JOIN ins USING (id) WHERE n.key <> '')` + admitSaid

// wouldCreateSQL says what createSQL would of one session that wants what $25 has, and changes and locks nothing.
const wouldCreateSQL = admitWants + `jsonb_populate_recordset(NULL::wants, $25::jsonb) AS w` + admitLoad + admitRoom + `),
     ins AS (SELECT n.id, now() AS created_at FROM n JOIN let USING (place), room)` + admitSaid

// admitWants, admitLoad, admitRoom and admitSaid are what both have in common: all that is looked at.
const (
	admitWants = `
WITH n AS MATERIALIZED (
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::boolean[], $7::integer[], $8::integer[], $9::integer[], $10::float8[],
                              $11::text[], $12::text[], $13::text[], $14::text[], $15::integer[], $16::text[], $17::bytea[], $18::text[], $19::text[], $20::bigint[],
                              $21::integer[], $22::integer[]) WITH ORDINALITY
             AS n (id, account, profile, name, caps, recording, idle, longest, command, queue, labels, mode, fork_of, waiter, priority, key, request, os, platform, want,
                   max_queued, max_creates, place)),
     dev AS MATERIALIZED (
         SELECT w.id, EXISTS (SELECT FROM shapes s WHERE misfits(w, s) = '{}' AND ` + enrolled + `) AS met, w.countries FROM `
	admitLoad = `),
     chk AS MATERIALIZED (
         SELECT n.place, a.recordings, a.id IS NOT NULL AS account, n.profile = '' OR p.id IS NOT NULL AS profile, dev.id IS NOT NULL AS want, coalesce(dev.met, false) AS device, dev.countries,
                n.profile <> '' AND n.mode <> 'readonly' AND (
                    SELECT true FROM sessions s WHERE s.profile = n.profile AND s.state <> 'ended' AND s.profile_mode <> 'readonly' LIMIT 1) IS NOT NULL AS held,
                coalesce(k.session, '') AS old, coalesce(k.request = n.request, false) AS same, p.name AS of_name, p.archetype, p.description
         FROM n LEFT JOIN dev ON dev.id = n.want LEFT JOIN accounts a ON a.id = n.account
             LEFT JOIN profiles p ON p.id = CASE n.mode WHEN 'fork' THEN n.fork_of ELSE n.profile END AND p.account = n.account AND p.deleted_at IS NULL
             LEFT JOIN idempotency_keys k ON n.key <> '' AND k.account = n.account AND k.key = n.key AND k.created_at > now() - ` + keyLife + `),
     load AS MATERIALIZED (
         SELECT l.account, l.queued, l.max_queued, l.max_creates, recent_creates(l.recent, l.stretch, extract(epoch FROM now())::bigint / 5) AS recent,
                l.profile_execution
         FROM account_load l WHERE l.account IN (
             SELECT n.account FROM n JOIN chk c USING (place) WHERE c.account AND c.profile AND c.device AND NOT c.held AND c.old = '')
         ORDER BY l.account`
	admitRoom = `),
     quota AS MATERIALIZED (
         SELECT q.*, queued + nth <= max_queued AS queue_ok, (SELECT coalesce(sum(r), 0) FROM unnest(recent) r) + nth <= max_creates AS creates_ok FROM (
             SELECT n.place, l.queued, coalesce(l.max_queued, n.max_queued) AS max_queued, coalesce(l.max_creates, n.max_creates) AS max_creates, l.recent, x.as_allowed,
                    row_number() OVER (PARTITION BY n.account, x.as_allowed ORDER BY n.place) AS nth
             FROM n JOIN chk c USING (place) JOIN load l ON l.account = n.account
                 CROSS JOIN LATERAL (SELECT n.profile = '' OR (l.profile_execution = 'eu') = (c.countries <> '{}') AS as_allowed) x
             WHERE c.account AND c.profile AND c.device AND NOT c.held AND c.old = '') q),
     let AS MATERIALIZED (SELECT place FROM quota WHERE queue_ok AND creates_ok AND as_allowed),
     room AS MATERIALIZED (
         SELECT piece FROM queue_room
         WHERE (SELECT count(*) FROM let) > 0
             AND (SELECT sum(queued) FROM queue_room) + (SELECT count(*) FROM let) <= $23 -- where the limit was higher before, pieces have more than their part
             AND queued + (SELECT count(*) FROM let) <= $23 / 16 + (piece < $23 % 16)::integer
         ORDER BY (piece + $24) % 16 LIMIT 1`
	admitSaid = `
SELECT c.account, c.profile, c.want, c.device, c.held, c.old, c.same, coalesce(q.queue_ok, true), coalesce(q.creates_ok, true),
       coalesce(q.max_queued, 0), coalesce(q.max_creates, 0), coalesce(q.recent, '{}'), coalesce(q.as_allowed, true), ins.created_at
FROM n JOIN chk c USING (place) LEFT JOIN quota q USING (place) LEFT JOIN ins ON ins.id = n.id ORDER BY n.place`
)

// admission is what createSQL says.
type admission struct {
	account, profile, want, device, held, same, queueOK, createsOK, asAllowed bool
	old                                                                       string
	maxQueued, maxCreates                                                     int
	recent                                                                    []int
	at                                                                        *time.Time
}

// Create implements orchestrator.SessionStore.
func (s *Store) Create(ctx context.Context, n orchestrator.NewSession) (time.Time, error) {
	// A second look sees what the first one waited for: the same request under the same key, or a lock that two waited for in a
	// circle; or is for a want that was tidied away, or for what its account requires now. The third is for a key that is old and not tidied away yet.
	for attempt := 0; ; attempt++ {
		at, err := s.create(ctx, n)
		switch {
		case err == nil || attempt == 2:
		case violates(err, "idempotency_keys_pkey"):
			if _, err := s.pool.Exec(ctx, `DELETE FROM idempotency_keys WHERE account = $1 AND key = $2 AND created_at <= now() - `+keyLife,
				n.Account, n.Key.Key); err != nil {
				return time.Time{}, unavailable(err)
			}
			continue
		case errors.Is(err, errNoWant), violates(err, wantGone), errors.Is(err, errExecution), deadlocked(err), n.Key.Key != "" && attempt == 0 && refused(err):
			continue
		}
		return at, err
	}
}

// errNoWant says that what is wanted is not in the database any more.
var errNoWant = errors.New("what is wanted was forgotten")

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

func (s *Store) create(ctx context.Context, n orchestrator.NewSession) (time.Time, error) {
	w, err := wantedBy(ctx, s.pool, n)
	if err != nil {
		return time.Time{}, err
	}
	want, err := s.want(ctx, w)
	if err != nil {
		return time.Time{}, err
	}
	v, err := s.batches.creates.do(ctx, creation{n, want})
	if err == nil && !v.want || violates(err, wantGone) {
		s.wants.forget(want)
	}
	at, err := s.verdict(ctx, n, v, err)
	if err == nil {
		s.news.tell(chanQueue, n.Waiter)
	}
	return at, err
}

// creation is a session to be created, and the id of what it wants.
type creation struct {
	orchestrator.NewSession
	want int64
}

func newCreates(pool *pgxpool.Pool) *batch[creation, admission] {
	return &batch[creation, admission]{run: func(ctx context.Context, of []creation) ([]admission, error) {
		all, err := admit(ctx, pool, createSQL, of)
		if err == nil && len(of) > 1 && slices.ContainsFunc(all, admission.full) { // there may be room for some
			err = verdict{errAlone}
		}
		return all, err
	}}
}

// admit is createSQL, or wouldCreateSQL with what that takes more.
func admit(ctx context.Context, on querier, sql string, of []creation, more ...any) ([]admission, error) {
	text := func(what func(creation) string) []string { return column(of, what) }
	number := func(what func(creation) int) []int { return column(of, what) }
	seconds := func(what func(creation) time.Duration) []int {
		return number(func(c creation) int { return int(what(c).Seconds()) })
	}
	labels := make([]string, len(of))
	for i, c := range of {
		b, err := json.Marshal(object(c.Labels))
		if err != nil {
			return nil, err
		}
		labels[i] = string(b)
	}
	rows, err := on.Query(ctx, sql, append([]any{
		text(func(c creation) string { return c.ID }), text(func(c creation) string { return c.Account }), text(func(c creation) string { return c.Profile }),
		text(func(c creation) string { return c.Name }), text(func(c creation) string { return string(c.Capabilities) }),
		column(of, func(c creation) bool { return c.Recording }), seconds(func(c creation) time.Duration { return c.Idle }),
		seconds(func(c creation) time.Duration { return c.Max }), seconds(func(c creation) time.Duration { return c.NewSession.Command }),
		column(of, func(c creation) float64 { return c.Queue.Seconds() }), labels,
		text(func(c creation) string { return string(cmp.Or(c.Mode, api.ProfileExclusive)) }), text(func(c creation) string { return c.ForkOf }),
		text(func(c creation) string { return c.Waiter }), number(func(c creation) int { return c.Priority }),
		text(func(c creation) string { return c.Key.Key }), column(of, func(c creation) []byte { return c.Key.Request[:] }),
		text(func(c creation) string { return c.Want.OSVersion }), text(func(c creation) string { return c.Want.Platform }),
		column(of, func(c creation) int64 { return c.want }), number(func(c creation) int { return limit(c.Limits.Queued) }),
		number(func(c creation) int { return limit(c.Limits.CreatesPerMinute) }), of[0].QueueLimit, rand.IntN(16)}, more...)...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (v admission, err error) {
		err = row.Scan(&v.account, &v.profile, &v.want, &v.device, &v.held, &v.old, &v.same, &v.queueOK, &v.createsOK, &v.maxQueued, &v.maxCreates, &v.recent, &v.asAllowed, &v.at)
		return v, err
	})
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

// full says that the queue had no room for what was admitted otherwise.
func (v admission) full() bool {
	return v.account && v.old == "" && v.profile && v.device && !v.held && v.asAllowed && v.queueOK && v.createsOK && v.at == nil
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
	case v.old != "":
		err = repeated(v.old, v.same)
	case !v.profile:
		err = &orchestrator.InvalidError{Field: "profile", Problem: "the account has no such profile; create one with POST /v1/profiles"}
	case !v.want:
		err = errNoWant
	case !v.device:
		err = orchestrator.ErrNoSuchDevice
	case !v.asAllowed:
		err = errExecution
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

// newOffers reads what enrolled devices that are wanted offer.
func newOffers(pool *pgxpool.Pool) *batch[wanted, []webdriver.Offer] {
	return &batch[wanted, []webdriver.Offer]{run: func(ctx context.Context, wants []wanted) ([][]webdriver.Offer, error) {
		rows := make([]map[string]any, len(wants))
		for i, w := range wants {
			rows[i] = w.row(i)
		}
		b, err := json.Marshal(rows)
		if err != nil {
			return nil, err
		}
		found, err := pool.Query(ctx, `
			SELECT DISTINCT w.id, s.browser, s.bidi, s.platform_name FROM jsonb_populate_recordset(NULL::wants, $1::jsonb) AS w CROSS JOIN shapes s
			WHERE misfits(w, s) = '{}' AND `+enrolled+` ORDER BY w.id, s.browser, s.bidi, s.platform_name`, string(b))
		if err != nil {
			return nil, err
		}
		offers := make([][]webdriver.Offer, len(wants))
		var i int64
		var o webdriver.Offer
		_, err = pgx.ForEachRow(found, []any{&i, &o.Browser, &o.BiDi, &o.Platform}, func() error {
			offers[i] = append(offers[i], o)
			return nil
		})
		return offers, err
	}}
}

// Offers implements orchestrator.SessionStore.
func (s *Store) Offers(ctx context.Context, n orchestrator.NewSession) ([]webdriver.Offer, error) {
	n.Browser, n.BiDi = "", false
	w, err := wantedBy(ctx, s.pool, n)
	if err != nil {
		return nil, err
	}
	return s.batches.offers.do(ctx, w)
}

// object keeps a map that is not there from becoming JSON's null.
func object(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

// repeated is what becomes of a request whose key was used, for this one or for another.
func repeated(session string, same bool) error {
	if same {
		return &orchestrator.RepeatedError{Session: session}
	}
	return &orchestrator.ConflictError{Problem: "the Idempotency-Key was used for another request within 24 hours; a new request needs a new key"}
}

// Made implements orchestrator.SessionStore.
func (s *Store) Made(ctx context.Context, account string, key orchestrator.Idempotency) error {
	var session string
	var same bool
	err := s.pool.QueryRow(ctx, `SELECT session, request = $3 FROM idempotency_keys WHERE account = $1 AND key = $2 AND created_at > now() - `+keyLife,
		account, key.Key, key.Request[:]).Scan(&session, &same)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return unavailable(err)
	}
	return repeated(session, same)
}
