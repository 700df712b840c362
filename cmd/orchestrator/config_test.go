package main

import (
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/driftstack/fleet/orchestrator/place"
)

func parseConfig(t *testing.T, args ...string) (config, error) {
	t.Helper()
	var cfg config
	parser, err := kong.New(&cfg, kong.Name("orchestrator"), kong.DefaultEnvars("DRIFTSTACK"))
	must(t, err)
	_, err = parser.Parse(append([]string{"--database-url", "host=/x", "--key-database-url", "host=/x", "--service-token", "0123456789abcdef",
		"--state-dir", t.TempDir(), "--tunnel-endpoint", "a.example:1", "--own-network", "local"}, args...))
	return cfg, err
}

const r2Account = "0123456789abcdef0123456789abcdef"

var euBucket = []string{"--eu-s3-account", r2Account, "--eu-s3-bucket", "recordings", "--eu-s3-access-key", "k", "--eu-s3-secret-key", "s"}

// An orchestrator starts in the EU only, and says what would be accepted.
func TestLocation(t *testing.T) {
	parse := func(args ...string) (config, error) {
		t.Helper()
		return parseConfig(t, append(euBucket, args...)...)
	}
	for _, country := range place.MemberStates() {
		if cfg, err := parse("--location", strings.ToLower(country)); err != nil || cfg.Location.Country() != country {
			t.Errorf("%s: %v, %v", country, cfg.Location, err)
		}
	}
	// Of the EEA, of the EU until 2020, of Europe, a union and not a country of it, Greece by another code.
	for _, country := range []string{"NO", "IS", "LI", "GB", "UK", "CH", "US", "EU", "EL", "", "DE "} {
		_, err := parse("--location", country)
		if err == nil || !strings.Contains(err.Error(), "--location") || !strings.Contains(err.Error(), "AT BE BG") {
			t.Errorf("%q: %v", country, err)
		}
	}
	if _, err := parse(); err == nil || !strings.Contains(err.Error(), "--location") {
		t.Errorf("without one: %v", err)
	}
}

// The marks of the spool's volume are in an order.
func TestSpoolMarks(t *testing.T) {
	for _, tt := range []struct {
		begin, take string
		ok          bool
	}{{"2000", "1000", true}, {"1000", "1000", true}, {"0", "0", true}, {"1000", "2000", false}, {"-1", "-1", false}, {"1000", "-1", false}} {
		_, err := parseConfig(t, append(euBucket, "--location", "DE", "--spool-begin-above="+tt.begin, "--spool-take-above="+tt.take)...)
		if (err == nil) != tt.ok || err != nil && !strings.Contains(err.Error(), "--spool-take-above") {
			t.Errorf("%s, %s: %v", tt.begin, tt.take, err)
		}
	}
}

// Where recordings go follows from accounts. A host cannot be given, but for development and on loopback.
func TestStorageSettings(t *testing.T) {
	const local = "http://127.0.0.1:7070"
	eu := func(args ...string) []string {
		return append([]string{"--location", "DE", "--eu-s3-bucket", "recordings", "--eu-s3-access-key", "k", "--eu-s3-secret-key", "s"}, args...)
	}
	for name, tt := range map[string]struct {
		args []string
		says []string // nothing: it is accepted
	}{
		"R2":                             {eu("--eu-s3-account", r2Account), nil},
		"R2 in both":                     {eu("--eu-s3-account", r2Account, "--us-s3-account", r2Account, "--us-s3-bucket", "copies", "--us-s3-access-key", "k", "--us-s3-secret-key", "s"), nil},
		"R2, encrypted":                  {eu("--eu-s3-account", r2Account, "--eu-s3-encryption", "always"), nil},
		"development":                    {eu("--eu-s3-endpoint", local, "--development"), nil},
		"development, encrypted":         {eu("--eu-s3-endpoint", local, "--development", "--eu-s3-encryption", "AES256"), nil},
		"neither":                        {eu(), []string{"--eu-s3-account", "32 of 0-9 and a-f"}},
		"endpoint in production":         {eu("--eu-s3-endpoint", local), []string{"--eu-s3-endpoint", "--development"}},
		"endpoint elsewhere":             {eu("--eu-s3-endpoint", "https://s3.example", "--development"), []string{"--eu-s3-endpoint", "loopback", "http://127.0.0.1:PORT"}},
		"R2's endpoint":                  {eu("--eu-s3-endpoint", "https://"+r2Account+".r2.cloudflarestorage.com", "--development"), []string{"--eu-s3-endpoint", "loopback"}},
		"both":                           {eu("--eu-s3-account", r2Account, "--eu-s3-endpoint", local, "--development"), []string{"--eu-s3-account", "--eu-s3-endpoint"}},
		"host as account":                {eu("--eu-s3-account", r2Account+".r2.cloudflarestorage.com"), []string{"--eu-s3-account", "32 of 0-9 and a-f"}},
		"R2, asked to encrypt":           {eu("--eu-s3-account", r2Account, "--eu-s3-encryption", "AES256"), []string{"--eu-s3-encryption", `"always"`}},
		"encryption nobody asks for":     {eu("--eu-s3-endpoint", local, "--development", "--eu-s3-encryption", "always"), []string{"--eu-s3-encryption", `"AES256"`, `"none"`}},
		"US endpoint in production":      {eu("--eu-s3-account", r2Account, "--us-s3-endpoint", local, "--us-s3-bucket", "copies", "--us-s3-access-key", "k", "--us-s3-secret-key", "s"), []string{"--us-s3-endpoint", "--development"}},
		"US bucket without where it is":  {eu("--eu-s3-account", r2Account, "--us-s3-bucket", "copies"), []string{"--us-s3-account"}},
		"US bucket without a secret key": {eu("--eu-s3-account", r2Account, "--us-s3-account", r2Account, "--us-s3-bucket", "copies", "--us-s3-access-key", "k"), []string{"--us-s3-secret-key"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseConfig(t, tt.args...)
			if (err != nil) != (tt.says != nil) {
				t.Errorf("%v", err)
			}
			for _, s := range tt.says {
				if err != nil && !strings.Contains(err.Error(), s) {
					t.Errorf("the error does not say %q: %v", s, err)
				}
			}
		})
	}
	t.Setenv("DRIFTSTACK_EU_S3_ACCOUNT", r2Account)
	if cfg, err := parseConfig(t, eu()...); err != nil || cfg.EU.target().Account != r2Account {
		t.Errorf("from the environment: %+v, %v", cfg.EU.target(), err)
	}
}
