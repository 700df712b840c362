package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/recorder/s3server"
)

// trouble is something that breaks in the middle of a session.
type trouble struct {
	name    string
	strike  func(*broken)
	reason  string // of the session's end; completed: it goes on
	partial bool   // what the recording must say of itself
	mend    func(*broken)
}

func troubles() []trouble {
	return []trouble{
		{name: "browser killed", strike: func(b *broken) { b.kill("MiniBrowser") }, reason: "driver_failed"},
		{name: "driver killed", strike: func(b *broken) { b.kill("WebKitWebDriver") }, reason: "driver_failed"},
		{name: "ffmpeg killed", strike: func(b *broken) { b.kill("ffmpeg") }, reason: "completed", partial: true},
		{name: "driverhost killed", strike: func(b *broken) { b.host(syscall.SIGKILL) }, reason: "host_lost", partial: true, mend: (*broken).restartHost},
		{name: "driverhost stopped", strike: func(b *broken) { b.host(syscall.SIGTERM) }, reason: "host_lost", mend: (*broken).restartHost},
		{name: "eu object storage killed", strike: func(b *broken) { b.stack.objects["eu"].server.Kill() }, reason: "completed", mend: (*broken).restartObjects},
	}
}

// broken is a stack in this process, a session on it, and what is needed to break it.
type broken struct {
	t       *testing.T
	ctx     context.Context
	stack   *stack
	sample  *sample
	profile string
}

// TestTrouble strikes in the middle of a session: it must end, or go on, with the right reason; the profile keeps
// what was saved before; what was recorded until then is there and decodes; nothing is left running.
func TestTrouble(t *testing.T) {
	t.Parallel()
	b := startBroken(t, 8*time.Minute)
	for _, tr := range troubles() {
		t.Run(tr.name, func(t *testing.T) {
			b := *b
			b.t = t
			b.run(tr)
		})
	}
}

// startBroken is a stack with a profile that is logged in; it goes with the test.
func startBroken(t *testing.T, within time.Duration) *broken {
	t.Helper()
	bin := programs(t)
	dir := filepath.Join(t.TempDir(), "state")
	ctx, cancel := context.WithTimeout(t.Context(), within)
	t.Cleanup(cancel)
	out := &printer{w: testWriter{t}}
	s, err := startStack(ctx, config{dir: dir, bin: bin, tunnel: "netstack", out: out})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out.failures() > 0 {
			t.Error("claims did not hold, marked ✗ above")
		}
		if err := s.stop(context.Background()); err != nil {
			t.Error(err)
		}
		for _, pid := range processesThatName(dir) {
			args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may be gone
			t.Errorf("process %d is left: %s", pid, strings.ReplaceAll(string(args), "\x00", " "))
		}
	})
	b := &broken{t: t, ctx: ctx, stack: s, sample: &sample{stack: s, out: out, note: "kept through all troubles"}}
	for account, place := range map[string]string{accountA: "replicated", accountB: "eu"} {
		if _, err := s.fleet.PutAccount(ctx, account, api.PutAccount{Recordings: place}); err != nil {
			t.Fatal(err)
		}
	}
	profile, err := s.fleet.CreateProfile(ctx, api.CreateProfile{Account: accountA, Name: "troubled"})
	if err != nil {
		t.Fatal(err)
	}
	b.profile = profile.ID
	b.undisturbed(b.sample.logsIn)
	return b
}

// run is one trouble, and a session after it that shows that nothing was lost.
func (b *broken) run(tr trouble) {
	b.t.Helper()
	id, browser := b.begin()
	if err := b.sample.clicksAndLooks(b.ctx, browser); err != nil {
		b.t.Fatal(err)
	}
	tr.strike(b)
	if tr.reason == "completed" {
		if err := b.sample.clicksAndLooks(b.ctx, browser); err != nil {
			b.t.Fatalf("the session does not go on: %v", err)
		}
		if err := browser.quit(b.ctx); err != nil {
			b.t.Fatal(err)
		}
	}
	began := time.Now()
	ended := b.wait(id, api.Ended)
	if ended.Reason != tr.reason {
		b.t.Errorf("ended as %s (%s), not as %s", ended.Reason, ended.Detail, tr.reason)
	}
	b.t.Logf("ended %.1fs after the strike: %s (%s)", time.Since(began).Seconds(), ended.Reason, ended.Detail)
	if tr.mend != nil {
		tr.mend(b)
	}
	rec, err := b.sample.waitRecording(b.ctx, id, []string{"eu", "us"})
	if err != nil {
		b.t.Fatal(err)
	}
	if rec.Bytes == 0 || rec.Partial != tr.partial {
		b.t.Errorf("recording of %d bytes, partial=%v (%s), want partial=%v", rec.Bytes, rec.Partial, rec.Cause, tr.partial)
	}
	b.decodes(rec)
	b.undisturbed(b.sample.isLoggedIn)
	b.nothingLeft("driverhost", "Xvfb", "WebKitWebDriver") // the next session's
}

