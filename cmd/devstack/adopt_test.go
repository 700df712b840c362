package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
)

// TestOrchestratorRestarts kills, and stops, the orchestrator while a client sends commands to a real browser, and starts it
// again: the session goes on as if nothing had happened, except to the command of that moment.
func TestOrchestratorRestarts(t *testing.T) {
	t.Parallel()
	bin := programs(t)
	dir := filepath.Join(t.TempDir(), "state")
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	out := &printer{w: testWriter{t}}
	s, err := startStack(ctx, config{dir: dir, bin: bin, tunnel: "netstack", out: out})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range []string{"orchestrator", "driverhost"} {
				t.Logf("end of %s:\n%s", name, (&child{log: s.log(name)}).tail())
			}
		}
		if err := s.stop(context.Background()); err != nil {
			t.Error(err)
		}
		for _, pid := range processesThatName(dir) {
			args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may be gone
			t.Errorf("process %d is left: %s", pid, strings.ReplaceAll(string(args), "\x00", " "))
		}
	})
	b := &broken{t: t, ctx: ctx, stack: s, sample: &sample{stack: s, out: out, note: "kept through all restarts"}}
	if _, err := s.fleet.PutAccount(ctx, accountA, api.PutAccount{Recordings: "eu"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		with syscall.Signal
		log  []string
	}{
		{"killed", syscall.SIGKILL, []string{"recording", "adopted", "recording_sealed"}},
		{"stopped", syscall.SIGTERM, []string{"recording", "handed_over", "adopted", "recording_sealed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := *b
			b.t = t
			profile, err := s.fleet.CreateProfile(ctx, api.CreateProfile{Account: accountA, Name: c.name})
			if err != nil {
				t.Fatal(err)
			}
			b.profile = profile.ID
			b.restarted(c.with, c.log)
		})
	}
	if out.failures() > 0 {
		t.Error("claims did not hold, marked ✗ above")
	}
}

// restarted is one session through a restart of its orchestrator, and one after it.
func (b *broken) restarted(with syscall.Signal, log []string) {
	b.t.Helper()
	begun := time.Now()
	id, browser := b.begin()
	if err := b.sample.logsIn(b.ctx, browser); err != nil {
		b.t.Fatal(err)
	}
	// On to another site: that of the login is not seen again.
	if err := browser.open(b.ctx, strings.Replace(b.stack.site.origin, "127.0.0.1", "localhost", 1)+"/counter"); err != nil {
		b.t.Fatal(err)
	}
	for range 3 {
		if err := browser.click(b.ctx, "#add"); err != nil {
			b.t.Fatal(err)
		}
	}
	c := startCounting(b.t, b.ctx, b.stack.fleet, id)
	c.answers(5)
	pause(b.ctx, 100*time.Millisecond) // into the next command
	struck := time.Now()
	b.stack.eu.signal(with)
	select {
	case <-b.stack.eu.done:
	case <-time.After(childStopLimit):
		b.t.Fatal("the orchestrator still runs")
	}
	gone := time.Since(struck)
	if err := b.stack.startOrchestrator(b.ctx); err != nil {
		b.t.Fatal(err)
	}
	ready := time.Now()
	c.answers(1)
	b.t.Logf("MEASURED %s: %.1f s until the process was gone, commands go on %.1f s after the next was ready", with, gone.Seconds(), time.Since(ready).Seconds())
	c.answers(5)
	c.check()

	count, err := browser.text(b.ctx, "#count")
	if err != nil || count != "3" {
		b.t.Errorf("the counter on the page shows %q, %v", count, err)
	}
	if err := browser.quit(b.ctx); err != nil {
		b.t.Fatal(err)
	}
	if v := b.wait(id, api.Ended); v.Reason != "completed" || v.Generation == 0 {
		b.t.Errorf("ended as %s (%s), profile generation %d", v.Reason, v.Detail, v.Generation)
	}
	b.logged(id, log)
	rec, err := b.sample.waitRecording(b.ctx, id, []string{"eu"})
	if err != nil {
		b.t.Fatal(err)
	}
	if rec.Bytes == 0 || rec.Partial || rec.DurationMS < time.Since(begun).Milliseconds()-20_000 {
		b.t.Errorf("recording of %d ms, %d bytes, partial=%v (%s)", rec.DurationMS, rec.Bytes, rec.Partial, rec.Cause)
	}
	b.decodes(rec)
	b.undisturbed(b.sample.isLoggedIn)
	b.nothingLeft("driverhost", "Xvfb", "WebKitWebDriver") // the next session's
}

