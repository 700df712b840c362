package profilestate

import (
	"strings"
	"testing"
)

// TestCaptureWithoutTheReportOfTheRestore is the capture of a session that another process began: what its restore left in the
// browser is not known, so that nothing is taken for deleted, and whatever is seen is newer than what was saved.
func TestCaptureWithoutTheReportOfTheRestore(t *testing.T) {
	t.Parallel()
	k, web := startWebKit(t), startSite(t)
	ctx := bounded(t)
	home, other, numeric := web.at("site.localhost"), web.at("localhost"), web.at("127.0.0.1")

	s := k.session(t, "")
	s.visit(home + "/login")
	s.js(`localStorage.setItem('gone', '1'); localStorage.setItem('cart', 'empty'); return ''`)
	s.visit(other + "/")
	s.js(`localStorage.setItem('theme', 'dark'); document.cookie = 'seen=other; path=/'; return ''`)
	first, _, err := Capture(ctx, s, Visited{Origins: []string{home, other}}, &Snapshot{}, Report{})
	if err != nil {
		t.Fatal(err)
	}
	s.quit()

	s = k.session(t, "")
	if _, err := Restore(ctx, s, first); err != nil { // its report is lost
		t.Fatal(err)
	}
	s.visit(home + "/")
	s.js(`localStorage.setItem('cart', 'full'); localStorage.removeItem('gone'); document.cookie = 'wide=renewed; domain=site.localhost; path=/'; return ''`)
	s.visit(numeric + "/login")
	// A site of the profile where the session never was, one where it was, and one that the profile does not know yet.
	visited := Visited{Origins: []string{numeric + "/login"}}
	for _, o := range first.Origins {
		visited.Origins = append(visited.Origins, o.Origin)
	}
	for _, at := range []struct {
		name    string
		visited Visited
		renewed bool // what the site of the profile renewed is seen
	}{{"this page alone", Visited{}, false}, {"sites of the profile", visited, true}} {
		next, report, err := Capture(ctx, s, at.visited, first, Report{})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %v", at.name, report)
		if n := report.Counts(); n.Removed > 0 {
			t.Errorf("%s: %d items were taken for deleted", at.name, n.Removed)
		}
		for _, c := range first.Cookies {
			if _, ok := next.find2(c.key()); !ok {
				t.Errorf("%s: cookie %s of %s is lost", at.name, c.Name, c.Domain)
			}
		}
		for _, o := range first.Origins {
			for _, e := range o.LocalStorage {
				if _, ok := next.storage(o.Origin)[e.Name]; !ok {
					t.Errorf("%s: localStorage of %s is lost", at.name, o.Origin)
				}
			}
		}
		if login, ok := next.find("site.localhost", "login"); !ok || login.Value != "tok-8f2a" || !login.HTTPOnly {
			t.Errorf("%s: the login of the profile is lost", at.name)
		}
		if _, ok := next.find("127.0.0.1", "login"); !ok {
			t.Errorf("%s: the login of this session is lost", at.name)
		}
		wide, _ := next.find(".site.localhost", "wide")
		if got := next.storage(home)["cart"]; (wide.Value == "renewed") != at.renewed || (got == "full") != at.renewed {
			t.Errorf("%s: wide=%s, cart=%s", at.name, wide.Value, got)
		}
	}
	s.visit(home + "/whoami")
	if got := s.js(`return document.body.textContent`); !strings.Contains(got, "login=tok-8f2a") {
		t.Errorf("the capture logged the browser out: %q", got)
	}
	s.quit()
}
