package host

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/driftstack/fleet/driverproxy/drivertest"
)

// kind is a way to drive a browser.
type kind interface {
	// args is the driver's command line for a loopback port, the program first; nil: it runs in this process.
	args(port int) []string
	// display says whether the session needs an X display.
	display() bool
	// here says whether the browser runs on this machine, as a child of the driver.
	here() bool
	// contained says whether all that the browser stores is in the session's directory.
	contained() bool
	// environ is what the session's processes get to see.
	environ(dir, display string) []string
	// own are the capabilities that are the host's to choose; dir is the session's.
	own(dir string) (map[string]any, error)
	// passes says whether a client's extension capability may reach the driver, or its browserVersion, for the driver to match.
	passes(name string) bool
	// browser is the W3C browserName that clients ask for, and whether the driver offers WebDriver BiDi.
	browser() (name string, bidi bool)
}

var (
	_ kind = webkitGTK{}
	_ kind = chromeDriver{}
	_ kind = safariDriver{}
	_ kind = fake{}
)

func newKind(d Device, cfg Config) (kind, error) {
	switch d.Kind {
	case KindWebKitGTK:
		return webkitGTK{}, nil
	case KindChromeDriver:
		return chromeDriver{}, nil
	case KindSafariDriver:
		if d.UDID == "" {
			return nil, fmt.Errorf("host: device %q of kind %s needs its UDID", d.Name, d.Kind)
		}
		return safariDriver{program: cfg.safariDriver(), udid: d.UDID}, nil
	case KindFake:
		return fake{device: d.Name, make: cfg.Fake, bidi: d.BiDi}, nil
	}
	return nil, fmt.Errorf("host: device %q has kind %q: it must be %s, %s, %s or %s",
		d.Name, d.Kind, KindSafariDriver, KindWebKitGTK, KindChromeDriver, KindFake)
}

// safari and chrome are W3C browserNames.
const (
	safari = "safari"
	chrome = "chrome"
)

// forDriver turns a client's capability object into the driver's: what names the browser or the device was matched by
// the orchestrator and is chosen here.
func forDriver(k kind, dir string, client json.RawMessage) (map[string]any, error) {
	var in map[string]json.RawMessage
	if len(client) > 0 {
		if err := json.Unmarshal(client, &in); err != nil {
			return nil, errors.New("the capabilities are not a JSON object")
		}
	}
	_, bidi := k.browser()
	out := map[string]any{}
	for name, value := range in {
		switch {
		case name == "browserName", name == "platformName":
		case name == "webSocketUrl" && !bidi:
		case (name == "browserVersion" || strings.Contains(name, ":")) && !k.passes(name):
		default:
			out[name] = value
		}
	}
	own, err := k.own(dir)
	if err != nil {
		return nil, err
	}
	maps.Copy(out, own)
	return out, nil
}

// forClient turns what the driver matched into what the client is told: it asked for a browser on a device, not for a program on
// this machine. Of the driver's BiDi endpoint it is told that there is one.
func forClient(k kind, d Device, matched json.RawMessage) (json.RawMessage, error) {
	var caps map[string]any
	if err := json.Unmarshal(matched, &caps); err != nil || caps == nil {
		return nil, errors.New("the driver's capabilities are not a JSON object")
	}
	caps["browserName"], _ = k.browser()
	if url, _ := caps["webSocketUrl"].(string); url != "" {
		caps["webSocketUrl"] = true
	} else {
		delete(caps, "webSocketUrl")
	}
	if d.PlatformName != "" {
		caps["platformName"] = d.PlatformName
	}
	for _, ours := range []string{"safari:deviceUDID", "webkitgtk:browserOptions", "goog:chromeOptions", "goog:processID", "chrome"} {
		delete(caps, ours)
	}
	return json.Marshal(caps)
}

type webkitGTK struct{}

func (webkitGTK) args(port int) []string {
	return []string{"WebKitWebDriver", "--host=127.0.0.1", "--port=" + strconv.Itoa(port)}
}

func (webkitGTK) display() bool { return true }

func (webkitGTK) here() bool { return true }

func (webkitGTK) contained() bool { return true }

func (webkitGTK) browser() (string, bool) { return safari, false }

