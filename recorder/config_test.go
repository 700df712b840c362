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

const r2Account = "0123456789abcdef0123456789abcdef"

// validConfig is for R2. Opened, it would ask R2.
func validConfig(t *testing.T) Config {
	return Config{Dir: t.TempDir(), Journal: newLedger(t),
		EU: EUTarget{Target{Account: r2Account, Bucket: "rec-eu", AccessKey: "k", SecretKey: "verysecret"}},
		US: &USTarget{Target{Account: r2Account, Bucket: "rec-us", AccessKey: "k", SecretKey: "verysecret"}}}
}

// offline is for storage that does not answer.
func offline(t *testing.T) Config {
	cfg := validConfig(t)
	cfg.EU.Account, cfg.EU.Endpoint = "", "http://127.0.0.1:9"
	cfg.US.Account, cfg.US.Endpoint = "", "http://127.0.0.1:10"
	return cfg
}

func TestHostsAreDerived(t *testing.T) {
	cfg := validConfig(t)
	if err := cfg.complete(); err != nil {
		t.Fatal(err)
	}
	const eu, us = "https://" + r2Account + ".eu.r2.cloudflarestorage.com", "https://" + r2Account + ".r2.cloudflarestorage.com"
	if got := cfg.EU.site(cfg.US); got != (site{place.EU, eu, us}) {
		t.Errorf("EU: %+v", got)
	}
	if got := cfg.US.site(cfg.EU); got != (site{place.US, us, eu}) {
		t.Errorf("US: %+v", got)
	}
	if cfg.EU.Encryption != EncryptionAlways || cfg.US.Encryption != EncryptionAlways {
		t.Errorf("encryption %q and %q", cfg.EU.Encryption, cfg.US.Encryption)
	}
	st, err := newStore(cfg.EU.Target, cfg.EU.site(nil), time.Second, 1)
	if err != nil {
		t.Fatal(err)
	}
	u, err := st.url(t.Context(), "recordings/a/s/i.webm", time.Minute)
	if err != nil || !strings.HasPrefix(u, eu+"/rec-eu/recordings/a/s/i.webm?") {
		t.Errorf("URL %s, %v", u, err)
	}
}

