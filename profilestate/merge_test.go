package profilestate

import (
	"encoding/json"
	"fmt"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/driftstack/fleet/driverproxy/inert"
)

func at(raw ...string) inert.Page {
	var p inert.Page
	for _, r := range raw {
		u, err := url.Parse(r)
		if err != nil {
			panic(err)
		}
		p.URLs = append(p.URLs, u)
	}
	return p
}

func cookieOf(domain, path, name, value string) Cookie {
	return Cookie{Name: name, Value: value, Domain: domain, Path: path, Expires: SessionCookie, SameSite: Lax}
}

// all is the report of a restore that put everything into the browser.
func all(s *Snapshot) Report {
	var r Report
	for _, c := range s.Cookies {
		r.cookie(c, Restored, "")
		r.items[len(r.items)-1].made = c
	}
	for _, o := range s.Origins {
		for _, e := range o.LocalStorage {
			r.entry(o.Origin, e.Name, Restored, "")
		}
	}
	return r
}

// TestSitesThatWriteTooMuch cost themselves what they wrote, and nobody else a login.
func TestSitesThatWriteTooMuch(t *testing.T) {
	login := cookieOf("shop.example", "/", "login", "new")
	shop, greedy := "https://shop.example", "https://greedy.example"
	before := &Snapshot{Origins: []Origin{{greedy, []Entry{{"k", "old"}}}, {shop, []Entry{{"cart", "1"}}}}}
	seen := observed{looks: []look{{at(shop + "/"), []Cookie{login}}}, storage: map[string][]Entry{
		shop:                  {{"cart", "2"}},
		greedy:                {{"k", JSString(strings.Repeat("x", 17<<20))}},
		"https://new.example": {{"k", JSString(strings.Repeat("y", 1<<20))}},
	}}
	for i := range 2 * DefaultLimits().Origins {
		seen.storage[fmt.Sprintf("https://site%d.example", i)] = []Entry{{"visited", "yes"}}
	}
	next, report := merge(before, seen, all(before), time.Unix(2_000_000_000, 0))
	if _, err := next.Encode(Limits{}); err != nil {
		t.Fatalf("what a capture gives cannot be stored: %v", err)
	}
	if c, _ := next.find("shop.example", "login"); c != login || next.storage(shop)["cart"] != "2" {
		t.Errorf("the shop's state is lost: %v", next)
	}
	if next.storage(greedy)["k"] != "old" {
		t.Error("the state of a site that writes too much did not go back to what it was")
	}
	dropped := 0
	for _, i := range report.Items() {
		if i.Reason == ReasonLimit {
			dropped++
		}
	}
	if want := 2 + 2*DefaultLimits().Origins + 2 - DefaultLimits().Origins; dropped != want || len(next.Origins) != DefaultLimits().Origins {
		t.Errorf("%d origins are reported as dropped, want %d; %d stay", dropped, want, len(next.Origins))
	}
	if again, _ := merge(next, seen, Report{}, time.Unix(2_000_000_000, 0)); !reflect.DeepEqual(again, next) {
		t.Error("merging the same again changes something")
	}
}

func TestMergeCookies(t *testing.T) {
	now := time.Unix(2_000_000_000, 0)
	c := cookieOf("a.example", "/", "c", "old")
	secure := c
	secure.Secure = true
	expired, expires := c, c
	expired.Expires, expires.Expires = 1_999_999_999, 2_000_000_001
	httpPage, httpsPage := at("http://a.example/robots.txt"), at("https://a.example/robots.txt")
	for _, tc := range []struct {
		name     string
		cookie   Cookie
		restored bool
		looks    []look
		kept     bool
	}{
		{"nobody looked", c, true, nil, true},
		{"gone", c, true, []look{{page: httpsPage}}, false},
		{"gone, but it never was there", c, false, []look{{page: httpsPage}}, true},
		{"another host", c, true, []look{{page: at("https://b.example/")}}, true},
		{"a host whose name ends alike", cookieOf(".a.example", "/", "c", "v"), true, []look{{page: at("https://xa.example/")}}, true},
		{"a subdomain does not show a host-only cookie", c, true, []look{{page: at("https://x.a.example/")}}, true},
		{"a subdomain shows a domain cookie", cookieOf(".a.example", "/", "c", "v"), true, []look{{page: at("https://x.a.example/")}}, false},
		{"another folder", cookieOf("a.example", "/app", "c", "v"), true, []look{{page: httpsPage}}, true},
		{"a folder whose name begins alike", cookieOf("a.example", "/app", "c", "v"), true, []look{{page: at("https://a.example/apple")}}, true},
		{"its folder", cookieOf("a.example", "/app", "c", "v"), true, []look{{page: at("https://a.example/app/robots.txt")}}, false},
		{"a page that redirected out of its folder", cookieOf("a.example", "/app", "c", "v"), true, []look{{page: at("https://a.example/app/robots.txt", "https://a.example/login")}}, true},
		{"a page of unknown address", c, true, []look{{}}, true},
		{"http does not show a Secure cookie", secure, true, []look{{page: httpPage}}, true},
		{"https does", secure, true, []look{{page: httpsPage}}, false},
		{"expired", expired, true, nil, false},
		{"not yet expired", expires, true, nil, true},
		{"expired by its date, but the browser shows it", expired, true, []look{{page: httpsPage, cookies: []Cookie{expired}}}, true},
		{"seen, then gone on a later page", c, true, []look{{page: httpsPage, cookies: []Cookie{c}}, {page: httpsPage}}, false},
		{"seen, then a page that need not show it", c, true, []look{{page: httpsPage, cookies: []Cookie{c}}, {page: at("https://b.example/")}}, true},
	} {
		before := &Snapshot{Cookies: []Cookie{tc.cookie}}
		var restored Report
		if tc.restored {
			restored = all(before)
		}
		next, _ := merge(before, observed{looks: tc.looks}, restored, now)
		if kept := len(next.Cookies) == 1 && next.Cookies[0] == tc.cookie; kept != tc.kept {
			t.Errorf("%s: kept %v, want %v", tc.name, kept, tc.kept)
		}
	}
}

