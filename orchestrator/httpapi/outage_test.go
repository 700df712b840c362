package httpapi_test

import (
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
)

// line is a way to somewhere: it can be cut, and frozen, which is what a network does when it says nothing.
type line struct {
	network, to string

	mu     sync.Mutex
	cond   *sync.Cond
	down   bool
	frozen bool
	conns  map[net.Conn]struct{}
}

// newLine returns a line to the database of dsn, and the DSN that goes over it.
func newLine(t *testing.T, dsn string) (*line, string) {
	t.Helper()
	u, err := url.Parse(dsn)
	must(t, err)
	q := u.Query()
	const name = ".s.PGSQL.5432"
	dir, err := os.MkdirTemp("", "line") // a socket's path has 107 bytes at most
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	listener, err := net.Listen("unix", filepath.Join(dir, name))
	must(t, err)
	l := openLine(t, listener, "unix", filepath.Join(q.Get("host"), name))
	q.Set("host", dir)
	u.RawQuery = q.Encode()
	return l, u.String()
}

// openLine carries what comes to the listener.
func openLine(t *testing.T, listener net.Listener, network, to string) *line {
	t.Helper()
	l := &line{network: network, to: to, conns: map[net.Conn]struct{}{}}
	l.cond = sync.NewCond(&l.mu)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() { l.carry(c) })
		}
	})
	t.Cleanup(func() {
		must(t, listener.Close())
		l.set(true, false)
		running.Wait()
	})
	return l
}

// set changes the line's state; going down ends every connection.
func (l *line) set(down, frozen bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down, l.frozen = down, frozen
	if down {
		for c := range l.conns {
			c.Close()
		}
	}
	l.cond.Broadcast()
}

func (l *line) carry(c net.Conn) {
	defer c.Close()
	up, err := net.Dial(l.network, l.to)
	if err != nil {
		return
	}
	defer up.Close()
	l.mu.Lock()
	down := l.down
	l.conns[c], l.conns[up] = struct{}{}, struct{}{}
	l.mu.Unlock()
	if down {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { l.copy(up, c) })
	both.Go(func() { l.copy(c, up) })
	both.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	delete(l.conns, up)
}

func (l *line) copy(to, from net.Conn) {
	defer to.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		l.mu.Lock()
		for l.frozen && !l.down {
			l.cond.Wait()
		}
		l.mu.Unlock()
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err == io.EOF || err != nil {
			return
		}
	}
}

// outage cuts the line and mends it after a while.
func (l *line) outage(d time.Duration) {
	l.set(true, false)
	time.AfterFunc(d, func() { l.set(false, false) })
}

func withLine(l **line) func(*testing.T, string) string {
	return func(t *testing.T, dsn string) string {
		var over string
		*l, over = newLine(t, dsn)
		return over
	}
}

// A database that is away for seconds while a session is quit costs neither its profile nor its device.
func TestOutageAtQuit(t *testing.T) {
	t.Parallel()
	var l *line
	r := newRig(t, 1, 10, withLine(&l))
	p, err := r.client.CreateProfile(t.Context(), api.CreateProfile{Account: "a", Name: "p"})
	must(t, err)
	s := r.running(t, api.CreateSession{Profile: p.ID})
	l.outage(3 * time.Second)
	if resp, b := r.call(t, "DELETE", "/session/"+s.ID, ""); resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, b)
	}
	var v api.Session
	eventually(t, "the session is read", func() bool {
		v, err = r.client.Session(t.Context(), s.ID)
		return err == nil && v.State == api.Ended
	})
	if v.Reason != "completed" || v.Generation != 1 {
		t.Fatalf("%+v", v)
	}
	if p, err = r.client.Profile(t.Context(), p.ID); err != nil || p.Generation != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
	r.running(t, api.CreateSession{Profile: p.ID})
}

// A New Session that waits does not become an orphan.
func TestOutageInTheQueue(t *testing.T) {
	t.Parallel()
	var l *line
	r := newRig(t, 1, 10, withLine(&l))
	busy := r.running(t, api.CreateSession{})
	answered := make(chan int, 1)
	go func() {
		resp, _ := r.call(t, "POST", "/session", `{"capabilities":{"alwaysMatch":{"driftstack:options":{"account":"a","recording":false}}}}`)
		answered <- resp.StatusCode
	}()
	eventually(t, "it is queued", func() bool {
		q, err := r.client.Sessions(t.Context(), url.Values{"state": {"queued"}})
		return err == nil && len(q.Sessions) == 1
	})
	l.outage(3 * time.Second)
	eventually(t, "the database is back", func() bool {
		_, err := r.client.Sessions(t.Context(), nil)
		return err == nil
	})
	if len(answered) != 0 {
		t.Fatalf("answered with %d", <-answered)
	}
	if _, err := r.client.Do(t.Context(), busy.ID, webdriver.Command{Method: "DELETE"}); err != nil {
		t.Fatal(err)
	}
	if status := <-answered; status != http.StatusOK {
		t.Fatalf("answered with %d", status)
	}
}

// A request while the database is away is told so, and told when to come back.
func TestOutageIsSaid(t *testing.T) {
	t.Parallel()
	var l *line
	r := newRig(t, 1, 10, withLine(&l))
	l.set(true, false)
	defer l.set(false, false)
	for path, body := range map[string]string{
		"/v1/sessions": `{"account":"a"}`,
		"/session":     `{"capabilities":{"alwaysMatch":{"driftstack:options":{"account":"a"}}}}`,
	} {
		resp, b := r.call(t, "POST", path, body)
		want := map[string]int{"/v1/sessions": 503, "/session": 500}[path] // W3C has nothing above 500
		if resp.StatusCode != want || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d, Retry-After %q: %s", path, resp.StatusCode, resp.Header.Get("Retry-After"), b)
		}
	}
}

// A database that says nothing any more holds no request for ever.
func TestSilentDatabase(t *testing.T) {
	t.Parallel()
	var l *line
	r := newRig(t, 1, 10, withLine(&l))
	l.set(false, true)
	defer l.set(false, false)
	begin := time.Now()
	resp, b := r.call(t, "GET", "/healthz", "")
	if resp.StatusCode != 503 || time.Since(begin) > 20*time.Second {
		t.Fatalf("%d %s after %s", resp.StatusCode, b, time.Since(begin))
	}
	resp, b = r.call(t, "GET", "/session/none/url", "")
	if resp.StatusCode != 500 || time.Since(begin) > 30*time.Second {
		t.Fatalf("%d %s after %s", resp.StatusCode, b, time.Since(begin))
	}
}
