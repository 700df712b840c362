package profilestate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (s *Snapshot) find(domain, name string) (Cookie, bool) {
	i := slices.IndexFunc(s.Cookies, func(c Cookie) bool { return c.Domain == domain && c.Name == name })
	if i < 0 {
		return Cookie{}, false
	}
	return s.Cookies[i], true
}

func (s *Snapshot) storage(origin string) map[JSString]JSString {
	m := make(map[JSString]JSString)
	for _, o := range s.Origins {
		for _, e := range o.LocalStorage {
			if o.Origin == origin {
				m[e.Name] = e.Value
			}
		}
	}
	return m
}

// TestRoundTrip logs in, captures, restores into a fresh browser and captures again, all on a real WebKit.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	k, web := startWebKit(t), startSite(t)
	ctx := bounded(t)
	home, other, numeric := web.at("site.localhost"), web.at("localhost"), web.at("127.0.0.1")

	s := k.session(t, "")
	s.visit(home + "/login")
	s.js(`localStorage.setItem('lone \ud800', 'x\udfff\ud83d\ude00\u2028\u0000"\\'); localStorage.setItem('', 'empty name'); return ''`)
	s.js(`localStorage.setItem('long', '漢'.repeat(300000)); return ''`)
	s.visit(numeric + "/login")
	s.visit(other + "/")
	s.js(`localStorage.setItem('theme', 'dark'); return ''`)
	first, report, err := Capture(ctx, s, Visited{Origins: []string{home, numeric + "/app/x", other, "about:blank", "file:///etc"}}, &Snapshot{}, Report{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("first capture: %v; %d commands", report, len(s.commands))
	s.quit()

	login, ok := first.find("site.localhost", "login")
	if !ok || !login.HTTPOnly || login.Value != "tok-8f2a" || login.SameSite != Lax || login.Expires != SessionCookie {
		t.Fatalf("login cookie not captured as it is: %v", ok)
	}
	if _, ok := first.find(".site.localhost", "wide"); !ok {
		t.Fatal("domain cookie not captured as one")
	}
	if c, ok := first.find("site.localhost", "far"); !ok || c.Expires != maxExpiry {
		t.Fatalf("cookie of the year 2100: found %v, expires %v; a wrapped date must not make it a session cookie or an old one", ok, c.Expires)
	}
	if _, ok := first.find("127.0.0.1", "area"); !ok {
		t.Fatal("cookie of a visited folder not captured")
	}
	wantLone := JSString("x\xed\xbf\xbf😀\u2028\x00\"\\")
	if got := first.storage(home)["lone \xed\xa0\x80"]; got != wantLone {
		t.Fatalf("unpaired surrogates: got %q, want %q", got, wantLone)
	}

	// What a browser cannot take comes on top: it must be reported, and survive in the profile.
	first.Cookies = append(first.Cookies,
		Cookie{Name: "sec", Value: "s", Domain: "127.0.0.1", Path: "/", Expires: SessionCookie, Secure: true, SameSite: Lax},
		Cookie{Name: "down", Value: "d", Domain: "down.invalid", Path: "/", Expires: SessionCookie, SameSite: Lax},
		Cookie{Name: "old", Value: "o", Domain: "127.0.0.1", Path: "/", Expires: 1000, SameSite: Lax},
		Cookie{Name: "deep", Value: "p", Domain: "site.localhost", Path: "/app/x", Expires: SessionCookie, SameSite: Strict, HTTPOnly: true})
	first.Origins = append(first.Origins, Origin{Origin: "http://gone.localhost:1", LocalStorage: []Entry{{"k", "v"}}})

	s = k.session(t, `"timeouts":{"script":1234,"pageLoad":54321,"implicit":7},`)
	web.sentCookies()
	began := time.Now()
	restored, err := Restore(ctx, s, first)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("restore: %v; %d commands, %v", restored, len(s.commands), time.Since(began).Round(time.Millisecond))
	if sent := web.sentCookies(); len(sent) != 0 {
		t.Errorf("the restore sent restored cookies to the site: %v", sent)
	}
	if got := string(s.must("GET", "/url", "")); got != `"about:blank"` {
		t.Errorf("the browser is left on %s", got)
	}
	if got := string(s.must("GET", "/timeouts", "")); !strings.Contains(got, "1234") || !strings.Contains(got, "54321") {
		t.Errorf("the session's timeouts became %s", got)
	}
	status := func(domain, name string) string {
		for _, i := range restored.Items() {
			if i.Kind == KindCookie && i.cookie.name == name && i.cookie.domain == domain {
				return fmt.Sprintf("%s (%s)", i.Status, i.Reason)
			}
		}
		return "not reported"
	}
	for _, c := range []struct{ domain, name, want string }{
		{"site.localhost", "login", "restored ()"},
		{".site.localhost", "wide", "restored ()"},
		{"site.localhost", "remember", "restored ()"},
		{"site.localhost", "session", "restored ()"},
		{"site.localhost", "empty", "restored ()"},
		{"site.localhost", "hushed", "unsupported (" + string(ReasonEmptyValue) + ")"},
		{"site.localhost", "far", "restored ()"},
		{"site.localhost", "deep", "restored ()"},
		{"127.0.0.1", "area", "restored ()"},
		{"127.0.0.1", "sec", "dropped (" + string(ReasonUnreachable) + ")"},
		{"127.0.0.1", "old", "dropped (" + string(ReasonExpired) + ")"},
		{"down.invalid", "down", "dropped (" + string(ReasonUnreachable) + ")"},
	} {
		if got := status(c.domain, c.name); got != c.want {
			t.Errorf("%s of %s: %s, want %s", c.name, c.domain, got, c.want)
		}
	}
	if n := restored.Counts(); n.Altered != 0 {
		t.Errorf("altered: %+v", n)
	}

	s.visit(home + "/whoami")
	if got := s.js(`return document.body.textContent`); !strings.Contains(got, "login=tok-8f2a") || !strings.Contains(got, "wide=shared") {
		t.Errorf("the site sees %q", got)
	}
	s.visit(web.at("sub.site.localhost") + "/whoami")
	if got := s.js(`return document.body.textContent`); strings.Contains(got, "login") || !strings.Contains(got, "wide=shared") {
		t.Errorf("a subdomain sees %q: a host-only cookie must not reach it", got)
	}
	s.visit(other + "/")
	if got := s.js(`return localStorage.getItem('theme')`); got != "dark" {
		t.Errorf("theme is %q", got)
	}
	s.visit(home + "/logout")
	s.js(`localStorage.removeItem('long'); localStorage.setItem('new', '1'); return ''`)

	began, s.commands = time.Now(), nil
	second, report, err := Capture(ctx, s, Visited{Origins: []string{home, other}}, first, restored)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("second capture: %v; %d commands, %v", report, len(s.commands), time.Since(began).Round(time.Millisecond))
	if _, ok := second.find("site.localhost", "login"); ok {
		t.Error("a login that the customer ended is still there")
	}
	for _, c := range first.Cookies {
		if c.Name == "login" && c.Domain == "site.localhost" || c.Name == "old" {
			continue
		}
		if got, ok := second.find(c.Domain, c.Name); !ok || got != c {
			t.Errorf("%s of %s did not survive (found %v): %+v", c.Name, c.Domain, ok, got.Expires)
		}
	}
	if _, ok := second.find("127.0.0.1", "old"); ok {
		t.Error("an expired cookie was kept")
	}
	at := second.storage(home)
	if at["lone \xed\xa0\x80"] != wantLone || at[""] != "empty name" || at["new"] != "1" {
		t.Error("localStorage did not survive the round trip")
	}
	if _, ok := at["long"]; ok {
		t.Error("a removed localStorage item is still there")
	}
	if second.storage("http://gone.localhost:1")["k"] != "v" {
		t.Error("localStorage of a site that was down is lost")
	}
	if _, err := second.Encode(Limits{}); err != nil {
		t.Error(err)
	}
	s.quit()
}
