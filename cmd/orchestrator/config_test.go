package main

import (
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/driftstack/fleet/orchestrator/place"
)

// An orchestrator starts in the EU only, and says what would be accepted.
func TestLocation(t *testing.T) {
	parse := func(args ...string) (config, error) {
		var cfg config
		parser, err := kong.New(&cfg, kong.Name("orchestrator"))
		must(t, err)
		_, err = parser.Parse(append([]string{"--database-url", "host=/x", "--key-database-url", "host=/x", "--service-token", "0123456789abcdef",
			"--state-dir", t.TempDir(), "--tunnel-endpoint", "a.example:1",
			"--eu-s3-endpoint", "https://a.example", "--eu-s3-bucket", "b", "--eu-s3-access-key", "k", "--eu-s3-secret-key", "s"}, args...))
		return cfg, err
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
