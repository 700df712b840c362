package pgstore

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// shapesSQL is what enrolled devices are matched by, on the host that is wanted where there is such a host.
const shapesSQL = `
WITH here AS (SELECT d.shape, d.host FROM devices d WHERE d.shape IS NOT NULL AND ` + notRevoked + `),
     named AS (SELECT EXISTS (SELECT FROM here WHERE host = $3) AS host)
SELECT s.kind, s.browser, s.bidi, s.model, s.platform_name, s.platform_version, s.country, s.labels, misfits(` + wantRow + `, s),
       CASE WHEN $3 <> '' AND NOT named.host THEN h.host ELSE '' END
FROM named CROSS JOIN LATERAL (SELECT DISTINCT shape, CASE WHEN $3 <> '' AND NOT named.host THEN here.host END AS host FROM here
    WHERE NOT named.host OR here.host = $3) h JOIN shapes s ON s.id = h.shape
ORDER BY s.id`

// Shapes implements orchestrator.SessionStore.
func (s *Store) Shapes(ctx context.Context, n orchestrator.NewSession) ([]orchestrator.Shape, error) {
	w, err := wantedBy(ctx, s.pool, n)
	if err != nil {
		return nil, err
	}
	rows, err := s.pool.Query(ctx, shapesSQL, w.args()...)
	if err != nil {
		return nil, unavailable(err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (v orchestrator.Shape, err error) {
		d := &v.Device
		err = row.Scan(&d.Kind, &d.Browser, &d.BiDi, &d.Model, &d.PlatformName, &d.PlatformVersion, &d.Country, &d.Labels, &v.Misses, &d.Host)
		if d.Host != "" {
			v.Misses = append(v.Misses, api.KeyHost)
		}
		return v, err
	})
	return list, unavailable(err)
}

// reachesFrom is a condition on a row d of devices: an orchestrator that may give it a session has the files of the profile $12, and
// of $13.
const reachesFrom = `EXISTS (SELECT FROM host_links l JOIN replicas r ON r.orchestrator = l.orchestrator
    WHERE l.host = d.host AND ` + live + ` AND coalesce(l.damped_until <= now(), true) AND reaches_profile(r.id, $12, $13))`

// candidatesSQL is every enrolled device with what a claim looks at, in the order in which a claim takes those that are free.
const candidatesSQL = `
SELECT d.host, d.name, d.kind, d.browser, d.bidi, d.model, d.platform_name, d.platform_version, d.country, d.labels, d.state, d.reason,
       coalesce(d.session, ''), d.cordoned_at, d.cordoned_by, d.cordon_reason, d.host_cordoned, d.closed, d.shape,
       coalesce(misfits(` + wantRow + `, s), '{}'), ` + connected + `, ` + takes + `, $12 = '' OR ` + reachesFrom + `
FROM devices d LEFT JOIN shapes s ON s.id = d.shape
WHERE ` + notRevoked + ` ORDER BY d.used_at, d.host, d.name`

// Prospect implements orchestrator.SessionStore. All of it is of one snapshot, and locks nothing.
func (s *Store) Prospect(ctx context.Context, n orchestrator.NewSession) (p orchestrator.Prospect, err error) {
	var v admission
	err = pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		w, err := wantedBy(ctx, tx, n)
		if err != nil {
			return verdict{err}
		}
		fit, free, err := readCandidates(ctx, tx, n, w, &p)
		if err != nil {
			return err
		}
		row, err := json.Marshal([]any{w.row(0)})
		if err != nil {
			return err
		}
		all, err := admit(ctx, tx, wouldCreateSQL, []creation{{n, 0}}, string(row))
		if err != nil {
			return err
		}
		if v = all[0]; v.at == nil {
			return nil
		}
		return readProspect(ctx, tx, n, w, fit, free, &p)
	})
	if err != nil {
		return p, unavailable(err)
	}
	if _, p.Refused = s.verdict(ctx, n, v, nil); p.Refused != nil {
		var invalid *orchestrator.InvalidError
		if errors.As(p.Refused, &invalid) || errors.Is(p.Refused, orchestrator.ErrUnavailable) {
			return p, p.Refused
		}
	}
	return p, nil
}

