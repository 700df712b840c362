package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
)

// draining is a host with so many sessions, and a deadline that is so far away.
func draining(sessions int, left time.Duration) api.HostDetail {
	h := hosts()[1]
	h.Sessions = sessions
	until := now.Add(left)
	h.Cordon = &api.Cordon{State: api.Draining, Since: *before(2 * time.Minute), By: "ada@desk", Reason: "new macOS", Until: &until}
	if sessions == 0 {
		h.Cordon.State = api.Drained
	}
	return h
}

// watched runs drain.wait on what each look finds.
func watched(t *testing.T, terminal bool, looks ...any) (string, error) {
	t.Helper()
	var b bytes.Buffer
	tick := make(chan time.Time)
	close(tick)
	d := drain{host: "mac-2", out: &b, terminal: terminal, now: func() time.Time { return now }, look: tick, get: func(context.Context) (api.HostDetail, error) {
		if len(looks) == 0 {
			t.Fatal("looked on")
		}
		next := looks[0]
		looks = looks[1:]
		if err, ok := next.(error); ok {
			return api.HostDetail{}, err
		}
		return next.(api.HostDetail), nil
	}}
	_, err := d.wait(t.Context())
	return b.String(), err
}

func TestDrainProgress(t *testing.T) {
	away := &url.Error{Op: "Get", URL: "http://127.0.0.1:8080/v1/hosts/mac-2", Err: errors.New("connection refused")}
	looks := []any{draining(3, 90*time.Second), draining(3, 89*time.Second), away, draining(1, 30*time.Second), draining(1, -time.Second), draining(0, -2*time.Second)}
	got, err := watched(t, false, looks...)
	want := "mac-2: 3 sessions left, 1m30s to the deadline\nmac-2: no answer, trying for 5m more: connection refused\nmac-2: 1 session left, 30s to the deadline\n" +
		"mac-2: 1 session left, ending: the deadline has passed\nmac-2 is drained: no session is on it\n"
	if err != nil || got != want {
		t.Errorf("%v\n%s", err, got)
	}
	got, err = watched(t, true, looks...)
	want = "\r\x1b[Kmac-2: 3 sessions left, 1m30s to the deadline\r\x1b[Kmac-2: 3 sessions left, 1m29s to the deadline\r\x1b[Kmac-2: no answer, trying for 5m more: connection refused\r\x1b[Kmac-2: 1 session left, 30s to the deadline" +
		"\r\x1b[Kmac-2: 1 session left, ending: the deadline has passed\r\x1b[Kmac-2 is drained: no session is on it\n"
	if err != nil || got != want {
		t.Errorf("%v\n%q", err, got)
	}
	undone := draining(2, time.Minute)
	undone.Cordon = nil
	for want, looks := range map[string][]any{
		"mac-2 was uncordoned meanwhile":      {draining(2, time.Minute), undone},
		"not found":                           {&client.Problem{Status: 404, Title: "not found"}},
		"`driftctl devices release` takes it": {draining(1, -6*time.Minute)},
		"mac-4 was removed meanwhile":         {hosts()[3]},
	} {
		if out, err := watched(t, false, looks...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v\n%s", want, err, out)
		}
	}
}

