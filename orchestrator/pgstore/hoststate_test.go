package pgstore

import (
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
)

func TestStates(t *testing.T) {
	now := time.Date(2026, 11, 23, 18, 30, 0, 0, time.UTC)
	ago := func(d time.Duration) *time.Time { t := now.Add(-d); return &t }
	joined := hostFacts{name: "mac-1", joined: true}
	link := func(to string, change ...func(*linkFacts)) linkFacts {
		l := linkFacts{live: true, writtenAt: now.Add(-3 * time.Second), host: "mac-1",
			HostLink: api.HostLink{Orchestrator: to, HeardAt: now.Add(-4 * time.Second), RoundTripUS: 131_000, MTU: 1280}}
		for _, c := range change {
			c(&l)
		}
		return l
	}
	lost := func(after time.Duration, why string) func(*linkFacts) {
		return func(l *linkFacts) {
			l.live, l.LostAt, l.HeardAt, l.Reason = false, ago(after), now.Add(-after-5*time.Second), why
		}
	}
	bye := func(after time.Duration) func(*linkFacts) {
		return func(l *linkFacts) { l.live, l.goodbye, l.LostAt, l.Reason = false, true, ago(after), "it said goodbye" }
	}
	dead := func(l *linkFacts) {
		l.live, l.HeardAt, l.writtenAt = false, now.Add(-time.Minute), now.Add(-time.Minute)
	}
	both := []string{"eu-1", "eu-2"}
	pulsing := func(after time.Duration, to, why string) hostFacts {
		return hostFacts{name: "mac-1", joined: true, pulsedAt: ago(after), pulsedTo: to, pulseReason: why}
	}

	for _, tc := range []struct {
		name     string
		host     hostFacts
		links    []linkFacts
		gateways []string
		state    api.HostState
		reason   []string // parts, in order
	}{
		{"invited", hostFacts{name: "mac-1", tokenUntil: ago(-time.Hour)}, nil, both, api.HostInvited, []string{"valid until 2026-11-23 19:30:00 UTC"}},
		{"token expired", hostFacts{name: "mac-1", tokenUntil: ago(time.Second)}, nil, both, api.HostInvited, []string{"expired", "driftctl hosts add mac-1"}},
		{"no token", hostFacts{name: "mac-1"}, nil, both, api.HostInvited, []string{"expired", "driftctl hosts add mac-1"}},
		{"revoked", hostFacts{name: "mac-1", revokedAt: ago(time.Hour)}, []linkFacts{link("eu-1")}, both, api.HostRevoked, []string{"2026-11-23 17:30:00 UTC", "driftctl hosts add mac-1"}},
		{"never connected", joined, nil, both, api.HostRegistered, []string{"never connected", "start driverhost"}},
		{"goodbye to both", joined, []linkFacts{link("eu-1", bye(time.Minute)), link("eu-2", bye(time.Minute))}, both, api.HostRegistered, []string{"stopped at 2026-11-23 18:29:00 UTC", "start driverhost"}},
		{"goodbye to one, the other's was lost", joined, []linkFacts{link("eu-1", lost(55*time.Second, "nothing is heard of it for 5s")), link("eu-2", bye(time.Minute))}, both, api.HostRegistered, []string{"stopped"}},
		{"goodbye long ago, then silence", joined, []linkFacts{link("eu-1", bye(time.Hour)), link("eu-2", lost(time.Minute, "nothing is heard of it for 5s"))}, both, api.HostStale, []string{"not heard since 2026-11-23 18:28:55 UTC", "eu-2: nothing is heard of it for 5s", "check"}},
		{"goodbye to a live one, another died long before", joined, []linkFacts{link("eu-1", dead), link("eu-2", bye(time.Second))}, both, api.HostRegistered, []string{"stopped"}},
		{"silent", joined, []linkFacts{link("eu-1", lost(time.Hour, "cut"))}, both, api.HostStale, []string{"not heard since 2026-11-23 17:29:55 UTC", "eu-1: cut", "powered, awake"}},
		{"its orchestrator died", joined, []linkFacts{link("eu-1", dead)}, nil, api.HostStale, []string{"eu-1", "stopped reporting", "check that orchestrator"}},
		{"up", joined, []linkFacts{link("eu-1"), link("eu-2")}, both, api.HostUp, []string{"live links to 2 of 2 orchestrators"}},
		{"up, and a link to one that is gone", joined, []linkFacts{link("eu-1"), link("eu-0", dead)}, []string{"eu-1"}, api.HostUp, []string{"live links to 1 of 1 orchestrators"}},
		{"up, also at one that is not listed yet", joined, []linkFacts{link("eu-1"), link("eu-2")}, []string{"eu-2"}, api.HostUp, []string{"live links to 2 of 2 orchestrators"}},
		{"up where no gateway is listed", joined, []linkFacts{link("eu-1")}, nil, api.HostUp, []string{"live links to 1 of 1 orchestrators"}},
		{"up on MTU not told", joined, []linkFacts{link("eu-1", func(l *linkFacts) { l.MTU = 0 })}, nil, api.HostUp, []string{"live links to 1 of 1 orchestrators"}},
		{"never reached one", joined, []linkFacts{link("eu-1")}, both, api.HostDegraded, []string{"no link to eu-2 yet", "UDP"}},
		{"lost one", joined, []linkFacts{link("eu-1"), link("eu-2", lost(time.Minute, "nothing is heard of it for 5s"))}, both, api.HostDegraded, []string{"no link to eu-2 since 2026-11-23 18:29:00 UTC", "nothing is heard", "UDP"}},
		{"one has stopped reporting", joined, []linkFacts{link("eu-1"), link("eu-2", dead)}, both, api.HostDegraded, []string{"eu-2 has stopped reporting"}},
		{"heartbeats missed", joined, []linkFacts{link("eu-1", func(l *linkFacts) { l.HeardAt = l.writtenAt.Add(-2501 * time.Millisecond) })}, nil, api.HostDegraded, []string{"eu-1 has not heard a heartbeat since"}},
		{"one heartbeat missed", joined, []linkFacts{link("eu-1", func(l *linkFacts) { l.HeardAt = l.writtenAt.Add(-2500 * time.Millisecond) })}, nil, api.HostUp, []string{"live links to 1 of 1 orchestrators"}},
		{"slow", joined, []linkFacts{link("eu-1", func(l *linkFacts) { l.RoundTripUS = 1_340_000 })}, nil, api.HostDegraded, []string{"heartbeat to eu-1 takes 1.34s"}},
		{"not quite slow", joined, []linkFacts{link("eu-1", func(l *linkFacts) { l.RoundTripUS = 1_000_000 })}, nil, api.HostUp, []string{"live links to 1 of 1 orchestrators"}},
		{"small MTU", joined, []linkFacts{link("eu-1", func(l *linkFacts) { l.MTU = 1200 })}, nil, api.HostDegraded, []string{"MTU 1200 to eu-1"}},
		{"repaired", joined, []linkFacts{link("eu-1", func(l *linkFacts) { l.RepairedAt = ago(59 * time.Second) })}, nil, api.HostDegraded, []string{"eu-1 repaired at 2026-11-23 18:29:01 UTC"}},
		{"repaired a while ago", joined, []linkFacts{link("eu-1", func(l *linkFacts) { l.RepairedAt = ago(time.Minute) })}, nil, api.HostUp, []string{"live links to 1 of 1 orchestrators"}},
		{"the host complains", joined, []linkFacts{link("eu-1", func(l *linkFacts) { l.Reason = "full-size packets are lost" })}, nil, api.HostDegraded, []string{"link to eu-1: full-size packets are lost"}},
		{"two things at once, the worse first", joined, []linkFacts{link("eu-1", func(l *linkFacts) { l.MTU = 1200 })}, both, api.HostDegraded, []string{"no link to eu-2", "MTU 1200"}},
		{"what is wrong with a lost link is not told twice", joined, []linkFacts{link("eu-1"), link("eu-0", lost(time.Hour, "cut"), func(l *linkFacts) { l.MTU = 1200 })}, []string{"eu-1"}, api.HostUp, []string{"live links to 1 of 1 orchestrators"}},
		{"never connected, and its path is of no use", pulsing(20*time.Second, "eu-1", "small packets only"), nil, both, api.HostRegistered, []string{"the tunnel to eu-1 works", "does not connect", "small packets only"}},
		{"never connected, and pulsed long ago", pulsing(2*time.Minute, "eu-1", "small packets only"), nil, both, api.HostRegistered, []string{"never connected", "start driverhost"}},
		{"lost, and its path is of no use", pulsing(20*time.Second, "eu-1", "small packets only"), []linkFacts{link("eu-1", lost(time.Minute, "cut"))}, both, api.HostStale, []string{"the tunnel to eu-1 works", "small packets only"}},
		{"lost after its last pulse", pulsing(40*time.Second, "eu-1", "small packets only"), []linkFacts{link("eu-1", lost(30*time.Second, "cut"))}, both, api.HostStale, []string{"not heard since"}},
		{"its tunnel works, and it does not say why it stays away", pulsing(20*time.Second, "eu-1", ""), []linkFacts{link("eu-1", lost(time.Minute, "cut"))}, both, api.HostStale, []string{"the tunnel to eu-1 works", "driverhost logs"}},
		{"stopped, and its tunnel came back", pulsing(20*time.Second, "eu-1", ""), []linkFacts{link("eu-1", bye(time.Minute))}, both, api.HostRegistered, []string{"the tunnel to eu-1 works"}},
		{"stopped after its last pulse", pulsing(20*time.Second, "eu-1", ""), []linkFacts{link("eu-1", bye(10*time.Second))}, both, api.HostRegistered, []string{"stopped"}},
		{"lost one, and the path to that is of no use", pulsing(20*time.Second, "eu-2", "small packets only"), []linkFacts{link("eu-1"), link("eu-2", lost(time.Minute, "cut"))}, both, api.HostDegraded, []string{"the tunnel to eu-2 works", "small packets only"}},
		{"never reached one, whose tunnel works", pulsing(20*time.Second, "eu-2", "small packets only"), []linkFacts{link("eu-1")}, both, api.HostDegraded, []string{"the tunnel to eu-2 works"}},
		{"never reached one, and the tunnel to the other works", pulsing(20*time.Second, "eu-1", "small packets only"), []linkFacts{link("eu-1")}, both, api.HostDegraded, []string{"no link to eu-2 yet"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			state, reason := judge(tc.host, tc.links, tc.gateways, now)
			if state != tc.state {
				t.Errorf("state %s, want %s (%s)", state, tc.state, reason)
			}
			if reason == "" || len(tc.reason) == 0 {
				t.Errorf("reason %q, and every state has one", reason)
			}
			rest := reason
			for _, part := range tc.reason {
				_, after, ok := strings.Cut(rest, part)
				if !ok {
					t.Errorf("reason %q does not say %q, or not in this order", reason, part)
				}
				rest = after
			}
		})
	}
}

