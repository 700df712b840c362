// Package drivertest is a WebDriver without a browser: an http.Handler that keeps just enough state (navigation, cookies,
// scripts that echo) to drive a session through, counts what it executed, and fails on request in the ways real drivers do.
//
// It serves tests of everything between a client and a driver, and is the "fake" driver kind of a host. Out of scope: pages, elements
// with behaviour, scripts.
package drivertest

import (
	"bytes"
	"encoding/json"
	"hash/crc32"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// Effect is what a fault does to a command.
type Effect int

// Effects.
const (
	Hang        Effect = iota // never answers; ends when the client leaves or the driver dies
	Die                       // the driver is gone: no answer, and no connection is served any more
	DieAfter                  // like Die, but the command was executed
	Garbage                   // answers 200 with something that is no JSON
	ServerError               // answers 500 with an HTML page
	Refuse                    // answers the fault's Error
	Delay                     // executes the command after the fault's For
	Flood                     // answers 200 with a string of so many Bytes
)

// Fault is a fault in waiting.
type Fault struct {
	NewSession bool            // hits New Session, else a command of Route
	Route      webdriver.Route // zero: any command
	Effect     Effect
	Times      int              // commands to hit; 0: one
	Error      *webdriver.Error // for Refuse
	For        time.Duration    // for Delay
	Bytes      int              // for Flood
}

// Executed is a command the driver executed.
type Executed struct {
	Session string
	Route   webdriver.Route
	Body    string // empty if it was longer than 1 MiB: then it was not kept, nor looked into
	Bytes   int64  // its length
	CRC     uint32 // its IEEE checksum
}

// keptBody is the longest body that is kept.
const keptBody = 1 << 20

// OnSession has f called when a session begins, and when it is ended; not when the driver dies with it. f must not call the driver.
func (d *Driver) OnSession(f func(open bool)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changed = f
}

func (d *Driver) changedLocked(open bool) {
	if d.changed != nil {
		d.changed(open)
	}
}

// received is what came with a command.
type received struct {
	body  []byte
	bytes int64
	crc   uint32
}

// read reads a body; a long one passes by.
func read(r *http.Request) (q received, err error) {
	sum := crc32.NewIEEE()
	if r.ContentLength > keptBody {
		q.bytes, err = io.Copy(sum, r.Body)
	} else {
		q.body, err = io.ReadAll(io.TeeReader(r.Body, sum))
		q.bytes = int64(len(q.body))
	}
	q.crc = sum.Sum32()
	return q, err
}

// Driver is one fake driver: like safaridriver it has one session at most. The zero value is not usable; see New.
type Driver struct {
	dead chan struct{}
	once sync.Once

	mu       sync.Mutex // guards what follows
	faults   []Fault
	session  string
	created  int
	executed []Executed
	keep     bool
	asked    json.RawMessage
	page     page
	bidi     func(*websocket.Conn) // nil: it offers no WebDriver BiDi
	gone     chan struct{}         // closed when the session has ended
	changed  func(open bool)       // nil: nobody wants to know
	entered  map[webdriver.Route]chan struct{}
	late     map[string]int // finds until an element is there, by what is looked for
}

// page is the state of the session's only window.
type page struct {
	history []string
	at      int
	loads   int // documents that came
	windows int
	cookies []map[string]any             // of every site
	local   map[string]map[string]string // localStorage, by origin
}

// New returns a driver that keeps a log of what it executed.
func New() *Driver {
	return &Driver{dead: make(chan struct{}), keep: true, entered: map[webdriver.Route]chan struct{}{}, late: map[string]int{}}
}

// NewQuiet returns a driver that counts but keeps no log, for long runs.
func NewQuiet() *Driver {
	d := New()
	d.keep = false
	return d
}

// Inject adds a fault. Faults are tried in the order they were added.
func (d *Driver) Inject(f Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f.Times == 0 {
		f.Times = 1
	}
	d.faults = append(d.faults, f)
}

// Late makes Find Element answer "no such element" so many times for what is looked for.
func (d *Driver) Late(value string, times int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.late[value] = times
}

// Pending says how many faults have not hit yet.
func (d *Driver) Pending() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.faults)
}

// Entered returns a channel that is closed when the next command of the route has reached the driver.
func (d *Driver) Entered(r webdriver.Route) <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.entered[r] == nil {
		d.entered[r] = make(chan struct{})
	}
	return d.entered[r]
}

