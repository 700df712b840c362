package residency_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/orchestrator/residency"
)

// database is one that says what it is told to.
type database struct {
	rows     map[string]int64
	standbys []string
	columns  []residency.Column
	err      error
	asked    int
}

func (d *database) Rows(context.Context, string, int) (map[string]int64, error) { return d.rows, d.err }
func (d *database) Asked(context.Context) (residency.Asked, error) {
	d.asked++
	return residency.Asked{Address: "10.0.0.5", Version: "PostgreSQL 15", Standbys: d.standbys}, d.err
}
func (d *database) Columns(context.Context) ([]residency.Column, error) { return d.columns, d.err }

// columnsOf are those that the register has.
func columnsOf(db residency.Database) (all []residency.Column) {
	for _, s := range residency.Schema() {
		for _, n := range s.Names {
			if s.Database == db {
				all = append(all, residency.Column{Table: s.Table, Name: n})
			}
		}
	}
	return all
}

var errNobody = errors.New("there is no such account")

// world is a running system in which all is well.
type world struct {
	residency.Reporter
	main, keys *database
	copies     []residency.Copies
	found      []residency.Bucket
	looked     int
	lookErr    error
}

func newWorld(t *testing.T) *world {
	w := &world{main: &database{rows: map[string]int64{"sessions": 12, "recordings": 3, "accounts": 1}, columns: columnsOf(residency.Main)},
		keys:   &database{rows: map[string]int64{"profile_keys": 2}, columns: columnsOf(residency.Keys)},
		copies: []residency.Copies{{Region: place.EU, Count: 3, Bytes: 300}, {Region: place.US, Count: 1, Bytes: 100, Going: 1}},
		found:  []residency.Bucket{{Region: place.EU, Objects: 3, Bytes: 300}, {Region: place.US, Objects: 1, Bytes: 100}}}
	standing := func(c residency.Name, setting, host string, r place.Region) residency.Standing {
		return residency.Standing{Category: c, Setting: setting, Host: host, Region: r, Known: residency.DeclaredOnly}
	}
	w.Site = site(t, false, "10.0.0.0/24")
	w.Standing = []residency.Standing{standing("sessions", "--database-url", "db", place.EU), standing("profile_state", "--key-database-url", "keys", place.EU),
		standing("profile_state", "--state-dir", "/state", place.EU), standing("recordings", "--eu-s3-account", "eu", place.EU), standing("recordings", "--us-s3-account", "us", place.US)}
	w.Sources = residency.Sources{Main: w.main, KeyDatabase: w.keys, Now: func() time.Time { return time.Unix(1e9, 0) },
		Placement: func(_ context.Context, account string) (place.Placement, error) {
			if account == "nobody" {
				return "", errNobody
			}
			return place.Placement(account), nil // accounts are called after theirs
		},
		Copies: func(context.Context, string) ([]residency.Copies, error) { return w.copies, nil },
		Look: func(context.Context, string) ([]residency.Bucket, error) {
			w.looked++
			return w.found, w.lookErr
		},
		Sealed: func(context.Context, string) (residency.Holding, error) {
			return residency.Holding{What: "sealed files", Count: 7, Bytes: 70}, nil
		}}
	return w
}

