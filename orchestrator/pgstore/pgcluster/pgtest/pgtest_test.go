package pgtest_test

import (
	"context"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/driftstack/fleet/orchestrator/pgstore/pgcluster/pgtest"
)

var postgres pgtest.Shared

func TestMain(m *testing.M) { os.Exit(postgres.Run(m)) }

func TestEachTestHasItsOwnDatabase(t *testing.T) {
	a, b := postgres.Database(t), postgres.Database(t)
	if a == b {
		t.Fatalf("the same database twice: %s", a)
	}
}

func TestFilledOnce(t *testing.T) {
	fills := 0
	fill := func(ctx context.Context, dsn string) error {
		fills++
		c, err := pgx.Connect(ctx, dsn)
		if err != nil {
			return err
		}
		defer c.Close(ctx)
		_, err = c.Exec(ctx, `CREATE TABLE things AS SELECT 7 AS n`)
		return err
	}
	for range 2 {
		c, err := pgx.Connect(t.Context(), postgres.Filled(t, "a thing", fill))
		if err != nil {
			t.Fatal(err)
		}
		var n int
		if err := c.QueryRow(t.Context(), `DELETE FROM things RETURNING n`).Scan(&n); err != nil || n != 7 {
			t.Errorf("%d, %v", n, err) // or the first deleted it for both
		}
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if fills != 1 {
		t.Errorf("filled %d times", fills)
	}
}
