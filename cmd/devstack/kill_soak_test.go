//go:build soak

package main

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
)

// TestSoakKilledAnywhere kills the orchestrator, its storage or both at random moments of sessions with a real browser: each goes on, and its recording is
// whole, in both regions, and decodes. TestSoakKillNine of recorder has 200 kills, of the recorder alone.
func TestSoakKilledAnywhere(t *testing.T) {
	b := startBroken(t, 30*time.Minute)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for n := range 20 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			b := *b
			b.t = t
			id, browser := b.begin()
			strike := n % 3
			pause(b.ctx, time.Duration(random.Int64N(int64(2*time.Second))))
			if strike != 0 {
				b.stack.objects["eu"].server.Kill()
			}
			if strike != 1 {
				b.killOrchestrator()
			}
			if err := b.sample.clicksAndLooks(b.ctx, browser); err != nil {
				t.Fatalf("the session does not go on: %v", err)
			}
			if err := browser.quit(b.ctx); err != nil {
				t.Fatal(err)
			}
			if v := b.wait(id, api.Ended); v.Reason != "completed" {
				t.Errorf("ended as %s (%s)", v.Reason, v.Detail)
			}
			if strike != 0 {
				b.restartObjects()
			}
			rec, err := b.sample.waitRecording(b.ctx, id, []string{"eu", "us"})
			if err != nil {
				t.Fatal(err)
			}
			if rec.Bytes == 0 || rec.Partial {
				t.Errorf("recording of %d bytes, partial=%v (%s)", rec.Bytes, rec.Partial, rec.Cause)
			}
			b.decodes(rec)
		})
	}
}

func (b *broken) killOrchestrator() {
	b.t.Helper()
	b.stack.eu.signal(syscall.SIGKILL)
	select {
	case <-b.stack.eu.done:
	case <-time.After(childStopLimit):
		b.t.Fatal("the orchestrator still runs")
	}
	if err := b.stack.startOrchestrator(b.ctx); err != nil {
		b.t.Fatal(err)
	}
}
