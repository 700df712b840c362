// Package inert drives a browser to where its sites' scripts do not run: documents of an origin at which the origin's storage and cookies
// can be looked at and changed, and nobody else's code sees it half done.
//
// A profile's restore and capture go there (package profilestate), and so does the wiping of a device (driverproxy/host).
//
// Out of scope: what is done at the documents, cookies.
package inert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// Driver runs W3C commands in one session. Errors that the driver answered wrap *webdriver.Error; any other error means
// that the session cannot be reached.
type Driver interface {
	// Do sends one command, or a batch of them as package batch has it. path is below /session/{session id}; body is nil for commands
	// without one.
	Do(ctx context.Context, method, path string, body []byte) (value json.RawMessage, err error)
}

// Limits are how long things may take.
type Limits struct {
	Page    time.Duration // one page of a site that may be down
	Hurried time.Duration // the same, once two have used all of Page
	Script  time.Duration
	Settle  time.Duration // a navigation with pageLoadStrategy none to show
}

const (
	patience    = 2 // pages that may use all of Limits.Page
	settleEvery = 50 * time.Millisecond
	cleanLimit  = 10 * time.Second
)

// Browser drives one session.
type Browser struct {
	Driver Driver
	Limits Limits

	original json.RawMessage // timeouts to give back
	last     float64         // timeOrigin of the document seen last
	slow     int             // pages that timed out
	ready    []answered      // by Ahead
}

// PageError says that a page could not be used; the session itself is well.
type PageError struct {
	Why   Reason
	final bool // other pages of the origin would do no better
}

// Reason is why a page could not be used.
type Reason string

// Reasons.
const (
	Unreachable Reason = "no page of its origin could be opened"
	Timeout     Reason = "its origin did not answer in time"
	Sandboxed   Reason = "pages of its origin do not allow storage"
)

func (e *PageError) Error() string { return string(e.Why) }

// send is Do past what Ahead has.
func (b *Browser) send(ctx context.Context, method, path string, body, value any) error {
	return (&Browser{Driver: b.Driver}).Do(ctx, method, path, body, value)
}

// Do runs a command and decodes its value, unless value is nil. An alert that is open is dismissed first.
func (b *Browser) Do(ctx context.Context, method, path string, body, value any) error {
	var raw []byte
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return err
		}
	}
	answer, err := json.RawMessage(nil), error(nil)
	if len(b.ready) > 0 {
		answer, err = b.next(method, path, raw)
	} else {
		answer, err = b.Driver.Do(ctx, method, path, raw)
	}
	if CodeOf(err) == webdriver.UnexpectedAlertOpen {
		// Unless the customer's capabilities say otherwise the driver has dismissed the alert by saying so.
		_, _ = b.Driver.Do(ctx, "POST", "/alert/dismiss", []byte("{}"))
		answer, err = b.Driver.Do(ctx, method, path, raw)
	}
	if err != nil {
		return err
	}
	if value == nil {
		return nil
	}
	if err := json.Unmarshal(answer, value); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, errUnreadable)
	}
	return nil
}

// errUnreadable is not fatal: WebKit runs a page's own JSON.stringify to answer for it, so a page can cause it.
var errUnreadable = errors.New("the answer is not what the specification says")

// CodeOf is the W3C error code that the driver answered; "" if it answered none.
func CodeOf(err error) webdriver.Code {
	var w *webdriver.Error
	if errors.As(err, &w) {
		return w.Code
	}
	return ""
}

// Fatal says whether an error means that the session is of no more use.
func Fatal(err error) bool {
	if errors.Is(err, errUnreadable) {
		return false
	}
	switch CodeOf(err) {
	case "", webdriver.InvalidSessionID, webdriver.NoSuchWindow:
		return err != nil
	}
	return outcomeUnknown(err)
}

// outcomeUnknown: the proxy lost the host and cannot say whether the command ran.
func outcomeUnknown(err error) bool {
	var w *webdriver.Error
	return errors.As(err, &w) && w.Data["outcome"] == "unknown"
}

