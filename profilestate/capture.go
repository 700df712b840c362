package profilestate

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"path"
	"slices"
	"time"

	"github.com/driftstack/fleet/driverproxy/inert"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// Visited is what is known about where a session went.
type Visited struct {
	// Origins are origins, or URLs on them; others than http and https are passed over. The path of a URL says where
	// else to look for cookies: a page shows only those of the folders above it.
	Origins []string
}

// Capture takes the state out of a session that is over for its customer, and merges it with previous. restored is the
// report of the Restore that began the session; with the zero Report nothing is taken for deleted. An error means that
// there is no new snapshot and the old one stays.
// The tour of the visited sites takes at most three quarters of ctx's time; what it did not reach is kept as it was.
// The browser is left on the last page looked at.
func Capture(ctx context.Context, d inert.Driver, v Visited, previous *Snapshot, restored Report) (*Snapshot, Report, error) {
	c := &capturer{b: newBrowser(d), now: time.Now(), seen: observed{storage: make(map[string][]Entry), reasons: make(map[string]Reason)}}
	if err := c.run(ctx, v, previous); err != nil {
		return nil, Report{}, fmt.Errorf("capture profile: %w", err)
	}
	next, report := merge(previous, c.seen, restored, c.now)
	return next, report, nil
}

type capturer struct {
	b    *inert.Browser
	now  time.Time
	seen observed
}

func (c *capturer) run(ctx context.Context, v Visited, previous *Snapshot) error {
	current := []inert.Command{{Method: "GET", Path: "/url"}, {Method: "GET", Path: "/cookie"}, lookAtLoaded}
	if err := c.b.Begin(ctx, []inert.Command{inert.ToTopFrame()}, current); err != nil {
		return err
	}
	if err := c.b.TopWindow(ctx); err != nil {
		return err
	}
	if err := c.b.Bound(ctx); err != nil {
		return err
	}
	here, err := c.current(ctx)
	if err != nil {
		return err
	}
	t := newTour(append(slices.Clone(v.Origins), here), previous)
	looking, stop := inTime(ctx)
	defer stop()
	until, _ := looking.Deadline()
	for i, origin := range t.Origins {
		err := c.b.Ahead(looking, until, tourAhead(t, i))
		if err == nil {
			err = c.origin(looking, origin, t.Folders(origin))
		}
		if err != nil && looking.Err() != nil && ctx.Err() == nil {
			c.leave(t.Origins[i:])
			return nil // a command may still run, and everything after it would wait for it
		}
		if err != nil {
			return err
		}
	}
	return c.b.End(ctx)
}

// inTime leaves a quarter of the caller's time for what comes after the tour: storing what it saw. A session that saw
// more sites than can be looked at keeps what it had of the rest, instead of losing everything.
func inTime(ctx context.Context) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, end.Add(-time.Until(end)/4))
}

// leave notes origins for which there was no time.
func (c *capturer) leave(origins []string) {
	for _, origin := range origins {
		if _, done := c.seen.storage[origin]; !done {
			c.seen.failed = append(c.seen.failed, origin)
			c.seen.reasons[origin] = ReasonTimeout
		}
	}
}

// current looks at the page the customer left, before any navigation: it may be the only one that shows a cookie. Only
// the driver is asked, apart from one hint: the page's own scripts may be hostile.
func (c *capturer) current(ctx context.Context) (string, error) {
	var here string
	err := c.b.Do(ctx, "GET", "/url", nil, &here)
	if inert.CodeOf(err) == webdriver.Timeout {
		return "", c.b.NewWindow(ctx)
	}
	if err != nil {
		c.b.Forget()
		if inert.Fatal(err) {
			return "", err
		}
		return "", nil
	}
	cookies, err := shownCookies(ctx, c.b, c.now)
	if inert.Fatal(err) {
		return "", err
	}
	l := look{cookies: cookies}
	// Drivers go by the URL that the document was loaded from. Where scripts changed the address since, a cookie must
	// belong to both to be missed here; where the first cannot be known, none is.
	var loaded string
	err = c.b.Do(ctx, lookAtLoaded.Method, lookAtLoaded.Path, lookAtLoaded.Body, &loaded)
	if inert.Fatal(err) {
		return "", err
	}
	a, errA := url.Parse(here)
	b, errB := url.Parse(loaded)
	if err == nil && errA == nil && errB == nil && a.Host != "" && a.Host == b.Host {
		l.page.URLs = []*url.URL{a, b}
	}
	c.seen.looks = append(c.seen.looks, l)
	return here, nil
}

var lookAtLoaded = inert.Command{Method: "POST", Path: "/execute/sync", Body: map[string]any{
	"script": `return String(performance.getEntriesByType('navigation')[0].name)`, "args": []string{}}}

// origin reads one origin's localStorage and cookies from inert documents.
func (c *capturer) origin(ctx context.Context, origin string, folders []string) error {
	for _, dir := range folders {
		p, entries, err := open(ctx, c.b, origin, dir, jobAt(dir))
		var unusable *inert.PageError
		if errors.As(err, &unusable) {
			if dir == "/" {
				c.seen.failed = append(c.seen.failed, origin)
				c.seen.reasons[origin] = Reason(unusable.Why)
			}
			continue
		}
		if err != nil {
			return err
		}
		if dir == "/" {
			c.seen.storage[origin] = entries
		}
		cookies, err := shownCookies(ctx, c.b, c.now)
		if inert.Fatal(err) {
			return err
		}
		if err == nil {
			c.seen.looks = append(c.seen.looks, look{page: p, cookies: cookies})
		}
	}
	return nil
}

// jobAt is what a capture does there: an origin has one localStorage, whatever the folder.
func jobAt(dir string) inert.Job {
	if dir == "/" {
		return inert.Job{Want: inert.Read}
	}
	return inert.Job{Want: inert.Nothing}
}

// newTour is where a capture looks: at the sites that were visited, and in the folders of theirs that the profile has cookies of.
func newTour(visited []string, previous *Snapshot) *inert.Tour {
	t := inert.NewTour(visited)
	// A cookie of a folder is shown nowhere else, so a login rotated there would be missed.
	for _, c := range previous.clone().Cookies {
		for _, origin := range t.Origins {
			if u, err := url.Parse(origin); err == nil && c.onHost(u) {
				t.Look(origin, path.Clean(c.Path))
			}
		}
	}
	return t
}

// tourAhead is what origin does at each page from the i-th origin on, where all goes well.
func tourAhead(t *inert.Tour, i int) iter.Seq[[]inert.Command] {
	return func(yield func([]inert.Command) bool) {
		for _, origin := range t.Origins[i:] {
			for _, dir := range t.Folders(origin) {
				list, err := inert.Opening(origin, dir, jobAt(dir))
				if err != nil || !yield(append(list, inert.Command{Method: "GET", Path: "/cookie"})) {
					return
				}
			}
		}
	}
}
