package driverproxy

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// Errors of this package; use errors.Is.
var (
	// ErrHostLost means that the host is not connected, or no longer.
	ErrHostLost = errors.New("driverproxy: the driver host is not connected")
	// ErrReleased is Session.Err after a Release.
	ErrReleased = errors.New("driverproxy: the session was released")
	// ErrClosed means that the Fleet is closed.
	ErrClosed = errors.New("driverproxy: the fleet is closed")
)

// Directory is what the fleet needs to know about hosts, and where it tells what it learns. Calls for one host are made
// one at a time: HostUp, then any DeviceChanged, then HostDown.
type Directory interface {
	// HostByAddr names the enrolled host that owns the tunnel address.
	HostByAddr(ctx context.Context, addr netip.Addr) (host string, err error)
	// HostUp is called before the host is used; refusing closes its socket, and then HostDown is not called.
	HostUp(ctx context.Context, hello wire.Hello) error
	// DeviceChanged reports a device's newest state; states in between may be left out.
	DeviceChanged(ctx context.Context, host string, d wire.Device) error
	// HostDown says that the control socket is gone or silent.
	HostDown(ctx context.Context, host string, cause error)
}

// Config is what a Fleet needs.
type Config struct {
	Orchestrator   string // this replica's name
	Epoch          string // changes with each start of this replica
	Directory      Directory
	HeartbeatEvery time.Duration    // 0: 1 s
	HeartbeatLimit time.Duration    // 0: 5 s
	Log            *zap.Logger      // nil: none
	Now            func() time.Time // nil: time.Now
}

// Assignment is a session to start on a device.
type Assignment struct {
	Host, Device, Session string
	Term                  int64
	Capabilities          json.RawMessage // one W3C capability object, see webdriver.NewSession.Match
	Record                bool
}

// Fleet holds the sockets of all connected hosts. Its methods may be called at once from many goroutines.
type Fleet struct{}

// NewFleet returns a Fleet without hosts.
func NewFleet(cfg Config) *Fleet { panic("being written") }

// Handler serves the control, command and recording paths of the fleet listener.
func (f *Fleet) Handler() http.Handler { panic("being written") }

// Hosts names the connected hosts, sorted.
func (f *Fleet) Hosts() []string { panic("being written") }

// Assign starts a session. It returns once the host has answered and the session's command socket is up. A host
// that cannot gives a *[wire.Failure] (errors.As); a host that is not connected, or is lost meanwhile, [ErrHostLost]. When ctx ends
// first, the host is told to release what it may have started.
func (f *Fleet) Assign(ctx context.Context, a Assignment) (*Session, error) { panic("being written") }

// Close hangs up on all hosts, which ends their sessions, and waits for every goroutine of the Fleet.
func (f *Fleet) Close(ctx context.Context) error { panic("being written") }
