package httpapi_test

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// newPeers are orchestrators that reach one another; the first has a session.
func newPeers(t *testing.T, ttl time.Duration, names ...string) (r *several, one, two *mate) {
	t.Helper()
	r = newSeveral(t, ttl, 0, names...)
	r.introduce(t, byPeerURL)
	return r, r.all[0], r.all[1]
}

// Every route of a session works at an orchestrator that does not have it, under the URL that its client knows.
func TestAnyReplicaReachesTheSession(t *testing.T) {
	t.Parallel()
	r, one, two := newPeers(t, 10*time.Minute, "eu-1", "eu-2")
	at := &rig{url: two.url}
	s := (&rig{url: one.url}).start(t, "/wd/hub", `"webSocketUrl":true`)
	two.connect()
	r.connected(t, two)
	d := <-r.drivers

	for _, prefix := range []string{"", "/wd/hub"} {
		if resp, b := at.call(t, "POST", prefix+"/session/"+s.id+"/url", `{"url":"http://site.test/a?b=c%2Fd"}`); resp.StatusCode != 200 {
			t.Errorf("%s: %d %s", prefix, resp.StatusCode, b)
		}
		if resp, b := at.call(t, "GET", prefix+"/session/"+s.id+"/url", ""); resp.StatusCode != 200 || !strings.Contains(string(b), "http://site.test/a?b=c%2Fd") {
			t.Errorf("%s: %d %s", prefix, resp.StatusCode, b)
		}
	}
	big := strings.Repeat("x", 8<<20)
	sent := `{"script":"","args":["` + big + `"]}`
	resp, b := at.call(t, "POST", "/session/"+s.id+"/execute/sync", sent)
	all := d.Executed()
	if got := all[len(all)-1]; resp.StatusCode != 200 || got.Bytes != int64(len(sent)) || got.CRC != crc32.ChecksumIEEE([]byte(sent)) {
		t.Errorf("a large body: %d %s, %d bytes arrived", resp.StatusCode, b, got.Bytes)
	}
	// What no driver takes is answered alike, whoever is asked.
	for _, c := range [][3]string{{"POST", "/session/" + s.id + "/url", "{"}, {"PUT", "/session/" + s.id + "/url", ""}, {"GET", "/session/" + s.id + "/nothing", ""}, {"GET", "/session/" + s.id + "/bidi", ""}} {
		there, tb := (&rig{url: one.url}).call(t, c[0], c[1], c[2])
		here, hb := at.call(t, c[0], c[1], c[2])
		if there.StatusCode != here.StatusCode || !bytes.Equal(tb, hb) || here.StatusCode == 200 {
			t.Errorf("%v: %d %s there, %d %s here", c, there.StatusCode, tb, here.StatusCode, hb)
		}
	}
	out, err := two.client.Batch(t.Context(), s.id, batch.Request{Steps: []batch.Step{{Method: "GET", Path: "/url"}}})
	if err != nil || len(out.Results) != 1 || out.Results[0].Status != 200 {
		t.Errorf("batch: %+v, %v", out, err)
	}
	c, err := two.client.Stream(t.Context(), s.id)
	must(t, err)
	defer c.Close()
	if a, err := c.Do(t.Context(), webdriver.Command{Method: "GET", Path: "/url"}); err != nil || a.Status != 200 {
		t.Errorf("stream: %+v, %v", a, err)
	}

	// The URL of BiDi points to where the client came in, and so does the one that another orchestrator tells.
	v, err := two.client.Session(t.Context(), s.id)
	must(t, err)
	for _, at := range []string{s.socket(t), v.Capabilities.(map[string]any)["webSocketUrl"].(string)} {
		u, err := url.Parse(at)
		must(t, err)
		u.Host = strings.TrimPrefix(two.url, "http://")
		ws := dialBiDi(t, u.String())
		must(t, ws.WriteMessage(1, []byte(`{"id":1}`)))
		if _, b, err := ws.ReadMessage(); err != nil || string(b) != `{"id":1}` {
			t.Errorf("BiDi at %s: %s %v", u.Host, b, err)
		}
	}
	if got, want := v.Capabilities.(map[string]any)["webSocketUrl"].(string), strings.TrimPrefix(two.url, "http://"); !strings.Contains(got, want) {
		t.Errorf("webSocketUrl is %s, the client came to %s", got, want)
	}

	followed := make(chan []string, 1)
	go func() {
		var seen []string
		err := two.client.Follow(t.Context(), s.id, 0, func(e api.Event) error { seen = append(seen, e.Kind); return nil })
		if err != nil {
			t.Error(err)
		}
		followed <- seen
	}()
	if resp, b := at.call(t, "DELETE", "/wd/hub/session/"+s.id, ""); resp.StatusCode != 200 || strings.TrimSpace(string(b)) != `{"value":null}` {
		t.Errorf("quit: %d %s", resp.StatusCode, b)
	}
	if seen := <-followed; !slices.Contains(seen, "command") || seen[len(seen)-1] != "ended" {
		t.Errorf("the log: %v", seen)
	}
	if v, err := two.client.Session(t.Context(), s.id); err != nil || v.Reason != "completed" {
		t.Errorf("%+v %v", v, err)
	}
	if open, ever := d.Sessions(); open != 0 || ever != 1 {
		t.Errorf("%d of %d driver sessions are open", open, ever)
	}
}

