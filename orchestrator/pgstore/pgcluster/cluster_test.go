package pgcluster

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, dir string) *Cluster {
	t.Helper()
	c, err := Start(testContext(t), Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Log("part: postgres real")
	return c
}

func mustPSQL(t *testing.T, c *Cluster, db, statement string) string {
	t.Helper()
	out, err := c.psql(testContext(t), db, statement)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRestartKeepsData also covers the limit of socket paths: the folder is too deep for a socket.
func TestRestartKeepsData(t *testing.T) {
	ctx := testContext(t)
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 25))
	c := start(t, dir)
	if strings.HasPrefix(c.socket, dir) {
		t.Fatalf("socket in %s: longer than the system's limit", c.socket)
	}
	socket := c.socket
	for range 2 { // the second is a no-op
		if err := c.CreateDatabase(ctx, "fleet"); err != nil {
			t.Fatal(err)
		}
	}
	mustPSQL(t, c, "fleet", "CREATE TABLE kept AS SELECT 42 AS answer")
	if err := c.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(ctx); err != nil {
		t.Fatalf("second stop: %v", err)
	}
	if left := orphans(c.data); len(left) > 0 {
		t.Fatalf("processes %v left behind", left)
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Fatalf("socket folder left behind: %v", err)
	}
	c = start(t, dir)
	if got := mustPSQL(t, c, "fleet", "SELECT answer FROM kept"); got != "42" {
		t.Fatalf("after a restart the table holds %q", got)
	}
	if err := c.DropDatabase(ctx, "fleet"); err != nil {
		t.Fatal(err)
	}
	if got := mustPSQL(t, c, "postgres", "SELECT count(*) FROM pg_database WHERE datname = 'fleet'"); got != "0" {
		t.Fatal("database still there after DropDatabase")
	}
}

func TestNoNetworkListener(t *testing.T) {
	c := start(t, t.TempDir())
	if got := mustPSQL(t, c, "postgres", "SHOW listen_addresses"); got != "" {
		t.Fatalf("listens on %q", got)
	}
	if got := mustPSQL(t, c, "postgres", "SHOW fsync"); got != "on" {
		t.Fatalf("fsync is %q", got)
	}
	st, err := os.Stat(c.socket)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o700 {
		t.Fatalf("the socket's folder has mode %v: others could connect without a password", st.Mode().Perm())
	}
}

func TestKilledThenRestarted(t *testing.T) {
	dir := t.TempDir()
	c := start(t, dir)
	mustPSQL(t, c, "postgres", "CREATE TABLE kept AS SELECT 7 AS answer")
	c.proc.signal(syscall.SIGKILL)
	<-c.Done()
	if _, err := os.Stat(filepath.Join(c.data, "postmaster.pid")); err != nil {
		t.Fatalf("the kill left no stale pid file, so this test shows nothing: %v", err)
	}
	c.lock.Close() // as the death of the owner would
	again := start(t, dir)
	if got := mustPSQL(t, again, "postgres", "SELECT answer FROM kept"); got != "7" {
		t.Fatalf("after a kill the table holds %q", got)
	}
}

// TestLeftoverIsEnded starts over a Postgres whose owner is gone, and over a pid file that names another live process.
func TestLeftoverIsEnded(t *testing.T) {
	if !runtimeKnowsOrphans {
		t.Skip("needs /proc")
	}
	dir := t.TempDir()
	c := start(t, dir)
	c.lock.Close()
	again := start(t, dir)
	select {
	case <-c.Done():
	case <-testContext(t).Done():
		t.Fatal("the leftover still runs")
	}
	if err := again.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(again.data, "postmaster.pid")
	if err := os.WriteFile(pidFile, []byte("1\n"+again.data+"\n0\n5432\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, dir)
}

func TestOneClusterAFolder(t *testing.T) {
	dir := t.TempDir()
	start(t, dir)
	c, err := Start(testContext(t), Config{Dir: dir})
	if err == nil {
		_ = c.Stop(context.Background())
		t.Fatal("a second cluster started in the same folder")
	}
	if !strings.Contains(err.Error(), "already running in "+dir) {
		t.Fatalf("unclear: %v", err)
	}
}

func TestStartFailureShowsTheLog(t *testing.T) {
	dir := t.TempDir()
	c := start(t, dir)
	if err := c.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(c.data, "postgresql.conf")
	if err := os.WriteFile(conf, []byte("no_such_setting = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(testContext(t), Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Fatalf("the log's reason is missing: %v", err)
	}
	if left := orphans(c.data); len(left) > 0 {
		t.Fatalf("processes %v left behind", left)
	}
}

func TestDatabaseNames(t *testing.T) {
	c := &Cluster{}
	for _, name := range []string{"", "Fleet", `x"; DROP DATABASE postgres; --`, strings.Repeat("a", 64)} {
		if err := c.CreateDatabase(t.Context(), name); err == nil {
			t.Errorf("name %q accepted", name)
		}
	}
}
