package host_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/driftstack/fleet/driverproxy/host"
)

// reusedProgram is a safaridriver with a real WebKit behind it, whose storage survives the sessions: they are all one session of a
// WebKitWebDriver that runs beside it. In its folder are that driver's address and the one session, and what has it end with each.
const (
	reusedProgram = "reuseddriver"
	reusedAddress = "address"
	reusedSession = "session"
	reusedEnds    = "ends"
	reusedLog     = "log" // a byte for each New Session
)

// reusedMain is the program.
func reusedMain(args []string) int {
	dir := filepath.Dir(args[0])
	addr, err := os.ReadFile(filepath.Join(dir, reusedAddress))
	if err != nil {
		return 2
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: string(addr)})
	session := filepath.Join(dir, reusedSession)
	proxy.ModifyResponse = func(r *http.Response) error {
		if r.Request.Method != http.MethodPost || r.Request.URL.Path != "/session" || r.StatusCode != http.StatusOK {
			return nil
		}
		var b bytes.Buffer
		if _, err := b.ReadFrom(r.Body); err != nil {
			return err
		}
		r.Body = readCloser{&b}
		return os.WriteFile(session, b.Bytes(), 0o600)
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, ends := os.Stat(filepath.Join(dir, reusedEnds))
		had, err := os.ReadFile(session)
		if r.URL.Path == "/session" {
			if f, err := os.OpenFile(filepath.Join(dir, reusedLog), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
				_, _ = f.WriteString("s")
				_ = f.Close()
			}
		}
		switch {
		case r.URL.Path == "/status":
			fmt.Fprint(w, `{"value":{"ready":true,"message":""}}`)
		case r.URL.Path == "/session" && err == nil:
			_, _ = w.Write(had)
		case r.URL.Path == "/session":
			found, _ := filepath.Glob("/usr/lib/*/webkit2gtk-4.*/MiniBrowser")
			body, _ := json.Marshal(map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
				"webkitgtk:browserOptions": map[string]any{"binary": found[len(found)-1], "args": []string{"--automation"}}}}})
			r.Body, r.ContentLength = readCloser{bytes.NewBuffer(body)}, int64(len(body))
			proxy.ServeHTTP(w, r)
		case r.Method == http.MethodDelete && strings.Count(r.URL.Path, "/") == 2 && ends != nil:
			fmt.Fprint(w, `{"value":null}`)
		case r.Method == http.MethodDelete && strings.Count(r.URL.Path, "/") == 2:
			_ = os.Remove(session)
			proxy.ServeHTTP(w, r)
		default:
			proxy.ServeHTTP(w, r)
		}
	})
	fmt.Fprintln(os.Stderr, http.ListenAndServe("127.0.0.1:"+args[2], handler))
	return 1
}

type readCloser struct{ *bytes.Buffer }

func (readCloser) Close() error { return nil }

// webKitDriver starts a WebKitWebDriver with a display, which the test's end kills with its browsers, and returns its address.
func webKitDriver(t *testing.T) string {
	t.Helper()
	group := func(env []string, args ...string) *exec.Cmd {
		c := exec.Command(args[0], args[1:]...)
		c.Env, c.SysProcAttr = append(os.Environ(), env...), &syscall.SysProcAttr{Setpgid: true}
		return c
	}
	start := func(c *exec.Cmd) {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
			_ = c.Wait()
		})
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	display := group(nil, "Xvfb", "-displayfd", "3", "-screen", "0", "400x860x24", "-nolisten", "tcp", "-noreset")
	display.ExtraFiles = []*os.File{w}
	start(display)
	_ = w.Close()
	name, err := bufio.NewReader(r).ReadString('\n') // ends with the display
	if err != nil {
		t.Fatal(err)
	}
	port := itoa(host.ReservePort(t))
	addr := "127.0.0.1:" + port
	start(group([]string{"DISPLAY=:" + strings.TrimSpace(name), "HOME=" + t.TempDir()}, "WebKitWebDriver", "--host=127.0.0.1", "--port="+port))
	eventually(t, "WebKitWebDriver answers", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return addr
}

