package pgstore_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// A session that wants a platform waits for a device that has it, however many others are free.
func TestSessionGetsItsPlatform(t *testing.T) {
	s := open(t, 2)
	names := func() []string {
		t.Helper()
		offers, err := s.Offers(t.Context(), orchestrator.NewSession{Want: api.DeviceWant{}})
		if err != nil {
			t.Fatal(err)
		}
		var n []string
		for _, o := range offers {
			n = append(n, o.Platform)
		}
		return n
	}
	if n := names(); !slices.Equal(n, []string{"iOS"}) {
		t.Errorf("platforms %q", n)
	}
	tablet := wish("a")
	tablet.Want = api.DeviceWant{Platform: "ipados"}
	if _, err := s.Create(t.Context(), tablet); !errors.Is(err, orchestrator.ErrNoSuchDevice) {
		t.Errorf("a platform that nobody has: %v", err)
	}
	up(t, s, "mac-2", 1)
	for _, state := range []wire.DeviceState{wire.DeviceBusy, wire.DeviceReady} {
		d := wire.Device{Name: "phone-0", Kind: "fake", Model: "iPad", PlatformName: "iPadOS", State: state}
		if err := s.DevicesChanged(t.Context(), "mac-2", []wire.Device{d}); err != nil {
			t.Fatal(err)
		}
		if state == wire.DeviceBusy {
			mustCreate(t, s, tablet)
		}
		c, ok, err := claim(t.Context(), s, "test", []string{"mac-1", "mac-2"}, 1e9)
		if err != nil || ok != (state == wire.DeviceReady) || ok && (c.Session != tablet.ID || c.Host != "mac-2") {
			t.Errorf("the tablet is %s: %+v %v %v", state, c, ok, err)
		}
	}
	if n := names(); !slices.Equal(n, []string{"iOS", "iPadOS"}) {
		t.Errorf("platforms %q", n)
	}
	if v, err := s.Get(t.Context(), tablet.ID); err != nil || v.Want.Platform != "ipados" {
		t.Errorf("%+v, %v", v.Want, err)
	}
	s.MarkRevoked(t, "mac-2")
	if n := names(); !slices.Equal(n, []string{"iOS"}) {
		t.Errorf("platforms %q", n)
	}
}
