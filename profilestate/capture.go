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
func Capture(ctx context.Context, d Driver, v Visited, previous *Snapshot, restored Report) (*Snapshot, Report, error) {
	c := &capturer{b: &browser{d: d}, now: time.Now(), seen: observed{storage: make(map[string][]Entry), reasons: make(map[string]Reason)}}
	if err := c.run(ctx, v, previous); err != nil {
		return nil, Report{}, fmt.Errorf("capture profile: %w", err)
	}
	next, report := merge(previous, c.seen, restored, c.now)
	return next, report, nil
}

type capturer struct {
	b    *browser
	now  time.Time
	seen observed
}

const foldersPerOrigin = 8 // looked into for cookies, besides the root

func (c *capturer) run(ctx context.Context, v Visited, previous *Snapshot) error {
	if err := c.b.begin(ctx, command{"POST", "/frame", topFrame}); err != nil {
		return err
	}
	if err := c.topWindow(ctx); err != nil {
		return err
	}
	if err := c.b.bound(ctx); err != nil {
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
	for i, origin := range t.order {
		err := c.b.ahead(looking, until, t.ahead(i))
		if err == nil {
			err = c.origin(looking, origin, t.folders[origin])
		}
		if err != nil && looking.Err() != nil && ctx.Err() == nil {
			c.leave(t.order[i:])
			return nil // a command may still run, and everything after it would wait for it
		}
		if err != nil {
			return err
		}
	}
	return c.b.end(ctx)
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

var topFrame = map[string]any{"id": nil}

// topWindow leaves frames and closed windows.
func (c *capturer) topWindow(ctx context.Context) error {
	err := c.b.do(ctx, "POST", "/frame", topFrame, nil)
	if codeOf(err) == webdriver.NoSuchWindow {
		var handles []string
		if err := c.b.do(ctx, "GET", "/window/handles", nil, &handles); err != nil {
			return err
		}
		if len(handles) == 0 {
			return errors.New("the session has no window left")
		}
		if err := c.b.do(ctx, "POST", "/window", map[string]string{"handle": handles[0]}, nil); err != nil {
			return err
		}
		err = c.b.do(ctx, "POST", "/frame", topFrame, nil)
	}
	if codeOf(err) == webdriver.Timeout {
		return c.b.newWindow(ctx)
	}
	if fatal(err) {
		return err
	}
	return nil
}

// current looks at the page the customer left, before any navigation: it may be the only one that shows a cookie. Only
// the driver is asked, apart from one hint: the page's own scripts may be hostile.
func (c *capturer) current(ctx context.Context) (string, error) {
	var here string
	err := c.b.do(ctx, "GET", "/url", nil, &here)
	if codeOf(err) == webdriver.Timeout {
		return "", c.b.newWindow(ctx)
	}
	if err != nil {
		if fatal(err) {
			return "", err
		}
		return "", nil
	}
	cookies, err := c.b.cookies(ctx, c.now)
	if fatal(err) {
		return "", err
	}
	l := look{cookies: cookies}
	// Drivers go by the URL that the document was loaded from. Where scripts changed the address since, a cookie must
	// belong to both to be missed here; where the first cannot be known, none is.
	var loaded string
	err = c.b.do(ctx, "POST", "/execute/sync", map[string]any{"script": loadedScript, "args": []string{}}, &loaded)
	if fatal(err) {
		return "", err
	}
	a, errA := url.Parse(here)
	b, errB := url.Parse(loaded)
	if err == nil && errA == nil && errB == nil && a.Host != "" && a.Host == b.Host {
		l.page.urls = []*url.URL{a, b}
	}
	c.seen.looks = append(c.seen.looks, l)
	return here, nil
}

const loadedScript = `return String(performance.getEntriesByType('navigation')[0].name)`

// origin reads one origin's localStorage and cookies from inert documents.
func (c *capturer) origin(ctx context.Context, origin string, folders []string) error {
	for _, dir := range append(folders, "/") {
		p, err := c.b.open(ctx, origin, dir, jobAt(dir))
		var unusable *pageError
		if errors.As(err, &unusable) {
			if dir == "/" {
				c.seen.failed = append(c.seen.failed, origin)
				c.seen.reasons[origin] = unusable.why
			}
			continue
		}
		if err != nil {
			return err
		}
		if dir == "/" {
			c.seen.storage[origin] = p.Items
		}
		cookies, err := c.b.cookies(ctx, c.now)
		if fatal(err) {
			return err
		}
		if err == nil {
			c.seen.looks = append(c.seen.looks, look{page: p, cookies: cookies})
		}
	}
	return nil
}

// jobAt is what a capture does there: an origin has one localStorage, whatever the folder.
func jobAt(dir string) storageJob {
	if dir == "/" {
		return storageJob{want: "read"}
	}
	return storageJob{want: "nothing"}
}

// tour is where a capture looks.
type tour struct {
	order   []string
	folders map[string][]string // besides the root
}

func newTour(visited []string, previous *Snapshot) tour {
	t := tour{folders: make(map[string][]string)}
	for _, raw := range visited {
		origin, err := originOf(raw)
		if err != nil {
			continue
		}
		if !slices.Contains(t.order, origin) {
			t.order = append(t.order, origin)
		}
		if u, err := url.Parse(raw); err == nil {
			t.folder(origin, path.Dir(u.EscapedPath()))
		}
	}
	// A cookie of a folder is shown nowhere else, so a login rotated there would be missed.
	for _, c := range previous.clone().Cookies {
		for _, origin := range t.order {
			if u, err := url.Parse(origin); err == nil && c.onHost(u) {
				t.folder(origin, path.Clean(c.Path))
			}
		}
	}
	return t
}

// ahead is what origin does at each page from the i-th origin on, where all goes well.
func (t *tour) ahead(i int) iter.Seq[[]command] {
	return func(yield func([]command) bool) {
		for _, origin := range t.order[i:] {
			for _, dir := range append(t.folders[origin], "/") {
				list, err := opening(origin, dir, jobAt(dir))
				if err != nil || !yield(append(list, command{"GET", "/cookie", nil})) {
					return
				}
			}
		}
	}
}

func (t *tour) folder(origin, dir string) {
	if list := t.folders[origin]; dir != "/" && dir != "." && dir != "" && len(list) < foldersPerOrigin && !slices.Contains(list, dir) {
		t.folders[origin] = append(list, dir)
	}
}
