package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/inert"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// Times of the host's end.
const (
	// OrphanLimit is how long a session outlives its last command socket: its orchestrator is expected to come back, or another to
	// adopt it. That is longer than it takes to find an orchestrator dead and its sessions adopted.
	OrphanLimit = 90 * time.Second
	// SlowStart is how long New Session may take at the driver without counting against the device.
	SlowStart = 20 * time.Second

	// CanarySite is IANA's for documents: it sets no cookies, and its robots.txt has no scripts.
	CanarySite = "https://example.com"

	startLimit    = 60 * time.Second // everything up to the answered New Session
	statusLimit   = 5 * time.Second  // one GET /status
	slowStatus    = 2 * time.Second  // a device is not ready if it takes longer
	trusted       = time.Second      // so long after it was ready a standby is taken unasked; or so long it is asked
	deathLimit    = time.Second      // to hear that a driver that broke off has exited
	helloLimit    = 2 * time.Second  // for the devices to prove that they are ready, before a hello
	standbyAge    = time.Hour        // a standby is replaced then: drivers are not made to idle for days
	recorderLimit = 5 * time.Second  // from SIGINT to SIGKILL of the recorder
	drainLimit    = 10 * time.Second // the recording's last bytes, after the recorder has ended
	deleteLimit   = 3 * time.Second  // DELETE session while cleaning up
	lingerLimit   = 2 * time.Second  // for the orchestrator to close a socket that has said goodbye
)

// Driver kinds.
const (
	// KindWebKitGTK is WebKitWebDriver and MiniBrowser on an X display of their own (Linux), for development and tests: the browser runs
	// as the agent's user, so that whoever drives it can read what the agent can (file: URLs, file inputs).
	KindWebKitGTK = "webkitgtk"
	// KindChromeDriver is Debian's chromedriver and Chromium, without a display, for development and tests of WebDriver BiDi, which
	// Safari does not have. As with KindWebKitGTK, whoever drives it can read what the agent can.
	KindChromeDriver = "chromedriver"
	KindSafariDriver = "safaridriver" // a real iPhone (macOS)
	KindFake         = "fake"         // drivertest, in this process
)

// Width and Height are those of a display, in pixels.
const (
	Width  = 400
	Height = 860
)

// Device is a phone or a stand-in. Its capacity is one session, always.
type Device struct {
	Name            string // unique on the host
	Kind            string
	Model           string
	PlatformName    string
	PlatformVersion string
	Country         string // ISO 3166 alpha-2, where it is
	Labels          map[string]string
	UDID            string // of an iPhone; required for safaridriver
	BiDi            bool   // of kind fake only: its driver is asked for WebDriver BiDi
}

// Display is what a recorder records. Name is "" where there is no X display.
type Display struct {
	Name          string // as in ":7"
	Width, Height int
}

// RecordingConn carries a recording to the orchestrator: whole binary messages are sent and acknowledgements received. Send and Receive
// may be called at once, each by one goroutine. A message that was sent must not be changed: it is kept until it is acknowledged. When
// ctx ends during a Send, the recording is lost.
type RecordingConn interface {
	Send(ctx context.Context, message []byte) error
	Receive(ctx context.Context) ([]byte, error)
}

// Recorder is recorder/capture.
type Recorder interface {
	// Args is the encoder's command line; SIGINT must make it end its output properly.
	Args(d Display) []string
	// Pump carries what the encoder writes to the orchestrator, until stdout ends and all of it is acknowledged, or ctx ends.
	// stopped, asked after the end of stdout, says whether the encoder ended because it was asked to. Closing stdout
	// (an io.Closer) ends the encoder.
	Pump(ctx context.Context, stdout io.Reader, c RecordingConn, stopped func() bool) error
}

// DialFunc opens a connection, as net.Dialer.DialContext does.
type DialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// OrchestratorsFunc says which fleet listeners to dial, as host:port in the tunnel; changed is closed when they are
// others than addrs, and asked again then. A nil changed says that they stay.
type OrchestratorsFunc func() (addrs []string, changed <-chan struct{})

// Fixed is an OrchestratorsFunc of orchestrators that stay.
func Fixed(addrs ...string) OrchestratorsFunc {
	return func() ([]string, <-chan struct{}) { return addrs, nil }
}

// Config is what Run needs.
type Config struct {
	Name          string // the host's, as enrolled
	Agent         string // version of the agent
	StateDir      string // absolute; the agent's alone, one agent at a time
	Orchestrators OrchestratorsFunc
	Dial          DialFunc // through the tunnel
	Devices       []Device
	Recorder      Recorder    // nil: recordings end at once, as failed
	Log           *zap.Logger // nil: none

	Orphan    time.Duration // 0: OrphanLimit
	SlowStart time.Duration // 0: SlowStart

	RecordingLanes int // most sockets of one recording, see package lanes; 0: lanes.DefaultLanes

	// Supervisor starts SuperviseMain; nil: this program with SuperviseCommand as its first argument.
	Supervisor []string
	// SafariDriver is the program of kind safaridriver; "": the one of macOS, which is then required. Tests give one that
	// misbehaves (drivertest/safari) and runs anywhere.
	SafariDriver string
	// CanarySite is the origin of a site that every device reaches and no customer has to do with: of what sessions may have left it is found out whether
	// the browser keeps it with canaries there. "": CanarySite.
	CanarySite string
	Clock      Clock // nil: the system's
	// Fake gives a device of kind fake its driver for one more session, before that is assigned; nil: a new one each time.
	Fake func(device string) *drivertest.Driver
}

func (c *Config) check() error {
	var errs []error
	if c.Name == "" {
		errs = append(errs, errors.New("host: Name is empty: it is the name the host was enrolled with"))
	}
	if !filepath.IsAbs(c.StateDir) {
		errs = append(errs, fmt.Errorf("host: StateDir %q must be an absolute path", c.StateDir))
	}
	if c.Orchestrators == nil {
		errs = append(errs, errors.New("host: there is no orchestrator to dial"))
	} else if addrs, _ := c.Orchestrators(); len(addrs) == 0 {
		errs = append(errs, errors.New("host: there is no orchestrator to dial"))
	}
	if c.Dial == nil {
		errs = append(errs, errors.New("host: Dial is missing"))
	}
	if len(c.Devices) == 0 {
		errs = append(errs, errors.New("host: there is no device"))
	}
	seen := map[string]bool{}
	for _, d := range c.Devices {
		if d.Name == "" || seen[d.Name] {
			errs = append(errs, fmt.Errorf("host: device name %q is empty or used twice", d.Name))
		}
		seen[d.Name] = true
		if _, err := newKind(d, *c); err != nil {
			errs = append(errs, err)
		}
	}
	if o, err := inert.Origin(c.canarySite()); err != nil || o != c.canarySite() {
		errs = append(errs, fmt.Errorf("host: canary site %q is not an origin, as in %s", c.CanarySite, CanarySite))
	}
	return errors.Join(errs...)
}

func (c *Config) canarySite() string { return cmp.Or(c.CanarySite, CanarySite) }

func (d Device) wire(state wire.DeviceState, reason string) wire.Device {
	k, _ := newKind(d, Config{}) // was checked when the agent started
	browser, bidi := k.browser()
	return wire.Device{
		Name: d.Name, Kind: d.Kind, Browser: browser, BiDi: bidi, Model: d.Model, PlatformName: d.PlatformName, PlatformVersion: d.PlatformVersion, Country: d.Country,
		Labels: maps.Clone(d.Labels), State: state, Reason: reason,
	}
}
