package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/orchestrator/pgstore/pgcluster/pgtest"
	"github.com/driftstack/fleet/orchestrator/residency"
	"github.com/driftstack/fleet/profilestate"
	"github.com/driftstack/fleet/recorder/capture"
	"github.com/driftstack/fleet/tunnel"
)

const (
	daemonEnv = "DRIFTSTACK_TEST_DAEMON" // this program is the daemon, as it is shipped
	fleetPass = "a-service-token-of-the-tests"
	leaseTime = 6 * time.Second // the shortest there is
	upLimit   = 60 * time.Second
)

var postgres pgtest.Shared

func TestMain(m *testing.M) {
	if os.Getenv(daemonEnv) != "" {
		main()
		return
	}
	if len(os.Args) > 1 && os.Args[1] == host.SuperviseCommand {
		os.Exit(host.SuperviseMain(os.Args[2:]))
	}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		_ = os.Unsetenv(name) // of this machine; tests of them set their own
	}
	os.Exit(postgres.Run(m))
}

// replica is an orchestrator's process.
type replica struct {
	name, url string
	args      []string
	dsn, log  string
	keyDSN    string
	client    *client.Client

	mu      sync.Mutex // guards what follows
	cmd     *exec.Cmd  // nil: it does not run
	done    chan struct{}
	stopped bool // by SIGSTOP
}

// fleet is orchestrators as processes, and hosts in this one, joined by netstack tunnels.
type fleet struct {
	t        *testing.T
	dir      string
	dsn      string
	keyDSN   string
	replicas []*replica
	hosts    []*mac
	store    *pgstore.Store // looks at what is stored
	use      *usage
	shared   bool // they have one volume
	storage  []string

	most map[string]int // sessions that an account was seen with, by account and state
}

// mac is a host's agent. Its tunnel stays when the agent is restarted.
type mac struct {
	fleet *fleet
	name  string
	link  *tunnel.Link
	list  []host.Device

	mu   sync.Mutex // guards what follows
	stop func()
}

// noStorage is one that does not answer.
var noStorage = []string{"--eu-s3-endpoint", "http://127.0.0.1:9", "--eu-s3-bucket", "recordings", "--eu-s3-access-key", "none", "--eu-s3-secret-key", "none"}

// newFleet starts it all. Where the volume is not shared each orchestrator has a folder of its own, and the root key of profiles in it.
func newFleet(t *testing.T, replicas, hosts, devices int, shared bool) *fleet {
	t.Helper()
	return newFleetWith(t, replicas, hosts, devices, shared, noStorage)
}

// newFleetWith is newFleet, with settings of the storage.
func newFleetWith(t *testing.T, replicas, hosts, devices int, shared bool, storage []string) *fleet {
	t.Helper()
	f := &fleet{storage: storage, t: t, dir: t.TempDir(), dsn: postgres.Database(t), keyDSN: postgres.Database(t), use: newUsage(t), shared: shared, most: map[string]int{}}
	root := filepath.Join(f.dir, "root.key")
	must(t, profilestate.CreateRootKey(root))
	key, err := os.ReadFile(root)
	must(t, err)
	for i := range replicas {
		f.replicas = append(f.replicas, f.newReplica(i+1, shared, key))
	}
	t.Cleanup(f.end)
	for _, r := range f.replicas {
		must(t, r.start())
		r.ready(t) // so that the next one sees it
	}
	f.store, err = pgstore.Open(t.Context(), f.dsn, "test", zap.NewNop())
	must(t, err)
	t.Cleanup(f.store.Close)
	for i := range hosts {
		f.hosts = append(f.hosts, f.newMac(fmt.Sprintf("mac-%d", i+1), devices))
	}
	for _, a := range []string{"a", "b"} {
		_, err := f.replicas[0].client.PutAccount(t.Context(), a, api.PutAccount{Recordings: "eu"})
		must(t, err)
	}
	f.eventually("all hosts are up", upLimit, func() bool { return f.allUp() })
	return f
}

