package profilestate

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/inert"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// webKit is a WebKitWebDriver on its own display; it has one session at a time.
type webKit struct{ base string }

func startWebKit(t *testing.T) *webKit {
	t.Helper()
	browsers, _ := filepath.Glob("/usr/lib/*/webkit2gtk-4.1/MiniBrowser")
	xvfb, errX := exec.LookPath("Xvfb")
	driver, errD := exec.LookPath("WebKitWebDriver")
	if err := errors.Join(errX, errD); err != nil || len(browsers) == 0 {
		text := "this test needs WebKitWebDriver, MiniBrowser and Xvfb (Debian: apt-get install webkit2gtk-driver xvfb)"
		if os.Getenv("CI") != "" {
			t.Fatal(text)
		}
		t.Skip(text)
	}
	return &webKit{base: startDriver(t, xvfb, driver)}
}

// startDriver starts a display and a driver on it and returns the driver's address.
func startDriver(t *testing.T, xvfb, driver string) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	x := exec.Command(xvfb, "-displayfd", "3", "-screen", "0", "400x860x24", "-nolisten", "tcp", "-noreset")
	x.ExtraFiles = []*os.File{w}
	startGroup(t, x)
	w.Close()
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	display, err := bufio.NewReader(r).ReadString('\n')
	r.Close()
	if err != nil {
		t.Fatalf("Xvfb did not name its display: %v", err)
	}
	port := freePort(t)
	d := exec.Command(driver, "--port="+port)
	d.Env = append(os.Environ(), "DISPLAY=:"+strings.TrimSpace(display), "HOME="+t.TempDir())
	startGroup(t, d)
	base := "http://127.0.0.1:" + port
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		if _, err := (&webKit{base: base}).call(ctx, "GET", "/status", nil); err == nil {
			return base
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			t.Fatalf("WebKitWebDriver did not start: %v", err)
		}
	}
}

// startGroup starts a process group that the test's cleanup kills whole: MiniBrowser outlives its driver otherwise.
func startGroup(t *testing.T, c *exec.Cmd) {
	t.Helper()
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
		_ = c.Wait()
	})
}

// freePort is one that no other driver is given while the test runs: a UDP socket keeps it, and systems give none so low to whoever asks for any.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(20000 + rand.IntN(12768))
		kept, err := net.ListenPacket("udp4", "127.0.0.1:"+port)
		if err != nil {
			continue
		}
		t.Cleanup(func() { _ = kept.Close() })
		if l, err := net.Listen("tcp4", "127.0.0.1:"+port); err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return ""
}

func (k *webKit) call(ctx context.Context, method, path string, body []byte) (json.RawMessage, error) {
	req, err := http.NewRequestWithContext(ctx, method, k.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	a := webdriver.Answer{Status: resp.StatusCode, Body: raw}
	if err := a.Err(); err != nil {
		return nil, err
	}
	var v json.RawMessage
	return v, a.Value(&v)
}

// safari is one session; it implements Driver and counts commands.
type safari struct {
	t        *testing.T
	k        *webKit
	id       string
	commands []string
}

func (k *webKit) session(t *testing.T, extra string) *safari {
	t.Helper()
	browsers, _ := filepath.Glob("/usr/lib/*/webkit2gtk-4.1/MiniBrowser")
	caps := fmt.Sprintf(`{"capabilities":{"alwaysMatch":{%s"webkitgtk:browserOptions":{"binary":%q,"args":["--automation"]}}}}`, extra, browsers[0])
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	raw, err := k.call(ctx, "POST", "/session", []byte(caps))
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		ID string `json:"sessionId"`
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return &safari{t: t, k: k, id: v.ID}
}

func (s *safari) Do(ctx context.Context, method, path string, body []byte) (json.RawMessage, error) {
	s.commands = append(s.commands, method+" "+path)
	began := time.Now()
	defer func() {
		if took := time.Since(began); took > 3*time.Second {
			s.t.Logf("%s %s took %v", method, path, took.Round(time.Millisecond))
		}
	}()
	if path == inert.BatchPath {
		return runBatch(ctx, s, body)
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second) // a driver that hangs fails the test, at this command
	defer cancel()
	return s.k.call(ctx, method, "/session/"+s.id+path, body)
}

// runBatch is what a driver host does.
func runBatch(ctx context.Context, d inert.Driver, body []byte) (json.RawMessage, error) {
	b, refused := batch.Parse(body)
	if refused != nil {
		return nil, refused
	}
	r := b.Run(ctx, batch.Driver{Now: time.Now, Do: func(ctx context.Context, c webdriver.Command) (webdriver.Answer, error) {
		v, err := d.Do(ctx, c.Method, c.Path, c.Body)
		var w *webdriver.Error
		if errors.As(err, &w) {
			return w.Answer(), nil
		}
		if err != nil {
			return webdriver.Answer{}, err
		}
		return webdriver.ValueAnswer(v)
	}})
	a := r.Answer()
	var v json.RawMessage
	return v, a.Value(&v)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *safari) must(method, path, body string) json.RawMessage {
	s.t.Helper()
	var b []byte
	if body != "" {
		b = []byte(body)
	}
	v, err := s.Do(s.t.Context(), method, path, b)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	return v
}

func (s *safari) visit(url string) {
	s.t.Helper()
	s.must("POST", "/url", fmt.Sprintf(`{"url":%q}`, url))
}

func (s *safari) js(script string) string {
	s.t.Helper()
	body, _ := json.Marshal(map[string]any{"script": script, "args": []string{}})
	var out string
	if err := json.Unmarshal(s.must("POST", "/execute/sync", string(body)), &out); err != nil {
		s.t.Fatalf("script result: %v", err)
	}
	return out
}

// arrived waits for a page of the host, however little the driver waits by itself.
func (s *safari) arrived(host string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	for {
		// A script that meets the navigation fails with it.
		v, err := s.Do(ctx, "POST", "/execute/sync", []byte(`{"script":"return location.host+' '+document.readyState","args":[]}`))
		if err == nil && string(v) == fmt.Sprintf("%q", host+" complete") {
			return
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			s.t.Fatalf("no page of %s came", host)
		}
	}
}

func (s *safari) quit() {
	s.t.Helper()
	s.must("DELETE", "", "")
}
