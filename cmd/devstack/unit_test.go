package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
)

// TestSearchFindsEveryForm shows that the search for secrets can find them: a search that finds nothing proves nothing.
func TestSearchFindsEveryForm(t *testing.T) {
	const secret = "nonce-XK2QVZ7"
	utf16 := strings.Join(strings.Split(secret, ""), "\x00") + "\x00"
	var percent, escaped string
	for _, c := range secret {
		percent += fmt.Sprintf("%%%02X", c)
		escaped += fmt.Sprintf(`\u%04x`, c)
	}
	forms := map[string]string{
		"plain": "x" + secret + "y", "hex": hex.EncodeToString([]byte("x" + secret)), "upper hex": strings.ToUpper(hex.EncodeToString([]byte(secret))),
		"utf-16": utf16, "utf-16, big end first": "\x00" + strings.TrimSuffix(utf16, "\x00"), "base64 of utf-16": base64.StdEncoding.EncodeToString([]byte("a" + utf16 + "t")),
		"percent": percent, "JSON": escaped,
		"base64": base64.StdEncoding.EncodeToString([]byte(secret + "tail")), "base64 at 1": base64.StdEncoding.EncodeToString([]byte("a" + secret + "tail")),
		"base64 at 2": base64.URLEncoding.EncodeToString([]byte("ab" + secret)), "base64 at 5": base64.StdEncoding.EncodeToString([]byte("abcde" + secret)),
	}
	for name, content := range forms {
		dir := t.TempDir()
		path := filepath.Join(dir, "deep", "file")
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, found, err := searchFiles(dir, []string{"something else", secret}); err != nil || found != path {
			t.Errorf("%s: found %q, %v", name, found, err)
		}
		if files, found, err := searchFiles(dir, []string{"something else"}); err != nil || found != "" || files != 1 {
			t.Errorf("%s: another text found in %q, %d files, %v", name, found, files, err)
		}
	}
	if _, _, err := searchFiles(t.TempDir(), []string{""}); err == nil {
		t.Error("looking for nothing is no error")
	}
}

func TestCountObjects(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sum := sha256.Sum256([]byte("b"))
	if n, err := countObjects(dir, hex.EncodeToString(sum[:])); err != nil || n != 1 {
		t.Fatalf("%d objects, %v", n, err)
	}
}

