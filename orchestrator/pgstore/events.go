package pgstore

import (
	"context"
	"encoding/json"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// eventRow has the columns of session_events; all are written, so that none is NULL.
type eventRow struct {
	Session    string    `json:"session"`
	Seq        int64     `json:"seq"`
	At         time.Time `json:"at"`
	Kind       string    `json:"kind"`
	Term       int64     `json:"term"`
	Route      string    `json:"route"`
	Status     int       `json:"status"`
	TookUS     int64     `json:"took_us"`
	DriverUS   int64     `json:"driver_us"`
	BytesIn    int64     `json:"bytes_in"`
	BytesOut   int64     `json:"bytes_out"`
	Reason     string    `json:"reason"`
	Generation int64     `json:"generation"`
	Restored   int       `json:"restored"`
	Altered    int       `json:"altered"`
	Dropped    int       `json:"dropped"`
	Captured   int       `json:"captured"`
	Kept       int       `json:"kept"`
	Removed    int       `json:"removed"`
	Partial    bool      `json:"partial"`
}

// AppendEvents implements orchestrator.SessionStore.
func (s *Store) AppendEvents(ctx context.Context, events []orchestrator.Event) error {
	rows := make([]eventRow, len(events))
	for i, e := range events {
		rows[i] = eventRow{
			Session: e.Session, Seq: e.Seq, At: e.At, Kind: string(e.Kind), Term: e.Term, Status: e.Status,
			TookUS: e.Took.Microseconds(), DriverUS: e.Driver.Microseconds(), BytesIn: e.BytesIn, BytesOut: e.BytesOut,
			Reason: string(e.Reason), Generation: e.Generation,
			Restored: e.Restored, Altered: e.Altered, Dropped: e.Dropped,
			Captured: e.Captured, Kept: e.Kept, Removed: e.Removed, Partial: e.Partial,
		}
		if e.Kind == orchestrator.EventCommand {
			rows[i].Route = e.Route.String()
		}
	}
	b, err := json.Marshal(rows)
	if err != nil {
		return err
	}
	_, err = s.pool.Exec(ctx, `
		WITH new AS (
		    INSERT INTO session_events
		    SELECT e.* FROM json_populate_recordset(NULL::session_events, $1) e
		    JOIN sessions s ON s.id = e.session AND s.term = e.term AND s.state <> 'ended'
		    ON CONFLICT DO NOTHING RETURNING session)
		SELECT pg_notify('`+chanSession+`', session) FROM (SELECT DISTINCT session FROM new) n`, string(b))
	return unavailable(err)
}

// Events is the part of a session's log after a Seq, in order, at most limit long.
func (s *Store) Events(ctx context.Context, session string, after int64, limit int) ([]api.Event, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT session, seq, at, kind, term, route, status, took_us, driver_us, bytes_in, bytes_out, reason, generation,
		       restored, altered, dropped, captured, kept, removed, partial
		FROM session_events WHERE session = $1 AND seq > $2 ORDER BY seq LIMIT $3`, session, after, limit)
	if err != nil {
		return nil, unavailable(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[api.Event])
	return list, unavailable(err)
}
