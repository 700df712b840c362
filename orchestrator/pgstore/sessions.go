package pgstore

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

const sessionColumns = `id, account, coalesce(profile, ''), name, state, reason, detail, host, device, term,
	want_kind, want_model, want_host, want_labels, recording, idle_seconds, max_seconds, command_seconds, generation,
	created_at, started_at, running_at, ended_at, coalesce(caps::text, ''), labels, want_platform, want_os, want_country, priority,
	CASE WHEN profile IS NULL THEN '' ELSE profile_mode END, coalesce(forked_from, '')`

func scanSession(row pgx.CollectableRow) (api.Session, error) {
	var v api.Session
	var caps string
	err := row.Scan(&v.ID, &v.Account, &v.Profile, &v.Name, &v.State, &v.Reason, &v.Detail, &v.Host, &v.Device, &v.Term,
		&v.Want.Kind, &v.Want.Model, &v.Want.Host, &v.Want.Labels, &v.Recording,
		&v.Timeouts.IdleSeconds, &v.Timeouts.MaxSeconds, &v.Timeouts.CommandSeconds, &v.Generation,
		&v.CreatedAt, &v.StartedAt, &v.RunningAt, &v.EndedAt, &caps, &v.Labels, &v.Want.Platform, &v.Want.OSVersion, &v.Want.Country, &v.Priority,
		&v.ProfileMode, &v.ForkedFrom)
	if caps != "" {
		v.Capabilities = json.RawMessage(caps)
	}
	return v, err
}

// newLooks reads sessions; one that is not there has no answer.
func newLooks(pool *pgxpool.Pool) *batch[string, *api.Session] {
	return &batch[string, *api.Session]{run: func(ctx context.Context, ids []string) ([]*api.Session, error) {
		rows, err := pool.Query(ctx, `SELECT `+sessionColumns+` FROM sessions WHERE id = ANY ($1)`, ids)
		if err != nil {
			return nil, err
		}
		list, err := pgx.CollectRows(rows, scanSession)
		found := map[string]*api.Session{}
		for i := range list {
			found[list[i].ID] = &list[i]
		}
		return column(ids, func(id string) *api.Session { return found[id] }), err
	}}
}

// Get implements orchestrator.SessionStore.
func (s *Store) Get(ctx context.Context, session string) (api.Session, error) {
	return single(s.batches.looks.do(ctx, session))
}

// SessionFilter narrows List; an empty field fits every session.
type SessionFilter struct {
	Account, Profile, Host, State string
	Labels                        api.Labels // all of them
	Limit                         int
	Cursor                        string // Next of the page before
}

// List is one page of sessions, newest first.
func (s *Store) List(ctx context.Context, f SessionFilter) (api.SessionList, error) {
	before, id, err := parseCursor(f.Cursor)
	if err != nil {
		return api.SessionList{}, err
	}
	n := narrowed{`(created_at, id) < ($1, $2)`, []any{before, id, f.Limit + 1}}
	n.by(`account = $%d`, f.Account, f.Account != "")
	n.by(`profile = $%d`, f.Profile, f.Profile != "")
	n.by(`host = $%d AND host <> ''`, f.Host, f.Host != "")
	live := slices.Contains(api.ActiveStates(), api.SessionState(f.State))
	n.by(`state = $%d`, f.State, f.State != "" && !live)
	n.by(`state = $%d AND (state <> 'ended') IS TRUE`, f.State, live) // as in the index sessions_live
	n.by(`labels <> '{}' AND labels @> $%d`, f.Labels, len(f.Labels) > 0)
	rows, err := s.pool.Query(ctx, `SELECT `+sessionColumns+` FROM sessions WHERE `+n.where+` ORDER BY created_at DESC, id DESC LIMIT $3`, n.args...)
	if err != nil {
		return api.SessionList{}, unavailable(err)
	}
	list, err := pgx.CollectRows(rows, scanSession)
	if err != nil {
		return api.SessionList{}, unavailable(err)
	}
	page := api.SessionList{Sessions: list}
	if len(list) > f.Limit {
		page.Sessions = list[:f.Limit]
		last := page.Sessions[f.Limit-1]
		page.Next = cursorAfter(last.CreatedAt, last.ID)
	}
	return page, nil
}

// cursorAfter is the Next of a page that ends with this one.
func cursorAfter(at time.Time, id string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(at.Format(time.RFC3339Nano) + " " + id))
}

// parseCursor is what a page comes after: without a cursor everything does.
func parseCursor(c string) (time.Time, string, error) {
	if c == "" {
		return time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), "", nil
	}
	bad := &orchestrator.InvalidError{Field: "cursor", Problem: "pass next of the page before, unchanged"}
	b, err := base64.RawURLEncoding.DecodeString(c)
	if err != nil {
		return time.Time{}, "", bad
	}
	at, id, ok := strings.Cut(string(b), " ")
	t, err := time.Parse(time.RFC3339Nano, at)
	if !ok || err != nil || strings.ContainsRune(id, 0) {
		return time.Time{}, "", bad
	}
	return t, id, nil
}