func testSite(t *testing.T, key string) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := startSite(l, key)
	t.Cleanup(func() {
		if err := s.stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestSiteLoginOutlivesARestart(t *testing.T) {
	s, again, other := testSite(t, "key"), testSite(t, "key"), testSite(t, "another key")
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Jar: jar, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	home := func(s *site) string {
		res, err := client.Get(s.origin + "/")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	if !strings.Contains(home(s), "Nobody is logged in.") {
		t.Fatal("logged in before the login")
	}
	res, err := client.PostForm(s.origin+"/login", url.Values{"user": {siteUser}, "password": {"wrong"}})
	if err != nil || res.StatusCode != http.StatusForbidden {
		t.Fatalf("wrong password: %v %v", res, err)
	}
	res.Body.Close()
	stopRedirect := *client
	stopRedirect.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	res, err = stopRedirect.PostForm(s.origin+"/login", url.Values{"user": {siteUser}, "password": {sitePassword}})
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if c := res.Header.Get("Set-Cookie"); !strings.Contains(c, "HttpOnly") || !strings.Contains(c, "Max-Age=") {
		t.Fatalf("Set-Cookie: %s", c)
	}
	// Cookies do not know ports, so the jar sends the same one to all three.
	if !strings.Contains(home(s), loggedInText) || !strings.Contains(home(again), loggedInText) {
		t.Fatal("not logged in after the login, or after a restart")
	}
	if strings.Contains(home(other), loggedInText) {
		t.Fatal("a cookie of another key counts")
	}
}

func TestStateStaysAndIsLocked(t *testing.T) {
	dir := t.TempDir()
	first, lock, err := openState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := openState(dir); err == nil || !strings.Contains(err.Error(), "another devstack runs") {
		t.Fatalf("second devstack in one folder: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	second, lock, err := openState(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if *first != *second {
		t.Fatalf("state changed from one start to the next:\n%+v\n%+v", first, second)
	}
	st, err := os.Stat(filepath.Join(dir, "state.json"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("secrets readable by others: %v %v", st, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "state.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	lock.Close()
	if _, _, err := openState(dir); err == nil || !strings.Contains(err.Error(), "make clean") {
		t.Fatalf("damaged state: %v", err)
	}
}

func shell(t *testing.T, script string) *child {
	t.Helper()
	c, err := startChild(spec{name: "shell", argv: []string{"/bin/sh", "-c", script}, env: []string{"GREETING=hello"}, log: filepath.Join(t.TempDir(), "shell.log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-c.pid, syscall.SIGKILL) })
	return c
}

func TestChildThatEndsShowsItsLog(t *testing.T) {
	c := shell(t, `echo "$GREETING from the child"; exit 3`)
	<-c.done
	if err := c.ended(); !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "hello from the child") {
		t.Fatalf("unclear: %v", err)
	}
}

func TestChildIsStopped(t *testing.T) {
	c := shell(t, `exec sleep 100`)
	if err := c.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.stop(t.Context()); err != nil {
		t.Fatalf("second stop: %v", err)
	}
}

func TestChildThatDoesNotStopIsKilled(t *testing.T) {
	c := shell(t, `trap "" TERM; echo ready; while :; do read line < /dev/null || :; done`)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := until(ctx, c, "is not ready", func(context.Context) (bool, error) {
		return strings.Contains(c.tail(), "ready"), nil
	}); err != nil {
		t.Fatal(err)
	}
	cancel() // stop has no time left
	if err := c.stop(ctx); err == nil || !strings.Contains(err.Error(), "was killed") {
		t.Fatalf("%v", err)
	}
	if err := syscall.Kill(-c.pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Fatalf("process group still there: %v", err)
	}
}

func TestChildrenDoNotInheritSomebodysFleet(t *testing.T) {
	t.Setenv("DRIFTSTACK_URL", "https://production.example")
	c := shell(t, `echo "url=$DRIFTSTACK_URL."`)
	<-c.done
	if got := strings.TrimSpace(c.tail()); got != "url=." {
		t.Fatal(got)
	}
}

func TestLiveLogPrintsWholeLines(t *testing.T) {
	var out bytes.Buffer
	l := &liveLog{out: &printer{w: &out}}
	for _, part := range []string{"one\ntw", "o\nthr"} {
		if _, err := l.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	if got := out.String(); got != "  │ one\n  │ two\n" || l.count() != 2 {
		t.Fatalf("%q, %d lines", got, l.count())
	}
}

// TestSummaryHasTheTablesFields keeps the table and summary.json together.
func TestSummaryHasTheTablesFields(t *testing.T) {
	rows := []row{{Session: "s-1", Account: "a", Device: "h/d", Commands: 21, P50CommandMS: 3.25, RecordingBytes: 2048, RecordingMS: 4200, RecordingPlace: []string{"eu", "us"}, Generation: 7}}
	text := table(rows)
	for _, want := range []string{"s-1", "h/d", "21", "3.2 ms", "2 KiB", "4.2 s", "eu + us", "7"} {
		if !strings.Contains(text, want) {
			t.Errorf("table lacks %q:\n%s", want, text)
		}
	}
	path := filepath.Join(t.TempDir(), "summary.json")
	if err := writeSummary(path, rows, true); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Held     bool
		Sessions []row
	}
	if err := json.Unmarshal(raw, &got); err != nil || !got.Held || len(got.Sessions) != 1 || got.Sessions[0].RecordingPlace[1] != "us" {
		t.Fatalf("%s: %v", raw, err)
	}
}

func TestFailedClaimsAreCounted(t *testing.T) {
	p := &printer{w: io.Discard}
	p.check(true, "holds")
	p.check(false, "does not")
	if p.failures() != 1 {
		t.Fatalf("%d failures", p.failures())
	}
}

func TestRecordedTime(t *testing.T) {
	at := func(seconds float64) time.Time {
		return time.Unix(1000, 0).Add(time.Duration(seconds * float64(time.Second)))
	}
	least, most := recordedTime([]api.Event{
		{Kind: "starting", At: at(0)}, {Kind: "recording", At: at(3), TookUS: 2_000_000}, {Kind: "running", At: at(3.5)}, {Kind: "command", At: at(4)},
		{Kind: "finishing", At: at(8)}, {Kind: "profile_saved", At: at(8.5)}, {Kind: "ended", At: at(9)},
	})
	if least != 4500*time.Millisecond || most != 7500*time.Millisecond {
		t.Fatalf("%s to %s", least, most)
	}
}