// TestSummaryOfLinks: what an orchestrator knew that is long gone is left out, and only a live link has a round trip.
func TestSummaryOfLinks(t *testing.T) {
	now := time.Now()
	row := func(name string, live bool, age time.Duration, us int64) linkFacts {
		l := linkFacts{live: live, writtenAt: now.Add(-age)}
		l.Orchestrator, l.HeardAt, l.RoundTripUS = name, now.Add(-age), us
		return l
	}
	var d api.HostDetail
	summarize(&d, hostFacts{joined: true}, []linkFacts{row("eu-0", false, 25*time.Hour, 9), row("eu-1", true, 2*time.Second, 5), row("eu-2", true, time.Second, 7), row("eu-3", false, time.Hour, 8)}, nil, now)
	if len(d.Links) != 3 || d.RoundTripUS != 7 || !d.SeenAt.Equal(now.Add(-time.Second)) || d.State != api.HostUp {
		t.Errorf("%+v", d)
	}
	d = api.HostDetail{}
	summarize(&d, hostFacts{joined: true}, []linkFacts{row("eu-0", false, 25*time.Hour, 9)}, nil, now)
	if len(d.Links) != 1 || d.RoundTripUS != 0 || d.State != api.HostStale {
		t.Errorf("the only link there was is left out: %+v", d)
	}
}
