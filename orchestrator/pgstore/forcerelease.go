package pgstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
)

// ForceRelease takes a device from the session that has it, whatever that does: who holds the session is told to end it, one
// that nobody holds is ended here. Done already, it changes nothing. It says which session. ErrNotFound, *ConflictError for a
// device without a session.
func (s *Store) ForceRelease(ctx context.Context, host, device string, by orchestrator.Act) (session string, err error) {
	err = unavailable(pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		session, err = deviceSession(ctx, tx, host, device)
		if err != nil {
			return err
		}
		var state, endAs string
		var held bool
		// The session before its device, as everybody locks them.
		err := tx.QueryRow(ctx, `
			SELECT s.state, s.end_as, coalesce(s.lease_until > now(), false) FROM sessions s
			WHERE id = $1 AND EXISTS (SELECT FROM devices WHERE session = s.id) FOR UPDATE OF s`, session).Scan(&state, &endAs, &held)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return &orchestrator.ConflictError{Problem: fmt.Sprintf("session %s has just given %s back", session, device)}
		case err != nil || endAs == string(orchestrator.ForceReleased):
			return err
		}
		var b pgx.Batch
		detail := "its session was told to end"
		if held {
			b.Queue(`UPDATE sessions SET cancelled = true, end_as = $2 WHERE id = $1`, session, string(orchestrator.ForceReleased))
			b.Queue(`SELECT pg_notify('`+chanCancel+`', $1)`, session)
		} else {
			detail = "nobody had its session any more"
			b.Queue(`
				WITH s AS (UPDATE sessions SET state = 'ended', reason = $2, end_as = $2, ended_at = now(), lease_until = NULL, want_caps = NULL, caps = NULL
				           WHERE id = $1 AND state <> 'ended' RETURNING id, term),
				     d AS (UPDATE devices SET session = NULL WHERE session = $1)
				INSERT INTO session_events (session, seq, at, kind, term, reason)
				SELECT id, 1 + (SELECT max(seq) FROM session_events e WHERE e.session = s.id), now(), 'ended', term, $2 FROM s
				ON CONFLICT DO NOTHING`, session, string(orchestrator.ForceReleased))
			b.Queue(`SELECT pg_notify('`+chanSession+`', $1), pg_notify('`+chanQueue+`', '')`, session)
		}
		write(&b, by, entry{action: "force-release", host: host, device: device, session: session, detail: state + "; " + detail})
		return tx.SendBatch(ctx, &b).Close()
	}))
	return session, err
}

// deviceSession is the session that has a device.
func deviceSession(ctx context.Context, tx pgx.Tx, host, device string) (string, error) {
	var session, state, reason string
	err := tx.QueryRow(ctx, `SELECT coalesce(session, ''), state, reason FROM devices WHERE host = $1 AND name = $2`, host, device).
		Scan(&session, &state, &reason)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "", noDevice(host, device)
	case err != nil:
		return "", err
	case session == "" && reason != "":
		return "", &orchestrator.ConflictError{Problem: fmt.Sprintf("no session has %s on %s; its host says that it is %s: %s", device, host, state, reason)}
	case session == "":
		return "", &orchestrator.ConflictError{Problem: fmt.Sprintf("no session has %s on %s; its host says that it is %s", device, host, state)}
	}
	return session, nil
}
