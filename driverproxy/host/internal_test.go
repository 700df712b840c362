package host

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

func TestCapabilitiesForDriver(t *testing.T) {
	client := json.RawMessage(`{"browserName":"safari","browserVersion":"18","platformName":"iOS","webSocketUrl":false,"acceptInsecureCerts":true,
		"webkitgtk:browserOptions":{"binary":"/bin/sh"},"safari:deviceUDID":"other","safari:useSimulator":true,"safari:deviceName":"x","safari:automaticInspection":true}`)
	got, err := forDriver(safariDriver{udid: "mine"}, "/s", client)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"acceptInsecureCerts":true,"browserName":"safari","browserVersion":"18","platformName":"iOS","safari:automaticInspection":true,` +
		`"safari:deviceUDID":"mine","safari:useSimulator":false,"webkitgtk:browserOptions":{"binary":"/bin/sh"}}`
	if string(b) != want {
		t.Errorf("safaridriver gets %s, want %s", b, want)
	}
	if _, err := filepath.Glob("/usr/lib/*/webkit2gtk-4.*/MiniBrowser"); err != nil {
		t.Fatal(err)
	}
	if got, err = forDriver(webkitGTK{}, "/s", client); err == nil { // where MiniBrowser is installed
		if b, _ = json.Marshal(got); strings.Contains(string(b), "/bin/sh") || strings.Contains(string(b), "browserVersion") || strings.Contains(string(b), "safari:") || !strings.Contains(string(b), "MiniBrowser") {
			t.Errorf("WebKitWebDriver gets %s", b)
		}
	}
	told, err := forClient(safariDriver{}, Device{PlatformName: "iOS"}, json.RawMessage(`{"browserName":"MiniBrowser","platformName":"linux","safari:deviceUDID":"mine"}`))
	if err != nil || string(told) != `{"browserName":"safari","platformName":"iOS"}` {
		t.Errorf("the client is told %s %v", told, err)
	}
	for _, bad := range []string{`null`, `[]`, `1`} {
		if told, err := forClient(safariDriver{}, Device{}, json.RawMessage(bad)); err == nil {
			t.Errorf("%s gave %s", bad, told)
		}
	}
}

func TestRefusalQuotesNobody(t *testing.T) {
	for _, e := range []*webdriver.Error{
		{Code: webdriver.SessionNotCreated, Message: "secret"}, {Code: "secret", Message: "secret"}, {Code: webdriver.UnknownError, Message: "secret"},
		{Code: webdriver.SessionNotCreated, Message: "secret is locked"},
	} {
		if _, f := refusal(e, ""); strings.Contains(f.Message, "secret") {
			t.Errorf("%v became %v", e, f)
		}
	}
	const said = "already paired with another WebDriver session"
	g, f := refusal(&webdriver.Error{Code: webdriver.SessionNotCreated, Message: "x " + said + "."}, "")
	if g != gradePaired || f.Code != wire.FailureDevice || f.Message != said {
		t.Errorf("paired became %d %v", g, f)
	}
	// A driver may repeat what a client sent: that says nothing of the device.
	if g, f := refusal(&webdriver.Error{Code: webdriver.InvalidArgument, Message: said}, ""); g != gradeNone || f.Code != wire.FailureCapabilities {
		t.Errorf("repeated words became %d %v", g, f)
	}
	for _, id := range []string{"", "..", "a/b", "a?b", "a b", strings.Repeat("a", 300)} {
		if plainID(id) {
			t.Errorf("session id %q was taken", id)
		}
	}
}

func TestTerms(t *testing.T) {
	book := newTerms()
	book.see("s", 3)
	book.see("s", 2)
	if book.newest("s") != 3 || book.released("s") != 0 || book.newest("other") != 0 {
		t.Errorf("%+v", book.get("s"))
	}
	book.release("s", 3)
	book.leave("s", &wire.Wiped{Origins: 2}, &wire.Failure{Message: "dirty"})
	if wiped, leftover := book.left("s"); book.released("s") != 3 || wiped.Origins != 2 || leftover.Message != "dirty" {
		t.Errorf("%+v", book.get("s"))
	}
	for i := range termsKept {
		book.see(string(rune(i))+"x", 1)
	}
	if book.newest("s") != 0 || len(book.of) != termsKept || len(book.order) != termsKept {
		t.Errorf("%d sessions are remembered", len(book.of))
	}
	book.leave("s", nil, nil) // forgotten: nothing to do
}

func TestWipeNamesNoFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "https_customer.example_0\x00") // a NUL: it cannot be removed
	if err := wipe(dir); err == nil || strings.Contains(err.Error(), "customer") {
		t.Errorf("wipe: %v, want an error without a file's name", err)
	}
}

// TestReservedPortsAreOneSessionsOnly, whichever agent's it is.
func TestReservedPortsAreOneSessionsOnly(t *testing.T) {
	seen := map[int]bool{}
	for range 600 { // of 12768: without reservation some come twice
		r, err := reservePort()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if seen[r.port] {
			t.Fatalf("port %d was reserved twice", r.port)
		}
		seen[r.port] = true
	}
}

// What a customer's pages are called must not make an adoption longer than a control message.
func TestVisitedPagesFitIntoAMessage(t *testing.T) {
	var s session
	for i := range 2 * webdriver.MaxVisits {
		s.visits.Add(fmt.Sprintf("https://%d%s/%s", i, strings.Repeat("&", 250), strings.Repeat("&", 250)))
	}
	pages := s.visits.Pages()
	b, err := wire.Control{Assigned: &wire.Assigned{Session: "s", Term: 1, Visited: pages, Capabilities: []byte(`{}`)}}.Encode()
	if len(pages) != webdriver.MaxVisits || err != nil || len(b) > wire.MaxControl/2 {
		t.Fatalf("%d pages in %d bytes, %v", len(pages), len(b), err)
	}
}

// TestMoreToLookAt: a device at which there was no time to look at everything is looked at again, and nobody has it before.
func TestMoreToLookAt(t *testing.T) {
	now := time.Now()
	a := &agent{cfg: Config{Clock: systemClock{}, Log: zap.NewNop()}, settled: make(chan struct{})}
	for _, quarantined := range []bool{false, true} {
		d := &device{Device: Device{Kind: KindFake}, ready: newReadiness(now)}
		d.ready.claim()
		d.ready.demand(proofWiped)
		if quarantined {
			d.ready.bad(now, gradeWiped)
		}
		d.ready.free(now)
		d.ready.due = now
		probed := func(r result) {
			j := job{probe: true, needs: d.ready.needs}
			d.step = make(chan struct{})
			a.done(t.Context(), d, j, r, zap.NewNop())
		}
		probed(result{more: true})
		if probe, needs, _ := d.ready.next(time.Now()); !probe || needs&proofWiped == 0 || d.ready.claim() {
			t.Errorf("quarantined %v: probed again: %v, for %b, in phase %d", quarantined, probe, needs, d.ready.phase)
		}
		probed(result{})
		if !d.ready.claim() {
			t.Errorf("quarantined %v: phase %d", quarantined, d.ready.phase)
		}
	}
}

// TestSweepThatWasCut: what nobody has come to is told from what a site did not let anybody look at.
func TestSweepThatWasCut(t *testing.T) {
	var w sweep
	w.note(clean, []string{"a"})
	w.note(unsure, []string{"b"})
	if w.cut() || !slices.Equal(w.question, []string{"b"}) {
		t.Errorf("%+v", w)
	}
	w.note(notAsked, []string{"c"})
	if !w.cut() || !slices.Equal(w.question, []string{"b", "c"}) || !slices.Equal(w.unasked, []string{"c"}) || w.Verified != 1 || w.Unverified != 2 {
		t.Errorf("%+v", w)
	}
	if w = (sweep{broken: true}); !w.cut() {
		t.Error("a browser that is of no more use was looked at")
	}
}

// TestPagesStayInQuestion: a site that did not let anybody look is in question still when time has run out for others, and is not gone to again before
// those. Where nothing is proved nothing is forgotten.
func TestPagesStayInQuestion(t *testing.T) {
	d := &device{pages: []string{"silent", "late", "good"}}
	all := slices.Clone(d.pages)
	found := sweep{question: []string{"silent", "late"}, unasked: []string{"late"}}
	if more, why := d.learnLocked(true, all, []string{"good"}, found, sweep{}); !more || why != "" || !slices.Equal(d.pages, []string{"silent", "late"}) {
		t.Fatalf("more %v %q, in question %v", more, why, d.pages)
	}
	if next := without(d.pages, d.inquiry.asked); !slices.Equal(next, []string{"late"}) {
		t.Errorf("next are %v", next)
	}
	if more, why := d.learnLocked(true, []string{"late"}, nil, sweep{question: []string{"late"}}, sweep{}); more || why == "" {
		t.Errorf("proved without a canary")
	}
	d.inquiry.breaks = map[string]int{"late": 2, "silent": 1}
	if more, why := d.learnLocked(true, []string{"late"}, []string{"late"}, sweep{}, sweep{}); more || why != "" || !slices.Equal(d.pages, []string{"silent"}) || d.inquiry.asked != nil {
		t.Errorf("more %v %q, in question %v, asked %v", more, why, d.pages, d.inquiry.asked)
	}
	if n := d.inquiry.breaks; len(n) != 1 || n["silent"] != 1 {
		t.Errorf("a page that was found clean has broken sessions: %v", n)
	}
	// A browser whose directory is wiped has nothing to prove: a site that is down does not keep it.
	if more, why := d.learnLocked(false, []string{"silent"}, nil, sweep{question: []string{"silent"}}, sweep{}); more || why != "" || !slices.Equal(d.pages, []string{"silent"}) {
		t.Errorf("more %v %q, in question %v", more, why, d.pages)
	}
}

// ReservePort keeps a port for a driver that a test starts by itself.
func ReservePort(t *testing.T) int {
	t.Helper()
	r, err := reservePort()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r.port
}
