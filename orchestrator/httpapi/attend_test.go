package httpapi_test

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// taken is two orchestrators of which only the second has the host, and a session that has its device.
func taken(t *testing.T) (r *several, one, two *mate, quit func()) {
	t.Helper()
	r = newSeveral(t, 6*time.Second, 0, "eu-1", "eu-2")
	one, two = r.all[1], r.all[0] // hosts connect to the first
	s, _ := r.runningOnFirst(t)
	return r, one, two, func() {
		t.Helper()
		if _, err := two.client.Do(t.Context(), s.ID, webdriver.Command{Method: http.MethodDelete}); err != nil {
			t.Fatal(err)
		}
	}
}

// runningOnFirst is running, with the others left without the host.
func (r *several) runningOnFirst(t *testing.T) (api.Session, *drivertest.Driver) {
	t.Helper()
	s := (&rig{client: r.all[0].client}).running(t, api.CreateSession{})
	return s, <-r.drivers
}

// impatient is the newest session, once it is queued.
func impatient(t *testing.T, o *mate) (s api.Session) {
	t.Helper()
	eventually(t, "the session is queued", func() bool {
		l, err := o.client.Sessions(t.Context(), nil)
		must(t, err)
		s = l.Sessions[0]
		return s.Name == "impatient" && s.State == api.Queued
	})
	return s
}

// A New Session is claimed by another orchestrator than the one that its client waits at: it is confirmed and runs.
func TestNewSessionIsClaimedElsewhere(t *testing.T) {
	r, one, _, quit := taken(t)
	_, answered := (&rig{url: one.url}).leaving(t)
	s := impatient(t, one)
	quit()
	if err := <-answered; err == nil || err.Error() != "answered with 200" {
		t.Fatal(err)
	}
	<-r.drivers
	v, err := one.client.Session(t.Context(), s.ID)
	if must(t, err); v.State != api.Running || v.Host != "mac-1" {
		t.Errorf("%+v", v)
	}
}

// One whose client leaves while it is queued is ended at once, and costs no device.
func TestClientThatLeavesTheQueueOfAnother(t *testing.T) {
	_, one, two, quit := taken(t)
	leave, left := (&rig{url: one.url}).leaving(t)
	s := impatient(t, one)
	leave()
	<-left
	v, err := two.client.Wait(t.Context(), s.ID, api.Ended)
	if must(t, err); v.Reason != "cancelled" || v.StartedAt != nil {
		t.Errorf("%+v", v)
	}
	quit()
}

// One whose client's orchestrator is killed is claimed, and ended without anything being done on the device, which the next one
// gets; a session of POST /v1/sessions does not depend on who took it.
func TestOrchestratorOfTheClientIsKilled(t *testing.T) {
	_, one, two, quit := taken(t)
	leave, left := (&rig{url: one.url}).leaving(t)
	s := impatient(t, one)
	posted, err := one.client.CreateSession(t.Context(), unrecorded(api.CreateSession{})) // after it in the queue
	must(t, err)
	eventually(t, "it is not left to the orchestrator of its client any more", func() bool { return time.Since(s.CreatedAt) > 150*time.Millisecond })
	one.die()
	must(t, two.store.WithdrawReplica(t.Context(), one.name)) // as its restart does; TestAwaitedHasALimit is without
	quit()
	v, err := two.client.Wait(t.Context(), s.ID, api.Ended)
	if must(t, err); v.Reason != "cancelled" || v.StartedAt == nil || v.RunningAt != nil || v.Detail != "its client does not wait for it any more" {
		t.Errorf("%+v", v)
	}
	if k := kinds(t, two, s.ID); slices.Contains(k, string(orchestrator.EventDriverStarted)) || !slices.Contains(k, "ended") {
		t.Errorf("its log: %v", k)
	}
	v, err = two.client.Wait(t.Context(), posted.ID, api.Running)
	if must(t, err); v.State != api.Running {
		t.Errorf("the session that was posted: %+v", v)
	}
	leave()
	<-left
}
