package profilestate

import (
	"cmp"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/driftstack/fleet/driverproxy/inert"
)

// look is the cookies that one page showed.
type look struct {
	page    inert.Page
	cookies []Cookie
}

// observed is all that a capture saw, in the order in which it saw it.
type observed struct {
	looks   []look
	storage map[string][]Entry // complete, by origin
	failed  []string           // origins that could not be looked at
	reasons map[string]Reason
}

// merge makes the next snapshot. It is a pure function, and merging the same observation again changes nothing.
//
//	                          seen            not seen, must be visible     not seen, need not be visible
//	restore confirmed it      take it         remove it                     keep it
//	restore did not           take it         keep it                       keep it
func merge(previous *Snapshot, o observed, restored Report, now time.Time) (*Snapshot, Report) {
	m := merger{previous: previous.clone(), seen: o, had: restored.confirmed(), now: now, next: &Snapshot{}}
	m.cookies()
	m.origins()
	m.room(DefaultLimits())
	m.hints()
	for _, origin := range o.failed {
		m.report.items = append(m.report.items, Item{Kind: KindOrigin, Host: hostOf(origin), Status: Dropped, Reason: o.reasons[origin]})
	}
	m.next.sort()
	return m.next, m.report
}

type merger struct {
	previous *Snapshot
	seen     observed
	had      confirmed
	now      time.Time
	next     *Snapshot
	report   Report
}

func (m *merger) cookies() {
	// A later look overrules an earlier one: the site may have changed a cookie when its page was opened.
	present := make(map[cookieKey]Cookie)
	for _, l := range m.seen.looks {
		for key, c := range present {
			if shows(l.page, c) {
				delete(present, key)
			}
		}
		for _, c := range l.cookies {
			present[c.key()] = c
		}
	}
	for _, c := range m.previous.Cookies {
		have, seen := present[c.key()]
		delete(present, c.key())
		item, had := m.had.cookies[c.key()]
		switch {
		case seen && had && have == item.made:
			m.keep(c, Captured) // as the restore left it, so what it was made from still says more
		case seen && (have.check() != nil || have.public()):
			m.keep(c, Kept)
		case seen:
			m.keep(have, Captured)
		case c.expired(m.now):
			m.report.cookie(c, Removed, ReasonExpired)
		case had && m.mustShow(c):
			m.report.cookie(c, Removed, "")
		default:
			m.keep(c, Kept)
		}
	}
	for _, c := range present {
		switch {
		case c.check() != nil:
			m.report.cookie(c, Unsupported, ReasonMalformed)
		case c.public():
			m.report.cookie(c, Unsupported, ReasonPublic)
		default:
			m.keep(c, Captured)
		}
	}
}

func (m *merger) mustShow(c Cookie) bool {
	return slices.ContainsFunc(m.seen.looks, func(l look) bool { return shows(l.page, c) })
}

func (m *merger) keep(c Cookie, s Status) {
	m.next.Cookies = append(m.next.Cookies, c)
	m.report.cookie(c, s, "")
}

func (m *merger) origins() {
	done := make(map[string]bool)
	for _, o := range m.previous.Origins {
		done[o.Origin] = true
		entries, seen := m.seen.storage[o.Origin]
		if seen {
			m.storage(o.Origin, o.LocalStorage, entries)
			continue
		}
		for _, e := range o.LocalStorage {
			m.report.entry(o.Origin, e.Name, Kept, "")
		}
		if len(o.LocalStorage) > 0 {
			m.next.Origins = append(m.next.Origins, o)
		}
	}
	for origin, entries := range m.seen.storage {
		if !done[origin] {
			m.storage(origin, nil, entries)
		}
	}
}

// storage merges one origin whose localStorage was seen whole.
func (m *merger) storage(origin string, before, seen []Entry) {
	values := make(map[JSString]JSString, len(seen))
	for _, e := range seen {
		values[e.Name] = e.Value
	}
	out := Origin{Origin: origin}
	for _, e := range before {
		v, ok := values[e.Name]
		delete(values, e.Name)
		item, had := m.had.entries[storageKey{origin, e.Name}]
		switch {
		case ok && had && item.Status == Altered && v == item.text:
			out.LocalStorage = append(out.LocalStorage, e)
			m.report.entry(origin, e.Name, Captured, "")
		case ok:
			out.LocalStorage = append(out.LocalStorage, Entry{e.Name, v})
			m.report.entry(origin, e.Name, Captured, "")
		case had:
			m.report.entry(origin, e.Name, Removed, "")
		default:
			out.LocalStorage = append(out.LocalStorage, e)
			m.report.entry(origin, e.Name, Kept, "")
		}
	}
	for name, v := range values {
		out.LocalStorage = append(out.LocalStorage, Entry{name, v})
		m.report.entry(origin, name, Captured, "")
	}
	if len(out.LocalStorage) > 0 {
		m.next.Origins = append(m.next.Origins, out)
	}
}

// hints keeps origins without localStorage from which the next restore can set cookies: a cookie names neither scheme
// nor port, and its bare domain need not have a site.
func (m *merger) hints() {
	var places []string
	for origin := range m.seen.storage {
		places = append(places, origin)
	}
	for _, o := range m.previous.Origins {
		places = append(places, o.Origin)
	}
	// https first: where there is a choice it serves Secure cookies of the same host as well.
	slices.SortFunc(places, func(a, b string) int { return cmp.Or(strings.Compare(b[:5], a[:5]), strings.Compare(a, b)) })
	places = slices.Compact(places)
	m.next.sort() // the choice must not depend on the order of maps
	placed := func(c Cookie, origin string) bool {
		u, err := url.Parse(origin)
		return err == nil && c.onHost(u)
	}
	for _, c := range m.next.Cookies {
		if slices.ContainsFunc(m.next.Origins, func(o Origin) bool { return placed(c, o.Origin) }) {
			continue
		}
		if len(m.next.Origins) >= DefaultLimits().Origins {
			return // a hint is not worth a *LimitError
		}
		if i := slices.IndexFunc(places, func(p string) bool { return placed(c, p) }); i >= 0 {
			m.next.Origins = append(m.next.Origins, Origin{Origin: places[i]})
		}
	}
}