func (f *fleet) newReplica(number int, shared bool, key []byte) *replica {
	f.t.Helper()
	web, udp := freePort(f.t, "tcp"), freePort(f.t, "udp")
	name := "eu-" + strconv.Itoa(number)
	state := filepath.Join(f.dir, "volume")
	if !shared {
		state = filepath.Join(f.dir, name, "volume")
	}
	must(f.t, os.MkdirAll(state, 0o700))
	must(f.t, os.WriteFile(filepath.Join(state, "profile-root.key"), key, 0o600))
	r := &replica{name: name, url: fmt.Sprintf("http://127.0.0.1:%d", web), dsn: f.dsn, keyDSN: f.keyDSN, log: filepath.Join(f.dir, name+".log"), args: []string{
		"--name", name, "--development", "--log-level", "info", "--lease-ttl", leaseTime.String(),
		"--http-addr", fmt.Sprintf("127.0.0.1:%d", web), "--peer-url", fmt.Sprintf("http://127.0.0.1:%d", web),
		"--state-dir", state, "--location", "DE", "--private-dir", filepath.Join(f.dir, name, "private"),
		"--tunnel-backend", "netstack", "--tunnel-number", strconv.Itoa(number), "--tunnel-listen-port", strconv.Itoa(udp), "--tunnel-endpoint", fmt.Sprintf("127.0.0.1:%d", udp),
	}}
	r.args = append(r.args, f.storage...)
	var err error
	r.client, err = client.New(r.url, fleetPass)
	must(f.t, err)
	return r
}

// start starts the process, unless it runs.
func (r *replica) start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cmd != nil {
		return nil
	}
	out, err := os.OpenFile(r.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(os.Args[0], r.args...)
	cmd.Env = append(os.Environ(), daemonEnv+"=1", "DRIFTSTACK_SERVICE_TOKEN="+fleetPass, "DRIFTSTACK_DATABASE_URL="+r.dsn, "DRIFTSTACK_KEY_DATABASE_URL="+r.keyDSN)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	r.cmd, r.done = cmd, done
	go func() { // ends with the process
		defer close(done)
		_ = cmd.Wait()
	}()
	return nil
}

// signal sends one to the process, if it runs, and with wait waits for its end.
func (r *replica) signal(s syscall.Signal, wait bool) error {
	r.mu.Lock()
	cmd, done := r.cmd, r.done
	r.stopped = s == syscall.SIGSTOP
	r.mu.Unlock()
	if cmd == nil {
		return nil
	}
	_ = cmd.Process.Signal(s) // fails when it has ended already
	if !wait {
		return nil
	}
	limit := time.NewTimer(90 * time.Second)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
		return fmt.Errorf("%s does not end: %s", r.name, r.tail())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cmd, r.stopped = nil, false
	return nil
}

func (r *replica) ready(t *testing.T) {
	t.Helper()
	eventually(t, r.name+" is ready", upLimit, func() bool {
		r.mu.Lock()
		done := r.done
		r.mu.Unlock()
		select {
		case <-done:
			t.Fatalf("%s ended: %s", r.name, r.tail())
		default:
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := r.client.Hosts(ctx)
		return err == nil
	})
}

func (r *replica) tail() []byte {
	b, err := os.ReadFile(r.log)
	if err != nil {
		return []byte(err.Error())
	}
	return bytes.TrimSpace(b[max(0, len(b)-4000):])
}

func (f *fleet) newMac(name string, devices int) *mac {
	f.t.Helper()
	token, err := f.replicas[0].client.InviteHost(f.t.Context(), name)
	must(f.t, err)
	m := &mac{fleet: f, name: name}
	for i := range devices {
		m.list = append(m.list, host.Device{Name: fmt.Sprintf("phone-%d", i+1), Kind: host.KindFake, Model: "iPhone 15", PlatformName: "iOS", PlatformVersion: "17.0"})
	}
	m.link, err = tunnel.OpenLink(f.t.Context(), tunnel.LinkConfig{StateDir: filepath.Join(f.dir, name), Token: token.Token, Backend: "netstack", Log: zap.NewNop()})
	must(f.t, err)
	f.t.Cleanup(func() {
		m.halt()
		must(f.t, m.link.Close())
	})
	m.start()
	return m
}

// start starts the agent, unless it runs.
func (m *mac) start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stop != nil {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := host.Run(ctx, host.Config{Name: m.link.Host(), Agent: "test", StateDir: filepath.Join(m.fleet.dir, m.name), Orchestrators: m.link.Fleets,
			Dial: m.link.DialContext, Devices: m.list, Recorder: testPattern{capture.New(capture.Config{})}, Log: zap.NewNop(), Orphan: 20 * time.Second,
			Fake: func(device string) *drivertest.Driver { return m.fleet.use.driver(m.name + "/" + device) }})
		if err != nil && !errors.Is(err, context.Canceled) { // it may be stopped before it has started
			m.fleet.t.Errorf("%s: %v", m.name, err)
		}
	}()
	m.stop = func() { stop(); <-done }
}

