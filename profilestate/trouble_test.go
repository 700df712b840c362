package profilestate

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/inert"
)

// TestTroublesomeSites restores to and captures from sites that have no usable page, a hostile one, or none at all.
func TestTroublesomeSites(t *testing.T) {
	t.Parallel()
	k, web := startWebKit(t), startSite(t)
	ctx := bounded(t)
	state := &Snapshot{}
	// In an order in which one bad site comes before a good one: it must not spoil what follows.
	hosts := []string{"elsewhere", "nothing", "password", "sandbox", "spa", "zebra"}
	for _, h := range hosts {
		state.Origins = append(state.Origins, Origin{web.at(h + ".localhost"), []Entry{{"k", JSString(h)}}})
		state.Cookies = append(state.Cookies, Cookie{Name: "c", Value: h, Domain: h + ".localhost", Path: "/", Expires: SessionCookie, SameSite: Lax})
	}
	// A folder whose every page redirects away shows no cookie of the folder.
	state.Cookies = append(state.Cookies, Cookie{Name: "f", Value: "1", Domain: "moved.localhost", Path: "/app", Expires: SessionCookie, SameSite: Lax})
	state.Origins = append(state.Origins, Origin{web.at("moved.localhost"), nil})

	s := k.session(t, "")
	began := time.Now()
	restored, err := Restore(ctx, s, state)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("restore took %v: %v", time.Since(began).Round(time.Millisecond), restored)
	want := map[string]Status{"elsewhere": Dropped, "nothing": Restored, "password": Dropped, "sandbox": Dropped, "spa": Restored, "zebra": Restored}
	for _, i := range restored.Items() {
		h, _, _ := strings.Cut(i.Host, ".")
		if h == "moved" {
			if i.Status != Restored {
				t.Errorf("folder cookie: %v; its icon is in the folder", i)
			}
			continue
		}
		if i.Status != want[h] {
			t.Errorf("%v, want %s", i, want[h])
		}
	}
	s.visit(web.at("localhost") + "/") // where elsewhere.localhost redirects to
	if got := s.js(`return Object.entries(localStorage).join()`); got != "" {
		t.Errorf("localStorage of one site was written to another: %q", got)
	}
	s.visit(web.at("spa.localhost") + "/")
	if got := s.js(`return Object.entries(localStorage).join()`); got != "k,spa" {
		t.Errorf("localStorage of a site whose pages all have scripts is %q", got)
	}

	var visited Visited
	for _, h := range append(hosts, "moved") {
		visited.Origins = append(visited.Origins, web.at(h+".localhost"))
	}
	next, report, err := Capture(ctx, s, visited, state, restored)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("capture: %v", report)
	for _, h := range hosts {
		if next.storage(web.at(h + ".localhost"))["k"] != JSString(h) {
			t.Errorf("localStorage of %s is lost", h)
		}
		if _, ok := next.find(h+".localhost", "c"); !ok {
			t.Errorf("the cookie of %s is lost", h)
		}
	}
	if _, ok := next.find("moved.localhost", "f"); !ok {
		t.Error("the folder cookie is lost")
	}
	s.quit()
}

