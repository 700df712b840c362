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
	filled  map[string]string // databases that are copied, by the names of what is in them
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
	return s.database(tb, func(ctx context.Context, c *pgcluster.Cluster, name string) error { return c.CreateDatabase(ctx, name) })
}

// Filled is like Database, but what fill puts into an empty one is there: once for all tests that ask for the same content, since it
// is copied. fill ends its connections.
func (s *Shared) Filled(tb testing.TB, content string, fill func(ctx context.Context, dsn string) error) string {
	tb.Helper()
	return s.database(tb, func(ctx context.Context, c *pgcluster.Cluster, name string) error {
		of, err := s.fill(ctx, c, content, fill)
		if err != nil {
			return err
		}
		return c.CopyDatabase(ctx, name, of)
	})
}

func (s *Shared) fill(ctx context.Context, c *pgcluster.Cluster, content string, fill func(context.Context, string) error) (name string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name, ok := s.filled[content]; ok {
		return name, nil
	}
	name = fmt.Sprintf("filled_%d", len(s.filled)+1)
	if err := c.CreateDatabase(ctx, name); err != nil {
		return "", err
	}
	if err := fill(ctx, c.DSN(name)); err != nil {
		return "", fmt.Errorf("fill a database with %s: %w", content, err)
	}
	if s.filled == nil {
		s.filled = map[string]string{}
	}
	s.filled[content] = name
	return name, nil
}

func (s *Shared) database(tb testing.TB, create func(ctx context.Context, c *pgcluster.Cluster, name string) error) string {
	tb.Helper()
	c, name := s.next(tb)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := create(ctx, c, name); err != nil {
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
	// Nothing of it is kept: there is nothing that would have to survive the machine.
	s.cluster, s.err = pgcluster.Start(ctx, pgcluster.Config{Dir: s.dir, Settings: []string{"fsync=off"}})
}
