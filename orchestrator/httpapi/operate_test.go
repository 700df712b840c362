package httpapi_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
)

// startHost runs another host of the rig until the returned function is called, as SIGTERM does. Started again with the same
// folder, it is the same host after a restart.
func (r *rig) startHost(t *testing.T, name, from, dir string, devices int) (stop func()) {
	t.Helper()
	cfg := host.Config{Name: name, Agent: "test", StateDir: dir, Orchestrators: host.Fixed(r.fleet), Log: zap.NewNop(),
		Dial:       (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext,
		Supervisor: []string{os.Args[0], host.SuperviseCommand}, Fake: func(string) *drivertest.Driver { return drivertest.New() }}
	for i := range devices {
		cfg.Devices = append(cfg.Devices, host.Device{Name: fmt.Sprintf("phone-%d", i), Kind: host.KindFake, Model: "iPhone 15", PlatformName: "iOS", PlatformVersion: "17.0"})
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := host.Run(ctx, cfg); err != nil {
			t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(stop)
	return stop
}

// TestRollingRestart restarts the agents of two hosts one after the other under load, as docs/operations.md says: every session,
// on the one as on the other, ends by itself.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 100)
	enrol(t, r.store, "mac-2", 2)
	const devices = 2
	dirs := map[string]string{"mac-1": t.TempDir(), "mac-2": t.TempDir()}
	from := map[string]string{"mac-1": "127.0.0.1", "mac-2": "127.0.0.2"}
	r.stopHost() // the rig's own
	stops := map[string]func(){}
	for name := range dirs {
		stops[name] = r.startHost(t, name, from[name], dirs[name], devices)
	}
	ready := func(name string) bool {
		h, err := r.client.Host(t.Context(), name)
		must(t, err)
		n := 0
		for _, d := range h.DeviceList {
			if d.State == "ready" || d.State == "busy" {
				n++
			}
		}
		return n == devices && len(h.Links) == 1 && h.Links[0].Up
	}
	eventually(t, "both are up", func() bool { return ready("mac-1") && ready("mac-2") })

	var mu sync.Mutex
	ran := map[string]int{} // by host
	loading, stopLoad := context.WithCancel(context.Background())
	var load sync.WaitGroup
	for range 3 {
		load.Go(func() {
			for loading.Err() == nil {
				name, err := r.oneSession(t)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				ran[name]++
				mu.Unlock()
			}
		})
	}
	more := func(name string) {
		t.Helper()
		mu.Lock()
		before := ran[name]
		mu.Unlock()
		eventually(t, "sessions run on "+name, func() bool { mu.Lock(); defer mu.Unlock(); return ran[name] > before })
	}
	more("mac-1")
	more("mac-2")
	for _, name := range []string{"mac-1", "mac-2"} {
		h, err := r.client.As("ada").DrainHost(t.Context(), name, "new agent", time.Hour)
		if must(t, err); h.Cordon == nil || h.Cordon.By != "ada" {
			t.Errorf("%+v", h)
		}
		eventually(t, name+" is drained", func() bool {
			h, err := r.client.Host(t.Context(), name)
			must(t, err)
			return h.Cordon.State == api.Drained
		})
		stops[name]()
		stops[name] = r.startHost(t, name, from[name], dirs[name], devices)
		eventually(t, name+" is back", func() bool { return ready(name) })
		if h, err := r.client.Host(t.Context(), name); err != nil || h.Sessions != 0 {
			t.Errorf("%d sessions on a host that is still cordoned: %v", h.Sessions, err)
		}
		_, err = r.client.As("ada").UncordonHost(t.Context(), name)
		must(t, err)
		more(name)
	}
	stopLoad()
	load.Wait()
	t.Logf("sessions by host: %v", ran)
}

// oneSession runs a session with a few commands, and says where. It is an error when it does not end as its client wants it.
func (r *rig) oneSession(t *testing.T) (host string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := r.client.CreateSession(ctx, unrecorded(api.CreateSession{}))
	if err != nil {
		return "", err
	}
	if s, err = r.client.Wait(ctx, s.ID, api.Running); err != nil || s.State != api.Running {
		return "", fmt.Errorf("session %s is %s: %s %s: %w", s.ID, s.State, s.Reason, s.Detail, err)
	}
	for range 5 {
		if _, err := r.client.Do(ctx, s.ID, webdriver.Command{Method: http.MethodGet, Path: "/url"}); err != nil {
			return "", fmt.Errorf("a command on %s: %w", s.Host, err)
		}
	}
	if _, err := r.client.Do(ctx, s.ID, webdriver.Command{Method: http.MethodDelete}); err != nil {
		return "", fmt.Errorf("quit on %s: %w", s.Host, err)
	}
	v, err := r.client.Wait(ctx, s.ID, api.Ended)
	if err == nil && v.Reason != "completed" {
		err = fmt.Errorf("session on %s ended as %s: %s", s.Host, v.Reason, v.Detail)
	}
	return s.Host, err
}

func TestDrainDeadlineEndsSessions(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 10)
	s := r.running(t, api.CreateSession{})
	h, err := r.client.DrainHost(t.Context(), "mac-1", "", time.Second)
	if must(t, err); h.Cordon.State != api.Draining || h.Sessions != 1 {
		t.Errorf("%+v", h)
	}
	waiting, err := r.client.CreateSession(t.Context(), unrecorded(api.CreateSession{}))
	must(t, err)
	s, err = r.client.Wait(t.Context(), s.ID, api.Ended)
	if must(t, err); s.Reason != "drained" || !strings.Contains(s.Detail, "its host is being drained") {
		t.Errorf("ended as %s: %s", s.Reason, s.Detail)
	}
	_, err = r.client.Do(t.Context(), s.ID, webdriver.Command{Method: http.MethodGet, Path: "/url"})
	var w *webdriver.Error
	if !errors.As(err, &w) || w.Code != webdriver.InvalidSessionID || !strings.Contains(w.Message, "drained") {
		t.Errorf("a command after it: %v", err)
	}
	eventually(t, "the host is drained, and its device clean", func() bool {
		h, err := r.client.Host(t.Context(), "mac-1")
		must(t, err)
		return h.Cordon.State == api.Drained && h.DeviceList[0].State == "ready"
	})
	if v, err := r.client.Session(t.Context(), waiting.ID); err != nil || v.State != api.Queued {
		t.Errorf("the session that waits is %s %s: %v", v.State, v.Reason, err)
	}
	_, err = r.client.UncordonHost(t.Context(), "mac-1")
	must(t, err)
	if v, err := r.client.Wait(t.Context(), waiting.ID, api.Running); err != nil || v.State != api.Running {
		t.Errorf("after the uncordon it is %s %s: %v", v.State, v.Reason, err)
	}
}

func TestForceReleaseFreesTheDevice(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 10)
	s := r.running(t, api.CreateSession{})
	d := <-r.drivers
	d.Inject(drivertest.Fault{Route: webdriver.RouteGetTitle, Effect: drivertest.Hang})
	hung := make(chan error, 1)
	go func() {
		_, err := r.client.Do(context.Background(), s.ID, webdriver.Command{Method: http.MethodGet, Path: "/title"})
		hung <- err
	}()
	eventually(t, "the command hangs", func() bool { return d.Pending() == 0 })
	for body, want := range map[string]int{`{}`: http.StatusUnprocessableEntity, `{"reason":""}`: http.StatusUnprocessableEntity} {
		if resp, b := r.call(t, "POST", "/v1/hosts/mac-1/devices/phone-a/release", body); resp.StatusCode != want || !strings.Contains(string(b), "reason") {
			t.Errorf("%s: %d %s", body, resp.StatusCode, b)
		}
	}
	began := time.Now()
	released, err := r.client.As("ada").ForceRelease(t.Context(), "mac-1", "phone-a", "stuck")
	if must(t, err); released.Session != s.ID {
		t.Errorf("%+v", released)
	}
	v, err := r.client.Wait(t.Context(), s.ID, api.Ended)
	if must(t, err); v.Reason != "force_released" {
		t.Errorf("ended as %s: %s", v.Reason, v.Detail)
	}
	if err := <-hung; err == nil {
		t.Error("the hanging command was answered")
	}
	eventually(t, "the device is free", func() bool {
		d, err := r.client.Devices(t.Context())
		return err == nil && d[0].State == "ready" && d[0].Session == ""
	})
	t.Logf("free after %s", time.Since(began).Round(time.Millisecond))
	l, err := r.client.Audit(t.Context(), "mac-1", 10, 0)
	if must(t, err); len(l.Entries) != 1 || l.Entries[0].Actor != "ada" || l.Entries[0].Reason != "stuck" || l.Entries[0].Session != s.ID || l.Entries[0].Device != "phone-a" {
		t.Errorf("audit: %+v", l)
	}
	var p *client.Problem
	for _, err := range []error{
		secondErr(r.client.ForceRelease(t.Context(), "mac-1", "phone-x", "x")), secondErr(r.client.CordonHost(t.Context(), "mac-9", "")),
		secondErr(r.client.DrainHost(t.Context(), "mac-9", "", 0)), r.client.UncordonDevice(t.Context(), "mac-1", "phone-x"), r.client.RemoveHost(t.Context(), "mac-9"),
	} {
		if !errors.As(err, &p) || p.Status != http.StatusNotFound || !strings.Contains(p.Detail, "lists them") {
			t.Errorf("of what is not there: %v", err)
		}
	}
	if _, err := r.client.ForceRelease(t.Context(), "mac-1", "phone-a", "x"); !errors.As(err, &p) || p.Status != http.StatusConflict || !strings.Contains(p.Detail, "no session has phone-a") {
		t.Errorf("of a free device: %v", err)
	}
	for _, act := range []string{"cordon", "drain", "uncordon"} { // as with curl, without a body or a name
		if resp, b := r.call(t, "POST", "/v1/hosts/mac-1/"+act, ""); resp.StatusCode/100 != 2 || !strings.Contains(string(b), `"name":"mac-1"`) {
			t.Errorf("%s: %d %s", act, resp.StatusCode, b)
		}
	}
	f, err := r.client.Fleet(t.Context())
	if must(t, err); f.Hosts["up"] != 1 || f.Devices["ready"] != 1 || f.Sessions["running"] != 0 {
		t.Errorf("%+v", f)
	}
}

func secondErr[A any](_ A, err error) error { return err }