// TestRealBrowserThatKeepsItsStorage: the session's driver is killed, and with it the way to delete what the session has stored in a real
// WebKit, which has it still in the next. The device is not to be had until sessions begin empty again.
func TestRealBrowserThatKeepsItsStorage(t *testing.T) {
	t.Parallel()
	needReal(t, "WebKitWebDriver", "Xvfb")
	dir, self := t.TempDir(), os.Args[0]
	if p, err := filepath.Abs(self); err == nil {
		self = p
	}
	i := &iphone{stack: newFleet(t), clock: newClock()}
	i.cfg = i.config(t)
	i.cfg.Devices[0].Kind, i.cfg.Devices[0].UDID = host.KindSafariDriver, "UDID-1"
	i.cfg.SafariDriver, i.cfg.Clock = filepath.Join(dir, reusedProgram), i.clock
	if err := errors.Join(os.Symlink(self, i.cfg.SafariDriver), os.WriteFile(filepath.Join(dir, reusedAddress), []byte(webKitDriver(t)), 0o600)); err != nil {
		t.Fatal(err)
	}
	i.run(t, i.cfg)
	at := site(t)
	store := `localStorage.setItem("token", "secret"); document.cookie = "login=secret"; return localStorage.length`
	look := `return [localStorage.length, document.cookie]`
	script := func(s string) map[string]any { return map[string]any{"script": s, "args": []any{}} }

	// A session that ends well takes what it has stored with it, although this browser would keep it.
	const database = `const done = arguments[arguments.length - 1], q = indexedDB.open("d");
		q.onsuccess = () => { q.result.close(); indexedDB.databases().then(list => done(list.length)); }; q.onerror = () => done(-1);`
	other := strings.Replace(at, "127.0.0.1", "localhost", 1)
	for n := range 5 { // on a busy machine a site may not answer in time, which is told
		s := assign(t, i.stack, first(fmt.Sprint("s1-", n), 1))
		do[any](t, s, "POST", "/url", map[string]string{"url": at})
		do[any](t, s, "POST", "/execute/sync", script(store))
		if n := do[int](t, s, "POST", "/execute/async", script(database)); n != 1 {
			t.Fatalf("%d databases", n)
		}
		// In another window, scripts have gone to another site.
		window := do[struct{ Handle string }](t, s, "POST", "/window/new", map[string]string{"type": "tab"})
		do[any](t, s, "POST", "/window", map[string]string{"handle": window.Handle})
		do[any](t, s, "POST", "/execute/sync", script(`location.href = "`+other+`"`))
		eventually(t, "the other site is there", func() bool {
			return do[string](t, s, "POST", "/execute/sync", script(`return location.hostname + document.readyState`)) == "localhostcomplete"
		})
		do[any](t, s, "POST", "/execute/sync", script(store))
		do[any](t, s, "POST", "/window", map[string]string{"handle": do[[]string](t, s, "GET", "/window/handles", nil)[0]})
		release(t, s)
		i.ready(t, "phone")
		if w := s.Wiped(); w == nil || w.Origins != 2 || w.Left != 0 {
			t.Fatalf("wiped %+v, want two sites", w)
		} else if w.Verified == 2 {
			break
		} else if n == 4 {
			t.Fatalf("wiped %+v", w)
		}
	}
	s := assign(t, i.stack, first("s2", 1))
	do[any](t, s, "POST", "/url", map[string]string{"url": at})
	if got := fmt.Sprint(do[[]any](t, s, "POST", "/execute/sync", script(look))...); got != "0" {
		t.Errorf("the next session found %s", got)
	}
	do[any](t, s, "POST", "/url", map[string]string{"url": other})
	if got := fmt.Sprint(do[[]any](t, s, "POST", "/execute/sync", script(look))...); got != "0" {
		t.Errorf("the next session found %s of the other window", got)
	}
	do[any](t, s, "POST", "/url", map[string]string{"url": at})
	do[any](t, s, "POST", "/execute/sync", script(store))
	if err := syscall.Kill(pidOf(i.state, reusedProgram), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	within(t, "the session ends", s.Done())
	release(t, s)
	i.clock.until(t, "quarantine", i.quarantined)
	tried := func() int {
		b, err := os.ReadFile(filepath.Join(dir, reusedLog))
		if err != nil {
			t.Fatal(err)
		}
		return len(b)
	}
	before := tried()
	i.clock.until(t, "trials", func() bool { return tried() >= before+2 })
	if !i.quarantined() {
		t.Fatal("readmitted although the browser keeps its storage")
	}
	if err := os.WriteFile(filepath.Join(dir, reusedEnds), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	i.clock.until(t, "readmission", i.isReady)
	s = assign(t, i.stack, first("s3", 1))
	do[any](t, s, "POST", "/url", map[string]string{"url": at})
	if got := fmt.Sprint(do[[]any](t, s, "POST", "/execute/sync", script(look))...); got != "0" {
		t.Errorf("the next session found %s", got)
	}
	release(t, s)
}