// Begin runs ahead what is done first: what is before Bound, Bound itself, and what comes after it.
func (b *Browser) Begin(ctx context.Context, before, after []Command) error {
	look, err := ScriptCommand(LookScript, lookArguments("", Job{Want: Nothing}, false, ""))
	if err != nil {
		return err
	}
	bound := []Command{{"GET", "/timeouts", nil}, {"POST", "/timeouts", b.timeouts(b.Limits.Page)}, look}
	return b.Ahead(ctx, time.Time{}, slices.Values([][]Command{slices.Concat(before, bound, after)}))
}

// Bound bounds page loads: a customer's own limit may be minutes, and the default is five.
func (b *Browser) Bound(ctx context.Context) error {
	if err := b.Do(ctx, "GET", "/timeouts", nil, &b.original); Fatal(err) {
		return err
	}
	if err := b.setTimeouts(ctx, b.Limits.Page); Fatal(err) {
		return err
	}
	// Which document is there now tells later whether a navigation has arrived at another.
	p, err := b.look(ctx, "", Job{Want: Nothing}, false, "")
	if Fatal(err) {
		return err
	}
	b.last = p.TimeOrigin
	return nil
}

func (b *Browser) setTimeouts(ctx context.Context, page time.Duration) error {
	return b.Do(ctx, "POST", "/timeouts", b.timeouts(page), nil)
}

func (b *Browser) timeouts(page time.Duration) map[string]int64 {
	return map[string]int64{"pageLoad": page.Milliseconds(), "script": b.Limits.Script.Milliseconds()}
}

// End gives the session's own limits back.
func (b *Browser) End(ctx context.Context) error {
	if b.original == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
	defer cancel()
	return b.Do(ctx, "POST", "/timeouts", b.original, nil)
}

// Leaving is what Blank and End do.
func (b *Browser) Leaving(between ...Command) []Command {
	list := append([]Command{blankPage}, between...)
	if b.original != nil {
		list = append(list, Command{"POST", "/timeouts", b.original})
	}
	return list
}

var blankPage = Command{"POST", "/url", map[string]string{"url": "about:blank"}}

// Blank leaves the sites.
func (b *Browser) Blank(ctx context.Context) error {
	return b.Do(ctx, blankPage.Method, blankPage.Path, blankPage.Body, nil)
}

// Page is what a look at the current document showed.
type Page struct {
	Origin     string          `json:"origin"`
	URL        string          `json:"url"`
	Ready      string          `json:"ready"`
	TimeOrigin float64         `json:"time"`
	Scripts    int             `json:"scripts"`
	Storage    string          `json:"storage"` // "ok", "denied" or "untouched"
	Items      json.RawMessage `json:"items"`   // of localStorage: objects with name and value

	URLs []*url.URL `json:"-"` // what was asked for and what came: they differ after a redirect
}

func (p Page) below(dir string) bool {
	return len(p.URLs) > 0 && !slices.ContainsFunc(p.URLs, func(u *url.URL) bool { return !PathMatch(u.EscapedPath(), dir) })
}

// LookScript is what Open runs: it looks at the document, writes localStorage and reads all of it back, in one command. Text crosses as
// JSON inside a string, in which JSON.stringify escapes unpaired surrogates; as plain strings they would be corrupted.
// Nothing is written on a page of another origin, nor on one that brings scripts unless told so: those run first and see,
// or overwrite, a half-restored state. Given the address that is expected it fails where anything else came, and ends a batch with it.
const LookScript = `
const [origin, want, items, tolerant, expected] = JSON.parse(arguments[0]);
const r = {origin: String(self.origin), url: location.href, ready: document.readyState, time: performance.timeOrigin,
  scripts: document.scripts.length, storage: 'untouched', items: []};
if (expected && (r.url !== expected || r.origin !== origin || r.ready === 'loading' || r.scripts > 0)) throw new Error('another page');
if (r.origin !== origin || r.ready === 'loading' || (r.scripts > 0 && !tolerant)) return JSON.stringify(r);
try {
  if (want === 'write') {
    localStorage.clear();
    for (const e of items) { try { localStorage.setItem(e.name, e.value); } catch (e) {} }
  }
  for (let i = 0; want !== 'nothing' && i < localStorage.length; i++) {
    const name = localStorage.key(i);
    r.items.push({name: name, value: localStorage.getItem(name)});
  }
  r.storage = 'ok';
} catch (e) { if (expected) throw e; r.items = []; r.storage = 'denied'; }
return JSON.stringify(r);`

