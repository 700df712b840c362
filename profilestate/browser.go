package profilestate

import (
	"context"
	"encoding/json"
	"net/url"
	"slices"
	"time"

	"github.com/driftstack/fleet/driverproxy/inert"
)

// newBrowser is a session's browser for a restore or a capture.
func newBrowser(d inert.Driver) *inert.Browser {
	return &inert.Browser{Driver: d, Limits: inert.Limits{
		Page: 8 * time.Second, Hurried: 2 * time.Second, Script: 10 * time.Second, Settle: 3 * time.Second,
	}}
}

// open opens an inert document and does the job there; the entries are those of localStorage.
func open(ctx context.Context, b *inert.Browser, origin, dir string, job inert.Job) (inert.Page, []Entry, error) {
	p, err := b.Open(ctx, origin, dir, job)
	if err != nil || len(p.Items) == 0 {
		return p, nil, err
	}
	var entries []Entry
	if json.Unmarshal(p.Items, &entries) != nil { // WebKit runs a page's own JSON.stringify to answer for it
		return p, nil, &inert.PageError{Why: inert.Unreachable}
	}
	return p, entries, nil
}

// shows says whether the page must show the cookie.
func shows(p inert.Page, c Cookie) bool {
	return len(p.URLs) > 0 && !slices.ContainsFunc(p.URLs, func(u *url.URL) bool { return !c.sentTo(u) })
}

// cookieScript sets the cookies that Add Cookie refuses: those with an empty name or value.
const cookieScript = `for (const c of JSON.parse(arguments[0])) document.cookie = c;`
