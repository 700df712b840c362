package pgstore

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/place"
)

// adoptSQL takes the running session that has been without a holder for longest. Its device is still its own: nobody else
// can have claimed it. Nobody goes on with a session whose profile may not be used where its device is now declared to be.
const adoptSQL = `
WITH pick AS (
    SELECT s.id FROM sessions s JOIN devices d ON d.session = s.id
    WHERE s.state = 'running' AND s.lease_until <= now() AND s.lease_until > now() - make_interval(secs => $4)
      AND (s.profile IS NULL OR d.country = ANY ($5) OR EXISTS (SELECT FROM account_load a WHERE a.account = s.account AND a.profile_execution = 'any'))
      AND d.host = ANY ($2) AND ` + notRevoked + ` AND ` + reachesProfile + `
    ORDER BY s.lease_until LIMIT 1 FOR UPDATE OF s SKIP LOCKED),
ses AS (
    UPDATE sessions SET term = term + 1, holder = $1, lease_until = now() + make_interval(secs => $3)
    FROM pick WHERE sessions.id = pick.id
    RETURNING sessions.*),
evt AS (
    INSERT INTO session_events (session, seq, at, kind, term)
    SELECT id, 1 + (SELECT max(seq) FROM session_events e WHERE e.session = ses.id), now(), 'adopted', term FROM ses
    RETURNING seq)
SELECT id, term, account, coalesce(profile, ''), host, device, recording, placement, coalesce(caps::text, ''),
       idle_seconds, max_seconds, command_seconds, (SELECT seq FROM evt), pg_notify('` + chanSession + `', id) IS NULL, profile_mode, coalesce(forked_from, ''),
       extract(epoch FROM now() - running_at)::float8
FROM ses`

// Adopt implements orchestrator.SessionStore.
func (s *Store) Adopt(ctx context.Context, holder string, hosts []string, ttl time.Duration) (orchestrator.Claim, bool, error) {
	var ran float64
	c, ok, err := scanClaim(s.pool.QueryRow(ctx, adoptSQL, holder, hosts, ttl.Seconds(), orchestrator.AdoptWindow.Seconds(), place.MemberStates()), &ran)
	c.Adopted, c.Ran = ok, time.Duration(ran*float64(time.Second))
	return c, ok, err
}

// scanClaim reads what a claim and an adoption have in common, and what comes after it.
func scanClaim(row pgx.Row, more ...any) (c orchestrator.Claim, ok bool, err error) {
	var caps string
	var idle, maximum, command int
	var ignore bool
	err = row.Scan(append([]any{&c.Session, &c.Term, &c.Account, &c.Profile, &c.Host, &c.Device, &c.Recording, &c.Placement, &caps,
		&idle, &maximum, &command, &c.LastEvent, &ignore, &c.Mode, &c.ForkOf}, more...)...)
	if errors.Is(err, pgx.ErrNoRows) {
		return c, false, nil
	}
	if err != nil {
		return c, false, unavailable(err)
	}
	if caps != "" {
		c.Capabilities = json.RawMessage(caps)
	}
	c.Idle = time.Duration(idle) * time.Second
	c.Max = time.Duration(maximum) * time.Second
	c.Command = time.Duration(command) * time.Second
	return c, true, nil
}

// HandOver implements orchestrator.SessionStore. The term is given up with the lease, so that nothing that its holder sent
// before, and that arrives later, takes either back.
func (s *Store) HandOver(ctx context.Context, last orchestrator.Event) error {
	tag, err := s.pool.Exec(ctx, `
		WITH s AS (UPDATE sessions SET term = term + 1, holder = '', lease_until = now()
		           WHERE id = $1 AND term = $2 AND state = 'running' RETURNING id),
		     e AS (INSERT INTO session_events (session, seq, at, kind, term) SELECT id, $3, $4, $5, $2 FROM s ON CONFLICT DO NOTHING)
		SELECT pg_notify('`+chanAdopt+`', ''), pg_notify('`+chanSession+`', id) FROM s`,
		last.Session, last.Term, last.Seq, last.At, string(last.Kind))
	if err == nil && tag.RowsAffected() == 0 {
		return orchestrator.ErrLeaseLost
	}
	return unavailable(err)
}
