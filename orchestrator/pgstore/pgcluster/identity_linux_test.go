package pgcluster

import (
	"context"
	"os"
	"testing"
)

// TestSystemUser is the way out where user namespaces are refused, as in most containers; the folder is one that only
// root may enter. Going on with the other identity in the same folder must work too.
func TestSystemUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become the user postgres")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := startAs(testContext(t), Config{Dir: dir}, func(ctx context.Context, b binaries, dir string) (identity, error) {
		u, err := systemUser()
		if err != nil {
			return u, err
		}
		return u, u.try(ctx, b, dir)
	})
	if err != nil {
		t.Fatal(err)
	}
	mustPSQL(t, c, "postgres", "CREATE TABLE kept AS SELECT 7 AS answer")
	if err := c.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	again := start(t, dir)
	if got := mustPSQL(t, again, "postgres", "SELECT answer FROM kept"); got != "7" {
		t.Fatalf("the other identity finds %q", got)
	}
}
