package host_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/drivertest/safari"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == safari.Program {
		os.Exit(safari.Main(os.Args))
	}
	if filepath.Base(os.Args[0]) == reusedProgram {
		os.Exit(reusedMain(os.Args))
	}
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case host.SuperviseCommand:
			os.Exit(host.SuperviseMain(os.Args[2:]))
		case agentCommand:
			os.Exit(agentMain(os.Args[2:]))
		}
	}
	goleak.VerifyTestMain(m)
}

// limit bounds every wait of these tests.
const limit = 60 * time.Second // far above what anything takes: the machine may be busy

// eventually polls until the condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !holds() {
		select {
		case <-again.C:
		case <-deadline.C:
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

func within(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(limit):
		t.Fatalf("%s: not within %v", what, limit)
	}
}

// directory remembers what a Fleet told it.
type directory struct {
	host string

	mu      sync.Mutex
	devices map[string]wire.Device
	ups     int
	downs   []error
	boots   []string
	said    []wire.Hello
	refuse  error
}

func (d *directory) HostByAddr(_ context.Context, addr netip.Addr) (string, error) {
	if !addr.IsLoopback() {
		return "", errors.New("unknown address")
	}
	return d.host, nil
}

func (d *directory) HostUp(_ context.Context, h wire.Hello) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuse != nil {
		return d.refuse
	}
	d.ups++
	d.boots = append(d.boots, h.Boot)
	d.said = append(d.said, h)
	d.devices = map[string]wire.Device{}
	for _, v := range h.Devices {
		d.devices[v.Name] = v
	}
	return nil
}

func (d *directory) DevicesChanged(_ context.Context, _ string, list []wire.Device) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, v := range list {
		d.devices[v.Name] = v
	}
	return nil
}

func (d *directory) HostDown(_ context.Context, _ string, cause error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.downs = append(d.downs, cause)
}

func (d *directory) names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.devices))
}

func (d *directory) state(device string) wire.DeviceState {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.devices[device].State
}

// hellos are those that were taken, in order.
func (d *directory) hellos() []wire.Hello {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.said)
}

func (d *directory) reason(device string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.devices[device].Reason
}

// stack is a Fleet and what it serves.
type stack struct {
	fleet *driverproxy.Fleet
	dir   *directory
	addr  string
	state string // the host's StateDir

	mu       sync.Mutex
	controls map[string]bool // where control sockets come from that the fleet has not done with; guarded by mu
}

func newFleet(t *testing.T) *stack {
	t.Helper()
	return newFleetThat(t, func(*fleetConfig) {})
}

// newImpatientFleet gives up a host that is gone after a second, where the test waits for that: an agent that was killed does not come back.
func newImpatientFleet(t *testing.T) *stack {
	t.Helper()
	return newFleetThat(t, func(c *fleetConfig) { c.ResumeLimit = time.Second })
}

type fleetConfig = driverproxy.Config

func newFleetThat(t *testing.T, change func(*fleetConfig)) *stack {
	t.Helper()
	s := &stack{dir: &directory{host: "mac-1", devices: map[string]wire.Device{}}, state: t.TempDir(), controls: map[string]bool{}}
	cfg := fleetConfig{
		Orchestrator: "eu-1", Epoch: rand.Text(), Directory: s.dir, HeartbeatEvery: 50 * time.Millisecond, HeartbeatLimit: 10 * time.Second,
		ProbeEvery: time.Hour, // the hosts probe by their own clocks
		Log:        testLog(t, "fleet"),
	}
	change(&cfg)
	s.fleet = driverproxy.NewFleet(cfg)
	server := httptest.NewServer(s.watch(s.fleet.Handler()))
	s.addr = server.Listener.Addr().String()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := s.fleet.Close(ctx); err != nil {
			t.Errorf("close the fleet: %v", err)
		}
		server.Close()
	})
	return s
}

// watch keeps controls.
func (s *stack) watch(fleet http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == wire.PathControl {
			s.control(r.RemoteAddr, true)
			defer s.control(r.RemoteAddr, false)
		}
		fleet.ServeHTTP(w, r)
	})
}

func (s *stack) control(from string, open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if open {
		s.controls[from] = true
	} else {
		delete(s.controls, from)
	}
}

// knows says whether the fleet has heard of all that was cut, and has the host. Before that, what it says of the host's devices is from before
// the cut, and what it sends is lost.
func (s *stack) knows(cable *line) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for from := range s.controls {
		if !cable.has(from) {
			return false
		}
	}
	return slices.Equal(s.fleet.Hosts(), []string{"mac-1"})
}

func testLog(t *testing.T, name string) *zap.Logger {
	if !testing.Verbose() {
		return zap.NewNop()
	}
	return zaptest.NewLogger(t).Named(name)
}

func (s *stack) config(t *testing.T) host.Config {
	cfg := s.benchConfig()
	cfg.Log = testLog(t, "host")
	return cfg
}

func (s *stack) benchConfig() host.Config {
	return host.Config{
		Name: "mac-1", Agent: "test", StateDir: s.state, Orchestrators: host.Fixed(s.addr), Dial: (&net.Dialer{}).DialContext,
		Devices: []host.Device{{Name: "phone", Kind: host.KindFake, Model: "iPhone", PlatformName: "iOS", PlatformVersion: "18"}},
		// The race detector would have each of them wait for a second before it ends.
		Supervisor: []string{"env", "GORACE=atexit_sleep_ms=0", os.Args[0], host.SuperviseCommand},
	}
}

