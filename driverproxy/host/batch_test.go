package host_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// documented is the batch of docs/commands.md, at another site.
func documented(t *testing.T, site string) string {
	t.Helper()
	doc, err := os.ReadFile("../../docs/commands.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllSubmatch(doc, -1)
	if len(found) != 1 {
		t.Fatalf("%d examples in JSON, want the batch", len(found))
	}
	text := strings.ReplaceAll(string(found[0][1]), "https://shop.example", site)
	b, refused := batch.Parse([]byte(text))
	if refused != nil || b.Len() != 12 {
		t.Fatalf("the documented login of twelve commands: %v", refused)
	}
	return text
}

// runBatch runs a batch that must be answered, and says what it came to.
func runBatch(t *testing.T, s *driverproxy.Session, text string) batch.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	a, receipt, err := s.Do(ctx, webdriver.Command{Method: "POST", Path: "/driftstack/batch", Body: []byte(text)})
	var r batch.Response
	if err == nil {
		err = errors.Join(a.Err(), a.Value(&r))
	}
	if err != nil || receipt.Outcome != wire.OutcomeDone {
		t.Fatalf("%v (outcome %d)", err, receipt.Outcome)
	}
	return r
}

func routes(d *drivertest.Driver) (list []webdriver.Route) {
	for _, e := range d.Executed() {
		list = append(list, e.Route)
	}
	return list
}

func oneFake(t *testing.T) (*stack, *drivertest.Driver, *driverproxy.Session) {
	s, driver := newFleet(t), drivertest.New()
	cfg := s.config(t)
	cfg.Fake = fakes(driver)
	s.run(t, cfg)
	return s, driver, assign(t, s, first("s1", 1))
}

// The example of the documentation, whose element is there at the third try only.
func TestDocumentedBatch(t *testing.T) {
	_, driver, session := oneFake(t)
	// What a driver calls an element is escaped in a path; what no path can have is not sent.
	const odd = `{"steps":[{"name":"e","method":"POST","path":"/element","body":{"using":"xpath","value":"%s"}},{"method":"GET","path":"/element/{e}/text"}]}`
	if r := runBatch(t, session, fmt.Sprintf(odd, "ä ?#{}")); !r.OK || string(r.Results[1].Value) != `"text of ä ?#{}"` {
		t.Errorf("%+v", r)
	}
	if r := runBatch(t, session, fmt.Sprintf(odd, "../../a")); r.OK || r.Results[1].Status != 400 {
		t.Errorf("%+v", r)
	}
	driver.Late("#welcome", 2)
	before := len(driver.Executed())
	r := runBatch(t, session, documented(t, "http://site"))
	if !r.OK || r.Err() != nil || len(r.Results) != 12 {
		t.Fatalf("%+v", r)
	}
	find := webdriver.RouteFindElement
	want := []webdriver.Route{webdriver.RouteNavigateTo, find, webdriver.RouteElementSendKeys, find, webdriver.RouteElementSendKeys, webdriver.RouteFindElements, webdriver.RouteElementClick,
		find, find, find, webdriver.RouteExecuteScript, webdriver.RouteGetElementText, webdriver.RouteGetCurrentURL, webdriver.RouteGetAllCookies}
	if got := routes(driver)[before:]; !slices.Equal(got, want) {
		t.Errorf("executed %v", got)
	}
	var text, at string
	if err := errors.Join(r.Results[9].Decode(&text), r.Results[10].Decode(&at)); err != nil || text != "text of #welcome" || at != "http://site/login" {
		t.Errorf("%q at %q, %v", text, at, err)
	}
	if took := r.Results[7].TookUS; took < 2*batch.DefaultEvery.Microseconds() {
		t.Errorf("the wait took %d µs for three tries", took)
	}
	release(t, session)
}

