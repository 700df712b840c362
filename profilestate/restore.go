package profilestate

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"time"

	"github.com/driftstack/fleet/driverproxy/inert"
)

// Restore puts a snapshot into a fresh session and reads everything back. A site that is down costs its own items, which
// the report lists as dropped, as does one that half of ctx's time is not enough to come to; an error means that the
// session itself failed and must not be used.
// The browser is left on about:blank with the session's own timeouts.
func Restore(ctx context.Context, d inert.Driver, s *Snapshot) (Report, error) {
	r := &restorer{b: newBrowser(d), now: time.Now()}
	if end, ok := ctx.Deadline(); ok {
		r.until = r.now.Add(end.Sub(r.now) / 2)
	}
	if err := r.run(ctx, s); err != nil {
		return Report{}, fmt.Errorf("restore profile: %w", err)
	}
	return r.report, nil
}

type restorer struct {
	b      *inert.Browser
	now    time.Time
	until  time.Time // no further page is opened after this; zero: any time
	report Report
	open   []opened // documents that opened, to come back to
	late   []Cookie // cookies whose stop did not open
	why    map[cookieKey]Reason
}

// opened is a document that opened.
type opened struct {
	origin, dir string
	page        inert.Page
}

func (r *restorer) run(ctx context.Context, s *Snapshot) (err error) {
	todo := s.clone()
	todo.Cookies = slices.DeleteFunc(todo.Cookies, r.impossible)
	if len(todo.Cookies) == 0 && len(todo.Origins) == 0 {
		return nil
	}
	if err := r.b.Begin(ctx, nil, nil); err != nil {
		return err
	}
	if err := r.b.Bound(ctx); err != nil {
		return err
	}
	stops, nowhere := plan(todo)
	r.why = make(map[cookieKey]Reason)
	r.postpone(nowhere, ReasonUnreachable)
	for i, st := range stops {
		if err := r.b.Ahead(ctx, r.until, stopsAhead(stops[i:])); err != nil {
			return err
		}
		if err := r.stop(ctx, st); err != nil {
			return err
		}
	}
	if err := r.retry(ctx); err != nil {
		return err
	}
	if err := r.b.Ahead(ctx, time.Time{}, slices.Values([][]inert.Command{r.last()})); err != nil {
		return err
	}
	if err := r.b.Blank(ctx); err != nil {
		return err
	}
	for _, c := range r.late {
		if err := r.blind(ctx, c); err != nil {
			return err
		}
	}
	return r.b.End(ctx)
}

// impossible reports cookies that need not be tried.
func (r *restorer) impossible(c Cookie) bool {
	switch {
	case c.expired(r.now):
		r.report.cookie(c, Dropped, ReasonExpired)
	case c.public():
		r.report.cookie(c, Unsupported, ReasonPublic)
	case c.needsScript() && c.HTTPOnly:
		r.report.cookie(c, Unsupported, ReasonEmptyValue)
	default:
		return false
	}
	return true
}

// stop opens the stop's document and does what is to be done there.
func (r *restorer) stop(ctx context.Context, st *stop) error {
	why := ReasonUnreachable
	for _, origin := range st.origins {
		if !r.b.IsAhead() && r.outOfTime() {
			why = ReasonTimeout
			break
		}
		p, entries, err := open(ctx, r.b, origin, st.dir, st.job)
		var unusable *inert.PageError
		if errors.As(err, &unusable) {
			why = Reason(unusable.Why)
			continue
		}
		if err != nil {
			return err
		}
		r.open = append(r.open, opened{origin, st.dir, p})
		if st.job.Want == inert.Write {
			r.compareStorage(origin, st.items, entries)
		}
		return r.setCookies(ctx, p, st.cookies)
	}
	for _, e := range st.items {
		r.report.entry(st.origins[0], e.Name, Dropped, why)
	}
	r.postpone(st.cookies, why)
	return nil
}

// stopsAhead is what stop does at each of them, where all goes well.
func stopsAhead(stops []*stop) iter.Seq[[]inert.Command] {
	return func(yield func([]inert.Command) bool) {
		for _, st := range stops {
			list, err := inert.Opening(st.origins[0], st.dir, st.job)
			if err != nil {
				return // stop says so
			}
			var assignments []string
			for _, c := range st.cookies {
				if c.needsScript() {
					assignments = append(assignments, c.assignment())
				} else {
					list = append(list, c.add())
				}
			}
			if len(assignments) > 0 {
				set, err := inert.ScriptCommand(cookieScript, assignments)
				if err != nil {
					return
				}
				list = append(list, set)
			}
			if len(st.cookies) > 0 {
				list = append(list, inert.Command{Method: "GET", Path: "/cookie"})
			}
			if !yield(list) {
				return
			}
		}
	}
}

// outOfTime ends the tour between two pages: a command that is cut off would still run in the browser that the customer
// is about to get.
func (r *restorer) outOfTime() bool { return !r.until.IsZero() && time.Now().After(r.until) }

