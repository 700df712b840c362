package profilestate

import (
	"cmp"
	"net/url"
	"slices"

	"github.com/driftstack/fleet/driverproxy/inert"
)

// stop is one document that a restore opens, and what it does there.
type stop struct {
	origins []string // alternatives, best first
	dir     string   // the document is below this path
	job     inert.Job
	items   []Entry // of the job
	cookies []Cookie
}

// page is the URL whose cookies the stop's document shows.
func (s *stop) page() *url.URL { return below(s.origins[0], s.dir) }

// below is a URL directly below a folder of an origin.
func below(origin, dir string) *url.URL {
	u, err := url.Parse(inert.Target(origin, dir))
	if err != nil {
		return &url.URL{}
	}
	return u
}

// plan orders a restore so that no restored cookie is ever sent to its site: localStorage and the documents come first,
// and each cookie is set at the last stop that shows it. A request with a login in it may make the site rotate that
// login while nobody is looking.
//
// It needs a page that shows each cookie, for two reasons: a host-only cookie can only be set from its host, and what
// cannot be read back is not known to be there. Where no origin of the snapshot will do, the cookie's own domain must.
// Cookies that no URL can show are returned apart.
func plan(s *Snapshot) (stops []*stop, nowhere []Cookie) {
	for _, o := range s.Origins {
		st := &stop{origins: []string{o.Origin}, dir: "/", job: inert.Job{Want: inert.Nothing}}
		if len(o.LocalStorage) > 0 {
			st.job, st.items = inert.Job{Want: inert.Write, Items: o.LocalStorage}, o.LocalStorage
		}
		stops = append(stops, st)
	}
	cookies := slices.Clone(s.Cookies)
	// The deepest paths first: their stops show the cookies of the folders above too.
	slices.SortStableFunc(cookies, func(a, b Cookie) int { return cmp.Compare(len(b.Path), len(a.Path)) })
	for _, c := range cookies {
		if lastThatShows(stops, c) != nil {
			continue
		}
		known, guessed := placesFor(c, s.Origins)
		st := &stop{origins: append(known, guessed...), dir: c.Path, job: inert.Job{Want: inert.Nothing}}
		if len(known) > 0 {
			stops = append(stops, st)
		} else {
			stops = slices.Insert(stops, 0, st) // and so takes only cookies that no known page shows
		}
	}
	for _, c := range s.Cookies {
		if st := lastThatShows(stops, c); st != nil {
			st.cookies = append(st.cookies, c)
		} else {
			nowhere = append(nowhere, c)
		}
	}
	stops = slices.DeleteFunc(stops, func(st *stop) bool { return st.job.Want == inert.Nothing && len(st.cookies) == 0 })
	return stops, nowhere
}

func lastThatShows(stops []*stop, c Cookie) *stop {
	for _, st := range slices.Backward(stops) {
		if c.sentTo(st.page()) {
			return st
		}
	}
	return nil
}

// placesFor lists origins on which a cookie can be set: those of the snapshot, and those that its domain suggests.
func placesFor(c Cookie, origins []Origin) (known, guessed []string) {
	for _, o := range origins {
		if u, err := url.Parse(o.Origin); err == nil && c.onHost(u) {
			known = append(known, o.Origin)
		}
	}
	guessed = append(guessed, "https://"+c.host())
	if !c.Secure {
		guessed = append(guessed, "http://"+c.host())
	}
	return known, guessed
}
