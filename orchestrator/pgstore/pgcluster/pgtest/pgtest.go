// Package pgtest gives every test its own empty database on one Postgres cluster a test binary.
//
//	var postgres pgtest.Shared
//
//	func TestMain(m *testing.M) { os.Exit(postgres.Run(m)) }
//
//	func TestSomething(t *testing.T) { dsn := postgres.Database(t) ... }
//
// Out of scope: schema and connections.
package pgtest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/pgstore/pgcluster"
)

const limit = 90 * time.Second

// Shared is a cluster that starts when the first test asks for a database. The zero value is ready.
type Shared struct {
	mu      sync.Mutex // guards the rest
	cluster *pgcluster.Cluster
	err     error // of the one attempt to start
	dir     string
	made    int
}

// Run runs the tests and stops the cluster; TestMain exits with what it returns.
func (s *Shared) Run(m *testing.M) (code int) {
	code = m.Run()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cluster != nil {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := s.cluster.Stop(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "stop the tests' Postgres:", err)
			code = max(code, 1)
		}
	}
	if s.dir != "" {
		if err := os.RemoveAll(s.dir); err != nil {
			fmt.Fprintln(os.Stderr, "remove the tests' Postgres:", err)
			code = max(code, 1)
		}
	}
	return code
}

// Database makes an empty database, dropped when the test ends, and returns its DSN.
func (s *Shared) Database(tb testing.TB) string {
	tb.Helper()
	c, name := s.next(tb)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := c.CreateDatabase(ctx, name); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := c.DropDatabase(ctx, name); err != nil {
			tb.Error(err)
		}
	})
	tb.Log("part: postgres real")
	return c.DSN(name)
}

func (s *Shared) next(tb testing.TB) (*pgcluster.Cluster, string) {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cluster == nil && s.err == nil {
		s.start()
	}
	if s.err != nil {
		tb.Fatal(s.err)
	}
	s.made++
	return s.cluster, fmt.Sprintf("test_%d", s.made)
}

func (s *Shared) start() {
	if s.dir, s.err = os.MkdirTemp("", "pgtest"); s.err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	s.cluster, s.err = pgcluster.Start(ctx, pgcluster.Config{Dir: s.dir, Settings: []string{"fsync=off"}})
}