// A batch is one command: it has one number, and nothing of it runs beside the commands around it.
func TestBatchIsOneCommand(t *testing.T) {
	_, driver, session := oneFake(t)
	const step = `{"method":"POST","path":"/refresh"}`
	text := `{"steps":[` + strings.Repeat(step+",", 49) + step + `]}`
	const around = 20
	receipts := make(chan driverproxy.Receipt, 2*around)
	for i := range 2 * around {
		c := webdriver.Command{Method: "POST", Path: "/driftstack/batch", Body: []byte(text)}
		if i%2 == 1 {
			c = webdriver.Command{Method: "POST", Path: "/back", Body: []byte(`{}`)}
		}
		go func() {
			a, receipt, err := session.Do(context.Background(), c)
			if err != nil || a.Status != 200 {
				t.Errorf("%d %s, %v", a.Status, a.Body, err)
			}
			receipts <- receipt
		}()
	}
	numbers := map[uint64]bool{}
	for range 2 * around {
		numbers[(<-receipts).Seq] = true
	}
	if len(numbers) != 2*around || !numbers[1] || !numbers[2*around] {
		t.Errorf("numbers %v", numbers)
	}
	run := 0
	for _, r := range append(routes(driver), webdriver.RouteBack) {
		if r == webdriver.RouteBack && run%50 != 0 {
			t.Fatalf("a command ran after %d steps of a batch", run%50)
		}
		if r == webdriver.RouteRefresh {
			run++
		}
	}
	if run != 50*around {
		t.Errorf("%d steps ran, want %d", run, 50*around)
	}
	release(t, session)
}

func TestMalformedBatchIsNotRun(t *testing.T) {
	_, driver, session := oneFake(t)
	for _, body := range []string{``, `{}`, `{"steps":[{"method":"GET","path":"/url"},{"method":"DELETE"}]}`} {
		a, receipt, err := session.Do(t.Context(), webdriver.Command{Method: "POST", Path: "/driftstack/batch", Body: []byte(body)})
		var e *webdriver.Error
		if err != nil || a.Status != 400 || !errors.As(a.Err(), &e) || e.Code != webdriver.InvalidArgument || receipt.Outcome != wire.OutcomeNotRun {
			t.Errorf("%s: %d %s, %v", body, a.Status, a.Body, err)
		}
	}
	if n := len(driver.Executed()); n != 0 {
		t.Errorf("%d commands were executed", n)
	}
	release(t, session)
}

// A driver that dies in the middle leaves the results of the steps before, and ends the session.
func TestDriverDiesUnderABatch(t *testing.T) {
	for _, effect := range []drivertest.Effect{drivertest.Die, drivertest.DieAfter} {
		s, driver, session := oneFake(t)
		driver.Inject(drivertest.Fault{Route: webdriver.RouteRefresh, Effect: effect})
		r := runBatch(t, session, `{"steps":[{"method":"GET","path":"/title"},{"method":"POST","path":"/refresh"},{"method":"POST","path":"/refresh"},{"method":"GET","path":"/url"}],"stop_on_error":false}`)
		var title string
		if err := r.Results[0].Decode(&title); err != nil || title != "title of about:blank" {
			t.Errorf("the step before: %q, %v", title, err)
		}
		if r.OK || r.Results[1].Outcome != batch.Unknown || r.Results[2].Outcome != batch.NotRun || r.Results[3].Outcome != batch.NotRun {
			t.Errorf("%+v", r)
		}
		within(t, "the session ends", session.Done())
		var f *wire.Failure
		if err := session.Err(); !errors.As(err, &f) || f.Code != wire.FailureDriver {
			t.Errorf("Err %v, want driver_failed", err)
		}
		if n, want := len(driver.Executed()), map[drivertest.Effect]int{drivertest.Die: 1, drivertest.DieAfter: 2}[effect]; n != want {
			t.Errorf("%d commands executed, want %d", n, want)
		}
		release(t, session)
		s.ready(t, "phone")
	}
}

// A batch does not quit the session by its last window, and the host does not take one that tried for dead.
func TestBatchKeepsTheLastWindow(t *testing.T) {
	_, driver, session := oneFake(t)
	r := runBatch(t, session, `{"steps":[{"method":"DELETE","path":"/window"},{"method":"GET","path":"/title"}],"stop_on_error":false}`)
	var e *webdriver.Error
	if err := r.Results[0].Err(); !errors.As(err, &e) || e.Code != webdriver.UnsupportedOperation || r.Results[1].Status != 200 {
		t.Errorf("%+v", r)
	}
	if slices.Contains(routes(driver), webdriver.RouteCloseWindow) {
		t.Error("the driver was asked to close the last window")
	}
	do[any](t, session, "GET", "/url", nil)
	release(t, session)
}

