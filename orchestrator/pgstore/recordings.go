package pgstore

import (
	"context"
	"errors"
	"time"

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
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error { return recordingChanged(ctx, tx, u) })
	if errors.Is(err, recorder.ErrFenced) {
		return err
	}
	return unavailable(err)
}

func recordingChanged(ctx context.Context, tx pgx.Tx, u recorder.RecordingUpdate) error {
	if u.Session == "" { // a spool that cannot be read: keep what is stored
		_, err := tx.Exec(ctx, `UPDATE recordings SET state = $2, cause = $3, updated_at = $4 WHERE id = $1`,
			u.ID, string(u.State), string(u.Cause), u.At)
		return err
	}
	if _, err := tx.Exec(ctx, `SELECT FROM sessions WHERE id = $1 FOR NO KEY UPDATE`, u.Session); err != nil {
		return err
	}
	// What its account is changed to meanwhile holds for it too: see withdraw.
	var wants string
	err := tx.QueryRow(ctx, `SELECT recordings FROM accounts WHERE id = $1 FOR SHARE`, u.Account).Scan(&wants)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	if wants == string(place.EUOnly) {
		u.Placement = place.EUOnly
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
		state := string(c.State)
		if c.Region == place.US && wants == string(place.EUOnly) {
			state = copyRemoving
		}
		if _, err := tx.Exec(ctx, `
				INSERT INTO recording_copies AS c (recording, region, bucket, state, etag, verified_at) VALUES ($1, $2, $3, $4, $5, $6)
				ON CONFLICT (recording, region) DO UPDATE SET bucket = $3, etag = $5, verified_at = $6, abandoned_at = NULL,
				    removed_at = CASE WHEN $6 IS NOT NULL AND $6 IS DISTINCT FROM c.verified_at THEN NULL ELSE c.removed_at END, -- brought there after all, by whoever's clock
				    state = CASE WHEN c.state = 'removed' AND $6 IS NOT NULL AND $6 IS DISTINCT FROM c.verified_at THEN 'removing'
				        WHEN c.state IN ('removing', 'removed', 'repairing') THEN c.state ELSE $4 END`,
			u.ID, string(c.Region), c.Bucket, state, c.ETag, verified); err != nil {
			return err
		}
	}
	_, err = tx.Exec(ctx, `SELECT pg_notify('`+chanSession+`', $1)`, u.Session)
	return err
}

const recordingColumns = `r.id, r.session, r.account, r.placement,
	CASE WHEN r.state = 'replicated' AND r.placement = 'eu' THEN 'available' ELSE r.state END,
	r.partial, r.cause, r.bytes, r.duration_ms, r.sha256, r.started_at, r.updated_at, r.key`

// stored is a recording and the key of its object.
type stored struct {
	api.Recording
	key string
}

func scanRecording(row pgx.CollectableRow) (r stored, err error) {
	return r, row.Scan(&r.ID, &r.Session, &r.Account, &r.Placement, &r.State, &r.Partial, &r.Cause, &r.Bytes, &r.DurationMS, &r.SHA256,
		&r.StartedAt, &r.UpdatedAt, &r.key)
}

// Recording is the recording of a session, its newest one, and the object's key. ErrNotFound.
func (s *Store) Recording(ctx context.Context, session string) (api.Recording, string, error) {
	return s.recording(ctx, `r.session = $1 ORDER BY r.term DESC LIMIT 1`, session)
}

// RecordingByID is one recording, and the object's key; account, unless it is empty, is whose it has to be. ErrNotFound.
func (s *Store) RecordingByID(ctx context.Context, id, account string) (api.Recording, string, error) {
	n := narrowed{`r.id = $1`, []any{id}}
	n.by(`r.account = $%d`, account, account != "")
	return s.recording(ctx, n.where, n.args...)
}

func (s *Store) recording(ctx context.Context, where string, args ...any) (api.Recording, string, error) {
	list, err := s.recordings(ctx, where, args...)
	if err == nil && len(list) == 0 {
		err = orchestrator.ErrNotFound
	}
	if err != nil {
		return api.Recording{}, "", err
	}
	return list[0].Recording, list[0].key, nil
}

// RecordingFilter narrows Recordings; an empty field fits every recording.
type RecordingFilter struct {
	Account, Session, State string
	Since, Before           time.Time // started then or later; before then
	Limit                   int
	Cursor                  string // Next of the page before
}

// Recordings is one page of recordings, newest first.
func (s *Store) Recordings(ctx context.Context, f RecordingFilter) (api.RecordingList, error) {
	before, id, err := parseCursor(f.Cursor)
	if err != nil {
		return api.RecordingList{}, err
	}
	n := narrowed{`(r.started_at, r.id) < ($1, $2)`, []any{before, id, f.Limit + 1}}
	n.by(`r.account = $%d`, f.Account, f.Account != "")
	n.by(`r.session = $%d`, f.Session, f.Session != "")
	n.by(`CASE WHEN r.state = 'replicated' AND r.placement = 'eu' THEN 'available' ELSE r.state END = $%d`, f.State, f.State != "")
	n.by(`r.started_at >= $%d`, f.Since, !f.Since.IsZero())
	n.by(`r.started_at < $%d`, f.Before, !f.Before.IsZero())
	list, err := s.recordings(ctx, n.where+` ORDER BY r.started_at DESC, r.id DESC LIMIT $3`, n.args...)
	if err != nil {
		return api.RecordingList{}, err
	}
	page := api.RecordingList{Recordings: make([]api.Recording, 0, min(len(list), f.Limit))}
	for i, r := range list {
		if i == f.Limit {
			page.Next = cursorAfter(list[i-1].StartedAt, list[i-1].ID)
			break
		}
		page.Recordings = append(page.Recordings, r.Recording)
	}
	return page, nil
}

// recordings are those that where, which may order and limit them, fits, with their copies.
func (s *Store) recordings(ctx context.Context, where string, args ...any) ([]stored, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+recordingColumns+` FROM recordings r WHERE `+where, args...)
	if err != nil {
		return nil, unavailable(err)
	}
	list, err := pgx.CollectRows(rows, scanRecording)
	if err != nil {
		return nil, unavailable(err)
	}
	at := map[string]*stored{}
	ids := make([]string, len(list))
	for i := range list {
		ids[i] = list[i].ID
		at[ids[i]] = &list[i]
		list[i].Copies = []api.RecordingCopy{}
	}
	rows, err = s.pool.Query(ctx, `SELECT recording, region, bucket, state, etag, verified_at, removed_at, checked_at, damage, damaged_at, repairs FROM recording_copies
		WHERE recording = ANY ($1) ORDER BY recording, region`, ids)
	if err != nil {
		return nil, unavailable(err)
	}
	var id string
	var c api.RecordingCopy
	_, err = pgx.ForEachRow(rows, []any{&id, &c.Region, &c.Bucket, &c.State, &c.ETag, &c.VerifiedAt, &c.RemovedAt, &c.CheckedAt, &c.Damage, &c.DamagedAt, &c.Repairs}, func() error {
		of, shown := at[id], c
		if c.VerifiedAt != nil {
			shown.Bytes = of.Bytes
		}
		of.Copies = append(of.Copies, shown)
		return nil
	})
	return list, unavailable(err)
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
