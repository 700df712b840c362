package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
)

// shortLease is the shortest lease time that the daemon takes.
const shortLease = 6 * time.Second

// load sends numbered commands of one session, one after the other, to whichever orchestrator answers: a number is sent once
// and never again.
type load struct {
	t       *testing.T
	session string
	stop    chan struct{}
	over    sync.WaitGroup

	mu       sync.Mutex
	to       *mate
	sent     int
	answered map[int]bool // numbers that were answered
	unknown  map[int]bool // numbers whose fate is not known
	grew     chan struct{}
}

func startLoad(t *testing.T, to *mate, session string) *load {
	l := &load{t: t, session: session, to: to, stop: make(chan struct{}), answered: map[int]bool{}, unknown: map[int]bool{}, grew: make(chan struct{}, 1)}
	l.over.Go(func() {
		for {
			select {
			case <-l.stop:
				return
			default:
				l.one()
			}
		}
	})
	return l
}

func (l *load) one() {
	l.mu.Lock()
	l.sent++
	n, to := l.sent, l.to
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	a, err := to.client.Do(ctx, l.session, webdriver.Command{Method: http.MethodPost, Path: "/execute/sync", Body: []byte(fmt.Sprintf(`{"script":"return arguments[0]","args":[%d]}`, n))})
	l.mu.Lock()
	defer l.mu.Unlock()
	var w w3cAnswer
	switch {
	case err == nil && a.Status == http.StatusOK:
		l.answered[n] = true
	case json.Unmarshal(a.Body, &w) == nil && w.outcome() == "not_run":
	default:
		l.unknown[n] = true
	}
	select {
	case l.grew <- struct{}{}:
	default:
	}
}

// until waits for so many more answered commands.
func (l *load) until(more int) {
	l.t.Helper()
	count := func() int { l.mu.Lock(); defer l.mu.Unlock(); return len(l.answered) }
	from, limit := count(), time.After(60*time.Second)
	for count() < from+more {
		select {
		case <-l.grew:
		case <-limit:
			l.t.Fatalf("%d of %d commands were answered", count()-from, more)
		}
	}
}

func (l *load) turnTo(o *mate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.to = o
}

// check ends the load, and compares what its client was told with what the driver did.
func (l *load) check(d *drivertest.Driver) {
	l.t.Helper()
	close(l.stop)
	l.over.Wait()
	ran := map[int]int{}
	order := []int{}
	for _, e := range d.Executed() {
		var body struct {
			Args []int `json:"args"`
		}
		if e.Route == webdriver.RouteExecuteScript && json.Unmarshal([]byte(e.Body), &body) == nil && len(body.Args) == 1 {
			ran[body.Args[0]]++
			order = append(order, body.Args[0])
		}
	}
	for n := 1; n <= l.sent; n++ {
		switch {
		case ran[n] > 1:
			l.t.Errorf("command %d was executed %d times", n, ran[n])
		case l.answered[n] && ran[n] == 0:
			l.t.Errorf("command %d was answered and not executed", n)
		case !l.answered[n] && !l.unknown[n] && ran[n] > 0:
			l.t.Errorf("command %d was executed, and its client was told that it was not", n)
		}
	}
	if !slices.IsSorted(order) {
		l.t.Errorf("commands were executed in the order %v", order)
	}
	l.t.Logf("%d commands sent, %d answered, %d of unknown fate, %d executed", l.sent, len(l.answered), len(l.unknown), len(order))
}

// marked gives a session's page a state that is seen again.
func marked(t *testing.T, o *mate, session string) {
	t.Helper()
	for path, body := range map[string]string{
		"/url":    `{"url":"http://site.test/a"}`,
		"/cookie": `{"cookie":{"name":"mark","value":"set before","sameSite":"Lax"}}`,
	} {
		if status, a := o.call(t, "POST", "/session/"+session+path, body); status != 200 {
			t.Fatalf("%s: %d %v", path, status, a)
		}
	}
}

