package host

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// driver talks HTTP to one driver.
type driver struct {
	addr  string
	slow  time.Duration // New Session that takes longer counts against the device
	id    string        // session id at the driver; set by newSession
	broke atomic.Bool   // it did not answer, although there was time: it may have died

	mu     sync.Mutex  // guards what follows
	kept   *connection // that no request uses; nil: none
	closed bool        // none is kept any more
}

func newDriver(addr string, slow time.Duration) *driver { return &driver{addr: addr, slow: slow} }

// close closes the kept connection, and that of a request that runs once it ends.
func (d *driver) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.pause()
}

// pause closes the kept connection; the next request makes another.
func (d *driver) pause() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.kept != nil {
		_ = d.kept.Close() // nobody uses it
		d.kept = nil
	}
}

// connect takes the kept connection, or makes one. Both are before the request is sent: an error means that it was not.
func (d *driver) connect(ctx context.Context) (*connection, error) {
	d.mu.Lock()
	c := d.kept
	d.kept = nil
	d.mu.Unlock()
	if c != nil {
		if c.idle() {
			return c, nil
		}
		_ = c.Close() // the driver has
	}
	return dialDriver(ctx, d.addr)
}

func (d *driver) keep(c *connection) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || d.kept != nil {
		_ = c.Close() // nobody uses it
		return
	}
	d.kept = c
}

// do runs a command of the session.
func (d *driver) do(ctx context.Context, c webdriver.Command) (webdriver.Answer, error) {
	return d.send(ctx, c.Method, "/session/"+d.id+c.Path, c.Body)
}

// quit ends the session, which lets the driver close its browser; on a phone that is what ends the automation. It says whether the session was still there.
func (d *driver) quit(ctx context.Context) (there bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, deleteLimit)
	defer cancel()
	a, err := d.do(ctx, webdriver.Command{Method: http.MethodDelete})
	if err != nil {
		return false, err
	}
	err = a.Err()
	if e := (*webdriver.Error)(nil); errors.As(err, &e) && e.Code == webdriver.InvalidSessionID {
		return false, nil
	}
	return true, err
}

// send sends a request once. The path is one that webdriver.Command.Validate lets through: it has no line breaks.
func (d *driver) send(ctx context.Context, method, path string, content []byte) (webdriver.Answer, error) {
	c, err := d.connect(ctx)
	if err != nil {
		d.broke.Store(ctx.Err() == nil)
		return webdriver.Answer{}, fmt.Errorf("host: driver: %w", err)
	}
	a, keep, err := c.exchange(ctx, method, path, content)
	if keep && err == nil {
		d.keep(c)
	} else {
		_ = c.Close() // what was not read is not wanted
	}
	d.broke.Store(err != nil && ctx.Err() == nil)
	if err != nil {
		return webdriver.Answer{}, fmt.Errorf("host: driver: %w", err)
	}
	return a, nil
}

// neverReached says that the driver has not seen the command.
func neverReached(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// ready waits until the driver answers. What answers for it may be another program that had the port first, and with it another phone or browser:
// own says whether it is the driver's. Of one whose supervisor is gone nobody hears that it died.
func (d *driver) ready(ctx context.Context, own func() bool, died, unsupervised <-chan struct{}) error {
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, statusLimit) // what has taken the port may never answer
		a, err := d.send(try, http.MethodGet, "/status", nil)
		cancel()
		if err == nil && a.Status == http.StatusOK && own() {
			return nil
		}
		d.pause() // or a stranger's connection would be kept
		select {
		case <-again.C:
		case <-died:
			return errDriverExited
		case <-unsupervised:
			return errSupervisor
		case <-ctx.Done():
			return fmt.Errorf("host: the driver does not answer: %w", context.Cause(ctx))
		}
	}
}

var errDriverExited = errors.New("host: the driver exited")

// status asks a driver without a session whether it could have one.
func (d *driver) status(ctx context.Context) (ready bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	a, err := d.send(ctx, http.MethodGet, "/status", nil)
	if err != nil {
		return false, err
	}
	if err := a.Err(); err != nil {
		return false, err
	}
	var v struct {
		Ready bool `json:"ready"`
	}
	err = a.Value(&v)
	return v.Ready, err
}