func (webkitGTK) passes(string) bool { return false } // its own options name a program to run, its versions are not Safari's

func (webkitGTK) own(string) (map[string]any, error) {
	found, err := filepath.Glob("/usr/lib/*/webkit2gtk-4.*/MiniBrowser")
	if err != nil || len(found) == 0 {
		return nil, errors.New("there is no MiniBrowser in /usr/lib/*/webkit2gtk-4.*: install webkit2gtk-driver")
	}
	return map[string]any{"webkitgtk:browserOptions": map[string]any{
		"binary": found[len(found)-1], "args": []string{"--automation"},
	}}, nil
}

func (webkitGTK) environ(dir, display string) []string {
	return append(confined(dir), "DISPLAY="+display, "GDK_BACKEND=x11", "LIBGL_ALWAYS_SOFTWARE=1",
		// Neither a session bus nor accessibility: both would start daemons of their own.
		"DBUS_SESSION_BUS_ADDRESS=disabled:", "NO_AT_BRIDGE=1", "GTK_A11Y=none")
}

// confined keeps what a program stores inside dir, and the agent's own environment out of it.
func confined(dir string) []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8",
		"HOME=" + dir, "TMPDIR=" + filepath.Join(dir, "tmp"), "XDG_RUNTIME_DIR=" + filepath.Join(dir, "run"),
		"XDG_CACHE_HOME=" + filepath.Join(dir, "cache"), "XDG_CONFIG_HOME=" + filepath.Join(dir, "config"),
		"XDG_DATA_HOME=" + filepath.Join(dir, "data"), "XDG_STATE_HOME=" + filepath.Join(dir, "state"),
	}
}

// confinedDirs are the directories that confined names below dir.
func confinedDirs() []string { return []string{"tmp", "run", "cache", "config", "data", "state"} }

type safariDriver struct{ program, udid string }

func (s safariDriver) args(port int) []string {
	return []string{s.program, "--port", strconv.Itoa(port)}
}

func (safariDriver) display() bool { return false }

func (safariDriver) here() bool { return false }

func (safariDriver) contained() bool { return false }

func (safariDriver) browser() (string, bool) { return safari, false }

// passes lets through what changes how Safari behaves or must be, and not what chooses another device of this Mac. safaridriver
// takes a browserVersion for the beginning of Safari's, and refuses the session where it is not.
func (safariDriver) passes(name string) bool {
	switch name {
	case "safari:automaticInspection", "safari:automaticProfiling", "safari:diagnose":
		return true
	}
	return !strings.HasPrefix(name, "safari:")
}

func (s safariDriver) own(string) (map[string]any, error) {
	return map[string]any{
		"browserName": "safari", "platformName": "iOS", "safari:deviceUDID": s.udid, "safari:useSimulator": false,
	}, nil
}

// environ keeps the real HOME: safaridriver finds Remote Automation's settings there, and the browser's storage is on the phone.
func (safariDriver) environ(dir, _ string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LANG=en_US.UTF-8", "HOME=" + os.Getenv("HOME"), "TMPDIR=" + filepath.Join(dir, "tmp")}
}

type fake struct {
	bidi   bool
	device string
	make   func(device string) *drivertest.Driver
}

func (fake) args(int) []string                  { return nil }
func (fake) display() bool                      { return false }
func (fake) here() bool                         { return false }
func (fake) contained() bool                    { return true }
func (f fake) browser() (string, bool)          { return safari, f.bidi }
func (fake) passes(string) bool                 { return true }
func (fake) own(string) (map[string]any, error) { return nil, nil }
func (fake) environ(dir, _ string) []string     { return confined(dir) }
func (f fake) driver() *drivertest.Driver {
	if f.make != nil {
		return f.make(f.device)
	}
	d := drivertest.NewQuiet()
	if f.bidi {
		d.OfferBiDi(nil)
	}
	return d
}

// runsHere says whether a kind can run on this system. A device of one that cannot is quarantined, so that a configuration can be
// checked elsewhere.
func runsHere(kind string, cfg Config) bool {
	return kind != KindSafariDriver || runtime.GOOS == "darwin" || cfg.SafariDriver != ""
}

func (c *Config) safariDriver() string {
	return cmp.Or(c.SafariDriver, "/usr/bin/safaridriver")
}
