package pgstore

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/recorder"
)

var _ recorder.Sweeps = (*Store)(nil)

// Useless implements recorder.Sweeps. A recording is stored before anything of it is uploaded, and forgotten only when one of a higher term of its
// session is: one that is not there although its session has another is superseded.
func (s *Store) Useless(ctx context.Context, region place.Region, session, id string) (useless bool, err error) {
	err = s.pool.QueryRow(ctx, `
		SELECT CASE WHEN EXISTS (SELECT FROM recordings WHERE id = $3)
		    THEN EXISTS (SELECT FROM recordings r LEFT JOIN recording_copies c ON c.recording = r.id AND c.region = $1
		                 WHERE r.id = $3 AND r.session = $2 AND (r.state = 'empty' OR c.state IN ('verified', 'removed')))
		    ELSE EXISTS (SELECT FROM recordings WHERE session = $2) END`, string(region), session, id).Scan(&useless)
	return useless, unavailable(err)
}

// CopiesToCheck implements recorder.Sweeps. A copy in the US is looked at only while its recording is to have one. What is left of a recording is made
// under the EU copy's name: two regions would each make another. Of one that is quarantined the journal does not know what its copies are to be. A copy in
// the US that is to be removed is there until it is, for the one in the EU to be put back from.
func (s *Store) CopiesToCheck(ctx context.Context, region place.Region, bucket string, abandoned, again time.Duration, limit int) ([]recorder.CheckedCopy, error) {
	rows, err := s.pool.Query(ctx, `
		WITH due AS MATERIALIZED (
		    SELECT c.recording, c.region, coalesce(o.etag, '') AS healthy, c.state IN ('pending', 'uploading') AND o.etag IS NULL AS abandoned,
		        c.abandoned_at IS NULL AS noticed,
		        EXISTS (SELECT FROM recording_copies e WHERE e.recording = c.recording AND e.region <> c.region AND e.state <> 'removed') AS elsewhere
		    FROM recording_copies c JOIN recordings r ON r.id = c.recording
		    LEFT JOIN recording_copies o ON o.recording = c.recording AND o.region <> c.region
		        AND (o.state = 'verified' OR o.state = 'removing' AND o.verified_at IS NOT NULL)
		    LEFT JOIN sessions s ON s.id = r.session
		    WHERE c.region = $1 AND c.bucket = $2 AND c.check_at < now() AND c.state NOT IN ('removing', 'removed')
		      AND (c.region = 'eu' OR r.placement = 'replicated') AND r.state <> 'quarantined'
		      AND (c.state IN ('verified', 'repairing') OR o.verified_at < now() - $3::interval OR o.etag IS NOT NULL AND r.cause = 'spool_lost'
		           OR o.etag IS NULL AND c.region = 'eu' AND r.state NOT IN ('empty', 'lost') AND s.state = 'ended' AND r.updated_at < now() - $3::interval)
		    ORDER BY c.check_at LIMIT $5 FOR UPDATE OF c SKIP LOCKED)
		UPDATE recording_copies c SET check_at = now() + $4::interval, abandoned_at = CASE WHEN d.abandoned THEN coalesce(c.abandoned_at, now()) END
		FROM due d JOIN recordings r ON r.id = d.recording
		WHERE c.recording = d.recording AND c.region = d.region
		RETURNING c.region, c.bucket, c.etag, d.healthy, d.elsewhere, c.abandoned_at, d.abandoned AND d.noticed, r.id, r.session, r.account, r.term, r.placement, r.state, r.partial, r.cause, r.key,
		          r.started_at, r.bytes, r.duration_ms, r.sha256`, string(region), bucket, abandoned, again, limit)
	if err != nil {
		return nil, unavailable(err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c recorder.CheckedCopy, err error) {
		var ms int64
		var abandoned *time.Time
		err = row.Scan(&c.Region, &c.Bucket, &c.ETag, &c.Healthy, &c.Elsewhere, &abandoned, &c.Noticed, &c.Of.ID, &c.Of.Session, &c.Of.Account, &c.Of.Term, &c.Of.Placement,
			&c.Of.State, &c.Of.Partial, &c.Of.Cause, &c.Of.Key, &c.Of.Started, &c.Of.Bytes, &ms, &c.Of.SHA256)
		c.Of.Duration = time.Duration(ms) * time.Millisecond
		if abandoned != nil {
			c.Abandoned = *abandoned
		}
		return c, err
	})
	return list, unavailable(err)
}