// Script runs a script on the current document with arg, as JSON text, for its argument; it returns JSON text.
func (b *Browser) Script(ctx context.Context, script string, arg any, result any) error {
	c, err := ScriptCommand(script, arg)
	if err != nil {
		return err
	}
	var out string
	if err := b.Do(ctx, c.Method, c.Path, c.Body, &out); err != nil || result == nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), result); err != nil {
		return errUnreadable
	}
	return nil
}

// ScriptCommand is what Script sends.
func ScriptCommand(script string, arg any) (Command, error) {
	text, err := json.Marshal(arg)
	return Command{"POST", "/execute/sync", map[string]any{"script": script, "args": []string{string(text)}}}, err
}

// Want is what to do with an origin's localStorage.
type Want string

// Wants.
const (
	Nothing Want = "nothing"
	Read    Want = "read"
	Write   Want = "write" // make it the items, and read it
)

// Job is what Open does at the document.
type Job struct {
	Want  Want
	Items any // to write: what becomes an array of objects with name and value
}

// Target is the document below a folder of an origin at which Open looks first.
func Target(origin, dir string) string { return targets(origin, dir)[0] }

// look runs LookScript on the current document.
func (b *Browser) look(ctx context.Context, origin string, job Job, tolerant bool, expected string) (Page, error) {
	var p Page
	err := b.Script(ctx, LookScript, lookArguments(origin, job, tolerant, expected), &p)
	return p, err
}

func lookArguments(origin string, job Job, tolerant bool, expected string) []any {
	return []any{origin, job.Want, job.Items, tolerant, expected}
}

// targets are documents below a folder at which a site most likely serves a document without scripts, or none: the document of a 404 will do.
func targets(origin, dir string) []string {
	base := origin + strings.TrimSuffix(dir, "/")
	list := []string{base + "/robots.txt", base + "/favicon.ico"}
	if dir == "/" {
		list = append(list, base+"/.well-known/security.txt")
	}
	return list
}

// Open goes to an inert document below dir on the origin and does the job there. It settles for a
// page with scripts only when there is no other. A *PageError says that there is no usable page.
func (b *Browser) Open(ctx context.Context, origin, dir string, job Job) (Page, error) {
	scripted := ""
	why := Unreachable
	for _, target := range targets(origin, dir) {
		p, err := b.visit(ctx, target, origin, job, false)
		var unusable *PageError
		switch {
		case errors.As(err, &unusable) && unusable.final:
			return Page{}, err
		case errors.As(err, &unusable):
			why = unusable.Why
		case err != nil:
			return Page{}, err
		case !p.below(dir):
			why = Unreachable // a redirect out of the folder, to where its cookies are not shown
		case p.Storage == "ok":
			return p, nil
		case p.Storage == "denied":
			why = Sandboxed
		case scripted == "":
			scripted = target
		}
	}
	if scripted != "" {
		p, err := b.visit(ctx, scripted, origin, job, true)
		if err != nil || p.Storage == "ok" {
			return p, err
		}
	}
	return Page{}, &PageError{Why: why}
}

