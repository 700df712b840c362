package pgstore

import (
	"context"
	"time"

	"github.com/driftstack/fleet/orchestrator"
)

// reclaimSQL reads nothing of sessions whose lease is over: those are for Reap, under the same condition. The term rises as with every
// other change of hands, so that a claim whose answer comes late after all is fenced.
const reclaimSQL = `
WITH pick AS MATERIALIZED (
    SELECT id FROM sessions
    WHERE state IN ('starting', 'running', 'finishing') AND lease_until > now() AND state = 'starting' AND holder = $1 AND id <> ALL ($2)
    ORDER BY id LIMIT $4 FOR UPDATE SKIP LOCKED),
s AS (
    UPDATE sessions SET term = term + 1, lease_until = now() + make_interval(secs => $3)
    FROM pick WHERE sessions.id = pick.id RETURNING sessions.*)
SELECT id, term, account, coalesce(profile, ''), host, device, recording, placement, coalesce(want_caps::text, ''),
       idle_seconds, max_seconds, command_seconds, (SELECT max(seq) FROM session_events e WHERE e.session = s.id), true, profile_mode, coalesce(forked_from, ''),
       extract(epoch FROM now() - created_at)::float8, waiter
FROM s`

// Reclaim implements orchestrator.SessionStore.
func (s *Store) Reclaim(ctx context.Context, holder string, known []string, ttl time.Duration, most int) ([]orchestrator.Claim, error) {
	if known == nil {
		known = []string{}
	}
	return s.taken(s.pool.Query(ctx, reclaimSQL, holder, known, ttl.Seconds(), most))
}