// A client that only ever talks to one orchestrator keeps its session through the death of the other, the end of another that is told
// to stop, and back: what runs at the moment of a death may have been run, and nothing else is lost, or run twice.
func TestForwardedThroughDeathAndHandover(t *testing.T) {
	t.Parallel()
	r, one, two := newPeers(t, shortLease, "eu-1", "eu-2", "eu-3")
	three := r.all[2]
	s, d := r.running(t, api.CreateSession{})
	marked(t, three, s.ID)
	three.hosts.set(true, false) // it is never the adopter
	l := startLoad(t, three, s.ID)
	l.until(20)
	d.Inject(drivertest.Fault{Route: webdriver.RouteExecuteScript, Effect: drivertest.Delay, For: time.Second})
	<-d.Entered(webdriver.RouteExecuteScript)
	one.die()
	l.until(20)
	l.mu.Lock()
	if len(l.unknown) != 1 {
		t.Errorf("the fate of %v is not known", l.unknown)
	}
	l.mu.Unlock()
	if got := kinds(t, two, s.ID); !slices.Equal(got, []string{"queued", "starting", "driver_started", "running", "adopted"}) {
		t.Errorf("log: %v", got)
	}
	one.live()
	r.connected(t, one)
	l.until(5)
	two.stop()
	l.until(20)
	l.check(d)
	if len(l.unknown) != 1 {
		t.Errorf("the fate of %v is not known", l.unknown)
	}
	stillMarked(t, three, s.ID)
	r.endsWell(t, three, s.ID)
}

// Who asks through another orchestrator is not held up by one that says nothing any more: it hears that its command may have been run.
func TestForwardedToAFrozenHolder(t *testing.T) {
	t.Parallel()
	r, one, two := newPeers(t, shortLease, "eu-1", "eu-2")
	s, d := r.running(t, api.CreateSession{})
	marked(t, two, s.ID)
	one.freeze()
	begin := time.Now()
	status, a := two.call(t, "POST", "/session/"+s.ID+"/execute/sync", `{"script":"","args":[7]}`)
	if took := time.Since(begin); status != 500 || a.outcome() != "unknown" || took > 35*time.Second {
		t.Errorf("%d %v after %s", status, a, took)
	}
	stillMarked(t, two, s.ID)
	one.live()
	eventually(t, "the first orchestrator finds out", func() bool {
		status, a := one.call(t, "GET", "/session/"+s.ID+"/url", "")
		return status == 200 && a.Value == "http://site.test/a"
	})
	stillMarked(t, one, s.ID)
	n := 0
	for _, e := range d.Executed() {
		if strings.Contains(e.Body, "[7]") {
			n++
		}
	}
	if n > 1 {
		t.Errorf("the command was executed %d times", n)
	}
}

// impostor is what has the address of an orchestrator, and answers as it is told.
type impostor struct {
	mu   sync.Mutex
	seen []*http.Request // guarded by mu
}

func (i *impostor) requests() []*http.Request {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.seen)
}

