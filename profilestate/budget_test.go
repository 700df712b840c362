package profilestate

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/inert"
)

// TestTooManySitesForTheTime: what there was no time to look at is kept, and what was seen is not lost with it.
func TestTooManySitesForTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		before := &Snapshot{Origins: []Origin{{"https://last.example", []Entry{{"k", "old"}}}}}
		visited := Visited{Origins: []string{"https://first.example"}}
		for i := range 40 {
			visited.Origins = append(visited.Origins, fmt.Sprintf("https://slow%d.example", i))
		}
		visited.Origins = append(visited.Origins, "https://last.example")
		next, report, err := Capture(ctx, &ocean{page: 4 * time.Second}, visited, before, all(before))
		if err != nil {
			t.Fatal(err)
		}
		if next.storage("https://first.example")["k"] != "new" || next.storage("https://last.example")["k"] != "old" {
			t.Errorf("captured %v", next)
		}
		late := 0
		for _, i := range report.Items() {
			if i.Kind == KindOrigin && i.Reason == ReasonTimeout {
				late++
			}
		}
		if late == 0 || late > 40 {
			t.Errorf("%d sites are reported as too late: %v", late, report)
		}
		if left := time.Until(deadline(ctx)); left < 10*time.Second {
			t.Errorf("only %v are left to store it", left)
		}
	})
}

// TestTooManySitesToRestore: a profile that has grown must not make every session fail that uses it.
func TestTooManySitesToRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s := &Snapshot{}
		for i := range 40 {
			s.Origins = append(s.Origins, Origin{fmt.Sprintf("https://site%d.example", i), []Entry{{"k", "new"}}})
			s.Cookies = append(s.Cookies, Cookie{Name: "c", Value: "v", Domain: fmt.Sprintf("site%d.example", i), Path: "/", Expires: SessionCookie, SameSite: Lax})
		}
		report, err := Restore(ctx, &ocean{page: 3 * time.Second}, s)
		if err != nil {
			t.Fatal(err)
		}
		late := 0
		for _, i := range report.Items() {
			if i.Status == Dropped && i.Reason == ReasonTimeout {
				late++
			}
		}
		if n := report.Counts(); n.Restored < 5 || late < 40 || n.Restored+n.Dropped != 80 {
			t.Errorf("%v, %d for want of time", report, late)
		}
	})
}

func deadline(ctx context.Context) time.Time {
	d, _ := ctx.Deadline()
	return d
}

// TestFewRoundTrips: what a profile costs over an ocean does not grow with what it holds. One by one it would be 265 round trips and 45.
func TestFewRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s, visited := &Snapshot{}, Visited{}
		for i := range 20 {
			host := fmt.Sprintf("site%02d.example", i)
			s.Origins = append(s.Origins, Origin{"https://" + host, []Entry{{"k", "new"}}})
			visited.Origins = append(visited.Origins, "https://"+host)
			for j := range 10 {
				s.Cookies = append(s.Cookies, Cookie{Name: fmt.Sprint("c", j), Value: "v", Domain: host, Path: "/", Expires: SessionCookie, HTTPOnly: true, SameSite: Lax})
			}
		}
		o := &ocean{page: 60 * time.Millisecond}
		there := &voyages{Driver: o}
		report, err := Restore(ctx, there, s)
		if err != nil {
			t.Fatal(err)
		}
		if n := report.Counts(); n.Restored != 220 {
			t.Fatalf("%v", report)
		}
		there.within(t, "restore")
		back := &voyages{Driver: o}
		next, report, err := Capture(ctx, back, visited, s, report)
		if err != nil {
			t.Fatal(err)
		}
		if n := report.Counts(); n.Captured != 220 || len(next.Cookies) != 200 {
			t.Fatalf("%v", report)
		}
		back.within(t, "capture")
	})
}

// voyages counts the commands that cross, and the pages in those that have several.
type voyages struct {
	inert.Driver
	count, pages int
}

func (v *voyages) Do(ctx context.Context, method, path string, body []byte) (json.RawMessage, error) {
	v.count++
	if path == inert.BatchPath {
		if b, refused := batch.Parse(body); refused == nil {
			opened := 0
			for _, s := range b.Request().Steps {
				if s.Path == "/url" && s.Method == "POST" {
					opened++
				}
			}
			v.pages = max(v.pages, opened)
		}
	}
	return v.Driver.Do(ctx, method, path, body)
}

func (v *voyages) within(t *testing.T, what string) {
	t.Helper()
	if v.count > 5 {
		t.Errorf("a %s takes %d round trips", what, v.count)
	}
	if v.pages < 2 || v.pages > 12 { // all of a batch is lost with a host that hangs in it
		t.Errorf("a %s has %d pages in one batch", what, v.pages)
	}
}

// ocean is a browser far away: every page takes a while, has the same localStorage, and keeps what cookies it is given.
type ocean struct {
	page    time.Duration
	at      string
	loads   int
	cookies map[string][]json.RawMessage // by host
}

func (o *ocean) Do(ctx context.Context, _, path string, body []byte) (json.RawMessage, error) {
	switch path {
	case "/url":
		var v struct{ URL string }
		if body == nil {
			return json.Marshal(o.at)
		}
		if err := json.Unmarshal(body, &v); err != nil {
			return nil, err
		}
		if err := pause(ctx, o.page); err != nil {
			return nil, err
		}
		o.at = v.URL
		o.loads++
	case "/execute/sync":
		if strings.Contains(string(body), "navigation") {
			return json.Marshal(o.at)
		}
		u, err := url.Parse(o.at)
		if err != nil {
			return nil, err
		}
		p, err := json.Marshal(inert.Page{Origin: u.Scheme + "://" + u.Host, URL: o.at, Ready: "complete", TimeOrigin: float64(o.loads),
			Storage: "ok", Items: []byte(`[{"name":"k","value":"new"}]`)})
		if err != nil {
			return nil, err
		}
		return json.Marshal(string(p))
	case "/cookie":
		u, err := url.Parse(o.at)
		if err != nil {
			return nil, err
		}
		if body == nil {
			return json.Marshal(append([]json.RawMessage{}, o.cookies[u.Host]...))
		}
		var v struct{ Cookie map[string]any }
		if err := json.Unmarshal(body, &v); err != nil {
			return nil, err
		}
		if v.Cookie["domain"] == nil {
			v.Cookie["domain"] = u.Host
		}
		c, err := json.Marshal(v.Cookie)
		if err != nil {
			return nil, err
		}
		if o.cookies == nil {
			o.cookies = make(map[string][]json.RawMessage)
		}
		o.cookies[u.Host] = append(o.cookies[u.Host], c)
	case inert.BatchPath:
		v, err := runBatch(ctx, o, body)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx) // nobody waits for the answer any more
		}
		return v, err
	case "/timeouts":
		return json.RawMessage("{}"), nil
	}
	return json.RawMessage("null"), nil
}