func stillMarked(t *testing.T, o *mate, session string) {
	t.Helper()
	if status, a := o.call(t, "GET", "/session/"+session+"/url", ""); status != 200 || a.Value != "http://site.test/a" {
		t.Errorf("the page is %d %v", status, a)
	}
	if status, a := o.call(t, "GET", "/session/"+session+"/cookie/mark", ""); status != 200 || !strings.Contains(fmt.Sprint(a.Value), "set before") {
		t.Errorf("the cookie is %d %v", status, a)
	}
}

// endsWell quits the session and shows that its device is free again.
func (r *several) endsWell(t *testing.T, o *mate, session string) {
	t.Helper()
	if status, a := o.call(t, "DELETE", "/session/"+session, ""); status != 200 {
		t.Fatalf("quit: %d %v", status, a)
	}
	v, err := o.client.Wait(t.Context(), session, api.Ended)
	if err != nil || v.Reason != "completed" {
		t.Fatalf("%+v, %v", v, err)
	}
	next := (&rig{client: o.client}).running(t, api.CreateSession{})
	<-r.drivers
	must(t, second(o.client.Cancel(t.Context(), next.ID)))
	if v, err := o.client.Wait(t.Context(), next.ID, api.Ended); err != nil || v.Reason != "cancelled" {
		t.Fatalf("%+v, %v", v, err)
	}
}

// An orchestrator that is gone from one moment to the next, under load and with a command running, costs its session nothing:
// another one goes on with it within the lease time. When the first comes back it leaves the session alone.
func TestOtherOrchestratorAdopts(t *testing.T) {
	t.Parallel()
	r := newSeveral(t, shortLease, 0, "eu-1", "eu-2")
	one, two := r.all[0], r.all[1]
	s, d := r.running(t, api.CreateSession{})
	marked(t, one, s.ID)
	l := startLoad(t, one, s.ID)
	l.until(20)
	d.Inject(drivertest.Fault{Route: webdriver.RouteExecuteScript, Effect: drivertest.Delay, For: time.Second})
	<-d.Entered(webdriver.RouteExecuteScript)
	one.die()
	died := time.Now()
	l.turnTo(two)
	eventually(t, "the session is adopted", func() bool { return slices.Contains(kinds(t, two, s.ID), "adopted") })
	if took := time.Since(died); took > shortLease+10*time.Second {
		t.Errorf("adopted after %s", took)
	}
	l.until(20)
	stillMarked(t, two, s.ID)

	one.live()
	eventually(t, "the first orchestrator is back", func() bool { return len(one.fleet.Hosts()) == 1 && one.store.Ping(t.Context()) == nil })
	if status, a := one.call(t, "GET", "/session/"+s.ID+"/url", ""); status != 500 || a.outcome() != "not_run" {
		t.Errorf("the former holder answers %d %v", status, a)
	}
	l.until(20)
	l.check(d)
	stillMarked(t, two, s.ID)
	if open, ever := d.Sessions(); open != 1 || ever != 1 {
		t.Errorf("%d of %d driver sessions are open", open, ever)
	}
	log := strings.Join(kinds(t, two, s.ID), " ")
	log = strings.ReplaceAll(log, "adopted handed_over ", "") // a holder that a busy machine starves hands over to itself, as often as it has to
	if log != "queued starting driver_started running adopted" {
		t.Errorf("log: %s", log)
	}
	one.die() // so that what follows is the second's
	r.endsWell(t, two, s.ID)
}

