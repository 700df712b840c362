package pgstore_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
)

// mixed is a host with a phone and a Chromium; what the phone drives is left for the store to know.
func mixed(t *testing.T) *pgstore.Store {
	t.Helper()
	s := open(t, 1)
	if err := s.HostUp(t.Context(), wire.Hello{Protocol: wire.Version, Host: "mac-1", Devices: []wire.Device{
		{Name: "phone-0", Kind: "safaridriver", PlatformName: "iOS", Model: "iPhone 15", State: wire.DeviceReady},
		{Name: "phone-1", Kind: "safaridriver", Browser: "safari", PlatformName: "iOS", Model: "iPhone 15", State: wire.DeviceReady},
		{Name: "chromium", Kind: "chromedriver", Browser: "chrome", BiDi: true, Model: "Chromium", PlatformName: "linux", State: wire.DeviceReady},
	}}); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestOffers(t *testing.T) {
	s := mixed(t)
	safari, chrome := webdriver.Offer{Browser: "safari", Platform: "iOS"}, webdriver.Offer{Browser: "chrome", BiDi: true, Platform: "linux"}
	for _, c := range []struct {
		want   api.DeviceWant
		offers []webdriver.Offer
	}{
		{api.DeviceWant{}, []webdriver.Offer{chrome, safari}},
		{api.DeviceWant{Kind: "chromedriver"}, []webdriver.Offer{chrome}},
		{api.DeviceWant{Model: "iPhone 15", Host: "mac-1"}, []webdriver.Offer{safari}},
		{api.DeviceWant{Platform: "Linux"}, []webdriver.Offer{chrome}},
		{api.DeviceWant{Platform: "Linux", Model: "iPhone 15"}, nil},
		{api.DeviceWant{Labels: map[string]string{"x": "y"}}, nil},
	} {
		if got, err := s.Offers(t.Context(), orchestrator.NewSession{Want: c.want}); err != nil || !slices.Equal(got, c.offers) {
			t.Errorf("%+v: %+v, %v", c.want, got, err)
		}
	}
	// A device that changes is offered as what it is now; one of a host that was removed is not.
	if err := s.DevicesChanged(t.Context(), "mac-1", []wire.Device{wire.Device{Name: "chromium", Kind: "chromedriver", Browser: "chrome", State: wire.DeviceBusy}}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Offers(t.Context(), orchestrator.NewSession{Want: api.DeviceWant{Kind: "chromedriver"}}); err != nil || !slices.Equal(got, []webdriver.Offer{{Browser: "chrome"}}) {
		t.Errorf("without BiDi: %+v, %v", got, err)
	}
	if err := s.Revoke(t.Context(), "mac-1", time.Hour, orchestrator.Act{By: "test"}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Offers(t.Context(), orchestrator.NewSession{Want: api.DeviceWant{}}); err != nil || len(got) != 0 {
		t.Errorf("of a removed host: %+v, %v", got, err)
	}
}

func TestBiDiIsClaimedWhereItIs(t *testing.T) {
	s := mixed(t)
	bidi := wish("a")
	bidi.Browser, bidi.BiDi = "chrome", true
	mustCreate(t, s, bidi)
	if c := mustClaim(t, s); c.Session != bidi.ID || c.Device != "chromium" {
		t.Errorf("a session that wants BiDi is on %s", c.Device)
	}
	// The device is taken: the next one waits, and lets those pass that do with less.
	waits := wish("a")
	waits.BiDi = true
	mustCreate(t, s, waits)
	safari := wish("a")
	safari.Browser = "safari"
	mustCreate(t, s, safari)
	if c := mustClaim(t, s); c.Session != safari.ID || c.Device == "chromium" {
		t.Errorf("session %s is on %s", c.Session, c.Device)
	}
	if _, ok, err := claim(t.Context(), s, "test", []string{"mac-1"}, time.Minute); ok || err != nil {
		t.Errorf("a session that wants BiDi got a phone: %v, %v", ok, err)
	}
	none := wish("a")
	none.Browser, none.BiDi = "safari", true
	if _, err := s.Create(t.Context(), none); !errors.Is(err, orchestrator.ErrNoSuchDevice) {
		t.Errorf("BiDi on Safari: %v", err)
	}
}
