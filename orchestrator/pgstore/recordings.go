package pgstore

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/recorder"
)

var _ recorder.Journal = (*Store)(nil)

// RecordingChanged implements recorder.Journal: an upsert that an older term cannot make. With a session's lock, because two terms may do so
// at once.
func (s *Store) RecordingChanged(ctx context.Context, u recorder.RecordingUpdate) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if u.Session == "" { // a spool that cannot be read: keep what is stored
			_, err := tx.Exec(ctx, `UPDATE recordings SET state = $2, cause = $3, updated_at = $4 WHERE id = $1`,
				u.ID, string(u.State), string(u.Cause), u.At)
			return err
		}
		if _, err := tx.Exec(ctx, `SELECT FROM sessions WHERE id = $1 FOR NO KEY UPDATE`, u.Session); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `
			INSERT INTO recordings AS r (id, session, account, term, placement, state, partial, cause, key, bytes, duration_ms,
			                             sha256, started_at, updated_at)
			SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14
			WHERE NOT EXISTS (SELECT FROM recordings WHERE session = $2 AND term > $4)
			ON CONFLICT (id) DO UPDATE SET term = $4, state = $6, partial = $7, cause = $8, bytes = $10, duration_ms = $11,
			    sha256 = $12, updated_at = $14 WHERE r.term <= $4`,
			u.ID, u.Session, u.Account, u.Term, string(u.Placement), string(u.State), u.Partial, string(u.Cause), u.Key, u.Bytes,
			u.Duration.Milliseconds(), u.SHA256, u.Started, u.At)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return recorder.ErrFenced
		}
		if _, err := tx.Exec(ctx, `DELETE FROM recordings WHERE session = $1 AND term < $2`, u.Session, u.Term); err != nil {
			return err
		}
		for _, c := range u.Copies {
			var verified any
			if !c.Verified.IsZero() {
				verified = c.Verified
			}
			if _, err := tx.Exec(ctx, `
				INSERT INTO recording_copies (recording, region, bucket, state, etag, verified_at) VALUES ($1, $2, $3, $4, $5, $6)
				ON CONFLICT (recording, region) DO UPDATE SET bucket = $3, state = $4, etag = $5, verified_at = $6`,
				u.ID, string(c.Region), c.Bucket, string(c.State), c.ETag, verified); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, `SELECT pg_notify('`+chanSession+`', $1)`, u.Session)
		return err
	})
	if errors.Is(err, recorder.ErrFenced) {
		return err
	}
	return unavailable(err)
}

// Recording is the recording of a session, its newest one, and the object's key. ErrNotFound.
func (s *Store) Recording(ctx context.Context, session string) (api.Recording, string, error) {
	var r api.Recording
	var key string
	err := s.pool.QueryRow(ctx, `
		SELECT id, session, placement, state, partial, cause, bytes, duration_ms, sha256, started_at, key
		FROM recordings WHERE session = $1 ORDER BY term DESC LIMIT 1`, session).Scan(&r.ID, &r.Session, &r.Placement,
		&r.State, &r.Partial, &r.Cause, &r.Bytes, &r.DurationMS, &r.SHA256, &r.StartedAt, &key)
	if errors.Is(err, pgx.ErrNoRows) {
		return r, "", orchestrator.ErrNotFound
	}
	if err != nil {
		return r, "", unavailable(err)
	}
	rows, err := s.pool.Query(ctx, `SELECT region, bucket, state, verified_at FROM recording_copies WHERE recording = $1 ORDER BY region`, r.ID)
	if err != nil {
		return r, "", unavailable(err)
	}
	r.Copies, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c api.RecordingCopy, err error) {
		return c, row.Scan(&c.Region, &c.Bucket, &c.State, &c.VerifiedAt)
	})
	return r, key, unavailable(err)
}

// Placement is where an account's recordings are kept. ErrNotFound.
func (s *Store) Placement(ctx context.Context, account string) (place.Placement, error) {
	a, err := s.Account(ctx, account)
	if err != nil {
		return "", err
	}
	return place.ParsePlacement(a.Recordings)
}

// Outlook implements recorder.Journal. A recording that no session is known for is nobody's any more.
func (s *Store) Outlook(ctx context.Context, id, session string, term int64) (recorder.Outlook, error) {
	var superseded, continues bool
	err := s.pool.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM recordings WHERE session = $1 AND term > $2 AND id <> $3),
		       EXISTS (SELECT FROM sessions WHERE id = $1 AND state <> 'ended')`, session, term, id).Scan(&superseded, &continues)
	switch {
	case err != nil:
		return recorder.Over, unavailable(err)
	case superseded:
		return recorder.Superseded, nil
	case continues:
		return recorder.Continues, nil
	}
	return recorder.Over, nil
}

// Latest implements recorder.Journal.
func (s *Store) Latest(ctx context.Context, session string) (id string, ok bool, err error) {
	err = s.pool.QueryRow(ctx, `SELECT id FROM recordings WHERE session = $1 ORDER BY term DESC LIMIT 1`, session).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	}
	return id, err == nil, unavailable(err)
}