// An orchestrator that is stopped for a while, as a machine that sleeps, loses its session to another and does not touch it
// when it wakes up, although it knows of nothing.
func TestHolderThatWakesUpIsFenced(t *testing.T) {
	t.Parallel()
	r := newSeveral(t, shortLease, 0, "eu-1", "eu-2")
	one, two := r.all[0], r.all[1]
	s, d := r.running(t, api.CreateSession{})
	marked(t, one, s.ID)
	l := startLoad(t, one, s.ID)
	l.until(5)
	one.freeze()
	l.turnTo(two)
	eventually(t, "the session is adopted", func() bool { return slices.Contains(kinds(t, two, s.ID), "adopted") })
	l.until(5)
	one.live()
	for range 5 {
		if status, a := one.call(t, "POST", "/session/"+s.ID+"/execute/sync", `{"script":"","args":[999999]}`); status == 200 || a.outcome() == "" {
			t.Errorf("the former holder answers %d %v", status, a)
		}
	}
	l.until(20)
	l.check(d)
	for _, e := range d.Executed() {
		if strings.Contains(e.Body, "999999") {
			t.Error("a command of the former holder reached the driver")
		}
	}
	stillMarked(t, two, s.ID)
	one.die()
	r.endsWell(t, two, s.ID)
}

// An orchestrator that is told to stop hands its sessions over: nobody waits for a lease, what runs is answered, and nothing
// is run twice.
func TestStoppedOrchestratorHandsOver(t *testing.T) {
	t.Parallel()
	r := newSeveral(t, 10*time.Minute, 0, "eu-1", "eu-2") // nobody can have waited for that
	one, two := r.all[0], r.all[1]
	s, d := r.running(t, api.CreateSession{})
	marked(t, one, s.ID)
	l := startLoad(t, one, s.ID)
	l.until(20)
	d.Inject(drivertest.Fault{Route: webdriver.RouteExecuteScript, Effect: drivertest.Delay, For: 500 * time.Millisecond})
	<-d.Entered(webdriver.RouteExecuteScript)
	l.turnTo(two) // for the next one
	one.stop()
	l.until(20)
	l.mu.Lock()
	if len(l.unknown) > 0 {
		t.Errorf("the fate of %v is not known", l.unknown)
	}
	l.mu.Unlock()
	l.check(d)
	stillMarked(t, two, s.ID)
	if got := kinds(t, two, s.ID); !slices.Equal(got, []string{"queued", "starting", "driver_started", "running", "handed_over", "adopted"}) {
		t.Errorf("log: %v", got)
	}
	r.endsWell(t, two, s.ID)
}

// The same orchestrator takes its session back when its database was away for longer than the lease.
func TestDatabaseAwayForLongerThanTheLease(t *testing.T) {
	t.Parallel()
	r := newSeveral(t, shortLease, 0, "eu-1")
	one := r.all[0]
	s, d := r.running(t, api.CreateSession{})
	marked(t, one, s.ID)
	l := startLoad(t, one, s.ID)
	l.until(5)
	one.database.set(true, false)
	away := time.Now()
	// Commands are no sign: with its log full, the session takes none, whether its lease is lost or not.
	eventually(t, "the lease is over", func() bool { return time.Since(away) > shortLease+time.Second })
	one.database.set(false, false)
	l.until(20)
	l.check(d)
	if len(l.unknown) > 0 {
		t.Errorf("the fate of %v is not known", l.unknown)
	}
	stillMarked(t, one, s.ID)
	if v, err := one.client.Session(t.Context(), s.ID); err != nil || v.State != api.Running || v.Term < 2 {
		t.Errorf("%+v, %v", v, err)
	}
	r.endsWell(t, one, s.ID)
}

// What an adopted session leaves in its profile is what it had before, and what came since.
func TestProfileOfAnAdoptedSession(t *testing.T) {
	t.Parallel()
	r := newSeveral(t, 10*time.Minute, 0, "eu-1", "eu-2")
	one, two := r.all[0], r.all[1]
	p, err := one.client.CreateProfile(t.Context(), api.CreateProfile{Account: "a", Name: "p"})
	must(t, err)
	s, _ := r.running(t, api.CreateSession{Profile: p.ID})
	if status, a := one.call(t, "POST", "/session/"+s.ID+"/cookie", `{"cookie":{"name":"mark","value":"set before","sameSite":"Lax"}}`); status != 200 {
		t.Fatalf("%d %v", status, a)
	}
	one.stop()
	r.endsWell(t, two, s.ID)
	if p, err = two.client.Profile(t.Context(), p.ID); err != nil || p.Generation != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
	if got := kinds(t, two, s.ID); !slices.Contains(got, "profile_saved") || slices.Contains(got, "profile_not_saved") {
		t.Errorf("log: %v", got)
	}
}

