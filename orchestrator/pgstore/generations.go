package pgstore

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/profilestate"
)

var _ profilestate.Index = (*Store)(nil)

const generationColumns = `g.number, g.file, g.volume, g.digest, g.bytes, g.term, g.session, g.previous, g.source, g.state, g.reason, g.created_at`

func scanGeneration(row pgx.CollectableRow) (g profilestate.Generation, err error) {
	var sum []byte
	err = row.Scan(&g.Number, &g.File, &g.Volume, &sum, &g.Bytes, &g.Term, &g.Session, &g.Previous, &g.Source, &g.State, &g.Reason, &g.At)
	copy(g.Digest[:], sum)
	return g, err
}

// destroyedEpoch is what the ledger says of all keys of account $2.
const destroyedEpoch = `coalesce((SELECT epoch FROM destroyed_keys WHERE account = $2 AND profile = ''), 0)`

// Head implements profilestate.Index. ErrNotFound.
func (s *Store) Head(ctx context.Context, ref profilestate.Ref) (h profilestate.Head, err error) {
	var sum []byte
	g := &h.Current
	err = s.pool.QueryRow(ctx, `
		SELECT p.last_generation, `+destroyedEpoch+`, p.generation, coalesce(g.file, ''), coalesce(g.volume, ''), g.digest, coalesce(g.bytes, 0),
		       coalesce(g.term, 0), coalesce(g.session, ''), coalesce(g.previous, 0), coalesce(g.source, ''), coalesce(g.state, ''), coalesce(g.reason, ''),
		       coalesce(g.created_at, 'epoch')
		FROM profiles p LEFT JOIN generations g ON g.profile = p.id AND g.number = p.generation
		WHERE p.id = $1 AND p.account = $2 AND p.deleted_at IS NULL`, ref.Profile, ref.Account).
		Scan(&h.Last, &h.Destroyed, &g.Number, &g.File, &g.Volume, &sum, &g.Bytes, &g.Term, &g.Session, &g.Previous, &g.Source, &g.State, &g.Reason, &g.At)
	if errors.Is(err, pgx.ErrNoRows) {
		return profilestate.Head{}, orchestrator.ErrNotFound
	}
	if g.Number == 0 {
		*g = profilestate.Generation{}
	}
	copy(g.Digest[:], sum)
	return h, unavailable(err)
}

// publishSQL swaps in a profile's next generation if it is still at the head: $12 current, $13 its digest, $14 highest number, $15 ledger.
const publishSQL = `
	swap AS (
	    UPDATE profiles SET generation = CASE WHEN $9 = 'candidate' THEN generation ELSE $3 END, last_generation = $3
	    WHERE id = $1 AND account = $2 AND deleted_at IS NULL AND generation = $12 AND last_generation = $14 AND $3 = $14 + 1
	      AND ($12 = 0 OR EXISTS (SELECT FROM generations WHERE profile = $1 AND number = $12 AND digest = $13))
	      AND ` + destroyedEpoch + ` = $15 AND EXISTS (SELECT FROM held)
	    RETURNING id),
	ins AS (
	    INSERT INTO generations (profile, number, file, volume, digest, bytes, term, state, source, previous, created_at, session, reason)
	    SELECT id, $3, $4, $5, $6, $7, $8, $9, $10, $12, $11, $16, $17 FROM swap)
	SELECT EXISTS (SELECT FROM held), EXISTS (SELECT FROM swap), ` + destroyedEpoch + ` = $15`

// Publish implements profilestate.Index: one compare-and-swap, under the term of a session that has not ended and
// holds the profile, or while none does. *ProfileHeldError.
func (s *Store) Publish(ctx context.Context, w profilestate.Writer, ref profilestate.Ref, head profilestate.Head, next profilestate.Generation) error {
	args := []any{ref.Profile, ref.Account, next.Number, next.File, next.Volume, next.Digest[:], next.Bytes, next.Term, string(next.State), string(next.Source),
		next.At, head.Current.Number, head.Current.Digest[:], head.Last, head.Destroyed, w.Session, next.Reason}
	var held, swapped, live bool
	var err error
	if w.Session == "" {
		err = s.holding(ctx, ref, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, `WITH held AS (SELECT 1), `+publishSQL, args...).Scan(&held, &swapped, &live)
		})
	} else {
		err = unavailable(s.pool.QueryRow(ctx, `
			WITH held AS (
			    SELECT FROM sessions WHERE id = $16 AND term = $8 AND state <> 'ended' AND profile = $1 AND account = $2 AND profile_mode <> 'readonly'
			    FOR SHARE), `+publishSQL, args...).Scan(&held, &swapped, &live))
	}
	switch {
	case err != nil:
		return err
	case !held:
		return profilestate.ErrFenced
	case !live:
		return profilestate.ErrKeyDestroyed
	case !swapped:
		return profilestate.ErrConflict
	}
	return nil
}

