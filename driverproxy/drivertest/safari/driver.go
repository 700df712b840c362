package safari

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// What the program is besides a driver.
const (
	argOccupy = "--occupy" // starts one that holds the phone, and exits
	argHold   = "--hold"   // holds the phone by the file it has inherited, until it is killed
)

// Main is the program: args is os.Args. It returns the exit status.
func Main(args []string) int {
	phone := Phone{filepath.Dir(args[0])}
	if len(args) == 2 {
		switch args[1] {
		case argHold:
			for {
				time.Sleep(time.Hour) // until it is killed
			}
		case argOccupy:
			return occupy(phone)
		}
	}
	flags := flag.NewFlagSet(Program, flag.ContinueOnError)
	port := flags.Int("port", 0, "")
	if flags.Parse(args[1:]) != nil {
		return 2
	}
	phone.note("start")
	if phone.spend(CrashAtStart) {
		return 1
	}
	phone.wait(SlowStart)
	for phone.has(Held) {
		time.Sleep(5 * time.Millisecond) // a file says no more than that it is there
	}
	d := &driver{phone: phone, inner: drivertest.NewQuiet()}
	server := &http.Server{Addr: fmt.Sprint("127.0.0.1:", *port), Handler: d, ReadHeaderTimeout: 10 * time.Second}
	fmt.Fprintln(os.Stderr, server.ListenAndServe())
	return 1
}

func occupy(phone Phone) int {
	f := phone.pair()
	if f == nil {
		fmt.Fprintln(os.Stderr, "the phone is held already")
		return 1
	}
	if err := hold(phone, f, &syscall.SysProcAttr{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// hold starts a process that holds the phone by f.
func hold(phone Phone, f *os.File, attr *syscall.SysProcAttr) error {
	cmd := exec.Command(phone.Driver(), argHold)
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = attr
	return cmd.Start()
}

// driver is a driver process's server.
type driver struct {
	phone Phone
	inner *drivertest.Driver

	mu      sync.Mutex // guards what follows
	pairing *os.File   // of the session; nil: there is none
	fresh   bool       // the session has been nowhere yet
	broken  bool       // it has no window any more
}

// ServeHTTP implements http.Handler.
func (d *driver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, below, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/session/"), "/")
	switch {
	case r.URL.Path == "/status":
		d.status(w)
	case r.Method == http.MethodPost && r.URL.Path == "/session":
		d.newSession(w, r)
	default:
		d.phone.note(r.Method + "/" + below)
		d.command(w, r, below)
	}
}

func (d *driver) status(w http.ResponseWriter) {
	d.phone.wait(SlowStatus)
	d.mu.Lock()
	ready := d.pairing == nil && !d.phone.has(Unready)
	d.mu.Unlock()
	d.phone.note("status")
	a, err := webdriver.ValueAnswer(map[string]any{"ready": ready, "message": ""})
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	write(w, a)
}

func (d *driver) newSession(w http.ResponseWriter, r *http.Request) {
	d.phone.note("session")
	if d.phone.spend(CrashAtSession) {
		d.phone.note("crash")
		os.Exit(1)
	}
	d.phone.wait(SlowSession)
	var asked struct {
		Capabilities struct {
			AlwaysMatch map[string]json.RawMessage `json:"alwaysMatch"`
		} `json:"capabilities"`
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if err := json.Unmarshal(body, &asked); err != nil {
		write(w, (&webdriver.Error{Code: webdriver.InvalidArgument, Message: err.Error()}).Answer())
		return
	}
	udid := strings.Trim(string(asked.Capabilities.AlwaysMatch["safari:deviceUDID"]), `"`)
	d.mu.Lock()
	defer d.mu.Unlock()
	if said := d.refusalLocked(udid); said != "" {
		d.phone.note("refused")
		write(w, (&webdriver.Error{Code: webdriver.SessionNotCreated, Message: "Could not create a session: " + said}).Answer())
		return
	}
	if d.phone.has(Leftover) {
		if err := hold(d.phone, d.pairing, &syscall.SysProcAttr{Setsid: true}); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	d.fresh, d.broken = true, false
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	d.inner.ServeHTTP(w, r)
	if d.phone.has(Keeps) {
		if kept, err := d.phone.Kept(); err == nil {
			d.inner.Store(kept)
		}
	}
}

// refusalLocked pairs with the phone, or says why that cannot be.
func (d *driver) refusalLocked(udid string) string {
	const some = "Some devices were found, but could not be used:\n"
	name := "- Test phone (" + udid + "): "
	switch {
	case d.phone.has(Hidden):
		return some
	case d.phone.has(Untrusted):
		return some + name + "device is not paired"
	case d.phone.has(Locked):
		return some + name + "device is locked"
	case d.phone.has(AutomationOff):
		return "Remote Automation is turned off (turn it on via Settings > Safari > Advanced > Remote Automation)"
	}
	f := d.phone.pair()
	if f == nil {
		return "The Safari instance is already paired with another WebDriver session."
	}
	d.pairing = f
	return ""
}

func (d *driver) command(w http.ResponseWriter, r *http.Request, below string) {
	d.mu.Lock()
	hangs := d.fresh && r.Method == http.MethodDelete && below == "cookie"
	if r.Method == http.MethodPost && below == "url" {
		d.fresh = false
		if d.phone.has(Fragile) || d.phone.has(Deadly) {
			body, _ := io.ReadAll(r.Body)
			breaks := strings.Contains(string(body), "://breaks")
			if breaks {
				d.phone.note("break")
			}
			if breaks && d.phone.has(Deadly) {
				os.Exit(1)
			}
			d.broken = d.broken || breaks
			r.Body = io.NopCloser(strings.NewReader(string(body)))
		}
	}
	broken := d.broken && below != ""
	d.mu.Unlock()
	if broken {
		write(w, (&webdriver.Error{Code: webdriver.NoSuchWindow, Message: "the session has no window"}).Answer())
		return
	}
	if hangs || r.Method == http.MethodDelete && below == "cookie" && d.phone.has(Sullen) { // SeleniumHQ/selenium#13816
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}
	switch {
	case r.Method == http.MethodDelete && below == "" && d.phone.has(Stuck):
		write(w, (&webdriver.Error{Code: webdriver.UnknownError, Message: "the session could not be ended"}).Answer())
		return
	case r.Method == http.MethodDelete && strings.HasPrefix(below, "cookie") && d.phone.has(Clings):
		write(w, webdriver.Answer{Status: http.StatusOK, Body: []byte(`{"value":null}`)})
		return
	case r.Method == http.MethodPost && below == "url" && d.phone.has(Silent):
		write(w, (&webdriver.Error{Code: webdriver.Timeout, Message: "the page did not load in time"}).Answer())
		return
	}
	if d.phone.has(Keeps) && r.Method != http.MethodGet && below != "" {
		w = keeping{w, func() { _ = d.phone.Keep(d.inner.Stored()) }} // a session that ends takes nothing with it
	}
	d.inner.ServeHTTP(w, r)
	if r.Method == http.MethodDelete && below == "" {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.pairing != nil {
			_ = d.pairing.Close()
			d.pairing = nil
		}
	}
}

// keeping does something once a command was run, before it is answered.
type keeping struct {
	http.ResponseWriter
	keep func()
}

func (k keeping) WriteHeader(status int) {
	k.keep()
	k.ResponseWriter.WriteHeader(status)
}

func write(w http.ResponseWriter, a webdriver.Answer) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.Body) // the client may be gone
}
