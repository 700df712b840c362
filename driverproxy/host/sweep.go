package host

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/inert"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// Bounds of a sweep.
const (
	sweepLimit   = 5 * time.Second      // no further site is begun: the session's client waits
	inspectLimit = 15 * time.Second     // the same of the host's own sessions
	sweepCommand = 2 * time.Second      // for the driver to answer, whatever the site does
	sweepScript  = sweepCommand * 3 / 4 // for its own script, so that the driver says that it took too long
	sweepPage    = time.Second          // for a site to answer
	sweepRounds  = 3                    // of deleting cookies
	inQuestion   = webdriver.MaxVisits  // pages of a device that are remembered: the latest
)

// canary is what a sweep plants, as a cookie and in storage.
const canary = "driftstack-canary"

// sweep is what a sweep through the sites that a session has been at has come to. No site is to blame a device for: one that does not answer, or
// has no document without scripts, leaves its origin unverified.
type sweep struct {
	wire.Wiped
	question []string // pages of the origins that were not found clean
	unasked  []string // those of them that nobody has come to
	broken   bool     // the browser was of no more use at one of the others, or from the beginning
	breaks   []string // pages of that one; none: from the beginning
}

// note counts what became of an origin.
func (w *sweep) note(v verdict, pages []string) {
	switch v {
	case clean:
		w.Verified++
		return
	case left:
		w.Left++
	case notAsked:
		w.unasked = append(w.unasked, pages...)
		w.Unverified++
	default:
		w.Unverified++
	}
	w.question = append(w.question, pages...)
}

// cut says that some origins were not looked at for no fault of theirs.
func (w sweep) cut() bool { return w.broken || len(w.unasked) > 0 }

// sites is a log's field: counts, never where anybody was.
func (w sweep) sites() zap.Field {
	return zap.Dict("sites", zap.Int("origins", w.Origins), zap.Int("verified", w.Verified), zap.Int("unverified", w.Unverified), zap.Int("left", w.Left))
}

// verdict is what became of an origin; of several folders the worst counts.
type verdict int

const (
	clean    verdict = iota
	unsure           // its site did not let anybody look
	notAsked         // there was no time, or no browser any more
	left             // something is still there, or was there where nothing may have been
)

// sweeper empties a browser, site by site.
type sweeper struct {
	b     *inert.Browser
	value string // of the canaries
	fresh bool   // the session is new: whatever is there was left by one before it
	leave bool   // canaries stay, for the next session to find if it can
}

// sweepDriver is the host's own way to the driver.
type sweepDriver struct{ d *driver }

// Do implements inert.Driver.
func (s sweepDriver) Do(ctx context.Context, method, path string, body []byte) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, sweepCommand)
	defer cancel()
	a, err := s.d.do(ctx, webdriver.Command{Method: method, Path: path, Body: body})
	if err != nil {
		return nil, err
	}
	return a.Raw()
}

// sweepUp takes from the browser what was stored for the pages' sites, the latest first, and makes sure of it.
func sweepUp(ctx context.Context, d *driver, pages []string, fresh, leave bool) sweep {
	s := &sweeper{
		b: &inert.Browser{Driver: sweepDriver{d}, Limits: inert.Limits{
			Page: sweepPage, Hurried: sweepPage / 2, Script: sweepScript, Settle: sweepPage / 2,
		}},
		value: random(), fresh: fresh, leave: leave,
	}
	limit := sweepLimit
	if fresh {
		limit = inspectLimit
	}
	until := time.Now().Add(limit)
	shown, err := s.begin(ctx)
	pages = append(pages, shown...)
	var w sweep
	t := inert.NewTour(pages)
	w.Origins = len(t.Origins)
	for _, origin := range slices.Backward(t.Origins) {
		v := notAsked
		if !inert.Fatal(err) && time.Now().Before(until) {
			if v, err = s.origin(ctx, origin, t.Folders(origin)); inert.Fatal(err) {
				w.breaks = pagesOf(origin, t.Folders(origin))
			}
		}
		w.note(v, pagesOf(origin, t.Folders(origin)))
	}
	w.broken = inert.Fatal(err)
	return w
}

// pagesOf is what NewTour makes the origin and its folders of.
func pagesOf(origin string, folders []string) []string {
	var pages []string
	for _, dir := range folders {
		pages = append(pages, inert.Target(origin, dir))
	}
	return pages
}

// begin closes all windows but one, so that no page of theirs stores anything anew, and says what they showed.
func (s *sweeper) begin(ctx context.Context) (shown []string, err error) {
	if s.fresh {
		return nil, s.b.Bound(ctx)
	}
	if err := s.b.TopWindow(ctx); inert.Fatal(err) {
		return nil, err
	}
	var handles []string
	var here string
	if err := errors.Join(s.b.Do(ctx, http.MethodGet, "/window/handles", nil, &handles), s.b.Do(ctx, http.MethodGet, "/window", nil, &here)); err != nil {
		return nil, err
	}
	for _, h := range append(without(handles, []string{here}), here) { // ending with the one that stays
		if err := s.b.Do(ctx, http.MethodPost, "/window", map[string]string{"handle": h}, nil); err != nil && h != here {
			continue // it has closed itself
		} else if err != nil {
			return shown, err
		}
		var page string
		if s.b.Do(ctx, http.MethodGet, "/url", nil, &page) == nil {
			shown = append(shown, page)
		}
		if h != here {
			if err := s.b.Do(ctx, http.MethodDelete, "/window", nil, nil); inert.Fatal(err) {
				return shown, err
			}
		}
	}
	return shown, s.b.Bound(ctx)
}

