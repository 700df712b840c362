package pgstore

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
)

// What makes a link less than it should be.
const (
	lateAfter   = 2500 * time.Millisecond // heartbeats come every second
	slowAfter   = time.Second             // round trip of a heartbeat
	fullMTU     = 1280
	repairShows = time.Minute
	pulseShows  = time.Minute // pulses come every 15 s, and are stored every 10 s
)

// hostFacts is what judge looks at, beside the links.
type hostFacts struct {
	name       string
	joined     bool
	tokenUntil *time.Time // nil: it has no token
	revokedAt  *time.Time

	pulsedAt              *time.Time // last pulse of a tunnel without a link; nil: none was heard
	pulsedTo, pulseReason string
}

// tunnel says that the host's tunnel to an orchestrator works, after a time and lately, although no link uses it: "" when
// that is not known.
func (h hostFacts) tunnel(after, now time.Time) string {
	if h.pulsedAt == nil || !h.pulsedAt.After(after) || now.Sub(*h.pulsedAt) > pulseShows {
		return ""
	}
	why := h.pulseReason
	if why == "" {
		why = "see what driverhost logs there"
	}
	return fmt.Sprintf("the tunnel to %s works, but the agent does not connect through it: %s", h.pulsedTo, why)
}

// linkFacts is one row of host_links.
type linkFacts struct {
	api.HostLink
	host      string
	writtenAt time.Time
	goodbye   bool
	live      bool // refreshed lately, and not lost
}

// sign is the last sign of life that the host gave on the link.
func (l linkFacts) sign() time.Time {
	if l.goodbye && l.LostAt != nil {
		return *l.LostAt
	}
	return l.HeardAt
}

// judge says how a host is, and why, in words that a person can act on. gateways are the orchestrators that are alive; now
// and all times are the database's. This is the one place that knows the states.
func judge(h hostFacts, links []linkFacts, gateways []string, now time.Time) (api.HostState, string) {
	again := fmt.Sprintf("`driftctl hosts add %s`", h.name)
	switch {
	case h.revokedAt != nil:
		return api.HostRevoked, "removed at " + stamp(*h.revokedAt) + "; " + again + " lets it join anew"
	case !h.joined && h.tokenUntil != nil && h.tokenUntil.After(now):
		return api.HostInvited, "has not joined yet; its token is valid until " + stamp(*h.tokenUntil)
	case !h.joined:
		return api.HostInvited, "has not joined, and its token has expired; " + again + " makes another"
	}
	if !slices.ContainsFunc(links, func(l linkFacts) bool { return l.live }) {
		return gone(h, links, now)
	}
	if wrong := troubles(h, links, gateways, now); len(wrong) > 0 {
		return api.HostDegraded, strings.Join(wrong, ". ")
	}
	return api.HostUp, all(links, gateways)
}

// all says of a host without troubles which part of the orchestrators it has a live link to: those that run, and those that it alone
// shows to run.
func all(links []linkFacts, gateways []string) string {
	live, of := 0, len(gateways)
	for _, l := range links {
		if !l.live {
			continue
		}
		live++
		if !slices.Contains(gateways, l.Orchestrator) {
			of++
		}
	}
	return fmt.Sprintf("live links to %d of %d orchestrators", live, of)
}

// gone judges a joined host without a live link. Whether its last sign of life was a goodbye decides.
func gone(h hostFacts, links []linkFacts, now time.Time) (api.HostState, string) {
	if len(links) == 0 {
		if works := h.tunnel(time.Time{}, now); works != "" {
			return api.HostRegistered, works
		}
		return api.HostRegistered, "has joined, and its agent was never connected; start driverhost there"
	}
	last := links[0]
	for _, l := range links[1:] {
		if c := l.sign().Compare(last.sign()); c > 0 || c == 0 && l.goodbye {
			last = l
		}
	}
	works := h.tunnel(last.sign(), now)
	switch {
	case works != "" && last.goodbye:
		return api.HostRegistered, works
	case works != "":
		return api.HostStale, works
	case last.goodbye:
		return api.HostRegistered, "its agent was stopped at " + stamp(last.sign()) + "; start driverhost there"
	case last.LostAt == nil:
		return api.HostStale, fmt.Sprintf("%s, the last that heard it, at %s, has stopped reporting; check that orchestrator, then the host",
			last.Orchestrator, stamp(last.HeardAt))
	}
	return api.HostStale, fmt.Sprintf("not heard since %s (%s: %s); check that it is powered, awake and online, and that driverhost runs",
		stamp(last.HeardAt), last.Orchestrator, last.Reason)
}

// troubles lists what is not as it should be with a host that has a live link, the worst first.
func troubles(h hostFacts, links []linkFacts, gateways []string, now time.Time) []string {
	var wrong []string
	add := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	for _, name := range gateways {
		i := slices.IndexFunc(links, func(l linkFacts) bool { return l.Orchestrator == name })
		works := ""
		if h.pulsedTo == name && i < 0 {
			works = h.tunnel(time.Time{}, now)
		} else if h.pulsedTo == name {
			works = h.tunnel(links[i].sign(), now)
		}
		switch {
		case works != "" && (i < 0 || !links[i].live):
			add("%s", works)
		case i < 0:
			add("no link to %s yet; check that the host reaches its UDP port", name)
		case links[i].live:
		case links[i].LostAt == nil:
			add("%s has stopped reporting its link; check that orchestrator", name)
		default:
			add("no link to %s since %s (%s); check that the host reaches its UDP port", name, stamp(*links[i].LostAt), links[i].Reason)
		}
	}
	for _, l := range links {
		if !l.live {
			continue
		}
		to := l.Orchestrator
		if silent := l.writtenAt.Sub(l.HeardAt); silent > lateAfter {
			add("%s has not heard a heartbeat since %s; the line between them stalls", to, stamp(l.HeardAt))
		}
		if l.DampedUntil != nil {
			add("link to %s was lost %d times lately: no new sessions over it before %s, then by itself; look for what breaks the host's line", to, l.Losses, stamp(*l.DampedUntil))
		}
		if l.Reason != "" {
			add("link to %s: %s", to, l.Reason)
		}
		if l.MTU > 0 && l.MTU < fullMTU {
			add("MTU %d to %s: the path loses larger packets, so that transfers are slower", l.MTU, to)
		}
		if took := time.Duration(l.RoundTripUS) * time.Microsecond; took > slowAfter {
			add("a heartbeat to %s takes %s, and each command as long; look for what fills the line", to, took.Round(10*time.Millisecond))
		}
		if l.RepairedAt != nil && now.Sub(*l.RepairedAt) < repairShows {
			add("link to %s repaired at %s; nothing to do unless this comes again", to, stamp(*l.RepairedAt))
		}
	}
	return wrong
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
