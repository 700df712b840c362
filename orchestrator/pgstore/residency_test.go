package pgstore_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/orchestrator/residency"
)

// TestNoOrphans: every column of both databases, as the migrations make them, is in exactly one line of the register.
func TestNoOrphans(t *testing.T) {
	main, keys := liveSchema(t)
	for db, live := range map[residency.Database][]residency.Column{residency.Main: main, residency.Keys: keys} {
		if len(live) < 10 {
			t.Errorf("the %s database has %d columns: what is looked at is not what is there", db, len(live))
		}
		for _, problem := range residency.Orphans(db, residency.Schema(), live) {
			t.Errorf("%s database: %s", db, problem)
		}
	}
}

func liveSchema(t *testing.T) (main, keys []residency.Column) {
	t.Helper()
	s := open(t, 0)
	k, err := pgstore.OpenKeys(t.Context(), postgres.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	if main, err = s.Columns(t.Context()); err != nil {
		t.Fatal(err)
	}
	if keys, err = k.Columns(t.Context()); err != nil {
		t.Fatal(err)
	}
	return main, keys
}

// TestOrphansAreFound: whatever somebody adds to a database, by a migration or by hand, and whatever is taken out of the register.
func TestOrphansAreFound(t *testing.T) {
	dsn := postgres.Filled(t, "schema", schema)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	s, err := pgstore.Open(t.Context(), dsn, "eu-1", zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	found := func(lines []residency.Columns) string {
		t.Helper()
		live, err := s.Columns(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(residency.Orphans(residency.Main, lines, live), "\n")
	}
	for _, c := range []struct{ by, finds, undo string }{
		{`CREATE TABLE leads (email text)`, "leads.email belongs to no category", `DROP TABLE leads`},
		{`ALTER TABLE sessions ADD last_url text`, "sessions.last_url belongs to no category", `ALTER TABLE sessions DROP last_url`},
		{`CREATE VIEW everyone AS SELECT id FROM accounts`, "everyone.id belongs to no category", `DROP VIEW everyone`},
		{`CREATE MATERIALIZED VIEW copy AS SELECT id FROM accounts`, "copy.id belongs to no category", `DROP MATERIALIZED VIEW copy`},
		{`CREATE SCHEMA aside; CREATE TABLE aside.accounts (id text)`, "aside.accounts.id belongs to no category", `DROP SCHEMA aside CASCADE`},
		{`CREATE TABLE parts (id text) PARTITION BY LIST (id)`, "parts.id belongs to no category", `DROP TABLE parts`},
		{`CREATE FOREIGN DATA WRAPPER far; CREATE SERVER us FOREIGN DATA WRAPPER far; CREATE FOREIGN TABLE away (id text) SERVER us`, "away.id belongs to no category",
			`DROP FOREIGN DATA WRAPPER far CASCADE`},
		{`ALTER TABLE accounts RENAME recordings TO placement`, "accounts.recordings is in residency.Schema and not in the database", `ALTER TABLE accounts RENAME placement TO recordings`},
		{``, "", ``},
	} {
		if _, err := conn.Exec(t.Context(), c.by); err != nil {
			t.Fatal(err)
		}
		if got := found(residency.Schema()); !strings.Contains(got, c.finds) || c.finds == "" && got != "" {
			t.Errorf("%s: %s", c.by, got)
		}
		if _, err := conn.Exec(t.Context(), c.undo); err != nil {
			t.Fatal(err)
		}
	}
	for i, l := range residency.Schema() {
		if l.Database != residency.Main {
			continue
		}
		if got := found(slices.Delete(residency.Schema(), i, i+1)); !strings.Contains(got, l.Table+"."+l.Names[0]+" belongs to no category") {
			t.Errorf("without the line of %s: %s", l.Table, got)
		}
		if got := found(append(residency.Schema(), l)); !strings.Contains(got, l.Table+"."+l.Names[0]+" belongs to several categories") {
			t.Errorf("with the line of %s twice: %s", l.Table, got)
		}
	}
}