func (r *restorer) postpone(cookies []Cookie, why Reason) {
	for _, c := range cookies {
		r.why[c.key()] = why
		r.late = append(r.late, c)
	}
}

// retry sets cookies whose stop did not open on other documents that did. Going back there may send cookies that are
// set already, which beats losing these.
func (r *restorer) retry(ctx context.Context) error {
	late := r.late
	r.late = nil
	for _, at := range r.open {
		var here []Cookie
		late = slices.DeleteFunc(late, func(c Cookie) bool {
			if !shows(at.page, c) {
				return false
			}
			here = append(here, c)
			return true
		})
		if len(here) == 0 {
			continue
		}
		if r.outOfTime() {
			r.late = append(r.late, here...)
			continue
		}
		p, err := r.b.Open(ctx, at.origin, at.dir, inert.Job{Want: inert.Nothing})
		var unusable *inert.PageError
		if errors.As(err, &unusable) {
			r.postpone(here, Reason(unusable.Why))
			continue
		}
		if err != nil {
			return err
		}
		if err := r.setCookies(ctx, p, here); err != nil {
			return err
		}
	}
	r.late = append(r.late, late...)
	return nil
}

// last is what is done when no page is opened any more.
func (r *restorer) last() []inert.Command {
	var list []inert.Command
	for _, c := range r.late {
		if r.settable(c) {
			list = append(list, c.add())
		}
	}
	return r.b.Leaving(list...)
}

// settable says whether a cookie can be set without a page of its host.
func (r *restorer) settable(c Cookie) bool { return !c.hostOnly() && !c.needsScript() }

// blind sets a domain cookie of which no page could be opened. The site may be back when the customer goes there; until
// then nobody knows whether it is there, so it counts as dropped.
func (r *restorer) blind(ctx context.Context, c Cookie) error {
	why := r.why[c.key()]
	if r.settable(c) {
		err := addCookie(ctx, r.b, c)
		if inert.Fatal(err) {
			return err
		}
		if err == nil {
			why = ReasonUnverified
		}
	}
	r.report.cookie(c, Dropped, why)
	return nil
}

// setCookies sets the cookies on the current page and reads them back. Those that the page cannot show, because a
// redirect led elsewhere, are postponed.
func (r *restorer) setCookies(ctx context.Context, p inert.Page, cookies []Cookie) error {
	cookies = slices.DeleteFunc(slices.Clone(cookies), func(c Cookie) bool {
		if shows(p, c) {
			return false
		}
		r.postpone([]Cookie{c}, ReasonUnreachable)
		return true
	})
	if len(cookies) == 0 {
		return nil
	}
	refused := make(map[cookieKey]bool)
	var assignments []string
	for _, c := range cookies {
		if c.needsScript() {
			assignments = append(assignments, c.assignment())
			continue
		}
		if err := addCookie(ctx, r.b, c); inert.Fatal(err) {
			return err
		} else if err != nil {
			refused[c.key()] = true
		}
	}
	if len(assignments) > 0 {
		if err := r.b.Script(ctx, cookieScript, assignments, nil); inert.Fatal(err) {
			return err
		}
	}
	seen, err := shownCookies(ctx, r.b, r.now)
	if inert.Fatal(err) {
		return err
	}
	for _, c := range cookies {
		i := slices.IndexFunc(seen, func(v Cookie) bool { return v.key() == c.key() })
		switch {
		case err != nil:
			r.report.cookie(c, Dropped, ReasonUnverified)
		case i >= 0:
			r.compareCookie(c, seen[i])
		case refused[c.key()]:
			r.report.cookie(c, Dropped, ReasonRefused)
		default:
			r.report.cookie(c, Dropped, ReasonIgnored)
		}
	}
	return nil
}

func (r *restorer) compareCookie(want, have Cookie) {
	switch {
	case want.Value != have.Value:
		r.report.alteredCookie(want, have, ReasonValue)
	case want.Secure != have.Secure || want.HTTPOnly != have.HTTPOnly || want.SameSite != have.SameSite:
		r.report.alteredCookie(want, have, ReasonAttributes)
	case math.Abs(want.Expires-have.Expires) > 1: // drivers carry whole seconds
		r.report.alteredCookie(want, have, ReasonExpiry)
	default:
		// Equal but perhaps for a fraction of a second, which a capture must not take for a change.
		r.report.cookie(want, Restored, "")
		r.report.items[len(r.report.items)-1].made = have
	}
}

func (r *restorer) compareStorage(origin string, want, have []Entry) {
	values := make(map[JSString]JSString, len(have))
	for _, e := range have {
		values[e.Name] = e.Value
	}
	for _, e := range want {
		switch v, ok := values[e.Name]; {
		case !ok:
			r.report.entry(origin, e.Name, Dropped, ReasonIgnored)
		case v != e.Value:
			r.report.alteredEntry(origin, e.Name, v)
		default:
			r.report.entry(origin, e.Name, Restored, "")
		}
	}
}
