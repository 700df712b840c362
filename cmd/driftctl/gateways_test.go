package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/driftstack/fleet/orchestrator/api"
)

func gateways() []api.Gateway {
	return []api.Gateway{
		{Name: "eu-1", Address: "10.77.0.1", Endpoint: "eu-1.example.com:51820", PublicKey: "n8mBBpUvQzUUVVDy7bsAKlQo8s5JhNZhaM9PkfBz9Hk=", Live: true,
			NextPublicKey: "+MUy0c2PC7hVFxHsyKVMGBcY4AcYcXcoLZ5FCRuMsnY=", NextInSeconds: 6*24*3600 + 60, RotatedAt: *before(84 * 24 * time.Hour), SeenAt: *before(7 * time.Second)},
		{Name: "eu-2", Address: "10.77.0.2", Endpoint: "eu-2.example.com:51820", PublicKey: "+MUy0c2PC7hVFxHsyKVMGBcY4AcYcXcoLZ5FCRuMsnY=",
			RotatedAt: *before(3 * time.Hour), SeenAt: *before(10 * time.Minute)},
	}
}

func TestGatewaysForPeople(t *testing.T) {
	var b bytes.Buffer
	p := printer{out: &b, now: func() time.Time { return now }}
	if err := list(p, nil, gatewayColumns(), gateways(), p.gatewayRow); err != nil {
		t.Fatal(err)
	}
	golden(t, "gateways-ls.txt", b.String())
	golden(t, "rotate.txt", rotatedHost("mac-1")+rotatedGateway("eu-1", 168*time.Hour))
}

// TestRotateOverHTTP runs the commands against an API that knows mac-1 and eu-1.
func TestRotateOverHTTP(t *testing.T) {
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked = append(asked, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+string(body)))
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/v1/gateways":
			_ = json.NewEncoder(w).Encode(api.GatewayList{Gateways: gateways()})
		case "/v1/hosts/mac-1/rotate", "/v1/gateways/eu-1/rotate":
			w.WriteHeader(http.StatusAccepted)
		case "/v1/hosts/mac-3/rotate":
			w.WriteHeader(http.StatusConflict)
			_, _ = w.Write([]byte(`{"title":"Conflict","detail":"host \"mac-3\" has not joined yet and has no key to replace"}`))
		default:
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"title":"Not Found","detail":"not found"}`))
		}
	}))
	defer server.Close()
	for _, tt := range []struct {
		args, asks, says, fails string
	}{
		{args: "hosts rotate mac-1", asks: "POST /v1/hosts/mac-1/rotate", says: rotatedHost("mac-1")},
		{args: "--json hosts rotate mac-1", asks: "POST /v1/hosts/mac-1/rotate"},
		{args: "hosts rotate nobody", asks: "POST /v1/hosts/nobody/rotate", fails: "not found"},
		{args: "hosts rotate mac-3", asks: "POST /v1/hosts/mac-3/rotate", fails: "has not joined yet"},
		{args: "gateways rotate eu-1", asks: `POST /v1/gateways/eu-1/rotate {"within_seconds":604800}`, says: rotatedGateway("eu-1", 168*time.Hour)},
		{args: "gateways rotate eu-1 --within 60500ms", asks: `POST /v1/gateways/eu-1/rotate {"within_seconds":61}`, says: rotatedGateway("eu-1", time.Minute)},
		{args: "gateways rotate eu-1 --within 59s", fails: "--within: at least 1m"},
		{args: "gateways rotate eu-1 --within 0s", fails: "--within: at least 1m"}, // not the server's default
		{args: "gateways rotate eu-1 --within 721h", fails: "--within: at most 720h"},
		{args: "gateways rotate nobody", asks: `POST /v1/gateways/nobody/rotate {"within_seconds":604800}`, fails: "not found"},
	} {
		asked = nil
		out, err := runAt(t, server.URL, strings.Fields(tt.args)...)
		if strings.Join(asked, "; ") != tt.asks || out != tt.says || (err == nil) != (tt.fails == "") || err != nil && !strings.Contains(err.Error(), tt.fails) {
			t.Errorf("%s: asked %q, said %q, %v", tt.args, asked, out, err)
		}
	}
	out, err := runAt(t, server.URL, "--json", "gateways", "ls")
	if err != nil || strings.Count(out, "\n") != 2 || !strings.Contains(out, `"next_in_seconds":518460`) {
		t.Errorf("gateways ls: %v\n%s", err, out)
	}
}

// runAt runs a command line against an orchestrator.
func runAt(t *testing.T, url string, args ...string) (string, error) {
	t.Helper()
	var c cli
	k, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := k.Parse(append([]string{"--url", url, "--service-token", "t"}, args...))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = c.run(t.Context(), parsed.Command(), &out)
	return out.String(), err
}