// readCandidates reads the devices, and says of which shapes those are that fit, and, of each one, those that are free.
func readCandidates(ctx context.Context, tx pgx.Tx, n orchestrator.NewSession, w wanted, p *orchestrator.Prospect) (fit, free []int64, err error) {
	hosts, err := readHosts(ctx, tx, "")
	if err != nil {
		return nil, nil, err
	}
	named := make(map[string]api.Host, len(hosts))
	for _, h := range hosts {
		named[h.Name] = h.Host
	}
	profile, forked := n.Profile, n.ForkOf
	if forked != "" { // the fork's own profile is not there yet
		profile = forked
	}
	rows, err := tx.Query(ctx, candidatesSQL, append(w.args(), profile, forked)...)
	if err != nil {
		return nil, nil, err
	}
	p.Candidates, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (orchestrator.Candidate, error) {
		c, err := scanCandidate(row)
		if n.Want.Host != "" && c.Device.Host != n.Want.Host {
			c.Misses = append(c.Misses, api.KeyHost)
		}
		c.judge(named[c.Device.Host], n.Profile)
		if c.shape != nil && len(c.Misses) == 0 {
			fit = append(fit, *c.shape)
			if len(c.Reasons) == 0 {
				free = append(free, *c.shape)
			}
		}
		return c.Candidate, err
	})
	return fit, free, err
}

// readProspect is where the session would wait, were it queued now, and whether it would start.
func readProspect(ctx context.Context, tx pgx.Tx, n orchestrator.NewSession, w wanted, fit, free []int64, p *orchestrator.Prospect) error {
	digest, err := digestOf(w)
	if err != nil {
		return err
	}
	place := func(shapes []int64) (api.QueuePlace, error) {
		return readPlace(ctx, tx, wouldPlaceSQL, n.ID, distinct(shapes), n.Limits.Concurrent, n.Account, n.Priority, digest[:], w.Host)
	}
	at, err := place(fit)
	if err != nil {
		return err
	}
	p.Queue = &at
	if len(free) > 0 && at.WaitsFor == api.WaitsForDevice {
		rivals, err := place(free)
		if err != nil {
			return err
		}
		p.Starts = rivals.Position <= len(free)
	}
	return nil
}

func distinct(ids []int64) []int64 {
	slices.Sort(ids)
	return slices.Compact(ids)
}

// candidate is a row of candidatesSQL.
type candidate struct {
	orchestrator.Candidate
	shape                     *int64
	own                       cordoned
	byHost, closed            bool
	connected, takes, reaches bool
}

func scanCandidate(row pgx.CollectableRow) (c candidate, err error) {
	d := &c.Device
	return c, row.Scan(&d.Host, &d.Name, &d.Kind, &d.Browser, &d.BiDi, &d.Model, &d.PlatformName, &d.PlatformVersion, &d.Country, &d.Labels, &d.State, &d.Reason,
		&d.Session, &c.own.at, &c.own.by, &c.own.reason, &c.byHost, &c.closed, &c.shape,
		&c.Misses, &c.connected, &c.takes, &c.reaches)
}

// judge says what keeps a device from being claimed that has nothing to do with what it is. These are the conditions of
// claim_sessions: a device that has no reason here is one that it takes.
func (c *candidate) judge(h api.Host, profile string) {
	add := func(key api.Key, wanted, has, why string) {
		if why != "" {
			has += ": " + why
		}
		c.Reasons = append(c.Reasons, api.DeviceReason{Key: key, Wanted: wanted, Has: has})
	}
	switch d := c.Device; {
	case c.connected && !c.takes:
		why := ""
		if h.DampedUntil != nil {
			why = "it lost its connections too often, until " + stamp(*h.DampedUntil)
		}
		add(api.KeyHostState, "", "damped", why)
	case !c.connected:
		add(api.KeyHostState, "", string(h.State), h.Reason)
	case c.shape == nil:
		add(api.KeyDeviceState, "", "not announced by its host yet", "")
	case !c.reaches:
		add(api.KeyProfile, profile, "not where its files are", "no orchestrator that the host is connected to has the volume that the profile is on")
	case d.State == "quarantined":
		add(api.KeyDeviceState, "", d.State, d.Reason)
	case d.Session != "":
		add(api.KeyDeviceState, "", "busy", "session "+d.Session)
	case d.State != "ready":
		add(api.KeyDeviceState, "", d.State, d.Reason)
	}
	if c.closed && c.byHost {
		state, why := api.Cordoned, ""
		if h.Cordon != nil {
			state, why = h.Cordon.State, h.Cordon.Reason
		}
		add(api.KeyHostState, "", string(state), why)
	}
	if c.closed && c.own.at != nil {
		add(api.KeyDeviceState, "", string(api.Cordoned), c.own.reason)
	}
}

