package recorder

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

func validConfig(t *testing.T) Config {
	return Config{Dir: t.TempDir(), Journal: newLedger(t),
		EU: EUTarget{Target{Endpoint: "https://acc.eu.r2.cloudflarestorage.com", Bucket: "rec-eu", AccessKey: "k", SecretKey: "verysecret"}},
		US: &USTarget{Target{Endpoint: "https://acc.r2.cloudflarestorage.com", Bucket: "rec-us", AccessKey: "k", SecretKey: "verysecret"}}}
}

func TestConfigIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no folder":                          func(c *Config) { c.Dir = "" },
		"no journal":                         func(c *Config) { c.Journal = nil },
		"no EU target":                       func(c *Config) { c.EU = EUTarget{} },
		"parts too small":                    func(c *Config) { c.PartSize = 1 << 20 },
		"parts too large":                    func(c *Config) { c.PartSize = 6 << 30 },
		"EU bucket outside its jurisdiction": func(c *Config) { c.EU.Endpoint = "https://acc.r2.cloudflarestorage.com" },
		"US bucket in the EU jurisdiction":   func(c *Config) { c.US.Endpoint = "https://acc.eu.r2.cloudflarestorage.com" },
		"one bucket for both": func(c *Config) {
			c.EU.Endpoint, c.US.Endpoint = "https://s3.example", "https://s3.example"
			c.US.Bucket = c.EU.Bucket
		},
		"plain http":                  func(c *Config) { c.EU.Endpoint = "http://s3.example" },
		"path in the endpoint":        func(c *Config) { c.EU.Endpoint = "https://s3.example/bucket" },
		"credentials in the endpoint": func(c *Config) { c.EU.Endpoint = "https://a:b@s3.example" },
		"bucket name of two letters":  func(c *Config) { c.EU.Bucket = "eu" },
		"bucket with a slash":         func(c *Config) { c.EU.Bucket = "abc/def" },
		"no secret":                   func(c *Config) { c.US.SecretKey = "" },
		"unknown encryption":          func(c *Config) { c.EU.SSE = "rot13" },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := validConfig(t)
			change(&cfg)
			rec, err := Open(t.Context(), cfg)
			if err == nil {
				_ = rec.Close(t.Context())
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), "verysecret") {
				t.Errorf("the error tells the secret: %v", err)
			}
		})
	}
}

func TestTargetsDoNotPrintTheirSecret(t *testing.T) {
	cfg := validConfig(t)
	for _, s := range []string{fmt.Sprint(cfg.EU), fmt.Sprintf("%+v", cfg.EU), fmt.Sprintf("%#v", cfg.EU), fmt.Sprintf("%v", cfg.US), fmt.Sprintf("%+v", *cfg.US)} {
		if strings.Contains(s, "verysecret") {
			t.Errorf("printed: %s", s)
		}
	}
}

func TestSpecIsRefused(t *testing.T) {
	rec, err := Open(t.Context(), validConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Close(t.Context())
	good := Spec{ID: "i", Session: "s", Account: "a", Placement: place.EUOnly}
	for name, change := range map[string]func(*Spec){
		"no ID":             func(s *Spec) { s.ID = "" },
		"path as ID":        func(s *Spec) { s.ID = "../../etc" },
		"hidden ID":         func(s *Spec) { s.ID = ".quarantine" },
		"slash in account":  func(s *Spec) { s.Account = "a/b" },
		"dots as a session": func(s *Spec) { s.Session = ".." },
		"no placement":      func(s *Spec) { s.Placement = "" },
		"unknown placement": func(s *Spec) { s.Placement = "mars" },
	} {
		s := good
		change(&s)
		if _, err := rec.Begin(t.Context(), s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := rec.Begin(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	if _, err := rec.Begin(t.Context(), good); !errors.Is(err, ErrExists) {
		t.Errorf("begun twice: %v", err)
	}
}

func TestReplicatedNeedsAUSTarget(t *testing.T) {
	cfg := validConfig(t)
	cfg.US = nil
	rec, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Close(t.Context())
	if _, err := rec.Begin(t.Context(), Spec{ID: "i", Session: "s", Account: "a", Placement: place.Replicated}); !errors.Is(err, ErrNoTarget) {
		t.Errorf("begun without a US target: %v", err)
	}
	if _, err := rec.URL(t.Context(), place.US, "recordings/a/s/i.webm", time.Minute); !errors.Is(err, ErrNoTarget) {
		t.Errorf("URL without a US target: %v", err)
	}
}

// TestStorageCannotSendUsElsewhere: a redirect to another host is not followed, credentials and bytes stay where they belong.
func TestStorageCannotSendUsElsewhere(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request arrived elsewhere") }))
	defer elsewhere.Close()
	here := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer here.Close()
	st, err := newStore(Target{Endpoint: here.URL, Bucket: "abc", AccessKey: "k", SecretKey: "s"}, place.EU, 5*time.Second, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer st.idle()
	if err := st.put(t.Context(), "k", strings.NewReader("x"), 1, md5Of("x")); err == nil {
		t.Error("put through a redirect")
	}
	if _, _, _, err := st.head(t.Context(), "k"); err == nil {
		t.Error("head through a redirect")
	}
	r, _ := http.NewRequest(http.MethodGet, elsewhere.URL, nil)
	if _, err := (pinned{scheme: "http", host: "127.0.0.1:1", next: http.DefaultTransport}).RoundTrip(r); err == nil {
		t.Error("request to another host")
	}
}

func TestSilentStorageIsGivenUp(t *testing.T) {
	release := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer silent.Close()
	defer close(release)
	st, err := newStore(Target{Endpoint: silent.URL, Bucket: "abc", AccessKey: "k", SecretKey: "s"}, place.EU, 100*time.Millisecond, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer st.idle()
	begun := time.Now()
	if _, err := st.create(t.Context(), "k"); !errors.Is(err, context.DeadlineExceeded) && (err == nil || !strings.Contains(err.Error(), "timeout")) {
		t.Errorf("error %v", err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}