// What was restored into a session is told by any orchestrator, without values.
func TestProfileReport(t *testing.T) {
	t.Parallel()
	r, one, two := newPeers(t, 10*time.Minute, "eu-1", "eu-2")
	p, err := one.client.CreateProfile(t.Context(), api.CreateProfile{Account: "a", Name: "p"})
	must(t, err)
	const state = `{"cookies":[{"name":"mark","value":"secret","domain":"shop.example","path":"/","expires":-1,"httpOnly":false,"secure":false,"sameSite":"Lax"},
		{"name":"stays","value":"secret","domain":"bank.example","path":"/","expires":-1,"httpOnly":false,"secure":false,"sameSite":"Lax"}],
		"origins":[{"origin":"https://shop.example","localStorage":[]},{"origin":"https://bank.example","localStorage":[]}]}`
	_, err = one.client.ImportProfile(t.Context(), p.ID, strings.NewReader(state))
	must(t, err)
	s, _ := r.running(t, api.CreateSession{Profile: p.ID})
	told := func(o *mate) api.ProfileReport {
		t.Helper()
		v, err := o.client.ProfileReport(t.Context(), s.ID, 1)
		must(t, err)
		return v
	}
	first := told(one)
	if first.Profile != p.ID || len(first.Items) != 1 || first.More != 1 || first.Items[0].Kind != "cookie" || first.Items[0].Path != "/" || first.Items[0].Status == "" {
		t.Errorf("%+v", first)
	}
	if b, err := json.Marshal(first); err != nil || strings.Contains(string(b), "secret") {
		t.Errorf("%s, %v", b, err)
	}
	if got := told(two); !reflect.DeepEqual(got, first) {
		t.Errorf("another orchestrator tells %+v", got)
	}
}

