package pgstore

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/profilestate"
)

// CreateProfile adds an empty profile.
func (s *Store) CreateProfile(ctx context.Context, id string, p api.CreateProfile) (api.Profile, error) {
	v := api.Profile{ID: id, Account: p.Account, Name: p.Name, Archetype: p.Archetype, Description: p.Description}
	err := s.pool.QueryRow(ctx, `
		INSERT INTO profiles (id, account, name, archetype, description) VALUES ($1, $2, $3, $4, $5) RETURNING created_at`,
		id, p.Account, p.Name, p.Archetype, p.Description).Scan(&v.CreatedAt)
	if violates(err, "profiles_account_fkey") {
		return v, &orchestrator.InvalidError{Field: "account", Problem: "no such account; create it with PUT /v1/accounts/{id}"}
	}
	return v, unavailable(err)
}

// ChangeProfile changes what of the metadata is named. ErrNotFound.
func (s *Store) ChangeProfile(ctx context.Context, id string, p api.ChangeProfile) error {
	tag, err := s.pool.Exec(ctx, `
		UPDATE profiles SET name = coalesce($2, name), archetype = coalesce($3, archetype), description = coalesce($4, description)
		WHERE id = $1 AND deleted_at IS NULL`, id, p.Name, p.Archetype, p.Description)
	if err == nil && tag.RowsAffected() == 0 {
		return orchestrator.ErrNotFound
	}
	return unavailable(err)
}

// Profiles lists the profiles of an account, or of all; id, when set, picks one.
func (s *Store) Profiles(ctx context.Context, account, id string) ([]api.Profile, error) {
	n := narrowed{where: `p.deleted_at IS NULL`}
	n.by(`p.account = $%d`, account, account != "")
	n.by(`p.id = $%d`, id, id != "")
	rows, err := s.pool.Query(ctx, `
		SELECT p.id, p.account, p.name, p.archetype, p.description, p.generation, coalesce(g.bytes, 0), coalesce(g.state = 'quarantined', false),
		       (SELECT count(*) FROM generations c WHERE c.profile = p.id AND c.state = 'candidate'), coalesce(s.id, ''), p.created_at
		FROM profiles p LEFT JOIN generations g ON g.profile = p.id AND g.number = p.generation
		     LEFT JOIN sessions s ON s.profile = p.id AND s.state <> 'ended' AND s.profile_mode <> 'readonly'
		WHERE `+n.where+` ORDER BY p.created_at DESC, p.id LIMIT 1000`, n.args...)
	if err != nil {
		return nil, unavailable(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[api.Profile])
	return list, unavailable(err)
}

// ProfileRef is whose a profile is. ErrNotFound.
func (s *Store) ProfileRef(ctx context.Context, id string) (profilestate.Ref, error) {
	ref := profilestate.Ref{Profile: id}
	err := s.pool.QueryRow(ctx, `SELECT account FROM profiles WHERE id = $1 AND deleted_at IS NULL`, id).Scan(&ref.Account)
	if errors.Is(err, pgx.ErrNoRows) {
		return ref, orchestrator.ErrNotFound
	}
	return ref, unavailable(err)
}

// holding runs write in a transaction in which no session holds the profile, and none can begin to.
// *ProfileHeldError, ErrNotFound.
func (s *Store) holding(ctx context.Context, ref profilestate.Ref, write func(pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var deleted bool
		// A session's reference to the profile takes a lock that this one excludes.
		err := tx.QueryRow(ctx, `SELECT deleted_at IS NOT NULL FROM profiles WHERE id = $1 AND account = $2 FOR UPDATE`, ref.Profile, ref.Account).Scan(&deleted)
		if errors.Is(err, pgx.ErrNoRows) || deleted {
			return verdict{orchestrator.ErrNotFound}
		}
		if err != nil {
			return err
		}
		held, err := holder(ctx, tx, ref.Profile)
		if err != nil {
			return err
		}
		if held != nil {
			return verdict{held}
		}
		return write(tx)
	})
	return unavailable(err)
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// holder is the session that holds a profile; nil when none does.
func holder(ctx context.Context, q querier, profile string) (*orchestrator.ProfileHeldError, error) {
	held := &orchestrator.ProfileHeldError{Profile: profile}
	var until *time.Time
	err := q.QueryRow(ctx, `SELECT id, CASE state WHEN 'queued' THEN queue_until ELSE lease_until END FROM sessions
		WHERE profile = $1 AND state <> 'ended' AND profile_mode <> 'readonly'`, profile).Scan(&held.Holder, &until)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if until != nil {
		held.Until = *until
	}
	return held, err
}
