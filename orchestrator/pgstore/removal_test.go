package pgstore_test

import (
	"context"
	"os"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/tunnel"
)

// TestRemovedHostIsCutOffOnEveryGateway: at once, and neither its key nor its token opens anything any more.
func TestRemovedHostIsCutOffOnEveryGateway(t *testing.T) {
	t.Parallel()
	dsn := postgres.Database(t)
	replicas := []*replica{startReplica(t, dsn, 1, zap.NewNop()), startReplica(t, dsn, 2, zap.NewNop())}
	token := replicas[0].token(t, "mac")
	for _, r := range replicas {
		if err := r.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dir, copied := t.TempDir(), t.TempDir()
	l, err := tunnel.OpenLink(ctx, tunnel.LinkConfig{StateDir: dir, Token: token, Backend: tunnel.BackendNetstack})
	if err != nil {
		t.Fatal(err)
	}
	known := func() (n int) {
		t.Helper()
		for _, r := range replicas {
			ps, err := r.Status(ctx)
			if err != nil {
				t.Fatal(err)
			}
			n += len(ps)
		}
		return n
	}
	for _, r := range replicas {
		at, err := seen(ctx, l, r.info)
		for err != nil && ctx.Err() == nil {
			at, err = seen(ctx, l, r.info)
		}
		if err != nil || at != l.Addr().String() {
			t.Fatalf("before: %q, %v", at, err)
		}
	}
	if n := known(); n != 2 {
		t.Fatalf("%d gateways know the host", n)
	}
	state, err := os.ReadFile(dir + "/tunnel.json")
	if err == nil {
		err = os.WriteFile(copied+"/tunnel.json", state, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := replicas[0].store.Revoke(ctx, "mac", time.Hour, orchestrator.Act{By: "test"}); err != nil {
		t.Fatal(err)
	}
	poll(t, "both gateways have forgotten the host", func() bool { return known() == 0 })
	t.Logf("MEASURED a removed host is cut off on 2 orchestrators after %s", time.Since(began).Round(time.Millisecond))
	if took := time.Since(began); took > 5*time.Second { // the tick would take 10
		t.Errorf("cut off after %s", took)
	}
	unreachable := func(what string, l *tunnel.Link) {
		t.Helper()
		short, stop := context.WithTimeout(ctx, 2*time.Second)
		defer stop()
		for _, r := range replicas {
			if c, err := l.DialContext(short, "tcp", r.info.Fleet()); err == nil {
				_ = c.Close()
				t.Errorf("%s reaches %s", what, r.info.Addr)
			}
		}
	}
	unreachable("the host", l)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	thief, err := tunnel.OpenLink(ctx, tunnel.LinkConfig{StateDir: copied, Backend: tunnel.BackendNetstack})
	if err != nil {
		t.Fatal(err)
	}
	unreachable("a copy of its key", thief)
	if err := thief.Close(); err != nil {
		t.Error(err)
	}
	short, stop := context.WithTimeout(ctx, 3*time.Second)
	defer stop()
	if l, err := tunnel.OpenLink(short, tunnel.LinkConfig{StateDir: t.TempDir(), Token: token, Backend: tunnel.BackendNetstack}); err == nil {
		_ = l.Close()
		t.Error("a copy of its token joins")
	}
}

// poll wants something to become true, on however busy a machine.
func poll(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !is() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		}
	}
}

// TestListenerIsDialledAgain: with the connection, notifications are lost; after it is back, anything may have changed.
func TestListenerIsDialledAgain(t *testing.T) {
	s := open(t, 0)
	ctx, stop := context.WithCancel(t.Context())
	woken, ended := make(chan string, 100), make(chan struct{})
	nothing := func(string) {}
	go func() {
		defer close(ended)
		s.Listen(ctx, pgstore.Wakes{Queue: func(string) {}, Hosts: func(name string) { woken <- name }, Session: nothing, Cancel: nothing})
	}()
	defer func() { stop(); <-ended }()
	next := func(what, want string) {
		t.Helper()
		select {
		case got := <-woken:
			if got != want {
				t.Fatalf("%s: woken for %q", what, got)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: not woken", what)
		}
	}
	next("at the start", "")
	invite(t, s, "mac", time.Hour)
	next("invited", "mac")
	poll(t, "the connection is cut", func() bool { return s.CutListener(t) })
	next("connected again", "")
	invite(t, s, "mac-2", time.Hour)
	next("invited", "mac-2")
}