// newSession starts the session; the error is a *wire.Failure whose message repeats nothing the client sent. The grade is what the
// attempt says of the device, also when it succeeded.
func (d *driver) newSession(ctx context.Context, capabilities map[string]any, udid string) (json.RawMessage, grade, *wire.Failure) {
	body, err := json.Marshal(map[string]any{"capabilities": map[string]any{"alwaysMatch": capabilities}})
	if err != nil {
		return nil, gradeNone, &wire.Failure{Code: wire.FailureCapabilities, Message: "the capabilities cannot be sent"}
	}
	begin, g := time.Now(), gradeNone
	answer, err := d.send(ctx, http.MethodPost, "/session", body)
	if time.Since(begin) > d.slow {
		g = gradeSlowStart
	}
	if err != nil {
		return nil, g, &wire.Failure{Code: wire.FailureDriver, Message: "the driver did not answer New Session"}
	}
	if err := answer.Err(); err != nil {
		seen, failure := refusal(err, udid)
		return nil, cmp.Or(seen, g), failure
	}
	var created struct {
		SessionID    string          `json:"sessionId"`
		Capabilities json.RawMessage `json:"capabilities"`
	}
	if err := answer.Value(&created); err != nil || !plainID(created.SessionID) {
		return nil, g, &wire.Failure{Code: wire.FailureDriver, Message: "the driver's answer to New Session is not W3C WebDriver"}
	}
	d.id = created.SessionID
	return created.Capabilities, g, nil
}

// refusal is what a refused New Session says of the device, and to the orchestrator.
func refusal(err error, udid string) (grade, *wire.Failure) {
	var e *webdriver.Error
	if !errors.As(err, &e) {
		return gradeNone, &wire.Failure{Code: wire.FailureDriver, Message: "the driver failed at New Session"}
	}
	if e.Code == webdriver.SessionNotCreated { // others may repeat what the client sent
		if g := recognise(e.Message, udid); g != gradeNone {
			return g, &wire.Failure{Code: wire.FailureDevice, Message: g.rule().what}
		}
	}
	if e.Code == webdriver.SessionNotCreated || e.Code == webdriver.InvalidArgument {
		return gradeNone, &wire.Failure{Code: wire.FailureCapabilities, Message: "the driver refused the session: " + string(known(e.Code))}
	}
	return gradeNone, &wire.Failure{Code: wire.FailureDriver, Message: "the driver failed at New Session: " + string(known(e.Code))}
}

// known keeps a driver from putting text of its own into a failure.
func known(c webdriver.Code) webdriver.Code {
	for _, k := range webdriver.Codes() {
		if k == c {
			return c
		}
	}
	return webdriver.UnknownError
}

// plainID says whether a session id can be part of a path as it is.
func plainID(id string) bool {
	for _, c := range []byte(id) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return id != "" && id != "." && id != ".." && len(id) <= 200
}

// Ports of drivers are below those that systems give to whoever asks for any: 32768 and more on Linux, 49152 on macOS.
const (
	firstPort = 20000
	lastPort  = 32767
)

// reservation is a loopback port that no other agent, nor another session of this one, takes for a driver: a session would find another's
// driver, and its browser, behind it. It is kept by a UDP socket on that port, which is in no driver's way. Whoever is no agent, and
// asks for this very port, may still take it first: the driver then exits, and the start is tried again with another.
type reservation struct {
	io.Closer
	port int
}

func reservePort() (reservation, error) {
	var last error
	for range 100 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		at := "127.0.0.1:" + strconv.Itoa(port)
		kept, err := net.ListenPacket("udp4", at)
		if err != nil {
			last = err
			continue
		}
		l, err := net.Listen("tcp4", at)
		if err == nil {
			_ = l.Close() // nothing was accepted
			return reservation{kept, port}, nil
		}
		last = err
		_ = kept.Close() // nothing was sent
	}
	return reservation{}, fmt.Errorf("host: no free port from %d to %d: %w", firstPort, lastPort, last)
}

// forgetDisplay removes the lock and socket that an X server leaves when it is killed.
func forgetDisplay(display string, pid int) {
	if len(display) < 2 || pid == 0 {
		return
	}
	lock := "/tmp/.X" + display[1:] + "-lock"
	b, err := os.ReadFile(lock)
	if err != nil || string(bytes.TrimSpace(b)) != fmt.Sprint(pid) {
		return
	}
	_ = os.Remove("/tmp/.X11-unix/X" + display[1:])
	_ = os.Remove(lock)
}