const stillAbandoned = `SELECT EXISTS (SELECT FROM recording_copies c JOIN recordings r ON r.id = c.recording
	WHERE c.recording = $1 AND c.region = $2 AND c.abandoned_at = $3 AND c.state IN ('pending', 'uploading') AND r.state NOT IN ('empty', 'lost', 'quarantined'))`

// StillAbandoned implements recorder.Sweeps.
func (s *Store) StillAbandoned(ctx context.Context, c recorder.CheckedCopy) (still bool, err error) {
	err = s.pool.QueryRow(ctx, stillAbandoned, c.Of.ID, string(c.Region), c.Abandoned).Scan(&still)
	return still, unavailable(err)
}

// Salvaged implements recorder.Sweeps. Whoever has the spool comes before, or after.
func (s *Store) Salvaged(ctx context.Context, c recorder.CheckedCopy, u recorder.RecordingUpdate) (taken bool, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT FROM sessions WHERE id = $1 FOR NO KEY UPDATE`, u.Session); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, stillAbandoned, c.Of.ID, string(c.Region), c.Abandoned).Scan(&taken); err != nil || !taken {
			return err
		}
		return recordingChanged(ctx, tx, u)
	})
	if errors.Is(err, recorder.ErrFenced) {
		return false, nil
	}
	return taken && err == nil, unavailable(err)
}

// CopyFound implements recorder.Sweeps. A copy that is sound where none was known of is what its recording waited for.
func (s *Store) CopyFound(ctx context.Context, c recorder.CheckedCopy, f recorder.Finding, etag string, at time.Time, next time.Duration) (wanted bool, err error) {
	damaged := f == recorder.FindingMissing || f == recorder.FindingAltered
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var placement, sha string // locked: what the account is changed to comes before, or after
		err := tx.QueryRow(ctx, `SELECT placement, sha256 FROM recordings WHERE id = $1 FOR NO KEY UPDATE`, c.Of.ID).Scan(&placement, &sha)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && (sha != c.Of.SHA256 || c.Region == place.US && placement != string(place.Replicated)) {
			return nil
		}
		if err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `
			UPDATE recording_copies SET checked_at = $4, check_at = now() + $6::interval,
			    state = CASE WHEN $5 THEN 'repairing' ELSE 'verified' END,
			    damage = CASE WHEN $5 THEN $3 ELSE damage END,
			    damaged_at = CASE WHEN $5 AND state <> 'repairing' THEN $4 ELSE damaged_at END,
			    etag = CASE WHEN $5 THEN etag ELSE $7 END,
			    verified_at = CASE WHEN $5 THEN verified_at ELSE $4 END,
			    repairs = repairs + CASE WHEN $3 = 'repaired' THEN 1 ELSE 0 END
			WHERE recording = $1 AND region = $2 AND etag = $8 AND state NOT IN ('removing', 'removed')`,
			c.Of.ID, string(c.Region), string(f), at, damaged, next, etag, c.ETag)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		wanted = true
		if damaged {
			return nil
		}
		_, err = tx.Exec(ctx, `
			UPDATE recordings r SET updated_at = $2, state = CASE WHEN n.n = 2 AND r.placement = 'replicated' THEN 'replicated' ELSE 'available' END
			FROM (SELECT count(*) AS n, bool_or(region = 'eu') AS eu FROM recording_copies WHERE recording = $1 AND state = 'verified') n
			WHERE r.id = $1 AND n.eu AND (r.state IN ('recording', 'sealed', 'uploading') OR r.state = 'available' AND n.n = 2 AND r.placement = 'replicated')`, c.Of.ID, at)
		return err
	})
	return wanted, unavailable(err)
}
