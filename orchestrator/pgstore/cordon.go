package pgstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// open is a condition on a row d of devices: no operator has taken it, or its host, out of use.
const open = `NOT d.closed`

// cordoned is what is stored of a cordon.
type cordoned struct {
	at         *time.Time
	by, reason string
	until      *time.Time
}

// shown is nil where there is no cordon.
func (c cordoned) shown(sessions int) *api.Cordon {
	if c.at == nil {
		return nil
	}
	v := &api.Cordon{State: api.Cordoned, Since: *c.at, By: c.by, Reason: c.reason, Until: c.until}
	switch {
	case c.until != nil && sessions > 0:
		v.State = api.Draining
	case c.until != nil:
		v.State = api.Drained
	}
	return v
}

// CordonHost keeps new sessions off a host; those on it go on. Done already, it changes nothing. ErrNotFound, *ConflictError.
func (s *Store) CordonHost(ctx context.Context, name string, by orchestrator.Act) error {
	return s.onHost(ctx, name, func(tx pgx.Tx, h held) error {
		if h.cordoned {
			return nil
		}
		return cordonHost(ctx, tx, name, by, nil, "cordon", "")
	})
}

// DrainHost cordons a host and ends what still runs on it after the deadline, counted from now, also where another was set
// before. ErrNotFound, *ConflictError.
func (s *Store) DrainHost(ctx context.Context, name string, deadline time.Duration, by orchestrator.Act) error {
	return s.onHost(ctx, name, func(tx pgx.Tx, h held) error {
		return cordonHost(ctx, tx, name, by, &deadline, "drain", fmt.Sprintf("deadline %s, %s", deadline, sessions(h.sessions)))
	})
}

// UncordonHost lets a host take sessions again, and undoes a drain: what has been told to end ends all the same. Done already,
// it changes nothing. ErrNotFound, *ConflictError.
func (s *Store) UncordonHost(ctx context.Context, name string, by orchestrator.Act) error {
	return s.onHost(ctx, name, func(tx pgx.Tx, h held) error {
		if !h.cordoned {
			return nil
		}
		var b pgx.Batch
		b.Queue(`UPDATE hosts SET cordoned_at = NULL, cordoned_by = '', cordon_reason = '', drain_until = NULL WHERE name = $1`, name)
		markDevices(&b, name, false)
		b.Queue(`SELECT pg_notify('` + chanQueue + `', '')`)
		write(&b, by, entry{action: "uncordon", host: name, detail: sessions(h.sessions)})
		return tx.SendBatch(ctx, &b).Close()
	})
}

// held is what a host has.
type held struct {
	cordoned bool
	sessions int
}

// onHost calls f with a host that is there and was not removed, and keeps everybody else off its cordon meanwhile.
func (s *Store) onHost(ctx context.Context, name string, f func(pgx.Tx, held) error) error {
	return unavailable(pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var h held
		var revoked bool
		err := tx.QueryRow(ctx, `
			SELECT cordoned_at IS NOT NULL, revoked_at IS NOT NULL, (SELECT count(*) FROM devices d WHERE d.host = hosts.name AND d.session IS NOT NULL)
			FROM hosts WHERE name = $1 FOR NO KEY UPDATE`, name).Scan(&h.cordoned, &revoked, &h.sessions)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return noHost(name)
		case err != nil:
			return err
		case revoked:
			return &orchestrator.ConflictError{Problem: fmt.Sprintf("host %q was removed and takes no sessions; `driftctl hosts add %s` lets it join anew", name, name)}
		}
		return f(tx, h)
	}))
}

// markDevices has a host's devices say that it is cordoned, or not. They are locked in the order in which everybody locks several.
func markDevices(b *pgx.Batch, host string, cordoned bool) {
	b.Queue(`SELECT FROM devices WHERE host = $1 ORDER BY name FOR UPDATE`, host)
	b.Queue(`UPDATE devices SET host_cordoned = $2 WHERE host = $1`, host, cordoned)
}