func TestMergePrefersWhatTheBrowserWasGiven(t *testing.T) {
	far, clamped, rotated := cookieOf("a.example", "/", "c", "v"), cookieOf("a.example", "/", "c", "v"), cookieOf("a.example", "/", "c", "new")
	far.Expires, clamped.Expires = 4e9, maxExpiry
	before := &Snapshot{Cookies: []Cookie{far}, Origins: []Origin{{"https://a.example", []Entry{{"k", "whole"}, {"full", "x"}}}}}
	var restored Report
	restored.alteredCookie(far, clamped, ReasonExpiry)
	restored.alteredEntry("https://a.example", "k", "cut")
	restored.entry("https://a.example", "full", Dropped, ReasonIgnored)
	see := func(c Cookie, v JSString) *Snapshot {
		next, _ := merge(before, observed{
			looks:   []look{{page: at("https://a.example/"), cookies: []Cookie{c}}},
			storage: map[string][]Entry{"https://a.example": {{"k", v}}},
		}, restored, time.Unix(1e9, 0))
		return next
	}
	next := see(clamped, "cut")
	if next.Cookies[0] != far || next.storage("https://a.example")["k"] != "whole" {
		t.Error("what the browser altered replaced the original")
	}
	next = see(rotated, "other")
	if next.Cookies[0] != rotated || next.storage("https://a.example")["k"] != "other" {
		t.Error("what the site changed was not taken")
	}
	if next.storage("https://a.example")["full"] != "x" {
		t.Error("an item that the restore could not write was taken for deleted")
	}
}

func TestMergeKeepsAPlaceForCookies(t *testing.T) {
	seen := observed{
		looks: []look{{page: at("http://app.site.example:8080/robots.txt"), cookies: []Cookie{
			cookieOf("app.site.example", "/", "host", "v"), cookieOf(".site.example", "/", "wide", "v")}}},
		storage: map[string][]Entry{"http://app.site.example:8080": nil, "http://unrelated.test": nil},
	}
	next, _ := merge(nil, seen, Report{}, time.Unix(1e9, 0))
	if len(next.Origins) != 1 || next.Origins[0].Origin != "http://app.site.example:8080" {
		t.Fatalf("origins %v: want the one place from which both cookies can be set", next.Origins)
	}
	stops, nowhere := plan(next)
	if len(stops) != 1 || len(stops[0].cookies) != 2 || len(nowhere) != 0 {
		t.Error("the next restore does not go there")
	}
}

