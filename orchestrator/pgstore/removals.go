package pgstore

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/recorder"
)

// copyRemoving is a copy that its account does not want any more; then it is removed. Its uploader knows neither state.
const copyRemoving = "removing"

var _ recorder.Removals = (*Store)(nil)

// withdraw has an account's US copies removed, those that are still being made as well, and counts them. Who calls it holds the account's row.
func withdraw(ctx context.Context, tx pgx.Tx, account string) (int64, error) {
	if _, err := tx.Exec(ctx, `UPDATE recordings SET placement = 'eu' WHERE account = $1 AND placement <> 'eu'`, account); err != nil {
		return 0, err
	}
	tag, err := tx.Exec(ctx, `
		UPDATE recording_copies c SET state = 'removing' FROM recordings r
		WHERE r.id = c.recording AND r.account = $1 AND c.region = 'us' AND c.state NOT IN ('removing', 'removed')`, account)
	return tag.RowsAffected(), err
}

// CopiesToRemove implements recorder.Removals. A copy that is still being uploaded waits until its uploader is done with it, or has said nothing for so
// long (abandoned), and one of a recording with no verified copy in the EU until there is one: it may be all that there is.
func (s *Store) CopiesToRemove(ctx context.Context, region place.Region, abandoned, again time.Duration, limit int) ([]recorder.StoredCopy, error) {
	rows, err := s.pool.Query(ctx, `
		WITH due AS MATERIALIZED (
		    SELECT c.recording, c.region, r.key, coalesce(eu.etag, '') AS eu FROM recording_copies c JOIN recordings r ON r.id = c.recording
		    LEFT JOIN recording_copies eu ON eu.recording = r.id AND eu.region = 'eu' AND eu.state = 'verified'
		    WHERE c.state = 'removing' AND c.region = $1
		      AND (c.removal_tried_at IS NULL OR c.removal_tried_at < now() - $2::interval)
		      AND (r.state IN ('empty', 'lost') OR r.state = 'quarantined' AND c.verified_at IS NULL
		           OR eu.etag IS NOT NULL AND (c.verified_at IS NOT NULL OR r.state = 'quarantined' OR r.updated_at < now() - $4::interval))
		    ORDER BY c.removal_tried_at NULLS FIRST LIMIT $3 FOR UPDATE OF c SKIP LOCKED)
		UPDATE recording_copies c SET removal_tried_at = now() FROM due d
		WHERE c.recording = d.recording AND c.region = d.region RETURNING c.recording, c.region, c.bucket, d.key, d.eu`, string(region), again, limit, abandoned)
	if err != nil {
		return nil, unavailable(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[recorder.StoredCopy])
	return list, unavailable(err)
}

// CopyRemoved implements recorder.Removals.
func (s *Store) CopyRemoved(ctx context.Context, c recorder.StoredCopy, at time.Time) error {
	_, err := s.pool.Exec(ctx, `UPDATE recording_copies SET state = 'removed', removed_at = $3 WHERE recording = $1 AND region = $2 AND state = 'removing'`,
		c.Recording, string(c.Region), at)
	return unavailable(err)
}
