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
		next, report, err := Capture(ctx, &ocean{}, visited, before, all(before))
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
		report, err := Restore(ctx, &ocean{}, s)
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

// ocean is a browser far away: every page takes three seconds, and every page is the same.
type ocean struct {
	at    string
	loads int
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
		if err := pause(ctx, 3*time.Second); err != nil {
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
		return json.RawMessage("[]"), nil
	case inert.BatchPath:
		return runBatch(ctx, o, body)
	case "/timeouts":
		return json.RawMessage("{}"), nil
	}
	return json.RawMessage("null"), nil
}