func noHost(name string) error {
	return &orchestrator.MissingError{What: fmt.Sprintf("there is no host %q; `driftctl hosts ls` lists them", name)}
}

// cordonHost waits for claims that have one of the devices already: whoever reads after it reads their sessions too.
func cordonHost(ctx context.Context, tx pgx.Tx, name string, by orchestrator.Act, deadline *time.Duration, action, detail string) error {
	var b pgx.Batch
	b.Queue(`
		UPDATE hosts SET cordoned_at = coalesce(cordoned_at, now()), cordoned_by = $2, cordon_reason = $3, drain_until = now() + $4::interval
		WHERE name = $1`, name, by.By, by.Reason, deadline)
	markDevices(&b, name, true)
	write(&b, by, entry{action: action, host: name, detail: detail})
	return tx.SendBatch(ctx, &b).Close()
}

func sessions(n int) string {
	if n == 1 {
		return "1 session on it"
	}
	return fmt.Sprintf("%d sessions on it", n)
}

// CordonDevice keeps new sessions off a device; one on it goes on. Done already, it changes nothing. ErrNotFound.
func (s *Store) CordonDevice(ctx context.Context, host, device string, by orchestrator.Act) error {
	return s.setCordon(ctx, host, device, true, by)
}

// UncordonDevice undoes a CordonDevice, and nothing of its host's cordon. ErrNotFound.
func (s *Store) UncordonDevice(ctx context.Context, host, device string, by orchestrator.Act) error {
	return s.setCordon(ctx, host, device, false, by)
}

func (s *Store) setCordon(ctx context.Context, host, device string, to bool, by orchestrator.Act) error {
	return unavailable(pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var cordoned bool
		err := tx.QueryRow(ctx, `SELECT cordoned_at IS NOT NULL FROM devices WHERE host = $1 AND name = $2 FOR UPDATE`, host, device).Scan(&cordoned)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return noDevice(host, device)
		case err != nil || cordoned == to:
			return err
		}
		var b pgx.Batch
		action := "uncordon"
		if to {
			action = "cordon"
			b.Queue(`UPDATE devices SET cordoned_at = now(), cordoned_by = $3, cordon_reason = $4 WHERE host = $1 AND name = $2`, host, device, by.By, by.Reason)
		} else {
			b.Queue(`UPDATE devices SET cordoned_at = NULL, cordoned_by = '', cordon_reason = '' WHERE host = $1 AND name = $2`, host, device)
			b.Queue(`SELECT pg_notify('` + chanQueue + `', '')`)
		}
		write(&b, by, entry{action: action, host: host, device: device})
		return tx.SendBatch(ctx, &b).Close()
	}))
}

func noDevice(host, device string) error {
	return &orchestrator.MissingError{What: fmt.Sprintf("there is no device %q on host %q; `driftctl devices ls` lists them", device, host)}
}

// endDrainedSQL locks sessions in the order in which everybody does who locks several.
const endDrainedSQL = `
WITH late AS MATERIALIZED (
    SELECT s.id, h.name AS host FROM hosts h JOIN devices d ON d.host = h.name JOIN sessions s ON s.id = d.session
    WHERE h.drain_until <= now() AND s.state IN ('starting', 'running') AND NOT s.cancelled ORDER BY s.id FOR NO KEY UPDATE OF s),
s AS (
    UPDATE sessions SET cancelled = true, end_as = 'drained' FROM late WHERE sessions.id = late.id RETURNING sessions.id, late.host),
a AS (
    INSERT INTO audit (actor, action, host, session, detail)
    SELECT 'driftstack', 'end-drained', host, id, 'the deadline of the drain has passed' FROM s)
SELECT pg_notify('` + chanCancel + `', id) FROM s`

// EndDrained implements orchestrator.HostStore. Whoever has a session is told; one that nobody has is ended by who adopts it.
func (s *Store) EndDrained(ctx context.Context) (int, error) {
	tag, err := s.pool.Exec(ctx, endDrainedSQL)
	return int(tag.RowsAffected()), unavailable(err)
}
