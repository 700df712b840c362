package httpapi_test

import (
	"context"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// lateRequeue is a store whose Requeue waits until a device has been stored as ready.
type lateRequeue struct {
	orchestrator.SessionStore
	ready <-chan struct{}
}

func (s lateRequeue) Requeue(ctx context.Context, last orchestrator.Event) (bool, error) {
	select {
	case <-s.ready:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	return s.SessionStore.Requeue(ctx, last)
}

// TestRequeueAfterTheDeviceIsReadyAgain: a device refuses its session, and is stored as ready again before the session is queued
// again, which stores it as busy. Nothing changes at its host any more, and it must not stay so.
func TestRequeueAfterTheDeviceIsReadyAgain(t *testing.T) {
	t.Parallel()
	ready, changed := make(chan struct{}, 1), make(chan wire.DeviceState, 64)
	r := newTappedRig(t, []host.Device{{Name: "phone-a", Kind: host.KindFake, PlatformName: "iOS"}}, 10, taps{
		sessions: func(s orchestrator.SessionStore) orchestrator.SessionStore { return lateRequeue{s, ready} },
		changed:  func(d wire.Device) { changed <- d.State },
	})
	driver := <-r.drivers
	driver.Inject(drivertest.Fault{NewSession: true, Effect: drivertest.Refuse,
		Error: &webdriver.Error{Code: webdriver.SessionNotCreated, Message: "Could not find any session hosts"}})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := r.client.CreateSession(ctx, unrecorded(api.CreateSession{}))
	must(t, err)
	for refused := false; !refused; {
		select {
		case now := <-changed:
			refused = driver.Pending() == 0 && now == wire.DeviceReady
		case <-ctx.Done():
			t.Fatal("the device does not come back")
		}
	}
	ready <- struct{}{}
	s, err = r.client.Wait(ctx, s.ID, api.Running)
	must(t, err)
	if s.State != api.Running {
		t.Errorf("the session is %s: %s", s.State, s.Reason)
	}
}