// TestTroublesomePages captures although the customer left the browser in an awkward state.
func TestTroublesomePages(t *testing.T) {
	t.Parallel()
	k, web := startWebKit(t), startSite(t)
	home := web.at("site.localhost")
	for name, leave := range map[string]func(t *testing.T, s *safari){
		"alert": func(t *testing.T, s *safari) {
			s.js(`setTimeout(() => { alert('stay'); }, 0); return ''`)
		},
		"frame": func(t *testing.T, s *safari) {
			s.js(`document.body.innerHTML = '<iframe src="about:blank"></iframe>'; return ''`)
			s.must("POST", "/frame", `{"id":0}`)
		},
		"closed window": func(t *testing.T, s *safari) {
			s.must("POST", "/window/new", `{"type":"tab"}`)
			s.must("DELETE", "/window", "")
		},
		"lying scripts": func(t *testing.T, s *safari) {
			// The answer of this very script is a lie already.
			s.must("POST", "/execute/sync", `{"args":[],"script":"JSON.stringify = () => '{}'; Storage.prototype.getItem = () => 'lie'; history.replaceState(null, '', '/app/x')"}`)
		},
		"password prompt": func(t *testing.T, s *safari) {
			s.must("POST", "/timeouts", `{"pageLoad":500}`)
			if _, err := s.Do(t.Context(), "POST", "/url", []byte(`{"url":"`+web.at("password.localhost")+`/robots.txt"}`)); err == nil {
				t.Fatal("no prompt")
			}
		},
		"driver that does not wait": func(t *testing.T, s *safari) {},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := bounded(t)
			extra := ""
			if name == "driver that does not wait" {
				extra = `"pageLoadStrategy":"none",`
			}
			if name == "alert" {
				extra = `"unhandledPromptBehavior":"ignore",`
			}
			s := k.session(t, extra)
			defer s.quit()
			before := &Snapshot{
				Cookies: []Cookie{
					{Name: "login", Value: "v", Domain: "site.localhost", Path: "/", Expires: SessionCookie, HTTPOnly: true, SameSite: Lax},
					{Name: "area", Value: "v", Domain: "site.localhost", Path: "/app", Expires: SessionCookie, SameSite: Lax},
				},
				Origins: []Origin{{home, []Entry{{"k", "v"}}}},
			}
			restored, err := Restore(ctx, s, before)
			if err != nil {
				t.Fatal(err)
			}
			if n := restored.Counts(); n.Restored != 3 {
				t.Fatalf("restore: %v", restored.Items())
			}
			s.visit(home + "/")
			s.arrived("site.localhost:" + web.port)
			leave(t, s)
			next, report, err := Capture(ctx, s, Visited{Origins: []string{home}}, before, restored)
			if err != nil {
				t.Fatal(err)
			}
			if n := report.Counts(); n.Captured != 3 || n.Removed != 0 || next.storage(home)["k"] != "v" || len(next.Cookies) != 2 {
				t.Errorf("capture: %v", report.Items())
			}
		})
	}
}

// TestAddressMadeUpByScripts: drivers show the cookies of the URL that was loaded, not of the one in the address bar.
func TestAddressMadeUpByScripts(t *testing.T) {
	t.Parallel()
	k, web := startWebKit(t), startSite(t)
	s := k.session(t, "")
	defer s.quit()
	before := &Snapshot{Cookies: []Cookie{{Name: "area", Value: "v", Domain: "sandbox.localhost", Path: "/app", Expires: SessionCookie, SameSite: Lax}}}
	s.visit(web.at("sandbox.localhost") + "/")
	s.js(`document.cookie = 'area=v; path=/app; samesite=lax'; history.replaceState(null, '', '/app/x'); return ''`)
	next, report, err := Capture(bounded(t), s, Visited{}, before, all(before))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := next.find("sandbox.localhost", "area"); !ok {
		t.Errorf("a cookie that was not observable was removed: %v", report.Items())
	}
}

// TestFailingSession breaks the session at every command: each must be an error, never a smaller profile.
func TestFailingSession(t *testing.T) {
	t.Parallel()
	k, web := startWebKit(t), startSite(t)
	ctx := bounded(t)
	home := web.at("site.localhost")
	before := &Snapshot{
		Cookies: []Cookie{{Name: "login", Value: "v", Domain: "site.localhost", Path: "/", Expires: SessionCookie, SameSite: Lax}},
		Origins: []Origin{{home, []Entry{{"k", "v"}}}},
	}
	s := k.session(t, "")
	defer s.quit()
	steps := func(run func(inert.Driver) error) int {
		t.Helper()
		for n := 0; ; n++ {
			err := run(&cut{Driver: s, left: n})
			if err == nil {
				return n
			}
			if !errors.Is(err, errCut) {
				t.Fatalf("cut at command %d: %v", n, err)
			}
			if n > 200 {
				t.Fatal("no end")
			}
		}
	}
	n := steps(func(d inert.Driver) error { _, err := Restore(ctx, d, before); return err })
	m := steps(func(d inert.Driver) error {
		_, _, err := Capture(ctx, d, Visited{Origins: []string{home}}, before, Report{})
		return err
	})
	t.Logf("a restore of one site takes %d commands, a capture %d", n, m)
}

var errCut = errors.New("the host is gone")

type cut struct {
	inert.Driver
	left int
}

func (c *cut) Do(ctx context.Context, method, path string, body []byte) (json.RawMessage, error) {
	if c.left == 0 {
		return nil, errCut
	}
	c.left--
	return c.Driver.Do(ctx, method, path, body)
}
