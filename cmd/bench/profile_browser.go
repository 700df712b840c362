package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"time"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/profilestate"
)

const (
	browserRounds   = 7
	browserOrigins  = 20
	cookiesOfOrigin = 10 // 200 in all; the last of each origin is for its subdomains too
	entriesOfOrigin = 3
)

// benchBrowser measures what a profile adds to the begin and the end of a session on a real WebKit, as the orchestrator tells it in the
// session's log: everything is restored and read back; all origins are captured, and the generation is committed. Without and with
// a round trip between orchestrator and host.
func benchBrowser(ctx context.Context) (figures []figure, err error) {
	for _, program := range []string{"WebKitWebDriver", "Xvfb"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%w: run `make setup`", err)
		}
	}
	var relay delayed
	defer func() { err = errors.Join(err, relay.close()) }()
	for _, way := range []struct {
		restore, capture string
		bar              float64
		via              []func(string) (string, error)
	}{
		{"profile/restore-200-cookies", "profile/capture-20-origins", 2, nil},
		{"profile/restore-100ms", "profile/capture-100ms", 3, []func(string) (string, error){relay.to}},
	} {
		restore, capture, err := browserRoundsOver(ctx, way.via...)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", way.restore, err)
		}
		figures = append(figures, atMost(way.restore, restore.Seconds(), 0, restore.Seconds(), "s", way.bar),
			atMost(way.capture, capture.Seconds(), 0, capture.Seconds(), "s", way.bar))
	}
	return figures, nil
}

// browserRoundsOver has sessions with one profile, one after another, and gives the medians.
func browserRoundsOver(ctx context.Context, via ...func(string) (string, error)) (restore, capture time.Duration, err error) {
	f, err := openFleet(ctx, []host.Device{{Name: "webkit", Kind: host.KindWebKitGTK, Model: "WebKitGTK", PlatformName: "linux"}}, via...)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	addr, err := f.serve(http.HandlerFunc(serveSite))
	if err != nil {
		return 0, 0, err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, 0, err
	}
	p, err := f.client.CreateProfile(ctx, api.CreateProfile{Account: "bench", Name: "bench"})
	if err != nil {
		return 0, 0, err
	}
	state, err := json.Marshal(loggedIn(port))
	if err != nil {
		return 0, 0, err
	}
	if _, err := f.client.ImportProfile(ctx, p.ID, bytes.NewReader(state)); err != nil {
		return 0, 0, err
	}
	var restored, captured []time.Duration
	for range browserRounds {
		r, c, err := f.browse(ctx, p.ID, port)
		if err != nil {
			return 0, 0, err
		}
		restored, captured = append(restored, r), append(captured, c)
	}
	return median(restored), median(captured), nil
}

// hostOfSite resolves to this machine in every browser, and is another host and site than its neighbours.
func hostOfSite(i int) string { return fmt.Sprintf("site%02d.localhost", i) }

// serveSite is every site: a page, and the document without scripts that nearly all have.
func serveSite(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/":
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprint(w, "<!doctype html><title>site</title>") // a browser that leaves is no error
	case "/robots.txt":
		fmt.Fprint(w, "User-agent: *")
	default:
		http.NotFound(w, r)
	}
}

// loggedIn is the state of a profile that is logged in at all sites.
func loggedIn(port string) *profilestate.Snapshot {
	s := &profilestate.Snapshot{}
	for i := range browserOrigins {
		o := profilestate.Origin{Origin: "http://" + net.JoinHostPort(hostOfSite(i), port)}
		for j := range entriesOfOrigin {
			o.LocalStorage = append(o.LocalStorage, profilestate.Entry{Name: profilestate.JSString(fmt.Sprint("key", j)), Value: "what a site remembers"})
		}
		s.Origins = append(s.Origins, o)
		for j := range cookiesOfOrigin {
			c := profilestate.Cookie{Name: fmt.Sprint("c", j), Value: fmt.Sprintf("token-%d-of-site-%d", j, i), Domain: hostOfSite(i), Path: "/",
				Expires: float64(time.Now().Add(24 * time.Hour).Unix()), HTTPOnly: j%2 == 0, SameSite: profilestate.Lax}
			if j == cookiesOfOrigin-1 {
				c.Domain = "." + c.Domain
			}
			s.Cookies = append(s.Cookies, c)
		}
	}
	return s
}

// browse is one session of the profile that goes to all its sites.
func (f *fleet) browse(ctx context.Context, profile, port string) (restored, captured time.Duration, _ error) {
	record := false
	s, err := f.client.CreateSession(ctx, api.CreateSession{Account: "bench", Profile: profile, Recording: &record})
	if err != nil {
		return 0, 0, err
	}
	if s, err = f.client.Wait(ctx, s.ID, api.Running); err == nil && s.State != api.Running {
		err = fmt.Errorf("a session did not start: %s %s", s.Reason, s.Detail)
	}
	if err != nil {
		return 0, 0, err
	}
	var tour batch.Builder
	for i := range browserOrigins {
		tour.Post("/url", map[string]string{"url": "http://" + net.JoinHostPort(hostOfSite(i), port) + "/"})
	}
	request, err := tour.Request()
	if err != nil {
		return 0, 0, err
	}
	visits, err := f.client.Batch(ctx, s.ID, request)
	if err := errors.Join(err, visits.Err()); err != nil {
		return 0, 0, err
	}
	if err := second(f.client.Do(ctx, s.ID, webdriver.Command{Method: http.MethodDelete})); err != nil {
		return 0, 0, err
	}
	if s, err = f.client.Wait(ctx, s.ID, api.Ended); err != nil {
		return 0, 0, err
	}
	events, err := f.client.Events(ctx, s.ID, 0)
	if err != nil {
		return 0, 0, err
	}
	const items = browserOrigins * (cookiesOfOrigin + entriesOfOrigin)
	for _, e := range events {
		took := time.Duration(e.TookUS) * time.Microsecond
		switch {
		case e.Kind == "profile_restored" && e.Restored == items:
			restored = took
		case e.Kind == "profile_saved" && e.Captured == items:
			captured = took
		}
	}
	if restored == 0 || captured == 0 {
		return 0, 0, fmt.Errorf("not all of the %d items were restored and captured: %+v", items, events)
	}
	return restored, captured, nil
}