// Who asks for the report while nobody has the session waits until somebody does, as with a command.
func TestProfileReportDuringAHandover(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func() (*several, *mate, *mate){
		"forwarding": func() (*several, *mate, *mate) { return newPeers(t, 10*time.Minute, "eu-1", "eu-2") },
		"alone": func() (*several, *mate, *mate) {
			r := newSeveral(t, 10*time.Minute, 0, "eu-1", "eu-2")
			return r, r.all[0], r.all[1]
		},
	} {
		_, one, two := start()
		p, err := one.client.CreateProfile(t.Context(), api.CreateProfile{Account: "a", Name: "p"})
		must(t, err)
		_, err = one.client.ImportProfile(t.Context(), p.ID, strings.NewReader(stateOf("v")))
		must(t, err)
		s := (&rig{client: one.client}).running(t, api.CreateSession{Profile: p.ID})
		first, err := one.client.ProfileReport(t.Context(), s.ID, 10)
		if must(t, err); len(first.Items) != 1 {
			t.Errorf("%s: %+v", name, first)
		}
		one.stop()
		short, cancel := context.WithTimeout(t.Context(), time.Second) // the host is not connected to the other
		v, err := two.client.ProfileReport(short, s.ID, 10)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: nobody has the session, and the answer is %+v, %v", name, v, err)
		}
		two.connect()
		if v, err = two.client.ProfileReport(t.Context(), s.ID, 10); err != nil || !reflect.DeepEqual(v, first) {
			t.Errorf("%s: %+v, %v, want %+v", name, v, err, first)
		}
		must(t, second(two.client.Cancel(t.Context(), s.ID)))
		if _, err := two.client.Wait(t.Context(), s.ID, api.Ended); err != nil {
			t.Error(err)
		}
		if _, err = two.client.ProfileReport(t.Context(), s.ID, 10); problemOf(t, err).Status != http.StatusConflict {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A report that does not open any more is told to be so, rather than to have nothing in it.
func TestProfileReportThatIsDamaged(t *testing.T) {
	t.Parallel()
	r := newSeveral(t, 10*time.Minute, 0, "eu-1", "eu-2")
	one, two := r.all[0], r.all[1]
	p, err := one.client.CreateProfile(t.Context(), api.CreateProfile{Account: "a", Name: "p"})
	must(t, err)
	_, err = one.client.ImportProfile(t.Context(), p.ID, strings.NewReader(stateOf("v")))
	must(t, err)
	s := (&rig{client: one.client}).running(t, api.CreateSession{Profile: p.ID})
	damaged := 0
	must(t, filepath.WalkDir(r.dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".report" {
			return nil // the host's files come and go
		}
		damaged++
		return os.WriteFile(path, []byte("no report"), 0o600)
	}))
	if damaged != 1 {
		t.Fatalf("%d reports", damaged)
	}
	one.stop()
	two.connect()
	v, err := two.client.ProfileReport(t.Context(), s.ID, 10)
	if f := problemOf(t, err); f.Status != http.StatusConflict || !strings.Contains(f.Detail, "not known any more") {
		t.Errorf("%+v, %v", v, err)
	}
}

// A session whose driver died while nobody held it ends when it is adopted, and its device is free.
func TestAdoptedSessionThatIsGone(t *testing.T) {
	t.Parallel()
	r := newSeveral(t, shortLease, 0, "eu-1", "eu-2")
	one, two := r.all[0], r.all[1]
	s, d := r.running(t, api.CreateSession{})
	one.die()
	d.Kill()
	v, err := two.client.Wait(t.Context(), s.ID, api.Ended)
	if err != nil || v.Reason != "host_lost" {
		t.Fatalf("%+v, %v", v, err)
	}
	(&rig{client: two.client}).running(t, api.CreateSession{})
	<-r.drivers
}

// A session that is cancelled while nobody holds it ends as cancelled.
func TestOrphanIsCancelled(t *testing.T) {
	t.Parallel()
	r := newSeveral(t, shortLease, 0, "eu-1", "eu-2")
	one, two := r.all[0], r.all[1]
	s, _ := r.running(t, api.CreateSession{})
	one.die()
	must(t, second(two.client.Cancel(t.Context(), s.ID)))
	v, err := two.client.Wait(t.Context(), s.ID, api.Ended)
	if err != nil || v.Reason != "cancelled" {
		t.Fatalf("%+v, %v", v, err)
	}
}

// A session that was finishing when its orchestrator died is not adopted: it ends, and its host frees the device.
func TestFinishingSessionThatIsLost(t *testing.T) {
	t.Parallel()
	r := newSeveral(t, shortLease, 2*time.Second, "eu-1", "eu-2")
	one, two := r.all[0], r.all[1]
	p, err := one.client.CreateProfile(t.Context(), api.CreateProfile{Account: "a", Name: "p"})
	must(t, err)
	s, d := r.running(t, api.CreateSession{Profile: p.ID})
	d.Inject(drivertest.Fault{Route: webdriver.RouteSwitchToFrame, Effect: drivertest.Hang}) // the capture begins with it
	entered := d.Entered(webdriver.RouteSwitchToFrame)
	quit := make(chan struct{})
	go func() {
		defer close(quit)
		_, _ = one.client.Do(context.Background(), s.ID, webdriver.Command{Method: http.MethodDelete}) // its orchestrator dies
	}()
	<-entered
	one.die()
	v, err := two.client.Wait(t.Context(), s.ID, api.Ended)
	if err != nil || v.Reason != "lease_lost" {
		t.Fatalf("%+v, %v", v, err)
	}
	(&rig{client: two.client}).running(t, api.CreateSession{Profile: p.ID})
	<-r.drivers
	if slices.Contains(kinds(t, two, s.ID), "adopted") {
		t.Error("it was adopted")
	}
	one.live()
	<-quit
}
