package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/driftstack/fleet/orchestrator/api"
)

var now = time.Date(2026, 11, 23, 18, 30, 0, 0, time.UTC)

func before(d time.Duration) *time.Time { t := now.Add(-d); return &t }

func hosts() []api.HostDetail {
	link := api.HostLink{Orchestrator: "eu-1", Up: true, ReportedAt: *before(8 * time.Second), HeardAt: *before(9 * time.Second), RoundTripUS: 131_400, HandshakeAt: before(95 * time.Second),
		RxBytes: 1 << 40, TxBytes: 340 << 20, MTU: 1280, GatewayBackend: "kernel", HostBackend: "netstack",
		Repairs: api.Repairs{Handshake: 2, Socket: 1, Device: 1}, RepairedAt: before(3 * time.Hour)}
	lost := api.HostLink{Orchestrator: "eu-2", ReportedAt: *before(7 * time.Minute), HeardAt: *before(8 * time.Minute), LostAt: before(7 * time.Minute), Reason: "nothing is heard of it for 5s", TxBytes: 148}
	return []api.HostDetail{
		{
			Host: api.Host{Name: "mac-1", State: api.HostDegraded, Address: "10.77.1.0", Devices: 2, RoundTripUS: 131_400, SeenAt: before(time.Second), CreatedAt: *before(34 * 24 * time.Hour),
				Reason: "no link to eu-2 since 2026-11-23 18:23:00 UTC (nothing is heard of it for 5s); check that the host reaches its UDP port. MTU 1200 to eu-1: the path loses larger packets, so that transfers are slower"},
			PublicKey: "n8mBBpUvQzUUVVDy7bsAKlQo8s5JhNZhaM9PkfBz9Hk=", KeySince: before(12 * 24 * time.Hour), NextPublicKey: "+MUy0c2PC7hVFxHsyKVMGBcY4AcYcXcoLZ5FCRuMsnY=",
			Links: []api.HostLink{link, lost},
			DeviceList: []api.Device{
				{Host: "mac-1", Name: "phone-1", Kind: "safaridriver", Model: "iPhone 15", PlatformName: "iOS", PlatformVersion: "17.5", State: "busy", Session: "714f84b6-02b5-442d-8c4b-8931bbc3c30f"},
				{Host: "mac-1", Name: "phone-2", Kind: "safaridriver", Model: "iPhone 15", PlatformName: "iOS", PlatformVersion: "17.5", State: "quarantined", Reason: "already paired"},
			},
		},
		{Host: api.Host{Name: "mac-2", State: api.HostUp, Address: "10.77.1.1", Devices: 1, RoundTripUS: 2_340, SeenAt: before(0), CreatedAt: *before(50 * time.Hour)}},
		{Host: api.Host{Name: "mac-3", State: api.HostInvited, Address: "10.77.1.2", CreatedAt: *before(time.Minute), Reason: "has not joined yet; its token is valid until 2026-11-23 19:29:00 UTC"}, TokenExpiresAt: before(-59 * time.Minute)},
		{Host: api.Host{Name: "mac-4", State: api.HostRevoked, SeenAt: before(26 * time.Hour), CreatedAt: *before(400 * 24 * time.Hour), Reason: "removed at 2026-11-22 16:30:00 UTC; `driftctl hosts add mac-4` lets it join anew"}, RevokedAt: before(26 * time.Hour)},
	}
}

// golden compares with a file of testdata; UPDATE_GOLDEN=1 writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", name, d)
	}
}

func TestHostsForPeople(t *testing.T) {
	var b bytes.Buffer
	p := printer{out: &b, now: func() time.Time { return now }}
	var rows []api.Host
	for _, h := range hosts() {
		rows = append(rows, h.Host)
	}
	if err := list(p, nil, hostColumns(), rows, p.hostRow); err != nil {
		t.Fatal(err)
	}
	golden(t, "hosts-ls.txt", b.String())
	for _, h := range hosts() {
		b.Reset()
		if err := p.host(h); err != nil {
			t.Fatal(err)
		}
		golden(t, "hosts-get-"+h.Name+".txt", b.String())
	}
}

// TestHostsOverHTTP runs the commands against an API, as JSON for programs.
func TestHostsOverHTTP(t *testing.T) {
	var asked []string
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Path)
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.Method == http.MethodPost:
			_ = json.NewEncoder(w).Encode(api.JoinToken{Name: "mac-9", Token: "dsj1_secret", ExpiresAt: now})
		case r.Method == http.MethodDelete:
			w.WriteHeader(http.StatusNoContent)
		case r.URL.Path == "/v1/hosts/nobody":
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"title":"Not Found","detail":"not found"}`))
		case r.URL.Path == "/v1/hosts/mac-1":
			_ = json.NewEncoder(w).Encode(hosts()[0])
		default:
			_ = json.NewEncoder(w).Encode(api.HostList{Hosts: []api.Host{hosts()[0].Host, hosts()[1].Host}})
		}
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	run := func(args ...string) (string, error) { t.Helper(); return runAt(t, server.URL, args...) }
	out, err := run("--json", "hosts", "ls")
	if err != nil || strings.Count(out, "\n") != 2 || !strings.Contains(out, `"round_trip_us":131400`) {
		t.Errorf("hosts ls: %v\n%s", err, out)
	}
	out, err = run("--json", "hosts", "get", "mac-1")
	var h api.HostDetail
	if err != nil || json.Unmarshal([]byte(out), &h) != nil || cmp.Diff(h, hosts()[0]) != "" {
		t.Errorf("hosts get: %v\n%s", err, out)
	}
	if out, err = run("hosts", "get", "mac-1"); err != nil || !strings.HasPrefix(out, "mac-1 is degraded\n") {
		t.Errorf("hosts get: %v\n%s", err, out)
	}
	if _, err = run("hosts", "get", "nobody"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("hosts get nobody: %v", err)
	}
	for _, word := range []string{"rm", "remove"} {
		asked = nil
		if out, err = run("hosts", word, "mac-1"); err != nil || out != "" || len(asked) != 1 || asked[0] != "DELETE /v1/hosts/mac-1" {
			t.Errorf("hosts %s: %v %q %v", word, err, out, asked)
		}
	}
	out, err = run("hosts", "add", "mac-9")
	for _, part := range []string{"On mac-9, before ", "  DRIFTSTACK_JOIN=dsj1_secret \\\n", "driverhost --state-dir ", "works for one machine"} {
		if err != nil || !strings.Contains(out, part) {
			t.Errorf("hosts add does not say %q: %v\n%s", part, err, out)
		}
	}
	if strings.Count(out, "dsj1_secret") != 1 || asked[len(asked)-1] != "POST /v1/hosts" {
		t.Errorf("hosts add: %v\n%s", asked, out)
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m", 2 * time.Hour: "2h",
		47 * time.Hour: "47h", 48 * time.Hour: "2d", 1000 * 24 * time.Hour: "1000d",
	} {
		if got := short(d); got != want {
			t.Errorf("%s is said as %s, want %s", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 10 << 10: "10 KiB", 340 << 20: "340 MiB", 1 << 40: "1.0 TiB", 1<<63 - 1: "8.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("%d bytes are said as %s, want %s", n, got, want)
		}
	}
	if got := cut("über; lang", 6); got != "über…" {
		t.Errorf("cut: %q", got)
	}
}