// placeMost is how far back a place is counted.
const (
	placeMost     = 1000
	placeMostText = `1000`
)

// placeSQL is where the queued session $1 waits, among those that compete with it for devices of the shapes $2: those that are wanted
// alike by any of them. Accounts take turns as in claim_sessions; a session's turn is the virtual time at which it is served. What
// is counted of each account is bounded by that turn, and all of it by placeMost.
const placeSQL = placeWants + `
    SELECT s.id, s.account, s.want, s.priority, s.created_at, w.host, a.pass, a.weight, a.active, a.busy_ms, coalesce(a.max_active, $3) AS most
    FROM sessions s JOIN wants w ON w.id = s.want JOIN account_load a ON a.account = s.account WHERE s.id = $1 AND s.state = 'queued'` + placeRivals

// wouldPlaceSQL is placeSQL for a session that is not queued: of the account $4, with the priority $5, that wants what has the digest $6, on the host $7.
const wouldPlaceSQL = placeWants + `
    SELECT $1 AS id, a.account, coalesce((SELECT w.id FROM wants w WHERE w.digest = $6), 0) AS want, $5::integer AS priority, now() AS created_at, $7::text AS host,
        CASE a.queued WHEN 0 THEN greatest(a.pass, v.last_value) ELSE a.pass END AS pass, -- as count_sessions has it
        a.weight, a.active, a.busy_ms, coalesce(a.max_active, $3) AS most
    FROM account_load a, virtual_time v WHERE a.account = $4` + placeRivals

const placeWants = `
WITH RECURSIVE queued AS (
    (SELECT l.want FROM lanes l WHERE l.open ORDER BY l.want LIMIT 1)
    UNION ALL
    SELECT (SELECT l.want FROM lanes l WHERE l.open AND l.want > q.want ORDER BY l.want LIMIT 1) FROM queued q WHERE q.want IS NOT NULL),
me AS MATERIALIZED (`

const placeRivals = `),
rivals AS MATERIALIZED (
    SELECT array_agg(want) AS wants FROM (
        SELECT me.want FROM me
        UNION
        SELECT q.want FROM me, queued q WHERE EXISTS (SELECT FROM want_shapes x
            WHERE x.want = q.want AND x.shape = ANY ($2) AND (x.host = '' OR me.host = '' OR x.host = me.host))) r),
own AS MATERIALIZED (
    SELECT count(*) AS n FROM (
        SELECT FROM me, rivals, unnest(rivals.wants) u(want) CROSS JOIN LATERAL (
            SELECT FROM sessions s WHERE s.account = me.account AND s.want = u.want AND s.state = 'queued' AND s.priority > me.priority
            UNION ALL
            SELECT FROM sessions s WHERE s.account = me.account AND s.want = u.want AND s.state = 'queued' AND s.priority = me.priority
                AND (s.created_at, s.id) < (me.created_at, me.id)) o
        LIMIT ` + placeMostText + `) o),
turn AS MATERIALIZED (
    SELECT CASE own.n WHEN 0 THEN me.pass ELSE greatest(me.pass, v.last_value) + own.n * (1000000 / me.weight) END AS at, v.last_value AS now
    FROM me, own, virtual_time v),
others AS (
    SELECT count(*) AS n FROM (
        SELECT FROM me, rivals, turn, (SELECT DISTINCT l.account FROM lanes l, rivals WHERE l.want = ANY (rivals.wants) AND l.open) l
            JOIN account_load a ON a.account = l.account CROSS JOIN LATERAL (
                SELECT FROM unnest(rivals.wants) u(want) JOIN sessions s ON s.account = a.account AND s.want = u.want AND s.state = 'queued'
                LIMIT greatest(
                    ((a.pass, a.account) < (turn.at, me.account))::integer,
                    ceil((turn.at - greatest(a.pass, turn.now) + (a.account < me.account)::integer)::numeric / (1000000 / a.weight)), 0)) o
        WHERE a.account <> me.account LIMIT ` + placeMostText + `) o),
fit AS MATERIALIZED (
    SELECT d.session, d.state = 'ready' AND d.session IS NULL AS free
    FROM me, devices d WHERE d.shape = ANY ($2) AND (me.host = '' OR d.host = me.host) AND d.state IN ('ready', 'busy') AND NOT d.closed
        AND d.host IN (SELECT l.host FROM host_links l WHERE ` + live + ` AND coalesce(l.damped_until <= now(), true))),
busy AS (
    SELECT avg(a.busy_ms)::float8 AS ms FROM (SELECT session FROM fit WHERE session IS NOT NULL LIMIT 200) f
        JOIN sessions s ON s.id = f.session JOIN account_load a ON a.account = s.account)
SELECT own.n, others.n, me.active, me.most, me.busy_ms::float8, (SELECT count(*) FROM fit), (SELECT count(*) FROM fit WHERE free), busy.ms
FROM me, own, others, busy`

