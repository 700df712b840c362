package pgstore_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/outbound"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/orchestrator/residency"
	"github.com/driftstack/fleet/recorder"
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

// TestRows: an account's rows are its own, in every table that leads to an account.
func TestRows(t *testing.T) {
	s := open(t, 2)
	for _, account := range []string{"a", "a", "b"} {
		mustCreate(t, s, wish(account))
	}
	c := mustClaim(t, s)
	mustRecord(t, s, c)
	of := func(account string, most int) map[string]int64 {
		t.Helper()
		n, err := s.Rows(t.Context(), account, most)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	other := map[string]string{"a": "b", "b": "a"}[c.Account]
	mine, others, all := of(c.Account, 100), of(other, 100), of("", 100)
	for table, want := range map[string]int64{"accounts": 1, "recordings": 1, "recording_copies": 1, "devices": 1} {
		if mine[table] != want || others[table] != map[string]int64{"accounts": 1}[table] {
			t.Errorf("%s: %d of %s, %d of %s", table, mine[table], c.Account, others[table], other)
		}
	}
	if mine["sessions"]+others["sessions"] != 3 || all["sessions"] != 3 || all["accounts"] != 2 || all["wants"] == 0 || all["devices"] != 1 {
		t.Errorf("%v and %v of %v", mine, others, all)
	}
	if _, ok := mine["wants"]; ok {
		t.Error("rows of nobody's are an account's")
	}
	if _, ok := all["shapes"]; ok {
		t.Error("rows without anything of a customer are counted")
	}
	if n := of("", 1)["sessions"]; n != 2 {
		t.Errorf("%d of at most one, and one more", n)
	}
	if n := of("nobody' OR true --", 100)["sessions"]; n != 0 {
		t.Errorf("%d sessions of nobody's", n)
	}
	copies, err := s.Copies(t.Context(), c.Account)
	if err != nil || len(copies) != 1 || copies[0].Region != "eu" || copies[0].Count != 1 || copies[0].Bytes != 9 || copies[0].Going != 0 || copies[0].Checked == nil {
		t.Errorf("%+v, %v", copies, err)
	}
	if copies, err = s.Copies(t.Context(), other); err != nil || len(copies) != 0 {
		t.Errorf("of %s: %+v, %v", other, copies, err)
	}
	said, err := s.Asked(t.Context())
	if err != nil || !strings.HasPrefix(said.Version, "PostgreSQL ") || said.Address != "" || len(said.Standbys) != 0 {
		t.Errorf("%+v, %v", said, err)
	}
}

// mustRecord stores a recording of the session, with one copy in the EU.
func mustRecord(t *testing.T, s *pgstore.Store, c orchestrator.Claim) {
	t.Helper()
	at := time.Now().Truncate(time.Microsecond)
	u := recorder.RecordingUpdate{ID: "rec", Session: c.Session, Account: c.Account, Term: c.Term, Placement: place.EUOnly, Key: "recordings/k.webm", Started: at, At: at, State: recorder.StateAvailable,
		Bytes: 9, SHA256: strings.Repeat("0", 64), Copies: []recorder.Copy{{Region: place.EU, Bucket: "b", State: recorder.CopyVerified, ETag: "e", Verified: at}}}
	if err := s.RecordingChanged(t.Context(), u); err != nil {
		t.Fatal(err)
	}
}

// TestRefusalsAreInTheAuditLog beside what operators did.
func TestRefusalsAreInTheAuditLog(t *testing.T) {
	s := open(t, 0)
	if err := s.AuditRefusal(t.Context(), outbound.Refusal{Category: "recordings", To: "evil.example:443", Why: "it is pinned to a.example:443"}); err != nil {
		t.Fatal(err)
	}
	l, err := s.Audit(t.Context(), pgstore.AuditFilter{Limit: 10})
	if err != nil || len(l.Entries) == 0 || l.Entries[0].Action != "outbound_refused" || l.Entries[0].Actor != "driftstack" || l.Entries[0].Detail != "recordings to evil.example:443: it is pinned to a.example:443" {
		t.Errorf("%+v, %v", l, err)
	}
}

// TestCapabilitiesAreGoneOnceTheSessionRuns: those that waited, whatever was stored of them; and with the session's end those that its driver answered with.
func TestCapabilitiesAreGoneOnceTheSessionRuns(t *testing.T) {
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
	if _, err := s.PutAccount(t.Context(), "a", api.PutAccount{Recordings: "eu"}, orchestrator.Act{By: "test"}); err != nil {
		t.Fatal(err)
	}
	up(t, s, "mac-1", 1)
	n := wish("a")
	n.Capabilities = []byte(`"c2VhbGVk"`)
	mustCreate(t, s, n)
	is := func(when, want string) {
		t.Helper()
		var got string
		if err := conn.QueryRow(t.Context(), `SELECT coalesce(want_caps::text, '-') || ' ' || coalesce(caps::text, '-') FROM sessions`).Scan(&got); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", when, got, err, want)
		}
	}
	is("queued", `"c2VhbGVk" -`)
	c := mustClaim(t, s)
	if string(c.Capabilities) != `"c2VhbGVk"` {
		t.Errorf("claimed with %s", c.Capabilities)
	}
	if err := s.Running(t.Context(), c.Session, c.Term, []byte(`{"browserName": "safari"}`)); err != nil {
		t.Fatal(err)
	}
	is("running", `- {"browserName": "safari"}`)
	if err := finish(s, c, orchestrator.Completed); err != nil {
		t.Fatal(err)
	}
	is("ended", "- -")
}