// Generations implements profilestate.Index. ErrNotFound.
func (s *Store) Generations(ctx context.Context, ref profilestate.Ref) ([]profilestate.Generation, error) {
	rows, err := s.pool.Query(ctx, `SELECT `+generationColumns+` FROM generations g JOIN profiles p ON p.id = g.profile
		WHERE p.id = $1 AND p.account = $2 AND p.deleted_at IS NULL ORDER BY g.number DESC`, ref.Profile, ref.Account)
	if err != nil {
		return nil, unavailable(err)
	}
	list, err := pgx.CollectRows(rows, scanGeneration)
	return list, unavailable(err)
}

// Quarantine implements profilestate.Index.
func (s *Store) Quarantine(ctx context.Context, ref profilestate.Ref, number int64, reason string) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE generations g SET state = 'quarantined', reason = $4 FROM profiles p
		WHERE p.id = g.profile AND p.id = $1 AND p.account = $2 AND g.number = $3 AND g.state <> 'quarantined'`, ref.Profile, ref.Account, number, reason)
	return unavailable(err)
}

// MakeCurrent implements profilestate.Index. *ProfileHeldError.
func (s *Store) MakeCurrent(ctx context.Context, ref profilestate.Ref, head profilestate.Head, number int64) error {
	return s.holding(ctx, ref, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `
			WITH good AS (UPDATE generations SET state = 'good', reason = '' WHERE profile = $1 AND number = $2 AND state <> 'quarantined' RETURNING number)
			UPDATE profiles SET generation = $2 WHERE id = $1 AND generation = $3 AND last_generation = $4 AND EXISTS (SELECT FROM good)`,
			ref.Profile, number, head.Current.Number, head.Last)
		if err == nil && tag.RowsAffected() == 0 {
			err = verdict{profilestate.ErrConflict} // and the transaction takes the state back
		}
		return err
	})
}

// Forget implements profilestate.Index.
func (s *Store) Forget(ctx context.Context, ref profilestate.Ref, number int64) error {
	var current bool
	err := s.pool.QueryRow(ctx, `
		WITH p AS (SELECT id, generation FROM profiles WHERE id = $1 AND account = $2 AND deleted_at IS NULL FOR UPDATE),
		     d AS (DELETE FROM generations g USING p WHERE g.profile = p.id AND g.number = $3 AND g.number <> p.generation RETURNING g.number)
		SELECT generation = $3 FROM p WHERE generation = $3 OR EXISTS (SELECT FROM d)`, ref.Profile, ref.Account, number).Scan(&current)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return profilestate.ErrNoGeneration
	case err == nil && current:
		return profilestate.ErrCurrent
	}
	return unavailable(err)
}

// DeleteProfile implements profilestate.Index. A row without a name stays, for the sessions that ran with it. *ProfileHeldError.
func (s *Store) DeleteProfile(ctx context.Context, ref profilestate.Ref, epoch int64) error {
	return s.holding(ctx, ref, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM generations WHERE profile = $1`, ref.Profile)
		if err == nil {
			_, err = tx.Exec(ctx, `UPDATE profiles SET deleted_at = now(), generation = 0, name = '', archetype = '', description = '' WHERE id = $1`, ref.Profile)
		}
		if err == nil && epoch > 0 {
			_, err = tx.Exec(ctx, recordDestroyed, []string{ref.Account}, []string{ref.Profile}, []int64{epoch}, []time.Time{time.Now()})
		}
		return err
	})
}

// Files implements profilestate.Index: a deleted profile has none, one that was never there is an error.
func (s *Store) Files(ctx context.Context, ref profilestate.Ref) ([]string, error) {
	var files []string
	err := s.pool.QueryRow(ctx, `
		SELECT coalesce((SELECT array_agg(file) FROM generations WHERE profile = p.id), '{}') FROM profiles p WHERE p.id = $1 AND p.account = $2`,
		ref.Profile, ref.Account).Scan(&files)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, orchestrator.ErrNotFound
	}
	return files, unavailable(err)
}

// Prune implements profilestate.Index. A profile that is being changed is left for the next time: what becomes current at this moment stays.
func (s *Store) Prune(ctx context.Context, keep int, before time.Time) (int, error) {
	tag, err := s.pool.Exec(ctx, `
		DELETE FROM generations WHERE (profile, number) IN (
		    SELECT g.profile, g.number FROM generations g JOIN profiles p ON p.id = g.profile
		    WHERE g.created_at < $2 AND g.number <> p.generation
		      AND $1 <= (SELECT count(*) FROM generations n WHERE n.profile = g.profile AND n.number > g.number AND n.state = 'good')
		    FOR UPDATE OF p SKIP LOCKED)`, keep, before)
	return int(tag.RowsAffected()), unavailable(err)
}