// waiting is a row of placeSQL.
type waiting struct {
	own, others, active, most int
	accountMS                 *float64 // how long the account's sessions have a device
	devices, free             int
	deviceMS                  *float64 // how long sessions have those devices
}

// readPlace is where a queued session waits for devices of the shapes, or one that would be, with what that takes more. pgx.ErrNoRows: it is not queued.
func readPlace(ctx context.Context, db querier, sql, session string, shapes []int64, concurrent int, more ...any) (api.QueuePlace, error) {
	var p waiting
	err := db.QueryRow(ctx, sql, append([]any{session, shapes, limit(concurrent)}, more...)...).
		Scan(&p.own, &p.others, &p.active, &p.most, &p.accountMS, &p.devices, &p.free, &p.deviceMS)
	return p.shown(), err
}

// shown estimates the wait. Of as many devices as there are, one becomes free in that part of the time that sessions have
// them; and of as many sessions as the account may have, one ends in that part of the time that its own take. A session waits
// for whichever of the two takes longer. What is not known is not guessed.
func (p waiting) shown() api.QueuePlace {
	v := api.QueuePlace{Position: p.own + p.others + 1, WaitsFor: api.WaitsForDevice, Devices: p.devices}
	if v.Position > placeMost {
		v.Position, v.OrMore = placeMost, true
	}
	over := p.active + p.own + 1 - p.most // of the account's sessions that must end before
	if p.active >= p.most {
		v.WaitsFor = api.WaitsForQuota
	}
	wait, known := 0.0, !v.OrMore
	if ends := v.Position - p.free; ends > 0 {
		if p.deviceMS == nil || p.devices == 0 {
			known = false
		} else {
			wait = float64(ends) * *p.deviceMS / float64(p.devices)
		}
	}
	if over > 0 {
		if p.accountMS == nil || p.most == 0 {
			known = false
		} else {
			wait = max(wait, float64(over)**p.accountMS/float64(p.most))
		}
	}
	if known {
		s := int64(math.Ceil(wait / 1000))
		v.ExpectedWaitSeconds = &s
	}
	return v
}

// QueuePlace is where a session waits; ok is false when it is not queued. concurrent is how many an account may have at once that has
// no quota of its own; zero is no limit.
func (s *Store) QueuePlace(ctx context.Context, session string, concurrent int) (at api.QueuePlace, ok bool, err error) {
	var shapes []int64
	err = s.pool.QueryRow(ctx, `
		SELECT coalesce(array_agg(h.id), '{}') FROM sessions q JOIN wants w ON w.id = q.want JOIN shapes h ON misfits(w, h) = '{}' AND EXISTS (SELECT FROM devices d WHERE d.shape = h.id)
		WHERE q.id = $1 AND q.state = 'queued'`, session).Scan(&shapes)
	if err == nil {
		at, err = readPlace(ctx, s.pool, placeSQL, session, shapes, concurrent)
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return at, false, nil
	}
	return at, err == nil, unavailable(err)
}