// testPattern records moving pictures of nothing, each under a title that no other has.
// marker is how titles begin.
const marker = "only-in-this-recording-"

type testPattern struct{ *capture.Capture }

func (testPattern) Args(host.Display) []string {
	return []string{"ffmpeg", "-nostdin", "-v", "error", "-re", "-f", "lavfi", "-i", "testsrc2=size=160x120:rate=10", "-c:v", "libvpx", "-deadline", "realtime",
		"-cpu-used", "16", "-b:v", "200k", "-g", "10", "-metadata", "title=" + marker + rand.Text(), "-f", "webm", "-cluster_time_limit", "500", "-flush_packets", "1", "pipe:1"}
}

func (p testPattern) Pump(ctx context.Context, stdout io.Reader, c host.RecordingConn, stopped func() bool) error {
	return p.Capture.Pump(ctx, stdout, c, stopped)
}

// halt stops the agent, which ends its sessions, and waits.
func (m *mac) halt() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stop != nil {
		m.stop()
		m.stop = nil
	}
}

func (f *fleet) allUp() bool {
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
	defer cancel()
	hosts, err := f.replicas[0].client.Hosts(ctx)
	if err != nil || len(hosts) != len(f.hosts) {
		return false
	}
	for _, h := range hosts {
		if h.State != "up" && h.State != "degraded" {
			return false
		}
	}
	return true
}

// end ends every process, in whatever state it is.
func (f *fleet) end() {
	for _, r := range f.replicas {
		_ = r.signal(syscall.SIGCONT, false) // always nil
		if err := r.signal(syscall.SIGKILL, true); err != nil {
			f.t.Error(err)
		}
		f.noOrphans(r)
		if f.t.Failed() {
			f.t.Logf("end of %s:\n%s", r.name, r.tail())
		}
	}
}

// noOrphans: whatever an orchestrator has put into its folders belongs to a row of the register.
func (f *fleet) noOrphans(r *replica) {
	seen := 0
	for i, arg := range r.args[:len(r.args)-1] {
		if arg != "--state-dir" && arg != "--private-dir" {
			continue
		}
		list, err := os.ReadDir(r.args[i+1])
		if err != nil {
			f.t.Error(err)
		}
		for _, e := range list {
			seen++
			if _, ok := residency.OfFile(e.Name()); !ok {
				f.t.Errorf("%s of %s belongs to no category: add it to residency.Files", e.Name(), arg)
			}
		}
	}
	if seen < 3 {
		f.t.Errorf("%s has %d files: what is looked at is not where it puts them", r.name, seen)
	}
}

func (f *fleet) eventually(what string, within time.Duration, ok func() bool) {
	f.t.Helper()
	eventually(f.t, what, within, ok)
}

func eventually(t *testing.T, what string, within time.Duration, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(within)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not in time: %s", what)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func freePort(t *testing.T, network string) int {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		must(t, err)
		return errPort(t, c.LocalAddr().(*net.UDPAddr).Port, c.Close())
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	return errPort(t, l.Addr().(*net.TCPAddr).Port, l.Close())
}

func errPort(t *testing.T, port int, err error) int {
	t.Helper()
	must(t, errors.Join(err))
	return port
}
