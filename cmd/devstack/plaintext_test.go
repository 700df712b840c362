package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
)

// TestNoPlaintextOnDisk runs sessions with a profile through the real programs, and looks into everything that these, the databases and the
// object storage have on a disk for what the profile holds: while a session runs, but for the browser's own folder, and afterwards.
func TestNoPlaintextOnDisk(t *testing.T) {
	bin, tmp := programs(t), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	cookie, stored := "cookie"+rand.Text(), "stored"+rand.Text()
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		if r.URL.Path == "/in" {
			http.SetCookie(w, &http.Cookie{Name: "known", Value: cookie, Path: "/", SameSite: http.SameSiteLaxMode, MaxAge: 3600})
			fmt.Fprintf(w, `<!doctype html><body>in<script>localStorage.setItem("known", %q)</script>`, stored)
			return
		}
		fmt.Fprint(w, "<!doctype html><body>out")
	}))
	defer site.Close()

	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	dir := filepath.Join(t.TempDir(), "state")
	s, err := startStack(ctx, config{dir: dir, bin: bin, tunnel: "netstack", out: &printer{w: testWriter{t}}})
	if err != nil {
		t.Fatal(err)
	}
	stop := func() {
		if err := s.stop(context.Background()); err != nil {
			t.Error(err)
		}
	}
	defer func() { stop() }()
	if _, err := s.fleet.PutAccount(ctx, accountA, api.PutAccount{Recordings: "eu"}); err != nil {
		t.Fatal(err)
	}
	profile, err := s.fleet.CreateProfile(ctx, api.CreateProfile{Account: accountA, Name: "known"})
	if err != nil {
		t.Fatal(err)
	}
	browsers := filepath.Join(dir, "driverhost", "sessions")
	look := func(when string, but ...string) {
		t.Helper()
		postgres := filepath.Join(dir, "postgres")
		for _, folder := range []string{dir, tmp, postgres, filepath.Join(dir, "logs"), filepath.Join(dir, "orchestrator"), filepath.Join(dir, "driverhost")} {
			n, found, err := searchFiles(folder, []string{cookie, stored}, but...)
			if err != nil || found != "" || n == 0 && folder != tmp {
				t.Errorf("%s: of %d files in %s, %s holds it: %v", when, n, folder, found, err)
			}
		}
		if wal, _ := filepath.Glob(filepath.Join(postgres, "*", "pg_wal", "0*")); len(wal) == 0 {
			t.Errorf("%s: there is no write-ahead log in %s", when, postgres)
		}
	}
	b := &broken{t: t, ctx: ctx, stack: s, profile: profile.ID}
	for i, when := range []string{"the first session runs", "the second session runs"} {
		id, browser := b.begin()
		page := "/in"
		if i > 0 {
			page = "/out"
		}
		if err := browser.open(ctx, site.URL+page); err != nil {
			t.Fatal(err)
		}
		var has [2]string // and so they pass through all parts as answers
		script := map[string]any{"script": `return [document.cookie, localStorage.getItem("known")]`, "args": []string{}}
		if err := browser.send(ctx, http.MethodPost, "/execute/sync", script, &has); err != nil || !strings.Contains(has[0], "known="+cookie) || has[1] != stored {
			t.Fatalf("%s: the page has %q, %v", when, has, err)
		}
		again := map[string]any{"cookie": map[string]string{"name": "again", "value": cookie, "sameSite": "Lax"}} // and as a command
		if err := browser.send(ctx, http.MethodPost, "/cookie", again, nil); err != nil {
			t.Fatal(err)
		}
		look(when, browsers)
		if err := browser.quit(ctx); err != nil {
			t.Fatal(err)
		}
		if v := b.wait(id, api.Ended); v.Reason != "completed" || v.Generation != int64(i+1) {
			t.Fatalf("%+v", v)
		}
	}
	look("after both") // the browsers' folders are gone
	stop()
	stop = func() {}
	look("once all has stopped")
	t.Log("part: webkit real")
}