func (i *impostor) serve(t *testing.T, answer http.HandlerFunc) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		i.seen = append(i.seen, r)
		i.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.URL
}

// What one orchestrator sends to another carries no credentials that could be used elsewhere, is not believed by anybody else, is not forwarded
// again, and is sent once.
func TestForwardedOnceAndToOne(t *testing.T) {
	t.Parallel()
	r, one, two := newPeers(t, shortLease, "eu-1", "eu-2")
	s, d := r.running(t, api.CreateSession{})
	told := func(at string) {
		t.Helper()
		must(t, second(one.store.AnnounceReplica(t.Context(), orchestrator.Replica{ID: "eu-1", Name: "eu-1", URL: at})))
		two.wake(s.ID)
	}
	path := "/session/" + s.ID + "/url"

	var captured impostor
	at := captured.serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if len(captured.requests()) > 1 {
			panic(http.ErrAbortHandler) // the connection breaks, which was good for one answer
		}
		fmt.Fprint(w, `{"value":null}`)
	})
	told(at)
	for i, want := range []string{"", "unknown"} {
		if _, a := two.call(t, "GET", path, ""); a.outcome() != want {
			t.Errorf("request %d: %v", i, a)
		}
	}
	seen := captured.requests()
	if len(seen) != 2 {
		t.Fatalf("two requests were forwarded %d times", len(seen))
	}
	passed := seen[0].Header.Get("Driftstack-Forwarded")
	if len(seen[0].Header.Values("Authorization")) > 0 || passed == "" || strings.Contains(fmt.Sprint(seen[0].Header), token) {
		t.Errorf("it is sent: %v", seen[0].Header)
	}

	told(one.peerURL)
	send := func(at, path, hop string) int {
		resp, _ := (&rig{url: at}).call(t, "GET", path, "", func(r *http.Request) {
			r.Header.Set("Driftstack-Forwarded", hop)
			r.Header.Del("Authorization")
		})
		return resp.StatusCode
	}
	if got := send(one.url, path, passed); got != 200 { // or the refusals below would mean nothing
		t.Errorf("it is answered with %d where it was for", got)
	}
	before := len(d.Executed())
	for what, got := range map[string]int{
		"made up":                   send(one.url, path, "x"),
		"empty":                     send(one.url, path, ""),
		"for another orchestrator":  send(two.url, path, passed),
		"for another path":          send(one.url, "/session/"+s.ID+"/title", passed),
		"for the control plane":     send(one.url, "/v1/devices", passed),
		"for a session's own route": send(one.url, "/v1/sessions/"+s.ID, passed),
	} {
		if got != http.StatusMisdirectedRequest {
			t.Errorf("%s: %d", what, got)
		}
	}
	if n := len(d.Executed()); n != before {
		t.Errorf("%d commands were executed", n-before)
	}

	// An orchestrator that is sent its own request back does not send it on, and nor does anyone for ever.
	var loops impostor
	told(loops.serve(t, func(w http.ResponseWriter, r *http.Request) {
		out, err := http.NewRequestWithContext(r.Context(), r.Method, two.url+r.RequestURI, r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		out.Header = r.Header
		resp, err := http.DefaultTransport.RoundTrip(out)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
	}))
	begin := time.Now()
	status, a := two.call(t, "POST", path, `{"url":"http://site.test/"}`)
	if n, took := len(loops.requests()), time.Since(begin); status != 500 || a.outcome() != "not_run" || n == 0 || n > 15 || took > shortLease+10*time.Second {
		t.Errorf("%d %v after %d requests, %s", status, a, n, took)
	}
}

// The address of an orchestrator leads to that one, or is not used.
func TestPeerURLIsProbed(t *testing.T) {
	t.Parallel()
	r, one, two := newPeers(t, 10*time.Minute, "eu-1", "eu-2")
	_ = r
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	closed := silent.Addr().String()
	must(t, silent.Close())
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	for at, want := range map[string]string{one.peerURL: "", two.peerURL: "another orchestrator", "http://" + closed: "cannot be reached", other.URL: "something else"} {
		err := two.others.Probe(context.Background(), orchestrator.Replica{ID: "eu-1", Name: "eu-1", URL: at})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", at, err, want)
		}
	}
}
