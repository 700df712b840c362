package pgstore

import (
	"context"
	"encoding/base64"
	"testing"
	"time"
)

func (s *Store) exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	if _, err := s.pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// Age makes all that this orchestrator has written about its links so much older.
func (s *Store) Age(t testing.TB, by time.Duration) {
	s.exec(t, `UPDATE host_links SET written_at = written_at - make_interval(secs => $2), heard_at = heard_at - make_interval(secs => $2) WHERE orchestrator = $1`,
		s.name, by.Seconds())
}

// AddGateway lists an orchestrator that is alive.
func (s *Store) AddGateway(t testing.TB, orchestrator string, number int) {
	s.exec(t, `INSERT INTO gateways (orchestrator, number, endpoint, fleet_port, public_key) VALUES ($1, $2, 'x:1', 7700, $1)`, orchestrator, number)
}

// MarkRevoked does what removal does to the host's row, and nothing else.
func (s *Store) MarkRevoked(t testing.TB, host string) {
	s.exec(t, `UPDATE hosts SET revoked_at = now(), number = NULL, public_key = NULL, join_public_key = NULL, psk = NULL WHERE name = $1`, host)
}

// Dump is every value of a table, as bytes: text as it is, what looks like base64 decoded as well.
func (s *Store) Dump(t testing.TB, table string) [][]byte {
	t.Helper()
	rows, err := s.pool.Query(context.Background(), `SELECT * FROM `+table)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out [][]byte
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range values {
			switch v := v.(type) {
			case []byte:
				out = append(out, v)
			case string:
				out = append(out, []byte(v))
				if b, err := base64.StdEncoding.DecodeString(v); err == nil {
					out = append(out, b)
				}
			}
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// Hang has the database answer nothing about a table until the test is over.
func (s *Store) Hang(t testing.TB, table string) {
	t.Helper()
	tx, err := s.pool.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(context.Background(), `LOCK TABLE `+table+` IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
}

// AgeGateway makes an orchestrator one that was heard of so much earlier.
func (s *Store) AgeGateway(t testing.TB, orchestrator string, by time.Duration) {
	s.exec(t, `UPDATE gateways SET seen_at = seen_at - make_interval(secs => $2) WHERE orchestrator = $1`, orchestrator, by.Seconds())
}

// AgeBeats makes the answer to pulses an old one.
func (s *Store) AgeBeats() {
	s.beats.mu.Lock()
	defer s.beats.mu.Unlock()
	old := *s.beats.last
	old.at = old.at.Add(-time.Minute)
	s.beats.last = &old
}