// TestDrainOutlastsItsOrchestrator: while nobody answers, for whatever reason, --wait says so and tries on; and gives up when that lasts.
func TestDrainOutlastsItsOrchestrator(t *testing.T) {
	at, asked := now, 0
	look := make(chan time.Time)
	close(look)
	run := func(terminal bool, away time.Duration, err error) (string, error) {
		at, asked = now, 0
		var b bytes.Buffer
		d := drain{host: "mac-2", out: &b, terminal: terminal, now: func() time.Time { return at }, look: look, get: func(context.Context) (api.HostDetail, error) {
			asked++
			if asked > 1 {
				at = at.Add(time.Second)
			}
			switch passed := at.Sub(now); {
			case asked == 1:
				return draining(2, time.Hour), nil
			case passed <= away:
				return api.HostDetail{}, err
			case passed <= away+time.Second:
				return draining(2, time.Hour), nil
			}
			return draining(0, 0), nil
		}}
		_, err = d.wait(t.Context())
		return b.String(), err
	}
	unavailable := &client.Problem{Status: 503, Title: "Service Unavailable", Detail: "the database does not answer"}
	out, err := run(false, 4*time.Minute, unavailable)
	want := "mac-2: 2 sessions left, 1h0m0s to the deadline\nmac-2: no answer, trying for 5m more: 503 Service Unavailable: the database does not answer\n" +
		"mac-2: 2 sessions left, 55m59s to the deadline\nmac-2 is drained: no session is on it\n"
	if err != nil || out != want {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = run(true, 4*time.Minute, unavailable)
	if lines := strings.Split(out, "\r\x1b[K"); err != nil || len(lines) < 241 || lines[240] != "mac-2: no answer, trying for 62s more: 503 Service Unavailable: the database d…" {
		t.Errorf("%v, %d lines, %q", err, len(lines), lines[min(240, len(lines)-1)])
	}
	out, err = run(false, time.Hour, &url.Error{Op: "Get", URL: "http://127.0.0.1", Err: context.DeadlineExceeded})
	if err == nil || err.Error() != "not waiting any more: no answer for 5m (nothing within 5s); the drain goes on, and `driftctl hosts get mac-2` shows how far it is" || asked != 302 {
		t.Errorf("%v after %d looks\n%s", err, asked, out)
	}
}

func TestDrainIsNotUndoneByLeaving(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	d := drain{host: "mac-2", out: new(bytes.Buffer), now: func() time.Time { return now }, look: make(chan time.Time), get: func(context.Context) (api.HostDetail, error) {
		leave()
		return api.HostDetail{}, ctx.Err()
	}}
	if _, err := d.wait(ctx); err == nil || err.Error() != "not waiting any more; the drain goes on, and `driftctl hosts uncordon mac-2` undoes it" {
		t.Errorf("%v", err)
	}
}

func TestDrainedHostsForPeople(t *testing.T) {
	var b bytes.Buffer
	p := printer{out: &b, now: func() time.Time { return now }}
	damped := hosts()[0]
	until := now.Add(7 * time.Minute)
	damped.DampedUntil, damped.Sessions = &until, 2
	damped.Reason = "link to eu-1 was lost 4 times lately: no new sessions over it before 2026-11-23 18:37:00 UTC, then by itself; look for what breaks the host's line"
	shut := draining(0, 0)
	shut.Name, shut.Cordon.State, shut.Cordon.Until = "mac-3", api.Cordoned, nil
	rows := []api.Host{damped.Host, draining(3, 8*time.Minute).Host, shut.Host}
	if err := list(p, nil, hostColumns(), rows, p.hostRow); err != nil {
		t.Fatal(err)
	}
	b.WriteByte('\n')
	h := draining(1, 8*time.Minute)
	h.DeviceList = []api.Device{
		{Host: "mac-2", Name: "phone-1", Model: "iPhone 15", PlatformName: "iOS", PlatformVersion: "17.5", State: "busy", Session: "714f84b6", Cordon: &api.Cordon{State: api.Cordoned, Reason: "its host is cordoned"}},
		{Host: "mac-2", Name: "phone-2", Model: "iPhone 15", PlatformName: "iOS", PlatformVersion: "17.5", State: "quarantined", Reason: "already paired", Cordon: &api.Cordon{State: api.Cordoned, By: "ada", Reason: "cracked screen"}},
	}
	if err := p.host(h); err != nil {
		t.Fatal(err)
	}
	golden(t, "hosts-closed.txt", b.String())
}

func TestFleetAndAuditForPeople(t *testing.T) {
	var b bytes.Buffer
	p := printer{out: &b, now: func() time.Time { return now }}
	f := api.Fleet{At: now,
		Hosts:    map[string]int{"invited": 1, "up": 12, "degraded": 1, "stale": 0, "registered": 0, "revoked": 0},
		Closed:   map[string]int{"cordoned": 0, "draining": 1, "drained": 0, "damped": 1},
		Devices:  map[string]int{"ready": 20, "busy": 27, "quarantined": 1, "offline": 0, "cordoned": 4},
		Sessions: map[string]int{"queued": 1204, "starting": 1, "running": 26, "finishing": 0},
		Queue: api.FleetQueue{OldestSeconds: 200, More: 3, Accounts: []api.AccountQueue{
			{Account: "sample-a", Queued: 1200, Active: 20, OldestSeconds: 200}, {Account: "b", Queued: 4, Active: 7, OldestSeconds: 3}}},
	}
	if err := p.fleet(f); err != nil {
		t.Fatal(err)
	}
	b.WriteByte('\n')
	entries := []api.AuditEntry{
		{ID: 9, At: now, Actor: "ada@desk", Action: "force-release", Host: "mac-1", Device: "phone-1", Session: "714f84b6-02b5-442d-8c4b-8931bbc3c30f", Reason: "stuck at a dialog", Detail: "running; its session was told to end"},
		{ID: 8, At: *before(time.Hour), Actor: "driftstack", Action: "end-drained", Host: "mac-2", Session: "d28a447b-bb24-4f61-b607-198855d1ad5a", Detail: "the deadline of the drain has passed"},
		{ID: 7, At: *before(2 * time.Hour), Actor: "bob@desk", Action: "drain", Host: "mac-2", Reason: "new macOS", Detail: "deadline 10m0s, 3 sessions on it"},
	}
	if err := list(p, nil, auditColumns(), entries, p.auditRow); err != nil {
		t.Fatal(err)
	}
	golden(t, "fleet-audit.txt", b.String())
}

// TestOperateOverHTTP: what each command asks for, in whose name, and what it says.
func TestOperateOverHTTP(t *testing.T) {
	var asked []string
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body := map[string]any{}
		_ = json.NewDecoder(r.Body).Decode(&body)
		b, _ := json.Marshal(body)
		asked = append(asked, r.Method+" "+r.URL.Path+" "+string(b)+" "+r.Header.Get("Driftstack-Operator"))
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/release"):
			_ = json.NewEncoder(w).Encode(api.Released{Session: "s-1"})
		case strings.Contains(r.URL.Path, "/devices/"):
			w.WriteHeader(http.StatusNoContent)
		case strings.HasSuffix(r.URL.Path, "/drain"):
			_ = json.NewEncoder(w).Encode(draining(2, time.Minute).Host)
		default:
			_ = json.NewEncoder(w).Encode(draining(0, time.Minute))
		}
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	for _, c := range []struct {
		args []string
		asks string
		says []string
	}{
		{[]string{"hosts", "drain", "mac-2", "--deadline", "90s", "--reason", "new macOS"}, `POST /v1/hosts/mac-2/drain {"deadline_seconds":90,"reason":"new macOS"} ada`,
			[]string{"mac-2 takes no new sessions. 2 sessions on it may go on until ", "`driftctl hosts uncordon mac-2` undoes it"}},
		{[]string{"hosts", "drain", "mac-2", "--wait"}, `GET /v1/hosts/mac-2 {} ada`, []string{"mac-2 is drained: no session is on it\n"}},
		{[]string{"hosts", "cordon", "mac-2"}, `POST /v1/hosts/mac-2/cordon {} ada`, []string{"mac-2 takes no new sessions; 0 sessions on it"}},
		{[]string{"hosts", "uncordon", "mac-2"}, `POST /v1/hosts/mac-2/uncordon {} ada`, []string{"mac-2 takes sessions again"}},
		{[]string{"devices", "cordon", "mac-2/phone-1", "--reason", "cracked"}, `POST /v1/hosts/mac-2/devices/phone-1/cordon {"reason":"cracked"} ada`, []string{"`driftctl devices uncordon mac-2/phone-1` undoes it"}},
		{[]string{"devices", "uncordon", "mac-2/phone-1"}, `POST /v1/hosts/mac-2/devices/phone-1/uncordon {} ada`, []string{"takes sessions again"}},
		{[]string{"devices", "release", "mac-2/phone-1", "--reason", "stuck"}, `POST /v1/hosts/mac-2/devices/phone-1/release {"reason":"stuck"} ada`, []string{"Session s-1 ends as force_released", "mac-2/phone-1 is free once mac-2 says"}},
	} {
		out, err := runAt(t, server.URL, append([]string{"--as", "ada"}, c.args...)...)
		if err != nil || len(asked) == 0 || asked[len(asked)-1] != c.asks {
			t.Errorf("%v: %v, asked %q", c.args, err, asked)
		}
		for _, part := range c.says {
			if !strings.Contains(out, part) {
				t.Errorf("%v does not say %q:\n%s", c.args, part, out)
			}
		}
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"devices", "release", "phone-1", "--reason", "x"}, "write a device as HOST/DEVICE"},
		{[]string{"devices", "release", "mac-2/phone-1", "--reason", " "}, "say why"},
		{[]string{"hosts", "drain", "mac-2", "--deadline", "25h"}, "--deadline: 1s to 24h"},
	} {
		before := len(asked)
		if _, err := runAt(t, server.URL, c.args...); err == nil || !strings.Contains(err.Error(), c.want) || len(asked) != before {
			t.Errorf("%v: %v", c.args, err)
		}
	}
	if !strings.Contains(operator(), "@") {
		t.Errorf("operator is %q", operator())
	}
}