// Executed lists what was executed, in order.
func (d *Driver) Executed() []Executed {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.executed)
}

// Sessions says how many sessions are open, and how many ever were.
func (d *Driver) Sessions() (open, ever int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session != "" {
		open = 1
	}
	return open, d.created
}

// Asked is the capability object (alwaysMatch) of the latest New Session.
func (d *Driver) Asked() json.RawMessage {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked
}

// Kill makes the driver die now.
func (d *Driver) Kill() { d.once.Do(func() { close(d.dead) }) }

// Dead is closed when the driver has died.
func (d *Driver) Dead() <-chan struct{} { return d.dead }

// ServeHTTP implements http.Handler.
func (d *Driver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q, err := read(r)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	select {
	case <-d.dead:
		panic(http.ErrAbortHandler)
	default:
	}
	switch {
	case r.Method == http.MethodGet && r.URL.Path == "/status":
		write(w, value(map[string]any{"ready": true, "message": "fake driver"}))
	case r.Method == http.MethodPost && r.URL.Path == "/session":
		d.serve(w, r, Fault{NewSession: true}, func() webdriver.Answer { return d.newSession(q.body, r.Host) })
	default:
		id, path, _ := strings.Cut(strings.TrimPrefix(r.URL.EscapedPath(), "/session/"), "/")
		if path != "" {
			path = "/" + path
		}
		if path == "" && websocket.IsWebSocketUpgrade(r) {
			d.serveBiDi(w, r, id)
			return
		}
		route, known := webdriver.Match(r.Method, path)
		d.serve(w, r, Fault{Route: route}, func() webdriver.Answer { return d.command(id, route, known, q, path) })
	}
}

// serve applies a fault, if one waits for such a request, or runs the command.
func (d *Driver) serve(w http.ResponseWriter, r *http.Request, request Fault, run func() webdriver.Answer) {
	fault, hit := d.take(request)
	if !hit {
		write(w, run())
		return
	}
	switch fault.Effect {
	case Hang:
		select {
		case <-r.Context().Done():
		case <-d.dead:
		}
		panic(http.ErrAbortHandler)
	case Die:
		d.Kill()
		panic(http.ErrAbortHandler)
	case DieAfter:
		run()
		d.Kill()
		panic(http.ErrAbortHandler)
	case Garbage:
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "\x00 this is not JSON") // the client may be gone
	case ServerError:
		http.Error(w, "<html>Bad Gateway</html>", http.StatusInternalServerError)
	case Refuse:
		write(w, fault.Error.Answer())
	case Flood:
		flood(w, fault.Bytes)
	case Delay:
		t := time.NewTimer(fault.For)
		defer t.Stop()
		select {
		case <-t.C:
			write(w, run())
		case <-d.dead:
			panic(http.ErrAbortHandler)
		}
	}
}

// flood answers with a string of n bytes, without holding it.
func flood(w http.ResponseWriter, n int) {
	const before, after = `{"value":"`, `"}`
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(before)+n+len(after)))
	_, _ = io.WriteString(w, before) // the client may be gone
	piece := bytes.Repeat([]byte("x"), min(n, 64<<10))
	for n > 0 {
		m, err := w.Write(piece[:min(n, len(piece))])
		if err != nil {
			return
		}
		n -= m
	}
	_, _ = io.WriteString(w, after)
}

func (d *Driver) take(request Fault) (Fault, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.entered[request.Route]; c != nil && !request.NewSession {
		close(c)
		delete(d.entered, request.Route)
	}
	for i, f := range d.faults {
		if f.NewSession != request.NewSession || (f.Route != webdriver.RouteUnknown && f.Route != request.Route) {
			continue
		}
		if d.faults[i].Times--; d.faults[i].Times == 0 {
			d.faults = slices.Delete(d.faults, i, i+1)
		}
		return f, true
	}
	return Fault{}, false
}

func write(w http.ResponseWriter, a webdriver.Answer) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.Body) // the client may be gone
}

func value(v any) webdriver.Answer {
	a, err := webdriver.ValueAnswer(v)
	if err != nil {
		return failed(webdriver.UnknownError, err.Error())
	}
	return a
}

func failed(code webdriver.Code, message string) webdriver.Answer {
	return (&webdriver.Error{Code: code, Message: message}).Answer()
}