// logged looks for kinds of events, in this order.
func (b *broken) logged(id string, want []string) {
	b.t.Helper()
	events, err := b.stack.fleet.Events(b.ctx, id, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	var all []string
	for _, e := range events {
		all = append(all, e.Kind)
	}
	rest := all
	for _, kind := range want {
		i := slices.Index(rest, kind)
		if i < 0 {
			b.t.Errorf("the log has no %v in this order: %v", want, all)
			return
		}
		rest = rest[i+1:]
	}
}

// counting has the page count commands: each takes a moment, so that most likely one runs whenever something breaks.
type counting struct {
	t    *testing.T
	stop func()

	mu      sync.Mutex
	seen    []int // what was answered
	unknown int   // commands that may or may not have been executed
	last    error
	grew    chan struct{}
}

const countScript = `const done = arguments[0]; window.counted = (window.counted || 0) + 1; const n = window.counted; setTimeout(() => done(n), 200)`

func startCounting(t *testing.T, ctx context.Context, fleet *client.Client, session string) *counting {
	ctx, cancel := context.WithCancel(ctx)
	c := &counting{t: t, grew: make(chan struct{}, 1)}
	do := routes(fleet, session)
	var sender sync.WaitGroup
	sender.Go(func() {
		for ctx.Err() == nil {
			value, err := do(context.WithoutCancel(ctx), http.MethodPost, "/execute/async", map[string]any{"script": countScript, "args": []any{}})
			c.note(value, err)
			if err != nil {
				pause(ctx, pollEvery)
			}
		}
	})
	c.stop = sync.OnceFunc(func() { cancel(); sender.Wait() })
	t.Cleanup(c.stop)
	return c
}

func (c *counting) note(value []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var n int
	switch {
	case err == nil:
		if _, err := fmt.Sscan(string(value), &n); err != nil {
			c.t.Errorf("the page counts %q", value)
		}
		c.seen = append(c.seen, n)
	case errors.Is(err, syscall.ECONNREFUSED), strings.Contains(err.Error(), "the command was not run"):
	default:
		c.unknown++
		c.last = err
	}
	select {
	case c.grew <- struct{}{}:
	default:
	}
}

// answers waits for so many more answered commands.
func (c *counting) answers(more int) {
	c.t.Helper()
	count := func() int { c.mu.Lock(); defer c.mu.Unlock(); return len(c.seen) }
	from, limit := count(), time.After(90*time.Second)
	for count() < from+more {
		select {
		case <-c.grew:
		case <-limit:
			c.mu.Lock()
			defer c.mu.Unlock()
			c.t.Fatalf("no command is answered any more, the last says: %v", c.last)
		}
	}
}

// check ends the counting. What the page counts beyond what was answered are commands whose clients were not told: at most one
// each, and at most one in all, since one is sent after the other.
func (c *counting) check() {
	c.t.Helper()
	c.stop()
	if !slices.IsSorted(c.seen) || len(slices.Compact(slices.Clone(c.seen))) != len(c.seen) {
		c.t.Errorf("the page was seen to count %v", c.seen)
	}
	silent := c.seen[len(c.seen)-1] - len(c.seen)
	if silent < 0 || silent > c.unknown || c.unknown > 1 {
		c.t.Errorf("the page counts %d, %d commands were answered, the fate of %d is not known: %v", c.seen[len(c.seen)-1], len(c.seen), c.unknown, c.last)
	}
	c.t.Logf("%d commands were answered, %d executed, the fate of %d was not known (%v)", len(c.seen), c.seen[len(c.seen)-1], c.unknown, c.last)
}
