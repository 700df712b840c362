package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/driftstack/fleet/orchestrator/api"
)

// TestQuotaOverHTTP: without flags it is shown, with flags what they do not name is kept, and what is wrong changes nothing.
func TestQuotaOverHTTP(t *testing.T) {
	most := 20
	has := api.AccountQuota{Account: "a", Quota: api.Quota{Concurrent: &most, Weight: 2}, Active: 7, QueuedNow: 1204, CreatedLately: 31}
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		put := ""
		if r.Method == http.MethodPut {
			var body api.PutQuota
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				t.Error(err)
			}
			b, _ := json.Marshal(body)
			put = " " + string(b) + " " + r.Header.Get("Driftstack-Operator")
			v := has
			v.Quota = body.Quota
			_ = json.NewEncoder(w).Encode(v)
		} else {
			_ = json.NewEncoder(w).Encode(has)
		}
		asked = append(asked, r.Method+" "+r.URL.Path+put)
	}))
	defer server.Close()

	var shown strings.Builder
	for _, c := range []struct {
		args []string
		puts string
	}{
		{nil, ""},
		{[]string{"--queued", "0", "--reason", "contract"}, `{"concurrent":20,"queued":0,"weight":2,"reason":"contract"}`},
		{[]string{"--concurrent", "default", "--creates", "600", "--weight", "1000"}, `{"creates_per_minute":600,"weight":1000}`},
		{[]string{"--json"}, ""},
	} {
		asked = nil
		out, err := runAt(t, server.URL, append([]string{"--as", "ada", "accounts", "quota", "a"}, c.args...)...)
		want := []string{"GET /v1/accounts/a/quota"}
		if c.puts != "" {
			want = append(want, "PUT /v1/accounts/a/quota "+c.puts+" ada")
		}
		if err != nil || strings.Join(asked, "\n") != strings.Join(want, "\n") {
			t.Errorf("%v: %v, asked\n%s", c.args, err, strings.Join(asked, "\n"))
		}
		shown.WriteString("$ driftctl accounts quota a " + strings.Join(c.args, " ") + "\n" + out + "\n")
	}
	for flag, values := range map[string][]string{"concurrent": {"-1", "many", "1.5", "1000001"}, "queued": {"x"}, "creates": {"99999999999999999999"}, "weight": {"0", "1001", "-1"}} {
		for _, v := range values {
			asked = nil
			if _, err := runAt(t, server.URL, "accounts", "quota", "a", "--"+flag+"="+v); err == nil || !strings.HasPrefix(err.Error(), "--"+flag+": ") || len(asked) != 0 {
				t.Errorf("--%s=%s: %v, asked %v", flag, v, err, asked)
			}
		}
	}

	t.Setenv("COLUMNS", "80")
	var c cli
	k, err := kong.New(&c, kong.Name("driftctl"), kong.Writers(&shown, &shown), kong.Exit(func(int) {}))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = k.Parse([]string{"accounts", "quota", "--help"}) // it goes on after the help, and misses the account
	golden(t, "quota.txt", strings.ReplaceAll(shown.String(), operator(), "USER@MACHINE"))
}