func (w *world) report(t *testing.T, account string, verify bool) api.Residency {
	t.Helper()
	v, err := w.Report(t.Context(), account, verify)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func category(v api.Residency, name string) api.ResidencyCategory {
	i := slices.IndexFunc(v.Categories, func(c api.ResidencyCategory) bool { return c.Name == name })
	return v.Categories[i]
}

func regions(c api.ResidencyCategory) (s string) {
	for _, a := range c.Allowed {
		s += a.Region + " "
	}
	s += "|"
	for _, p := range c.Places {
		s += " " + p.Region
	}
	return s
}

// TestReport: the whole register, with what there is in each place.
func TestReport(t *testing.T) {
	w := newWorld(t)
	v := w.report(t, "", true)
	if len(v.Problems) != 0 || len(v.Categories) != len(residency.Register()) || len(v.Contradictions) == 0 || len(v.Processors) == 0 || v.Location != "DE" || !v.Verified {
		t.Errorf("%+v", v)
	}
	rec := category(v, "recordings")
	if regions(rec) != "eu us | eu eu us" { // rows in the database, objects in two buckets
		t.Errorf("recordings are %s", regions(rec))
	}
	if h := rec.Places[2].Holds; rec.Places[2].Host != "us" || len(h) != 2 || h[0] != (api.ResidencyHolding{What: "copies", Count: 1, Bytes: 100}) || h[1].Count != 1 {
		t.Errorf("in the US there is %+v", h)
	}
	keys := category(v, "profile_state")
	if len(keys.Places) != 3 || keys.Places[1].Setting != "--key-database-url" || keys.Places[2].Holds[0].Count != 7 {
		t.Errorf("profiles' state is %+v", keys.Places)
	}
	if c := category(v, "sessions"); len(c.Places) != 1 || c.Absent != "" || len(c.Places[0].Evidence) != 2 {
		t.Errorf("sessions are %+v", c)
	}
	if c := category(v, "stripe"); len(c.Places) != 0 || c.Absent == "" {
		t.Errorf("Stripe is %+v", c)
	}
	if w.report(t, "", false); w.looked != 1 || w.main.asked != 1 {
		t.Errorf("without verifying, the storage was listed %d times and the database asked %d times", w.looked-1, w.main.asked-1)
	}
}

// TestReportOfAnAccount: what may be of it, and where it is.
func TestReportOfAnAccount(t *testing.T) {
	w := newWorld(t)
	if got := regions(category(w.report(t, "replicated", true), "recordings")); got != "eu us | eu eu us" {
		t.Error(got)
	}
	w.copies, w.found = w.copies[:1], w.found[:1]
	if got := regions(category(w.report(t, "eu", true), "recordings")); got != "eu | eu eu" {
		t.Error(got)
	}
	if _, err := w.Report(t.Context(), "nobody", true); !errors.Is(err, errNobody) {
		t.Error(err)
	}
}

// TestReportFinds: each thing that is not as it has to be is said.
func TestReportFinds(t *testing.T) {
	for name, tt := range map[string]struct {
		account string
		change  func(*world)
		says    string
	}{
		"what an EU-only account has in the US":   {"eu", func(w *world) { w.copies[1].Going = 0 }, "1 objects of account eu are in the US"},
		"more than is being removed":              {"eu", func(w *world) { w.found[1].Objects = 2 }, "2 objects of account eu are in the US"},
		"what is being removed":                   {"eu", func(*world) {}, ""},
		"what a replicated account has in the US": {"replicated", func(w *world) { w.copies[1].Going = 0 }, ""},
		"a standby elsewhere":                     {"", func(w *world) { w.main.standbys = []string{"3.5.140.2"} }, "--database-url: it streams to 3.5.140.2"},
		"a standby that cannot be seen":           {"", func(w *world) { w.keys.standbys = []string{"an address that this user may not see"} }, "--key-database-url: it streams to"},
		"a standby of ours":                       {"", func(w *world) { w.main.standbys = []string{"10.0.0.6"} }, ""},
		"a column of nobody's": {"", func(w *world) {
			w.main.columns = append(w.main.columns, residency.Column{Table: "leads", Name: "email"})
		}, "leads.email belongs to no category"},
		"a column that is gone":   {"", func(w *world) { w.keys.columns = w.keys.columns[1:] }, "not in the database"},
		"a database that is away": {"", func(w *world) { w.main.err = errors.New("away") }, "--database-url: it cannot be counted: away"},
		"a storage that is away":  {"", func(w *world) { w.lookErr = errors.New("away") }, "recordings: away"},
	} {
		w := newWorld(t)
		tt.change(w)
		got := strings.Join(w.report(t, tt.account, true).Problems, "; ")
		if !strings.Contains(got, tt.says) || (got == "") != (tt.says == "") {
			t.Errorf("%s: %s", name, got)
		}
	}
}
