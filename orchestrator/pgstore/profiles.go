package pgstore

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/profilestate"
)

var (
	_ profilestate.Index    = (*Store)(nil)
	_ profilestate.KeyStore = (*Store)(nil)
)

// Current implements profilestate.Index.
func (s *Store) Current(ctx context.Context, ref profilestate.Ref) (profilestate.Generation, error) {
	var g profilestate.Generation
	var sum []byte
	err := s.pool.QueryRow(ctx, `SELECT generation, file, sha256, bytes, term FROM profiles WHERE id = $1 AND account = $2`,
		ref.Profile, ref.Account).Scan(&g.Number, &g.File, &sum, &g.Bytes, &g.Term)
	if errors.Is(err, pgx.ErrNoRows) {
		return g, orchestrator.ErrNotFound
	}
	copy(g.SHA256[:], sum)
	return g, unavailable(err)
}

// Publish implements profilestate.Index: one compare-and-swap, under the term of a session that has not ended and
// names the profile.
func (s *Store) Publish(ctx context.Context, session string, term int64, ref profilestate.Ref, prev, next profilestate.Generation) error {
	var sum []byte // an empty profile has none
	if prev != (profilestate.Generation{}) {
		sum = prev.SHA256[:]
	}
	var held, swapped bool
	err := s.pool.QueryRow(ctx, `
		WITH held AS (
		    SELECT FROM sessions WHERE id = $1 AND term = $2 AND state <> 'ended' AND profile = $3 AND account = $4 FOR SHARE),
		swap AS (
		    UPDATE profiles SET generation = $5, file = $6, sha256 = $7, bytes = $8, term = $2,
		        volume = coalesce((SELECT r.volume FROM replicas r JOIN sessions s ON s.holder = r.id WHERE s.id = $1), '')
		    WHERE id = $3 AND account = $4 AND generation = $9 AND sha256 = $10 AND EXISTS (SELECT FROM held)
		    RETURNING id)
		SELECT EXISTS (SELECT FROM held), EXISTS (SELECT FROM swap)`,
		session, term, ref.Profile, ref.Account, next.Number, next.File, next.SHA256[:], next.Bytes, prev.Number, emptyNotNull(sum)).
		Scan(&held, &swapped)
	switch {
	case err != nil:
		return unavailable(err)
	case !held:
		return profilestate.ErrFenced
	case !swapped:
		return profilestate.ErrConflict
	}
	return nil
}

func emptyNotNull(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// WrappedKey implements profilestate.KeyStore.
func (s *Store) WrappedKey(ctx context.Context, account, profile string) ([]byte, error) {
	var key []byte
	err := s.pool.QueryRow(ctx, `SELECT wrapped_key FROM profiles WHERE id = $1 AND account = $2`, profile, account).Scan(&key)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, orchestrator.ErrNotFound
	}
	return key, unavailable(err)
}

// PutWrappedKey implements profilestate.KeyStore.
func (s *Store) PutWrappedKey(ctx context.Context, account, profile string, wrapped []byte) ([]byte, error) {
	var key []byte
	err := s.pool.QueryRow(ctx, `UPDATE profiles SET wrapped_key = coalesce(wrapped_key, $3) WHERE id = $1 AND account = $2 RETURNING wrapped_key`,
		profile, account, wrapped).Scan(&key)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, orchestrator.ErrNotFound
	}
	return key, unavailable(err)
}

// HasWrappedKeys says whether any profile depends on a root key.
func (s *Store) HasWrappedKeys(ctx context.Context) (bool, error) {
	var has bool
	err := s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM profiles WHERE wrapped_key IS NOT NULL)`).Scan(&has)
	return has, unavailable(err)
}