func (b *broken) begin() (id string, _ *browser) {
	b.t.Helper()
	return b.beginNamed(b.t.Name(), nil)
}

func (b *broken) beginNamed(name string, labels api.Labels) (id string, _ *browser) {
	b.t.Helper()
	v, err := b.stack.fleet.CreateSession(b.ctx, api.CreateSession{Account: accountA, Profile: b.profile, Name: name, Labels: labels, Timeouts: api.Timeouts{IdleSeconds: 60}})
	if err != nil {
		b.t.Fatal(err)
	}
	b.wait(v.ID, api.Running)
	return v.ID, &browser{do: routes(b.stack.fleet, v.ID)}
}

func (b *broken) wait(id string, state api.SessionState) api.Session {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 90*time.Second)
	defer cancel()
	v, err := b.stack.fleet.Wait(ctx, id, state)
	if err != nil || v.State != state {
		b.t.Fatalf("session %s is %s (%s: %s), not %s: %v", id, v.State, v.Reason, v.Detail, state, err)
	}
	return v
}

// undisturbed runs a whole session with the profile.
func (b *broken) undisturbed(act func(context.Context, *browser) error) {
	b.t.Helper()
	id, browser := b.begin()
	if err := act(b.ctx, browser); err != nil {
		b.t.Fatal(err)
	}
	if err := browser.quit(b.ctx); err != nil {
		b.t.Fatal(err)
	}
	if v := b.wait(id, api.Ended); v.Reason != "completed" {
		b.t.Fatalf("ended as %s: %s", v.Reason, v.Detail)
	}
}

func (b *broken) decodes(rec api.Recording) {
	b.t.Helper()
	for _, c := range rec.Copies {
		f, err := os.CreateTemp(b.t.TempDir(), "*.webm")
		if err != nil {
			b.t.Fatal(err)
		}
		sum, err := fetch(b.ctx, c.URL, f)
		if err != nil || sum != rec.SHA256 {
			b.t.Errorf("%s copy: hash %s, want %s, %v", c.Region, sum, rec.SHA256, err)
		}
		if err := f.Close(); err != nil {
			b.t.Error(err)
		}
		p, err := probe(b.ctx, f.Name())
		if err != nil || !near(p.decoded, time.Duration(rec.DurationMS)*time.Millisecond) {
			b.t.Errorf("%s copy: %+v, claimed %d ms, %v", c.Region, p, rec.DurationMS, err)
		}
	}
}

// kill kills the processes of this stack's driver host that have the name.
func (b *broken) kill(name string) {
	b.t.Helper()
	struck := 0
	for _, pid := range processesThatName(filepath.Join(b.stack.cfg.dir, "driverhost")) {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err == nil && filepath.Base(exe) == name && syscall.Kill(pid, syscall.SIGKILL) == nil {
			struck++
		}
	}
	if struck == 0 {
		b.t.Fatalf("no process %s to kill", name)
	}
}

// host signals the driver host and waits for its end.
func (b *broken) host(s syscall.Signal) {
	b.t.Helper()
	b.stack.host.signal(s)
	select {
	case <-b.stack.host.done:
	case <-time.After(childStopLimit):
		b.t.Fatal("driverhost still runs")
	}
}

func (b *broken) restartHost() {
	b.t.Helper()
	b.nothingLeft("driverhost")
	if err := b.stack.startHost(b.ctx); err != nil {
		b.t.Fatal(err)
	}
}

func (b *broken) restartObjects() {
	b.t.Helper()
	if err := restart(b.ctx, b.stack.objects["eu"]); err != nil {
		b.t.Fatal(err)
	}
}

// nothingLeft waits a little for the processes of the last session to be gone: each of those that may stay is there once.
func (b *broken) nothingLeft(stay ...string) {
	b.t.Helper()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	limit := time.After(15 * time.Second)
	for {
		var left []string
		there := map[string]int{}
		for _, pid := range processesThatName(filepath.Join(b.stack.cfg.dir, "driverhost")) {
			exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
			if err != nil {
				continue // it is gone
			}
			name := filepath.Base(exe)
			there[name]++
			supervises := name == "driverhost" // the agent and a supervisor are the same program
			if !slices.Contains(stay, name) || there[name] > 1 && !supervises {
				left = append(left, fmt.Sprintf("%s (%d)", name, pid))
			}
		}
		if len(left) == 0 && there["driverhost"] <= 2 {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			b.t.Errorf("left of the session: %v of %v", left, there)
			return
		}
	}
}

// testWriter prints what devstack says into the test's log.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// restart brings a killed object store back at the same address.
func restart(ctx context.Context, o *objectStore) (err error) {
	again := o.config
	again.Addr = o.server.Addr()
	o.server, err = s3server.Start(ctx, again)
	return err
}