// visit navigates and looks, and gives a driver that does not wait for pages a moment.
func (b *Browser) visit(ctx context.Context, target, origin string, job Job, tolerant bool) (Page, error) {
	if err := b.Do(ctx, "POST", "/url", map[string]string{"url": target}, nil); err != nil {
		if Fatal(err) {
			return Page{}, err
		}
		if c := CodeOf(err); c == webdriver.Timeout || c == webdriver.ScriptTimeout {
			return Page{}, b.timedOut(ctx)
		}
		return Page{}, &PageError{Why: Unreachable}
	}
	for waited := time.Duration(0); ; waited += settleEvery {
		expected := ""
		if len(b.ready) > 0 {
			expected = target
		}
		p, err := b.look(ctx, origin, job, tolerant, expected)
		if Fatal(err) {
			return Page{}, err
		}
		// A script that meets a navigation which the driver did not wait for fails with it; it is harmless to repeat.
		arrived := err == nil && p.TimeOrigin != b.last && p.Ready != "loading"
		if arrived && p.Origin != origin {
			b.last, b.ready = p.TimeOrigin, nil
			return Page{}, strayed(p, origin)
		}
		if arrived || err == nil && p.URL == target && p.Storage == "ok" && p.Scripts == 0 {
			b.last = p.TimeOrigin
			asked, errAsked := url.Parse(target)
			came, errCame := url.Parse(p.URL)
			if errAsked == nil && errCame == nil {
				p.URLs = []*url.URL{asked, came}
			}
			return p, nil
		}
		b.ready = nil // the batch should have ended here; if it did not, the next look tells where the browser is now
		if waited >= b.Limits.Settle {
			return Page{}, &PageError{Why: Unreachable} // no document came: 204, a download
		}
		if err := pause(ctx, settleEvery); err != nil {
			return Page{}, err
		}
	}
}

// strayed says what it means that another document came than one of the origin.
func strayed(p Page, origin string) error {
	came, err := Origin(p.URL)
	switch {
	case err != nil:
		return &PageError{Why: Unreachable, final: true} // the browser's own error page
	case came == origin:
		return &PageError{Why: Sandboxed}
	}
	return &PageError{Why: Unreachable} // a redirect to another site
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// timedOut leaves a window that hangs. WebKit answers nothing more in a window that asks for a password, whatever one
// tells it: only a new window helps.
func (b *Browser) timedOut(ctx context.Context) error {
	if b.slow++; b.slow == patience {
		if err := b.setTimeouts(ctx, b.Limits.Hurried); Fatal(err) {
			return err
		}
	}
	if err := b.NewWindow(ctx); err != nil {
		return err
	}
	return &PageError{Why: Timeout, final: true}
}

// NewWindow leaves the current window, which may hang, for a new one.
func (b *Browser) NewWindow(ctx context.Context) error {
	var old string
	if err := b.Do(ctx, "GET", "/window", nil, &old); err != nil {
		return fmt.Errorf("leave a window that hangs: %w", err)
	}
	var fresh struct {
		Handle string `json:"handle"`
	}
	if err := b.Do(ctx, "POST", "/window/new", map[string]string{"type": "tab"}, &fresh); err != nil {
		return fmt.Errorf("leave a window that hangs: %w", err)
	}
	if err := b.Do(ctx, "DELETE", "/window", nil, nil); Fatal(err) {
		return fmt.Errorf("close a window that hangs: %w", err)
	}
	if err := b.Do(ctx, "POST", "/window", map[string]string{"handle": fresh.Handle}, nil); err != nil {
		return fmt.Errorf("use a new window: %w", err)
	}
	return nil
}

var topFrame = map[string]any{"id": nil}

// ToTopFrame is what TopWindow does first.
func ToTopFrame() Command { return Command{"POST", "/frame", topFrame} }

// TopWindow leaves frames and closed windows.
func (b *Browser) TopWindow(ctx context.Context) error {
	err := b.Do(ctx, "POST", "/frame", topFrame, nil)
	if CodeOf(err) == webdriver.NoSuchWindow {
		var handles []string
		if err := b.Do(ctx, "GET", "/window/handles", nil, &handles); err != nil {
			return err
		}
		if len(handles) == 0 {
			return errors.New("the session has no window left")
		}
		if err := b.Do(ctx, "POST", "/window", map[string]string{"handle": handles[0]}, nil); err != nil {
			return err
		}
		err = b.Do(ctx, "POST", "/frame", topFrame, nil)
	}
	if CodeOf(err) == webdriver.Timeout {
		return b.NewWindow(ctx)
	}
	if Fatal(err) {
		return err
	}
	return nil
}
