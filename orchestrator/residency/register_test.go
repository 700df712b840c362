package residency_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/orchestrator/residency"
)

// TestRegister: what the page promises is a row, and each row says all that a row has to.
func TestRegister(t *testing.T) {
	var names []residency.Name
	for _, c := range residency.Register() {
		names = append(names, c.Name)
		if c.Title == "" || c.Holds == "" || c.Store.Kind == "" || c.Store.Protection == "" || c.Keeper == "" || len(c.Places) == 0 || c.Retention == (residency.Retention{}) {
			t.Errorf("%s is not complete: %+v", c.Name, c)
		}
		if !slices.ContainsFunc(residency.Processors(), func(p residency.Processor) bool { return p.Name == c.Store.Processor }) {
			t.Errorf("%s: %q is not in the list of processors", c.Name, c.Store.Processor)
		}
		for _, a := range c.Places {
			if (a.Basis == residency.InsideEU) != (a.Region == place.EU) {
				t.Errorf("%s in %s on the ground %q", c.Name, a.Region, a.Basis)
			}
		}
	}
	want := []residency.Name{"account", "api_keys", "sessions", "profiles", "profile_state", "recordings", "audit", "webhooks", "stripe", "nowpayments", "cache", "errors", "email",
		"execution", "language_model", "customer_text"}
	if !slices.Equal(names, want) {
		t.Errorf("rows %q", names)
	}
}

// What never leaves the EU, as the page says, has no place elsewhere in the register.
func TestNeverLeavesTheEU(t *testing.T) {
	for _, c := range residency.Register() {
		outside := slices.ContainsFunc(c.Places, func(a residency.Allowance) bool { return a.Region != place.EU })
		may := slices.Contains([]residency.Name{residency.Recordings, residency.Stripe, residency.Execution, residency.Model}, c.Name)
		if outside != may {
			t.Errorf("%s: outside the EU %v", c.Name, outside)
		}
	}
	for _, h := range residency.Hosts() {
		i := slices.IndexFunc(residency.Register(), func(c residency.Category) bool { return c.Name == h.Category })
		if i < 0 || !slices.ContainsFunc(residency.Register()[i].Places, func(a residency.Allowance) bool { return a.Region == h.Region }) {
			t.Errorf("%s is in %s, where nothing of %s may be", h.Pattern, h.Region, h.Category)
		}
	}
}

// Every line of what is owned names a row, or says why none, and nothing is in two lines.
func TestOwned(t *testing.T) {
	rows := map[residency.Name]bool{residency.None: true}
	for _, c := range residency.Register() {
		rows[c.Name] = true
	}
	seen := map[string]bool{}
	line := func(what string, c residency.Name, why string) {
		t.Helper()
		if !rows[c] {
			t.Errorf("%s belongs to %q, which is no row", what, c)
		}
		if (c == residency.None) != (why != "") {
			t.Errorf("%s says either a category or why there is none", what)
		}
		if seen[what] {
			t.Errorf("%s is in two lines", what)
		}
		seen[what] = true
	}
	for _, s := range residency.Schema() {
		for _, n := range s.Names {
			line("column "+string(s.Database)+" "+s.Table+"."+n, s.Category, s.Why)
		}
	}
	for _, s := range residency.Settings() {
		line("--"+s.Flag, s.Category, s.Why)
	}
	for _, f := range residency.Files() {
		line("file "+f.Name, f.Category, f.Why)
	}
	for _, h := range residency.Hosts() {
		line("host "+h.Pattern, h.Category, "")
	}
	for i, k := range residency.CacheKeys() {
		line("key "+k.Prefix, k.Category, "")
		for _, other := range residency.CacheKeys()[i+1:] {
			if strings.HasPrefix(k.Prefix, other.Prefix) || strings.HasPrefix(other.Prefix, k.Prefix) {
				t.Errorf("keys %q are also %q", k.Prefix, other.Prefix)
			}
		}
	}
}

// Text that customers choose is in no table of events and not in the audit log.
func TestCustomersTextIsKeptOutOfEvents(t *testing.T) {
	for _, s := range residency.Schema() {
		if s.Category == residency.Text && (s.Table == "session_events" || s.Table == "audit") {
			t.Errorf("%s has %v", s.Table, s.Names)
		}
	}
}