func TestConfigIsRefused(t *testing.T) {
	endpoint := func(e string) func(*Config) {
		return func(c *Config) { c.EU.Account, c.EU.Endpoint = "", e }
	}
	account := func(a string) func(*Config) { return func(c *Config) { c.EU.Account = a } }
	for name, tt := range map[string]struct {
		change func(*Config)
		says   string
	}{
		"no folder":                   {func(c *Config) { c.Dir = "" }, "Dir"},
		"no journal":                  {func(c *Config) { c.Journal = nil }, "Journal"},
		"no EU target":                {func(c *Config) { c.EU = EUTarget{} }, "EU account"},
		"parts too small":             {func(c *Config) { c.PartSize = 1 << 20 }, "part size"},
		"parts too large":             {func(c *Config) { c.PartSize = 6 << 30 }, "part size"},
		"host for an account":         {account("acc.r2.cloudflarestorage.com"), "EU account"},
		"account with a path":         {account(r2Account[:30] + "/x"), "EU account"},
		"account with a host":         {account(r2Account + ".evil.example"), "EU account"},
		"account in capitals":         {account(strings.ToUpper(r2Account)), "EU account"},
		"account with a line break":   {account(r2Account + "\n"), "EU account"},
		"account and endpoint":        {func(c *Config) { c.US.Endpoint = "http://127.0.0.1:9" }, "US account"},
		"endpoint off the machine":    {endpoint("https://" + r2Account + ".eu.r2.cloudflarestorage.com"), "loopback"},
		"endpoint by a name":          {endpoint("http://localhost:9"), "loopback"},
		"path in the endpoint":        {endpoint("http://127.0.0.1:9/bucket"), "loopback"},
		"credentials in the endpoint": {endpoint("http://a:b@127.0.0.1:9"), "loopback"},
		"disguised endpoint":          {endpoint("http://127.0.0.1:9@s3.example"), "loopback"},
		"one endpoint for both": {func(c *Config) {
			endpoint("http://127.0.0.1:9")(c)
			c.US.Account, c.US.Endpoint = "", c.EU.Endpoint
		}, "endpoints"},
		"bucket name of two letters":   {func(c *Config) { c.EU.Bucket = "eu" }, "EU bucket"},
		"bucket with a slash":          {func(c *Config) { c.EU.Bucket = "abc/def" }, "EU bucket"},
		"bucket with a dot":            {func(c *Config) { c.US.Bucket = "abc.def" }, "US bucket"},
		"no access key":                {func(c *Config) { c.US.AccessKey = "" }, "US access-key"},
		"no secret":                    {func(c *Config) { c.US.SecretKey = "" }, "US secret-key"},
		"R2 asked to encrypt":          {func(c *Config) { c.EU.Encryption = EncryptionAES256 }, "EU encryption"},
		"R2 unencrypted":               {func(c *Config) { c.EU.Encryption = EncryptionNone }, "EU encryption"},
		"unknown encryption":           {func(c *Config) { endpoint("http://127.0.0.1:9")(c); c.EU.Encryption = "rot13" }, "EU encryption"},
		"encryption nobody asks about": {func(c *Config) { endpoint("http://127.0.0.1:9")(c); c.EU.Encryption = EncryptionAlways }, "EU encryption"},
	} {
		t.Run(name, func(t *testing.T) {
			change := tt.change
			cfg := validConfig(t)
			change(&cfg)
			rec, err := Open(t.Context(), cfg)
			if err == nil {
				_ = rec.Close(t.Context())
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("the error does not name %q: %v", tt.says, err)
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
	rec, err := Open(t.Context(), offline(t))
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
	cfg := offline(t)
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
	st, err := newStore(Target{Endpoint: here.URL, Bucket: "abc", AccessKey: "k", SecretKey: "s"}, site{region: place.EU, here: here.URL}, 5*time.Second, 1)
	if err != nil {
		t.Fatal(err)
	}
	close(st.proved)
	defer st.idle()
	if err := st.put(t.Context(), "k", strings.NewReader("x"), 1, md5Of("x")); err == nil {
		t.Error("put through a redirect")
	}
	if _, _, _, err := st.head(t.Context(), "k"); err == nil {
		t.Error("head through a redirect")
	}
	pin := pinned{scheme: "https", host: "a.example", from: st.proved, next: http.DefaultTransport}
	for _, to := range []string{elsewhere.URL, "http://a.example/", "https://a.example:8443/", "https://a.example.evil/"} {
		r, _ := http.NewRequest(http.MethodGet, to, nil)
		if _, err := pin.RoundTrip(r); err == nil || !strings.Contains(err.Error(), "pinned") {
			t.Errorf("request to %s: %v", to, err)
		}
	}
	r, _ := http.NewRequest(http.MethodGet, "https://a.example/", nil)
	r.Host = "b.example"
	if _, err := pin.RoundTrip(r); err == nil || !strings.Contains(err.Error(), "pinned") {
		t.Errorf("request for another host: %v", err)
	}
	for _, to := range []string{"a.example:80", "b.example:443", strings.TrimPrefix(elsewhere.URL, "http://")} {
		if _, err := pin.dial(t.Context(), "tcp", to); err == nil || !strings.Contains(err.Error(), "pinned") {
			t.Errorf("connection to %s: %v", to, err)
		}
	}
	local := pinned{scheme: "http", host: strings.TrimPrefix(here.URL, "http://")}
	conn, err := local.dial(t.Context(), "tcp", local.host)
	if err != nil {
		t.Fatalf("connection to the host itself: %v", err)
	}
	conn.Close()
}

func TestNoProxyFromTheEnvironment(t *testing.T) {
	client, _, err := pinnedClient(Target{AccessKey: "k", SecretKey: "s"}, "https://a.example", time.Second, nil)
	if err != nil {
		t.Fatal(err)
	}
	pin := client.Options().HTTPClient.(*http.Client).Transport.(pinned)
	if pin.next.(*http.Transport).Proxy != nil {
		t.Error("requests may go through a proxy")
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
	st, err := newStore(Target{Endpoint: silent.URL, Bucket: "abc", AccessKey: "k", SecretKey: "s"}, site{region: place.EU, here: silent.URL}, 100*time.Millisecond, 1)
	if err != nil {
		t.Fatal(err)
	}
	close(st.proved)
	defer st.idle()
	begun := time.Now()
	if _, err := st.create(t.Context(), "k"); !errors.Is(err, context.DeadlineExceeded) && (err == nil || !strings.Contains(err.Error(), "timeout")) {
		t.Errorf("error %v", err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}
