package pgstore

import (
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
