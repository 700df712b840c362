package drivertest

import (
	"encoding/json"
	"fmt"
	"net/url"

	"github.com/driftstack/fleet/driverproxy/inert"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// Stored is what a browser keeps for sites.
type Stored struct {
	Cookies []map[string]any             `json:"cookies"`
	Local   map[string]map[string]string `json:"local"` // localStorage, by origin
}

// Stored is what the browser of the session has.
func (d *Driver) Stored() Stored {
	d.mu.Lock()
	defer d.mu.Unlock()
	return Stored{Cookies: d.page.cookies, Local: d.page.local}
}

// Store makes it what the browser of the session has.
func (d *Driver) Store(s Stored) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.page.cookies, d.page.local = s.Cookies, s.Local
}

func (p *page) handles() []string {
	list := []string{}
	for i := range p.windows {
		list = append(list, fmt.Sprint("window-", i+1))
	}
	return list
}

func (p *page) origin() string {
	u, err := url.Parse(p.history[p.at])
	if err != nil || u.Host == "" {
		return "null"
	}
	return u.Scheme + "://" + u.Host
}

// lookLocked is what inert.LookScript returns in a document without scripts, as all are; it writes nothing.
func (d *Driver) lookLocked() webdriver.Answer {
	p := &d.page
	return text(inert.Page{Origin: p.origin(), URL: p.history[p.at], Ready: "complete", TimeOrigin: float64(p.loads), Storage: "ok", Items: json.RawMessage("[]")})
}

// emptyLocked is inert.EmptyScript.
func (d *Driver) emptyLocked(arguments map[string]any) webdriver.Answer {
	var job [4]any
	args, _ := arguments["args"].([]any)
	if s, ok := append(args, "")[0].(string); !ok || json.Unmarshal([]byte(s), &job) != nil {
		return failed(webdriver.JavascriptError, "the script's argument is not what it wants")
	}
	p := &d.page
	here := p.local[p.origin()]
	canary := fmt.Sprint(job[0])
	e := inert.Emptied{Found: len(here)}
	if was, ok := here[canary]; ok {
		e.Canary, e.Found = was != job[1], e.Found-1
	}
	delete(p.local, p.origin())
	if job[2] == true {
		if p.local == nil {
			p.local = map[string]map[string]string{}
		}
		p.local[p.origin()] = map[string]string{canary: fmt.Sprint(job[1])}
	}
	return text(e)
}

// text is a value that a script returns as JSON text.
func text(v any) webdriver.Answer {
	b, err := json.Marshal(v)
	if err != nil {
		return failed(webdriver.UnknownError, err.Error())
	}
	return value(string(b))
}