// FuzzMerge makes up a previous state, a restore and a session out of bytes, and checks what must always hold.
func FuzzMerge(f *testing.F) {
	f.Add([]byte("a restore, a session and a capture, made of some bytes"))
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 200, 201, 202, 255, 254, 253, 128, 64, 32, 16})
	f.Fuzz(func(t *testing.T, b []byte) {
		next := func(n int) int {
			if len(b) == 0 {
				return 0
			}
			v := int(b[0]) % n
			b = b[1:]
			return v
		}
		hosts := []string{"a.example", "b.a.example", ".a.example", ".b.a.example", "127.0.0.1"}
		paths := []string{"/", "/app", "/app/x", "/apple"}
		origins := []string{"https://a.example", "http://b.a.example:8080", "https://b.a.example", "http://127.0.0.1"}
		cookie := func() Cookie {
			c := cookieOf(hosts[next(len(hosts))], paths[next(len(paths))], string(rune('p'+next(3))), string(rune('0'+next(4))))
			c.Secure = next(3) == 0
			if next(4) == 0 {
				c.Expires = float64(900_000_000 + next(2)*200_000_000)
			}
			return c
		}
		unique := func(list []Cookie) []Cookie {
			var out []Cookie
			seen := make(map[cookieKey]bool)
			for _, c := range list {
				if !seen[c.key()] {
					out = append(out, c)
				}
				seen[c.key()] = true
			}
			return out
		}
		entries := func() []Entry {
			var out []Entry
			for i := range next(4) {
				out = append(out, Entry{JSString(rune('k' + i)), JSString(rune('0' + next(3)))})
			}
			return out
		}
		before := &Snapshot{}
		for range next(6) {
			before.Cookies = append(before.Cookies, cookie())
		}
		before.Cookies = unique(before.Cookies)
		for i := range next(len(origins) + 1) {
			before.Origins = append(before.Origins, Origin{origins[i], entries()})
		}
		before.sort()
		restored := all(before)
		for i := range restored.items {
			if next(3) == 0 {
				restored.items[i].Status = Dropped
			}
		}
		o := observed{storage: make(map[string][]Entry)}
		for range next(4) {
			origin := origins[next(len(origins))]
			l := look{page: at(origin + paths[next(len(paths))] + "/robots.txt")}
			for range next(4) {
				if c := cookie(); c.sentTo(l.page.URLs[0]) {
					l.cookies = append(l.cookies, c)
				}
			}
			l.cookies = unique(l.cookies)
			o.looks = append(o.looks, l)
			if next(2) == 0 {
				o.storage[origin] = entries()
			}
		}
		now := time.Unix(1_000_000_000, 0)
		one, report := merge(before, o, restored, now)
		if _, err := one.Encode(Limits{}); err != nil {
			t.Fatalf("not encodable: %v", err)
		}
		two, _ := merge(one, o, restored, now)
		two.sort()
		if !reflect.DeepEqual(one.normal(), two.normal()) {
			t.Fatalf("not idempotent:\n%#v\n%#v", one.normal(), two.normal())
		}
		had := restored.confirmed()
		for _, c := range before.Cookies {
			if _, ok := one.find2(c.key()); ok || c.expired(now) {
				continue
			}
			visible := false
			for _, l := range o.looks {
				visible = visible || c.sentTo(l.page.URLs[0])
			}
			if _, was := had.cookies[c.key()]; !visible || !was {
				t.Fatalf("deleted what could not be observed: %s%s %s", c.Domain, c.Path, c.Name)
			}
		}
		for _, or := range before.Origins {
			for _, e := range or.LocalStorage {
				_, looked := o.storage[or.Origin]
				_, was := had.entries[storageKey{or.Origin, e.Name}]
				if _, ok := one.storage(or.Origin)[e.Name]; !ok && (!looked || !was) {
					t.Fatalf("deleted localStorage that could not be observed: %s %s", or.Origin, e.Name)
				}
			}
		}
		if n := report.Counts(); n.Captured+n.Kept < len(one.Cookies) {
			t.Fatalf("%d cookies, but the report has %v", len(one.Cookies), report)
		}
	})
}

func (s *Snapshot) find2(k cookieKey) (Cookie, bool) {
	for _, c := range s.Cookies {
		if c.key() == k {
			return c, true
		}
	}
	return Cookie{}, false
}

// normal is the snapshot as text.
func (s *Snapshot) normal() string {
	b, err := s.Encode(Limits{})
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func TestNothingPrintsItsPayload(t *testing.T) {
	s := &Snapshot{
		Cookies: []Cookie{cookieOf("host.example", "/private-path", "private-name", "private-value")},
		Origins: []Origin{{"https://host.example", []Entry{{"private-name", "private-value"}}}},
	}
	r := all(s)
	r.alteredEntry("https://host.example", "private-name", "private-value")
	core, logs := observer.New(zapcore.DebugLevel)
	log := zap.New(core)
	log.Info("x", zap.Any("report", r), zap.Any("items", r.Items()), zap.Reflect("r", r))
	out := fmt.Sprintf("%v %+v %#v %s|%v %+v %#v|%v %+v %#v|%v", r, r, r, r, s, s, *s, r.Items(), r.items, r.items[0], s.Cookies)
	for _, v := range []any{r, r.Items()} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out += string(b)
	}
	enc := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	for _, e := range logs.All() {
		b, err := enc.EncodeEntry(e.Entry, e.Context)
		if err != nil {
			t.Fatal(err)
		}
		out += b.String()
	}
	if strings.Contains(out, "private") {
		t.Errorf("payload in: %s", out)
	}
	if b, _ := json.Marshal(r); strings.Contains(string(b), "host") {
		t.Errorf("a marshalled report names hosts: %s", b)
	}
}
