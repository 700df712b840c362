package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/residency"
)

// TestResidency: the register is shown with what is known, and whoever verifies gets a status that says whether all is where it has to be.
func TestResidency(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	says := api.Residency{At: at, Location: "DE", Problems: []string{}, Categories: []api.ResidencyCategory{
		{Name: "sessions", Allowed: []api.ResidencyAllowance{{Region: "eu"}}, Places: []api.ResidencyPlace{
			{Host: "db:5432", Region: "eu", Country: "DE", Known: "declared, not verified", Holds: []api.ResidencyHolding{{What: "sessions", Count: 12}, {What: "session_events", Count: 100000, More: true}}}}},
		{Name: "recordings", Allowed: []api.ResidencyAllowance{{Region: "eu"}, {Region: "us"}}, Places: []api.ResidencyPlace{
			{Host: "eu.example", Region: "eu", Known: "probed", Holds: []api.ResidencyHolding{{What: "objects listed", Count: 3, Bytes: 300}}},
			{Host: "us.example", Region: "us", Known: "probed", Holds: []api.ResidencyHolding{{What: "objects listed", Count: 1, Bytes: 100}}}}},
		{Name: "stripe", Allowed: []api.ResidencyAllowance{{Region: "eu"}, {Region: "us"}}, Places: []api.ResidencyPlace{}, Absent: "the API server's"},
	}, Contradictions: []api.ResidencyContradiction{{Says: "Nothing leaves.", ButAlso: "It is in the US.", Rule: "It leaves."}}}
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.String())
		v := says
		v.Verified = r.URL.Query().Get("verify") == "true"
		if strings.Contains(r.URL.Path, "/accounts/") {
			v.Account = "a b"
			v.Problems = []string{"1 objects of account a b are in the US"}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}))
	defer server.Close()

	var shown strings.Builder
	for _, c := range []struct {
		args  []string
		asks  string
		fails string
	}{
		{nil, "/v1/residency?verify=false", ""},
		{[]string{"--account", "a b", "--verify"}, "/v1/accounts/a%20b/residency?verify=true", "1 objects of account a b are in the US"},
		{[]string{"--json"}, "/v1/residency?verify=false", ""},
	} {
		asked = nil
		out, err := runAt(t, server.URL, append([]string{"residency"}, c.args...)...)
		if (err != nil) != (c.fails != "") || err != nil && !strings.Contains(err.Error(), c.fails) || strings.Join(asked, " ") != c.asks {
			t.Errorf("%v: %v, asked %v", c.args, err, asked)
		}
		shown.WriteString("$ driftctl residency " + strings.Join(c.args, " ") + "\n" + out + "\n")
	}
	golden(t, "residency.txt", shown.String())

	// The documents need nobody.
	for name, want := range map[string]string{"data-residency": residency.DataResidency(), "sub-processors": residency.SubProcessors()} {
		if out, err := runAt(t, "http://127.0.0.1:9", "residency", "--markdown", name); err != nil || out != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
