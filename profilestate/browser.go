package profilestate

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

const (
	pageLimit    = 8 * time.Second // one page of a site that may be down
	hurriedLimit = 2 * time.Second // the same, once patience has run out
	patience     = 2               // pages that may use all of pageLimit
	scriptLimit  = 10 * time.Second
	settleLimit  = 3 * time.Second // a navigation with pageLoadStrategy none to show
	settleEvery  = 50 * time.Millisecond
	cleanLimit   = 10 * time.Second
)

// browser drives one session for a restore or a capture.
type browser struct {
	d        Driver
	original json.RawMessage // timeouts to give back
	last     float64         // timeOrigin of the document seen last
	slow     int             // pages that timed out
	ready    []answered      // by ahead
}

// pageError says that a page could not be used; the session itself is well.
type pageError struct {
	why   Reason
	final bool // other pages of the origin would do no better
}

func (e *pageError) Error() string { return string(e.why) }

// send is do past what ahead has.
func (b *browser) send(ctx context.Context, method, path string, body, value any) error {
	return (&browser{d: b.d}).do(ctx, method, path, body, value)
}

func (b *browser) do(ctx context.Context, method, path string, body, value any) error {
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
		answer, err = b.d.Do(ctx, method, path, raw)
	}
	if codeOf(err) == webdriver.UnexpectedAlertOpen {
		// Unless the customer's capabilities say otherwise the driver has dismissed the alert by saying so.
		_, _ = b.d.Do(ctx, "POST", "/alert/dismiss", []byte("{}"))
		answer, err = b.d.Do(ctx, method, path, raw)
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

func codeOf(err error) webdriver.Code {
	var w *webdriver.Error
	if errors.As(err, &w) {
		return w.Code
	}
	return ""
}

// fatal says whether an error means that the session is of no more use.
func fatal(err error) bool {
	if errors.Is(err, errUnreadable) {
		return false
	}
	switch codeOf(err) {
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

// begin runs ahead what a restore or capture does first, and bound with it.
func (b *browser) begin(ctx context.Context, before ...command) error {
	look, err := scriptCommand(storageScript, lookArguments("", storageJob{want: "nothing"}, false, ""))
	if err != nil {
		return err
	}
	first := append(before, command{"GET", "/timeouts", nil}, command{"POST", "/timeouts", timeouts(pageLimit)}, look)
	return b.ahead(ctx, time.Time{}, slices.Values([][]command{first}))
}

// bound bounds page loads: a customer's own limit may be minutes, and the default is five.
func (b *browser) bound(ctx context.Context) error {
	if err := b.do(ctx, "GET", "/timeouts", nil, &b.original); fatal(err) {
		return err
	}
	if err := b.setTimeouts(ctx, pageLimit); fatal(err) {
		return err
	}
	// Which document is there now tells later whether a navigation has arrived at another.
	p, err := b.look(ctx, "", storageJob{want: "nothing"}, false, "")
	if fatal(err) {
		return err
	}
	b.last = p.TimeOrigin
	return nil
}

func (b *browser) setTimeouts(ctx context.Context, page time.Duration) error {
	return b.do(ctx, "POST", "/timeouts", timeouts(page), nil)
}

func timeouts(page time.Duration) map[string]int64 {
	return map[string]int64{"pageLoad": page.Milliseconds(), "script": scriptLimit.Milliseconds()}
}

// end gives the session's own limits back.
func (b *browser) end(ctx context.Context) error {
	if b.original == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
	defer cancel()
	return b.do(ctx, "POST", "/timeouts", b.original, nil)
}

func (b *browser) blank(ctx context.Context) error {
	return b.do(ctx, "POST", "/url", map[string]string{"url": "about:blank"}, nil)
}

// page is what a look at the current document showed.
type page struct {
	Origin     string  `json:"origin"`
	URL        string  `json:"url"`
	Ready      string  `json:"ready"`
	TimeOrigin float64 `json:"time"`
	Scripts    int     `json:"scripts"`
	Storage    string  `json:"storage"` // "ok", "denied" or "untouched"
	Items      []Entry `json:"items"`

	urls []*url.URL // what was asked for and what came: they differ after a redirect
}

// shows says whether the page must show the cookie.
func (p page) shows(c Cookie) bool {
	return len(p.urls) > 0 && !slices.ContainsFunc(p.urls, func(u *url.URL) bool { return !c.sentTo(u) })
}

func (p page) below(dir string) bool {
	return len(p.urls) > 0 && !slices.ContainsFunc(p.urls, func(u *url.URL) bool { return !pathMatch(u.EscapedPath(), dir) })
}

// storageScript looks at the document, writes localStorage and reads all of it back, in one command. Text crosses as
// JSON inside a string, in which JSON.stringify escapes unpaired surrogates; as plain strings they would be corrupted.
// Nothing is written on a page of another origin, nor on one that brings scripts unless told so: those run first and see,
// or overwrite, a half-restored state. Given the address that is expected it fails where anything else came, and ends a batch with it.
const storageScript = `
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

// cookieScript sets the cookies that Add Cookie refuses: those with an empty name or value.
const cookieScript = `for (const c of JSON.parse(arguments[0])) document.cookie = c;`

func (b *browser) script(ctx context.Context, script string, arg any, result any) error {
	c, err := scriptCommand(script, arg)
	if err != nil {
		return err
	}
	var out string
	if err := b.do(ctx, c.method, c.path, c.body, &out); err != nil || result == nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), result); err != nil {
		return errUnreadable
	}
	return nil
}

func scriptCommand(script string, arg any) (command, error) {
	text, err := json.Marshal(arg)
	return command{"POST", "/execute/sync", map[string]any{"script": script, "args": []string{string(text)}}}, err
}

// storageJob is what to do with an origin's localStorage.
type storageJob struct {
	want  string // "nothing", "read", or "write": make it the items, and read it
	items []Entry
}

// look runs storageScript on the current document.
func (b *browser) look(ctx context.Context, origin string, job storageJob, tolerant bool, expected string) (page, error) {
	var p page
	err := b.script(ctx, storageScript, lookArguments(origin, job, tolerant, expected), &p)
	return p, err
}

func lookArguments(origin string, job storageJob, tolerant bool, expected string) []any {
	return []any{origin, job.want, job.items, tolerant, expected}
}

// inert are paths at which a site most likely serves a document without scripts, or none: the document of a 404 will do.
func inert(origin, dir string) []string {
	base := origin + strings.TrimSuffix(dir, "/")
	list := []string{base + "/robots.txt", base + "/favicon.ico"}
	if dir == "/" {
		list = append(list, base+"/.well-known/security.txt")
	}
	return list
}

// open goes to an inert document below dir on the origin and does the job there. It settles for a page with scripts only when there is no other. A *pageError says that there is no usable page.
func (b *browser) open(ctx context.Context, origin, dir string, job storageJob) (page, error) {
	scripted := ""
	why := ReasonUnreachable
	for _, target := range inert(origin, dir) {
		p, err := b.visit(ctx, target, origin, job, false)
		var unusable *pageError
		switch {
		case errors.As(err, &unusable) && unusable.final:
			return page{}, err
		case errors.As(err, &unusable):
			why = unusable.why
		case err != nil:
			return page{}, err
		case !p.below(dir):
			why = ReasonUnreachable // a redirect out of the folder, to where its cookies are not shown
		case p.Storage == "ok":
			return p, nil
		case p.Storage == "denied":
			why = ReasonSandboxed
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
	return page{}, &pageError{why: why}
}

// visit navigates and looks, and gives a driver that does not wait for pages a moment.
func (b *browser) visit(ctx context.Context, target, origin string, job storageJob, tolerant bool) (page, error) {
	if err := b.do(ctx, "POST", "/url", map[string]string{"url": target}, nil); err != nil {
		if fatal(err) {
			return page{}, err
		}
		if c := codeOf(err); c == webdriver.Timeout || c == webdriver.ScriptTimeout {
			return page{}, b.timedOut(ctx)
		}
		return page{}, &pageError{why: ReasonUnreachable}
	}
	for waited := time.Duration(0); ; waited += settleEvery {
		expected := ""
		if len(b.ready) > 0 {
			expected = target
		}
		p, err := b.look(ctx, origin, job, tolerant, expected)
		if fatal(err) {
			return page{}, err
		}
		// A script that meets a navigation which the driver did not wait for fails with it; it is harmless to repeat.
		arrived := err == nil && p.TimeOrigin != b.last && p.Ready != "loading"
		if arrived && p.Origin != origin {
			b.last, b.ready = p.TimeOrigin, nil
			return page{}, strayed(p, origin)
		}
		if arrived || err == nil && p.URL == target && p.Storage == "ok" && p.Scripts == 0 {
			b.last = p.TimeOrigin
			asked, errAsked := url.Parse(target)
			came, errCame := url.Parse(p.URL)
			if errAsked == nil && errCame == nil {
				p.urls = []*url.URL{asked, came}
			}
			return p, nil
		}
		b.ready = nil // the batch should have ended here; if it did not, the next look tells where the browser is now
		if waited >= settleLimit {
			return page{}, &pageError{why: ReasonUnreachable} // no document came: 204, a download
		}
		if err := pause(ctx, settleEvery); err != nil {
			return page{}, err
		}
	}
}

// strayed says what it means that another document came than one of the origin.
func strayed(p page, origin string) error {
	came, err := originOf(p.URL)
	switch {
	case err != nil:
		return &pageError{why: ReasonUnreachable, final: true} // the browser's own error page
	case came == origin:
		return &pageError{why: ReasonSandboxed}
	}
	return &pageError{why: ReasonUnreachable} // a redirect to another site
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
func (b *browser) timedOut(ctx context.Context) error {
	if b.slow++; b.slow == patience {
		if err := b.setTimeouts(ctx, hurriedLimit); fatal(err) {
			return err
		}
	}
	if err := b.newWindow(ctx); err != nil {
		return err
	}
	return &pageError{why: ReasonTimeout, final: true}
}

func (b *browser) newWindow(ctx context.Context) error {
	var old string
	if err := b.do(ctx, "GET", "/window", nil, &old); err != nil {
		return fmt.Errorf("leave a window that hangs: %w", err)
	}
	var fresh struct {
		Handle string `json:"handle"`
	}
	if err := b.do(ctx, "POST", "/window/new", map[string]string{"type": "tab"}, &fresh); err != nil {
		return fmt.Errorf("leave a window that hangs: %w", err)
	}
	if err := b.do(ctx, "DELETE", "/window", nil, nil); fatal(err) {
		return fmt.Errorf("close a window that hangs: %w", err)
	}
	if err := b.do(ctx, "POST", "/window", map[string]string{"handle": fresh.Handle}, nil); err != nil {
		return fmt.Errorf("use a new window: %w", err)
	}
	return nil
}

func hostOf(origin string) string {
	u, err := url.Parse(origin)
	if err != nil {
		return ""
	}
	return u.Hostname()
}