// origin empties one. An error means that the browser is of no more use.
func (s *sweeper) origin(ctx context.Context, origin string, folders []string) (verdict, error) {
	worst := clean
	for _, dir := range folders {
		v, err := s.document(ctx, origin, dir)
		unusable := (*inert.PageError)(nil)
		switch {
		case errors.As(err, &unusable) && unusable.Why == inert.Timeout: // it would be waited for once more in each folder
			return max(worst, unsure), nil
		case errors.As(err, &unusable):
			v = unsure
		case inert.Fatal(err):
			return max(worst, unsure), err
		case err != nil:
			v = unsure
		}
		worst = max(worst, v)
	}
	return worst, nil
}

// document empties what a document below the folder shows. An error that is not fatal is the site's, as a *inert.PageError is.
func (s *sweeper) document(ctx context.Context, origin, dir string) (verdict, error) {
	p, err := s.b.Open(ctx, origin, dir, inert.Job{Want: inert.Nothing})
	if err != nil {
		return unsure, err
	}
	v := clean
	if p.Scripts > 0 { // they may store anything, at any time
		v = unsure
	}
	e, err := s.b.Empty(ctx, canary, s.value, s.leave)
	switch {
	case err != nil:
		return unsure, err
	case e.Left > 0, s.fresh && (e.Canary || e.Found > 0 && p.Scripts == 0):
		return left, nil
	case e.Unsure:
		v = unsure
	}
	c, err := s.cookies(ctx)
	return max(v, c), err
}

// cookie is what tells a cookie from others.
type cookie struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Domain string `json:"domain"`
	Path   string `json:"path"`
}

func (s *sweeper) shown(ctx context.Context) (list []cookie, err error) {
	return list, s.b.Do(ctx, http.MethodGet, "/cookie", nil, &list)
}

func named(name string) func(cookie) bool { return func(c cookie) bool { return c.Name == name } }

// cookies deletes what the document shows, one by one: Delete All Cookies of a phone's driver may hang (SeleniumHQ/selenium#13816).
func (s *sweeper) cookies(ctx context.Context) (verdict, error) {
	before, err := s.shown(ctx)
	if err != nil {
		return unsure, err
	}
	before = slices.DeleteFunc(before, func(c cookie) bool { return c.Name == canary && c.Value == s.value }) // of another folder
	if s.fresh && slices.ContainsFunc(before, named(canary)) {
		return left, s.delete(ctx, before)
	}
	if err := s.plant(ctx); inert.Fatal(err) {
		return unsure, err
	}
	planted, err := s.shown(ctx)
	if err != nil {
		return unsure, err
	}
	v := clean
	if !slices.ContainsFunc(planted, named(canary)) { // whatever keeps it out: what is not shown may be there
		v = unsure
	}
	still := planted
	for round := 0; len(still) > 0; round++ {
		if round == sweepRounds {
			return left, nil
		}
		if err := s.delete(ctx, still); err != nil {
			return unsure, err
		}
		now, err := s.shown(ctx)
		if err != nil {
			return unsure, err
		}
		still = slices.DeleteFunc(now, func(c cookie) bool { return !slices.Contains(planted, c) }) // others are the site's answer to this visit
	}
	if s.fresh && len(before) > 0 {
		if v, err = s.older(ctx, before, v); err != nil || v == left {
			return v, err
		}
	}
	if s.leave {
		err = s.plant(ctx)
	}
	return v, err
}

// older says whether one of the cookies was there before this visit: its site does not set it when it is asked again. That is known of its name only.
func (s *sweeper) older(ctx context.Context, before []cookie, v verdict) (verdict, error) {
	const again = `const done = arguments[arguments.length - 1]; fetch(location.href, {cache: 'reload'}).then(() => done(true), () => done(false));`
	var asked bool
	if err := s.b.Do(ctx, http.MethodPost, "/execute/async", map[string]any{"script": again, "args": []any{}}, &asked); err != nil {
		return unsure, err
	}
	if !asked {
		return unsure, nil
	}
	set, err := s.shown(ctx)
	if err != nil {
		return unsure, err
	}
	for _, c := range before {
		if !slices.ContainsFunc(set, named(c.Name)) {
			return left, nil
		}
	}
	return v, s.delete(ctx, set)
}

func (s *sweeper) plant(ctx context.Context) error {
	c := map[string]any{"name": canary, "value": s.value, "path": "/", "sameSite": "Lax"}
	return s.b.Do(ctx, http.MethodPost, "/cookie", map[string]any{"cookie": c}, nil)
}

// delete tries to; whether they are gone is for the caller to see.
func (s *sweeper) delete(ctx context.Context, list []cookie) error {
	for _, c := range list {
		var err error
		if c.Name == "" { // no path can name it
			err = s.b.Script(ctx, `document.cookie = '=; Max-Age=0; Path=' + JSON.parse(arguments[0]); return ''`, cmp.Or(c.Path, "/"), nil)
		} else {
			err = s.b.Do(ctx, http.MethodDelete, "/cookie/"+url.PathEscape(c.Name), nil, nil)
		}
		if inert.Fatal(err) {
			return err
		}
	}
	return nil
}
