package main

import (
	"crypto/sha256"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
)

// An orchestrator that is stopped for longer than its lease, and wakes up when its session has another holder, has ended and has left a
// profile and a recording, purges nothing of it: not the profile's file, not the spool, not the session that has the profile now.
func TestWakesUpAndTouchesNothing(t *testing.T) {
	t.Parallel() // it waits, mostly
	f := newFleet(t, 2, 1, 2, true)
	p, err := f.replicas[0].client.CreateProfile(t.Context(), api.CreateProfile{Account: "a", Name: "p"})
	must(t, err)
	first := f.running(api.CreateSession{Account: "a", Profile: p.ID})
	w, err := f.store.Whereabouts(t.Context(), first)
	must(t, err)
	asleep, awake := f.replicas[0], f.replicas[1]
	if w.Holder.Name == awake.name {
		asleep, awake = awake, asleep
	}
	f.cookie(asleep, first, "before")
	f.eventually("it is recorded", 20*time.Second, func() bool { return len(f.glob("spool/*/body.webm")) == 1 })
	must(t, asleep.signal(syscall.SIGSTOP, false))
	f.eventually("the session is adopted", 30*time.Second, func() bool { return slices.Contains(f.kinds(first), "adopted") })
	f.cookie(awake, first, "after")
	f.quit(awake, first)
	if p, err = awake.client.Profile(t.Context(), p.ID); err != nil || p.Generation != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
	rec, _, err := f.store.Recording(t.Context(), first)
	if err != nil || rec.Partial || rec.DurationMS < leaseTime.Milliseconds()/2 { // the frames of a busy machine may be few
		t.Errorf("recording: %+v, %v", rec, err)
	}
	second := f.running(api.CreateSession{Account: "a", Profile: p.ID})
	profiles, log := f.contents("profiles"), f.kinds(first)

	must(t, asleep.signal(syscall.SIGCONT, false))
	f.eventually("it finds out", 30*time.Second, func() bool {
		return strings.Contains(string(asleep.tail()), "session is another orchestrator's, or has ended")
	})
	for path, sum := range profiles {
		if f.contents("profiles")[path] != sum {
			t.Errorf("%s was changed, or is gone", path)
		}
	}
	if got := f.kinds(first); !slices.Equal(got, log) {
		t.Errorf("the log was %v and is %v", log, got)
	}
	if later, _, err := f.store.Recording(t.Context(), first); err != nil || later.ID != rec.ID || later.Partial || later.SHA256 != rec.SHA256 {
		t.Errorf("the recording was %+v and is %+v, %v", rec, later, err)
	}
	if spool := f.glob("spool/" + rec.ID + "/body.webm"); len(spool) != 1 {
		t.Error("the spool of the recording is gone, and it is not stored")
	}
	// The session that has the profile now is where it was, whoever is asked.
	_, err = asleep.client.Do(t.Context(), second, webdriver.Command{Method: http.MethodPost, Path: "/url", Body: []byte(`{"url":"http://site.test/"}`)})
	must(t, err)
	for _, r := range f.replicas {
		if a, err := r.client.Do(t.Context(), second, webdriver.Command{Method: http.MethodGet, Path: "/url"}); err != nil || !strings.Contains(string(a.Body), "site.test") {
			t.Errorf("at %s: %s, %v", r.name, a.Body, err)
		}
	}
	f.quit(asleep, second)
	if p, err = awake.client.Profile(t.Context(), p.ID); err != nil || p.Generation != 2 {
		t.Errorf("%+v, %v", p, err)
	}
}

func (f *fleet) running(r api.CreateSession) (id string) {
	f.t.Helper()
	for _, any := range f.replicas {
		any.mu.Lock()
		stopped := any.stopped
		any.mu.Unlock()
		if stopped {
			continue
		}
		v, err := any.client.CreateSession(f.t.Context(), r)
		must(f.t, err)
		v, err = any.client.Wait(f.t.Context(), v.ID, api.Running)
		if err != nil || v.State != api.Running {
			f.t.Fatalf("%+v, %v", v, err)
		}
		return v.ID
	}
	f.t.Fatal("no orchestrator is awake")
	return ""
}

func (f *fleet) cookie(at *replica, session, name string) {
	f.t.Helper()
	for path, body := range map[string]string{"/url": `{"url":"http://site.test/"}`, "/cookie": `{"cookie":{"name":"` + name + `","value":"v","sameSite":"Lax"}}`} {
		_, err := at.client.Do(f.t.Context(), session, webdriver.Command{Method: http.MethodPost, Path: path, Body: []byte(body)})
		must(f.t, err)
	}
}

func (f *fleet) quit(at *replica, session string) {
	f.t.Helper()
	_, err := at.client.Do(f.t.Context(), session, webdriver.Command{Method: http.MethodDelete})
	must(f.t, err)
	if v, err := at.client.Session(f.t.Context(), session); err != nil || v.Reason != "completed" {
		f.t.Fatalf("%+v, %v", v, err)
	}
}

// kinds are those of a session's log, commands left out.
func (f *fleet) kinds(session string) (kinds []string) {
	f.t.Helper()
	events, err := f.store.Events(f.t.Context(), session, 0, 10000)
	must(f.t, err)
	for _, e := range events {
		if e.Kind != "command" {
			kinds = append(kinds, e.Kind)
		}
	}
	return kinds
}

func (f *fleet) glob(pattern string) []string {
	f.t.Helper()
	found, err := filepath.Glob(filepath.Join(f.dir, "volume", pattern))
	must(f.t, err)
	return found
}

// contents are the files below a folder of the shared volume.
func (f *fleet) contents(folder string) map[string][32]byte {
	f.t.Helper()
	all := map[string][32]byte{}
	must(f.t, filepath.WalkDir(filepath.Join(f.dir, "volume", folder), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		all[path] = sha256.Sum256(b)
		return err
	}))
	return all
}