// A release in the middle of a wait ends it at once.
func TestReleaseEndsABatch(t *testing.T) {
	s, driver, session := oneFake(t)
	driver.Inject(drivertest.Fault{Route: webdriver.RouteFindElement, Effect: drivertest.Refuse, Error: &webdriver.Error{Code: webdriver.NoSuchElement}, Times: 1 << 30})
	entered := driver.Entered(webdriver.RouteFindElement)
	answers := make(chan webdriver.Answer, 1)
	go func() {
		a, _, _ := session.Do(context.Background(), webdriver.Command{Method: "POST", Path: "/driftstack/batch",
			Body: []byte(`{"steps":[{"wait":{"element":{"using":"css selector","value":"#never"},"timeout_ms":300000}},{"method":"GET","path":"/title"}]}`)})
		answers <- a
	}()
	within(t, "the wait begins", entered)
	release(t, session)
	a := <-answers
	var r batch.Response
	if a.Status == 200 && (a.Value(&r) != nil || r.OK || r.Results[1].Outcome != batch.NotRun) || a.Status != 200 && !strings.Contains(string(a.Body), `"outcome"`) {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	s.ready(t, "phone")
	if slices.Contains(routes(driver), webdriver.RouteGetTitle) {
		t.Error("the step after the wait was run")
	}
}

// The example of the documentation in a real browser, which shows the element a while after the click.
func TestRealDocumentedBatch(t *testing.T) {
	t.Parallel()
	s := newFleet(t)
	s.run(t, s.realConfig(t))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		http.SetCookie(w, &http.Cookie{Name: "visit", Value: "1", Path: "/"})
		fmt.Fprint(w, `<!doctype html><title>login</title><input id=user><input id=password type=password><button>Log in</button><div id=out></div>
<script>document.querySelector('button').onclick = () => setTimeout(() => {
  const p = document.createElement('p'); p.id = 'welcome';
  p.textContent = 'Hello ' + document.getElementById('user').value + ' of ' + document.getElementById('password').value.length;
  document.getElementById('out').append(p); }, 400)</script>`)
	}))
	t.Cleanup(server.Close)
	session := assign(t, s, first("s1", 1))
	r := runBatch(t, session, documented(t, server.URL))
	if err := r.Err(); err != nil || !r.OK {
		t.Fatalf("%+v: %v", r, err)
	}
	var text, at string
	var cookies []map[string]any
	if err := errors.Join(r.Results[9].Decode(&text), r.Results[10].Decode(&at), r.Results[11].Decode(&cookies)); err != nil {
		t.Fatal(err)
	}
	if text != "Hello ada of 8" || at != server.URL+"/login" || len(cookies) != 1 || cookies[0]["name"] != "visit" {
		t.Errorf("%q at %s with %v", text, at, cookies)
	}
	wait := func(script string, after ...string) batch.Response {
		b, err := json.Marshal(script)
		if err != nil {
			t.Fatal(err)
		}
		return runBatch(t, session, `{"steps":[`+strings.Join(append([]string{`{"wait":{"script":` + string(b) + `,"timeout_ms":20000}}`}, after...), ",")+`]}`)
	}
	// A script that throws at first, and one whose page goes away under it.
	if r := wait(`window.n = (window.n || 0) + 1; if (window.n < 3) throw new Error("not yet"); return window.n`); !r.OK || string(r.Results[0].Value) != "3" {
		t.Errorf("%+v", r)
	}
	if r := wait(`if (location.hash === "") { location.hash = "x"; location.reload() } return location.hash === "#x" && document.readyState === "complete"`,
		`{"method":"GET","path":"/title"}`); !r.OK || string(r.Results[1].Value) != `"login"` {
		t.Errorf("%+v", r)
	}
	release(t, session)
}
