package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

func TestBiDiMessagesAreUse(t *testing.T) {
	var took time.Duration
	end, _ := served(t, takes(0), func(ctx context.Context, l *live) {
		begin := time.Now()
		if _, refusal := l.join(ctx); refusal != nil {
			t.Fatalf("%s", refusal.Body)
		}
		defer l.relays.Done()
		for range 4 {
			<-time.After(8 * time.Second) // of 10 s that it may be idle
			l.touch()
		}
		<-l.closed
		took = time.Since(begin)
	})
	if end.Reason != Idle || took != 42*time.Second {
		t.Fatalf("ended with %s after %s", end.Reason, took)
	}
}

func TestBiDiEndsWithItsSession(t *testing.T) {
	for reason, code := range map[Reason]int{Completed: socket.CloseNormal, Idle: socket.CloseGoingAway, HostLost: socket.CloseGoingAway} {
		l := newLive(Claim{Session: "s"}, newJournal(&memory{}, zap.NewNop()), time.Now)
		request, left := context.WithCancel(t.Context())
		ctx, done := l.whileOpen(request)
		left() // a connection that was upgraded outlives its request
		if ctx.Err() != nil {
			t.Error("it ended with its request")
		}
		l.stop(endWith(reason, nil))
		<-ctx.Done()
		var how *socket.Close
		if !errors.As(context.Cause(ctx), &how) || how.Code != code || how.Reason != "the session has ended: "+string(reason) {
			t.Errorf("%s: %v", reason, context.Cause(ctx))
		}
		done()
		if _, refusal := l.join(t.Context()); refusal == nil || !strings.Contains(string(refusal.Body), string(reason)) {
			t.Errorf("%s: joined a session that has ended", reason)
		}
	}
}

func TestBiDiOfASessionThatStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLive(Claim{Session: "s"}, newJournal(&memory{}, zap.NewNop()), time.Now)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, refusal := l.join(ctx)
		var w *webdriver.Error
		if refusal == nil || !errors.As(refusal.Err(), &w) || w.Code != webdriver.Timeout {
			t.Errorf("before it runs: %+v", refusal)
		}
	})
}

func TestBiDiThatCannotBeOpened(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		code   webdriver.Code
	}{
		{driverproxy.ErrNoBiDi, http.StatusBadRequest, webdriver.InvalidArgument},
		{driverproxy.ErrBiDiFull, http.StatusTooManyRequests, webdriver.UnknownError},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), http.StatusGatewayTimeout, webdriver.Timeout},
		{fmt.Errorf("x: %w: secret-host", driverproxy.ErrHostLost), http.StatusBadGateway, webdriver.UnknownError},
	} {
		l := newLive(Claim{Session: "s"}, newJournal(&memory{}, zap.NewNop()), time.Now)
		a := l.notOpened(c.err)
		var w *webdriver.Error
		if a.Status != c.status || !errors.As(a.Err(), &w) || w.Code != c.code || strings.Contains(w.Message, "driverproxy:") || strings.Contains(w.Message, "secret") {
			t.Errorf("%v: %d %s", c.err, a.Status, a.Body)
		}
		l.stop(endWith(HostLost, nil))
		if a := l.notOpened(c.err); a.Status != http.StatusNotFound || !strings.Contains(string(a.Body), "host_lost") {
			t.Errorf("%v of a session that has ended: %d %s", c.err, a.Status, a.Body)
		}
	}
}
