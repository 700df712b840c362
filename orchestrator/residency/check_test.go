package residency_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/driftstack/fleet/orchestrator/outbound"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/orchestrator/residency"
)

func site(t *testing.T, development bool, own ...string) residency.Site {
	t.Helper()
	at, err := place.InEU("DE")
	if err != nil {
		t.Fatal(err)
	}
	s := residency.Site{Location: at, Development: development, Tunnel: netip.MustParsePrefix("10.76.0.0/15")}
	for _, text := range own {
		var n residency.Network
		if err := n.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		s.Own = append(s.Own, n)
	}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return s
}

// endpoint is one that is checked, and what becomes of it: where it stands, or what the error says.
type endpoint struct {
	at    residency.Site
	url   string
	host  string // of the pin; empty: it is refused
	known residency.Known
	says  string
}

func (e endpoint) check(t *testing.T, category residency.Name, at residency.Standing, to residency.InEU, err error) {
	t.Helper()
	if e.host == "" {
		var breach *residency.BreachError
		if !errors.As(err, &breach) || breach.Category != category || breach.Setting != "--setting" || breach.Mend == "" || !strings.Contains(err.Error(), e.says) || to != (residency.InEU{}) {
			t.Errorf("%s: %v", e.url, err)
		}
		if err != nil && strings.Contains(err.Error(), "verysecret") {
			t.Errorf("%s: the error tells the password: %v", e.url, err)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: %v", e.url, err)
		return
	}
	pin := to.Pin()
	if at.Known != e.known || at.Region != place.EU || at.Country == "" || at.Category != category || !slices.Equal(pin.Hosts, []string{e.host}) {
		t.Errorf("%s stands %+v, pinned to %v", e.url, at, pin)
	}
	if local := strings.HasPrefix(e.host, "/"); !local && (len(pin.Networks) > 0) != (at.Known == residency.DeclaredOnly) {
		t.Errorf("%s leads to %v", e.url, pin.Networks)
	}
	if pin.Plain || pin.Category != string(category) {
		t.Errorf("%s: %+v", e.url, pin)
	}
}

func TestCheckRedis(t *testing.T) {
	prod, dev := site(t, false), site(t, true)
	for _, e := range []endpoint{
		{prod, "rediss://:verysecret@eu1-calm-sea-12345.upstash.io:6379", "eu1-calm-sea-12345.upstash.io:6379", residency.ByName, ""},
		{prod, "rediss://default:verysecret@eu2-calm-sea-12345.upstash.io/0", "eu2-calm-sea-12345.upstash.io:6379", residency.ByName, ""},
		{prod, "redis://:verysecret@eu1-calm-sea-12345.upstash.io:6379", "", "", "without TLS"},
		{prod, "rediss://:verysecret@us1-calm-sea-12345.upstash.io:6379", "", "", "no host of Upstash that says that it is in the EU"},
		{prod, "rediss://:verysecret@usw1-calm-sea-12345.upstash.io:6379", "", "", "eu1-"},
		{prod, "rediss://:verysecret@calm-sea-12345.upstash.io:6379", "", "", "global"},
		{prod, "rediss://:verysecret@eu1-calm-sea-12345.upstash.io.evil.com:6379", "", "", "--own-network"},
		{prod, "rediss://:verysecret@eu1-calm-sea-12345.upstash.io.:6379", "", "", "eu1-"},
		{prod, "rediss://:verysecret@EU1-calm-sea-12345.upstash.io:6379", "", "", "eu1-"},
		{prod, "rediss://eu1-calm-sea-12345.upstash.io:6379@evil.com", "", "", "evil.com"},
		{prod, "rediss://:verysecret@cache.example:6379", "", "", "--own-network"},
		{prod, "rediss://:verysecret@127.0.0.1:6379", "", "", "--own-network"},
		{prod, "unix:///run/redis.sock", "", "", "--own-network local"},
		{prod, "https://eu1-calm-sea-12345.upstash.io", "", "", "no URL of a Redis"},
		{prod, "rediss://", "", "", "no URL of a Redis"},
		{prod, "rediss://:very secret%@x", "", "", "no URL"},
		{prod, "rediss://:verysecret@eu1-calm-sea-12345.upstash.io:0", "", "", "no URL of a Redis"},
		{dev, "redis://127.0.0.1:6379", "127.0.0.1:6379", residency.DeclaredOnly, ""},
		{dev, "unix:///run/redis.sock", "/run/redis.sock", residency.DeclaredOnly, ""},
		{dev, "redis://us1-calm-sea-12345.upstash.io:6379", "", "", "eu1-"},
		{site(t, false, "10.0.0.0/24"), "redis://cache.internal", "cache.internal:6379", residency.DeclaredOnly, ""},
		{site(t, false, "10.0.0.0/24"), "redis://10.0.0.9", "10.0.0.9:6379", residency.DeclaredOnly, ""},
		{site(t, false, "10.0.0.0/24"), "redis://10.0.1.9", "", "", "--own-network"},
	} {
		at, pin, err := e.at.CheckRedis("--setting", e.url)
		e.check(t, residency.Cache, at, pin, err)
	}
}

func TestCheckSentry(t *testing.T) {
	prod, dev := site(t, false, "local", "10.0.0.0/24"), site(t, true)
	for _, e := range []endpoint{
		{prod, "https://key@o123.ingest.de.sentry.io/456", "o123.ingest.de.sentry.io:443", residency.ByName, ""},
		{prod, "https://key@o123.ingest.de.sentry.io:443/456", "o123.ingest.de.sentry.io:443", residency.ByName, ""},
		{prod, "https://key@o123.ingest.us.sentry.io/456", "", "", "in the US"},
		{prod, "https://key@o123.ingest.sentry.io/456", "", "", "in the US"},
		{prod, "https://key@sentry.io/456", "", "", "ingest.de.sentry.io"},
		{prod, "https://key@ingest.de.sentry.io/456", "", "", "ingest.de.sentry.io"},
		{prod, "http://key@o123.ingest.de.sentry.io/456", "", "", "over https"},
		{prod, "https://key@o123.ingest.de.sentry.io:8443/456", "", "", "port 443"},
		{prod, "https://key@o123.ingest.de.sentry.io.evil.com/456", "", "", "no host of Sentry's EU region"},
		{prod, "https://o123.ingest.de.sentry.io@evil.com/456", "", "", "evil.com"},
		{prod, "https://key@o123.ingest.de.sentry.io./456", "", "", "no host"},
		{prod, "https://key@O123.ingest.de.sentry.io/456", "", "", "no host"},
		{prod, "https://key@o123.ingest.xn--de-x.sentry.io/456", "", "", "no host"},
		{prod, "https://key@10.0.0.9/456", "", "", "no host"},
		{dev, "http://key@127.0.0.1:9000/456", "", "", "over https"},
		{prod, "", "", "", "over https"},
		{prod, "https://%", "", "", "no URL"},
	} {
		at, pin, err := e.at.CheckSentry("--setting", e.url)
		e.check(t, residency.Errors, at, pin, err)
	}
}

// TestPeersArePinned: wherever Postgres says that another orchestrator is, it is asked in networks of ours alone.
func TestPeersArePinned(t *testing.T) {
	pin := site(t, false, "10.0.0.0/24").Peers().Pin()
	for _, to := range []string{"127.0.0.1:1", "3.5.140.2:8080", "10.0.1.1:1", "10.77.1.0:7700"} {
		if _, err := pin.DialContext(t.Context(), "tcp", to); !errors.Is(err, outbound.ErrRefused) {
			t.Errorf("%s: %v", to, err)
		}
	}
	if _, err := site(t, false).Peers().Pin().DialContext(t.Context(), "tcp", "127.0.0.1:1"); !errors.Is(err, outbound.ErrRefused) {
		t.Errorf("without a network of ours: %v", err)
	}
	if _, err := (residency.InEU{}).Pin().DialContext(t.Context(), "tcp", "127.0.0.1:1"); !errors.Is(err, outbound.ErrRefused) {
		t.Errorf("a way that nobody has checked: %v", err)
	}
	if _, err := site(t, true).Peers().Pin().DialContext(t.Context(), "tcp", "127.0.0.1:1"); err == nil || errors.Is(err, outbound.ErrRefused) {
		t.Errorf("on this machine, in development: %v", err)
	}
}
