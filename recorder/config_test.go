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

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/driftstack/fleet/orchestrator/outbound"
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
	st, err := newStore(cfg.EU.Target, cfg.EU.site(nil), storeConfig{timeout: time.Second, concurrency: 1})
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
	st, err := newStore(Target{Endpoint: here.URL, Bucket: "abc", AccessKey: "k", SecretKey: "s"}, site{region: place.EU, here: here.URL}, storeConfig{timeout: 5 * time.Second, concurrency: 1})
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
}

// TestStorageIsPinned: each region's client connects to its host, and tells what it did not connect to. What a pin is made of is tested with it.
func TestStorageIsPinned(t *testing.T) {
	var refused []outbound.Refusal
	cfg := validConfig(t)
	for endpoint, host := range map[string]string{
		cfg.EU.site(cfg.US).here:   r2Account + ".eu.r2.cloudflarestorage.com:443",
		cfg.US.site(cfg.EU).here:   r2Account + ".r2.cloudflarestorage.com:443",
		"http://127.0.0.1:9":       "127.0.0.1:9",
		cfg.EU.site(nil).elsewhere: r2Account + ".r2.cloudflarestorage.com:443",
	} {
		pin, err := pinTo(endpoint, func(r outbound.Refusal) { refused = append(refused, r) })
		if err != nil {
			t.Fatal(err)
		}
		local := strings.HasPrefix(endpoint, "http:")
		if pin.String() != host || pin.Plain != local || (pin.Networks != nil) != local {
			t.Errorf("%s is pinned to %+v", endpoint, pin)
		}
	}
	client, idle, err := pinnedClient(Target{AccessKey: "k", SecretKey: "s"}, cfg.EU.site(nil).here, cfg.stores(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer idle()
	r, _ := http.NewRequest(http.MethodGet, cfg.US.site(cfg.EU).here, nil)
	if _, err := client.Options().HTTPClient.Do(r); !errors.Is(err, outbound.ErrRefused) {
		t.Errorf("a request to the US through the EU's client: %v", err)
	}
	cfg.Refused = func(r outbound.Refusal) { refused = append(refused, r) }
	st, err := newStore(cfg.EU.Target, cfg.EU.site(cfg.US), cfg.stores())
	if err != nil {
		t.Fatal(err)
	}
	defer st.idle()
	for _, c := range []*s3.Client{st.client, st.prober.here, st.prober.elsewhere} {
		r, _ := http.NewRequest(http.MethodGet, "https://s3.example/", nil)
		if _, err := c.Options().HTTPClient.Do(r); !errors.Is(err, outbound.ErrRefused) {
			t.Error(err)
		}
	}
	if len(refused) != 3 || refused[0].To != "s3.example:443" || refused[0].Category != "recordings" {
		t.Errorf("told of %+v", refused)
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
	st, err := newStore(Target{Endpoint: silent.URL, Bucket: "abc", AccessKey: "k", SecretKey: "s"}, site{region: place.EU, here: silent.URL}, storeConfig{timeout: 100 * time.Millisecond, concurrency: 1})
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
