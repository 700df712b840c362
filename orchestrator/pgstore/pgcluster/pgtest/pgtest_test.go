package pgtest_test

import (
	"os"
	"testing"

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
