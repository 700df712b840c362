package webdriver

import (
	"encoding/json"
	"net/url"
	"slices"
	"sync"
)

// Bounds of [Visits].
const (
	MaxVisits = 128 // the latest are remembered: that many fit into a control message, whatever they are
	maxPart   = 256 // bytes of host and of path; of a longer path only the site is remembered
)

// Visits are the pages that a session is known to have been at, in order of the first visit, without their query, which is
// nobody's business. The zero value is empty; methods may be called from many goroutines.
type Visits struct {
	mu    sync.Mutex
	pages []string
}

// Notice looks at a command that was answered without an error.
func (v *Visits) Notice(r Route, body []byte, a Answer) {
	var at string
	switch r {
	case RouteNavigateTo:
		var to struct {
			URL string `json:"url"`
		}
		_ = json.Unmarshal(body, &to) // the driver took it
		at = to.URL
	case RouteGetCurrentURL:
		_ = a.Value(&at)
	default:
		return
	}
	v.Add(at)
}

// Add adds a page of the web; anything else is passed over.
func (v *Visits) Add(at string) {
	u, err := url.Parse(at)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || len(u.Host) > maxPart {
		return
	}
	path := u.EscapedPath() // it says which folders' cookies can be seen
	if len(path) > maxPart {
		path = "/"
	}
	page := u.Scheme + "://" + u.Host + path
	v.mu.Lock()
	defer v.mu.Unlock()
	if slices.Contains(v.pages, page) {
		return
	}
	if len(v.pages) == MaxVisits {
		v.pages = slices.Delete(v.pages, 0, 1)
	}
	v.pages = append(v.pages, page)
}

// Pages lists them.
func (v *Visits) Pages() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.pages)
}