// run starts an agent; the returned function stops it and waits.
func (s *stack) run(t *testing.T, cfg host.Config) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	former := len(s.dir.hellos()) // of agents whose end the fleet may not have noticed
	go func() {
		defer close(done)
		if err := host.Run(ctx, cfg); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		within(t, "the agent stops", done)
		s.nothingLeft(t)
	})
	t.Cleanup(stop)
	eventually(t, "the agent says hello", func() bool { return len(s.dir.hellos()) > former })
	s.connected(t)
	return stop
}

func (s *stack) connected(t *testing.T) {
	t.Helper()
	eventually(t, "the host connects", func() bool { return slices.Equal(s.fleet.Hosts(), []string{"mac-1"}) })
}

// idle waits until every device is ready, and checks that nothing is there but a standby each.
func (s *stack) idle(t *testing.T) {
	t.Helper()
	devices := s.dir.names()
	for _, d := range devices {
		s.ready(t, d)
	}
	found := s.files(t)
	if len(found) != 2*len(devices) { // a directory and a record
		t.Errorf("in the state directory of %d devices: %v", len(devices), found)
	}
	for _, p := range processesBelow(s.state) {
		of := slices.ContainsFunc(found, func(dir string) bool { return strings.Contains(p, dir) })
		if pid, _, _ := strings.Cut(p, " "); !of && !slices.ContainsFunc(found, func(dir string) bool { return environHas(pid, dir) }) {
			t.Errorf("left of a session: %s", p)
		}
	}
}

func environHas(pid, what string) bool {
	env, err := os.ReadFile("/proc/" + pid + "/environ")
	return err == nil && strings.Contains(string(env), what)
}

// nothingLeft checks that an agent that has ended has left no file and no process.
func (s *stack) nothingLeft(t *testing.T) {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(s.state, "sessions"))
	if err != nil || len(files) != 0 {
		t.Errorf("left in the state directory: %v %v", files, err)
	}
	if left := processesBelow(s.state); len(left) != 0 {
		t.Errorf("processes left: %v", left)
	}
}

func (s *stack) ready(t *testing.T, device string) {
	t.Helper()
	eventually(t, device+" is ready", func() bool { return s.dir.state(device) == wire.DeviceReady })
}

// files are those of the sessions and standbys that there are now; gone waits until the host has removed them.
func (s *stack) files(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(s.state, "sessions", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func (s *stack) gone(t *testing.T, files []string) {
	t.Helper()
	eventually(t, "the session's files are gone", func() bool {
		return !slices.ContainsFunc(files, func(name string) bool { _, err := os.Lstat(name); return err == nil })
	})
}

func assign(t *testing.T, s *stack, a driverproxy.Assignment) *driverproxy.Session {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	session, err := s.fleet.Assign(ctx, a)
	if err != nil {
		t.Fatalf("Assign: %v", err)
	}
	return session
}

func first(session string, term int64) driverproxy.Assignment {
	return driverproxy.Assignment{Host: "mac-1", Device: "phone", Session: session, Term: term}
}

func release(t *testing.T, s *driverproxy.Session) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := s.Release(ctx); err != nil {
		t.Fatalf("Release: %v", err)
	}
}

// do runs a command that must succeed, and decodes its value.
func do[T any](t *testing.T, s *driverproxy.Session, method, path string, body any) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var v T
	a, receipt, err := s.Do(ctx, command(t, method, path, body))
	if err == nil {
		err = a.Err()
	}
	if err == nil {
		err = a.Value(&v)
	}
	if err != nil || receipt.Outcome != wire.OutcomeDone {
		t.Fatalf("%s %s: %v (outcome %d)", method, path, err, receipt.Outcome)
	}
	return v
}

func command(t *testing.T, method, path string, body any) webdriver.Command {
	t.Helper()
	c := webdriver.Command{Method: method, Path: path}
	if method == "POST" {
		if body == nil {
			body = struct{}{}
		}
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		c.Body = b
	}
	return c
}

// wantOutcome checks a W3C unknown error with data.outcome.
func wantOutcome(t *testing.T, a webdriver.Answer, want string) {
	t.Helper()
	var e *webdriver.Error
	if !errors.As(a.Err(), &e) || e.Code != webdriver.UnknownError || e.Data["outcome"] != want {
		t.Errorf("answer %d %s, want an unknown error with outcome %s", a.Status, a.Body, want)
	}
}

// fakes gives each session of a device the same driver, for as long as that lives.
func fakes(d *drivertest.Driver) func(string) *drivertest.Driver {
	return func(string) *drivertest.Driver {
		select {
		case <-d.Dead():
			return drivertest.New()
		default:
			return d
		}
	}
}

// freeze stops a process, and waits until each of its threads is: one that runs may answer yet after the signal.
func freeze(t *testing.T, pid int) {
	t.Helper()
	if pid == 0 { // it would be this one, and its group
		t.Fatal("there is no such process")
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all its threads stand still", func() bool {
		threads, _ := filepath.Glob("/proc/" + itoa(pid) + "/task/*/status")
		running := slices.ContainsFunc(threads, func(thread string) bool {
			b, err := os.ReadFile(thread)
			return err == nil && !strings.Contains(string(b), "State:\tT")
		})
		return len(threads) > 0 && !running
	})
}

// processesBelow lists the live processes that were started below a state directory, by their working directory, command line or HOME.
func processesBelow(state string) []string {
	var found []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(line) == 0 || dir == "/proc/"+itoa(os.Getpid()) {
			continue // a zombie has no command line
		}
		env, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if strings.Contains(string(line), state+"/sessions") || strings.Contains(string(env), state+"/sessions") {
			found = append(found, filepath.Base(dir)+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}
