package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/client"
)

// These tests run the built programs as a newcomer does, with all the real parts, and then look whether anything is
// left of them: processes, temporary files, locks of displays.

const (
	runLimit   = 4 * time.Minute // one start with its sample, on a busy machine
	leaveLimit = 45 * time.Second
)

func TestMain(m *testing.M) {
	code := m.Run()
	_ = os.RemoveAll(built.dir)
	os.Exit(code)
}

// built is what a stack needs, built by the first test that asks, once for all of them.
var built struct {
	sync.Once
	dir string
	err error
}

func build() {
	if built.dir, built.err = os.MkdirTemp("", "programs"); built.err != nil {
		return
	}
	out, err := exec.Command("go", "build", "-o", built.dir+"/", "../orchestrator", "../driverhost", "../driftctl", ".").CombinedOutput()
	if err != nil {
		built.err = fmt.Errorf("build: %w\n%s", err, out)
	}
}

// programs is a folder of the test's own that has what a stack needs, by which its processes are found.
func programs(t *testing.T) string {
	t.Helper()
	built.Do(build)
	if built.err != nil {
		t.Fatal(built.err)
	}
	bin := filepath.Join(t.TempDir(), "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"orchestrator", "driverhost", "driftctl", "devstack"} {
		if err := os.Link(filepath.Join(built.dir, name), filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	versitygw, err := filepath.Abs("../../bin/versitygw")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(versitygw); err != nil {
		if versitygw, err = exec.LookPath("versitygw"); err != nil {
			t.Fatal("versitygw is missing: run `make setup`")
		}
	}
	if err := os.Symlink(versitygw, filepath.Join(bin, "versitygw")); err != nil {
		t.Fatal(err)
	}
	return bin
}

// devstack is one run of the program.
type devstack struct {
	t    *testing.T
	cmd  *exec.Cmd
	mark string // an environment variable that everything started by it inherits
	dir  string
	tmp  string
	held map[string]bool // locks of displays that were there before
	done chan struct{}   // closed by the waiting goroutine, after err is set
	err  error

	mu   sync.Mutex // guards text
	text strings.Builder
	grew chan struct{} // has an element when text grew; read by waitFor alone
}

func startDevstack(t *testing.T, bin, dir string, args ...string) *devstack {
	t.Helper()
	d := &devstack{t: t, dir: dir, tmp: t.TempDir(), mark: fmt.Sprintf("DEVSTACK_TEST_MARK=%d-%d", os.Getpid(), time.Now().UnixNano()),
		done: make(chan struct{}), grew: make(chan struct{}, 1), held: map[string]bool{}}
	for _, lock := range displayLocks() {
		d.held[lock] = true
	}
	d.cmd = exec.Command(filepath.Join(bin, "devstack"), append(args, "--dir", dir, "--bin", bin)...)
	d.cmd.Env = append(inherited(), d.mark, "TMPDIR="+d.tmp)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.cmd.WaitDelay = 5 * time.Second
	r, w := io.Pipe()
	d.cmd.Stdout, d.cmd.Stderr = w, w
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		d.err = d.cmd.Wait()
		w.Close()
	}()
	go func() {
		defer close(d.done)
		lines := bufio.NewReader(r)
		for {
			line, err := lines.ReadString('\n')
			d.mu.Lock()
			d.text.WriteString(line)
			d.mu.Unlock()
			select {
			case d.grew <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		for _, pid := range d.processes() { // of a test that failed half way
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		<-d.done
		if t.Failed() {
			t.Logf("devstack %s said:\n%s", strings.Join(args, " "), d.said())
			d.logTails()
		}
	})
	return d
}

func (d *devstack) said() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.String()
}

func (d *devstack) logTails() {
	logs, _ := filepath.Glob(filepath.Join(d.dir, "logs", "*.log")) // the pattern is well formed
	for _, path := range logs {
		d.t.Logf("end of %s:\n%s", filepath.Base(path), (&child{log: path}).tail())
	}
}

// waitFor returns once devstack has said text.
func (d *devstack) waitFor(text string) {
	d.t.Helper()
	limit := time.After(runLimit)
	for !strings.Contains(d.said(), text) {
		select {
		case <-d.grew:
		case <-d.done:
			if !strings.Contains(d.said(), text) {
				d.t.Fatalf("devstack ended (%v) before it said %q", d.err, text)
			}
		case <-limit:
			d.t.Fatalf("devstack did not say %q within %s", text, runLimit)
		}
	}
}

// exit waits for the end of devstack and returns its exit code.
func (d *devstack) exit() int {
	d.t.Helper()
	select {
	case <-d.done:
	case <-time.After(runLimit):
		d.t.Fatalf("devstack still runs after %s", runLimit)
	}
	var exit *exec.ExitError
	if d.err != nil && !errors.As(d.err, &exit) {
		d.t.Fatal(d.err)
	}
	return d.cmd.ProcessState.ExitCode()
}

// processes are those that devstack started, directly or not: they inherited its mark, or name one of its folders (a
// browser has no environment but its own, with its home in the driver host's folder).
func (d *devstack) processes() []int {
	return processesThatName(d.mark, d.dir, filepath.Dir(d.cmd.Path))
}

func processesThatName(marks ...string) (pids []int) {
	named := func(raw []byte, err error) bool {
		return err == nil && slices.ContainsFunc(marks, func(m string) bool { return strings.Contains(string(raw), m) })
	}
	found, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	for _, p := range found {
		pid, err := strconv.Atoi(filepath.Base(p))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if named(os.ReadFile(filepath.Join(p, "environ"))) || named(os.ReadFile(filepath.Join(p, "cmdline"))) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// leavesNothing waits a little for processes that end by themselves and fails when some do not.
func (d *devstack) leavesNothing(within time.Duration) {
	d.t.Helper()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	limit := time.After(within)
	for {
		left := d.processes()
		if len(left) == 0 {
			break
		}
		select {
		case <-tick.C:
		case <-limit:
			for _, pid := range left {
				args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may be gone
				d.t.Errorf("process %d is left: %s", pid, strings.ReplaceAll(string(args), "\x00", " "))
			}
			return
		}
	}
}

// leavesNoFile looks for temporary files, and for locks of X displays whose server is gone.
func (d *devstack) leavesNoFile() {
	d.t.Helper()
	err := filepath.WalkDir(d.tmp, func(path string, _ os.DirEntry, err error) error {
		if err == nil && path != d.tmp {
			d.t.Errorf("temporary file left: %s", path)
		}
		return err
	})
	if err != nil {
		d.t.Error(err)
	}
	for _, name := range []string{"access.json", "recording-*.webm", "*.new"} {
		if left, _ := filepath.Glob(filepath.Join(d.dir, name)); len(left) > 0 {
			d.t.Errorf("left in the state folder: %v", left)
		}
	}
	for _, lock := range displayLocks() {
		if d.held[lock] {
			continue
		}
		raw, err := os.ReadFile(lock)
		pid, errPID := strconv.Atoi(strings.TrimSpace(string(raw)))
		if err == nil && errPID == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			d.t.Errorf("lock of a display left: %s (process %d is gone)", lock, pid)
		}
	}
}

func displayLocks() []string {
	locks, _ := filepath.Glob("/tmp/.X*-lock") // the pattern is well formed
	return locks
}

func (d *devstack) checkSummary() {
	d.t.Helper()
	raw, err := os.ReadFile(filepath.Join(d.dir, "summary.json"))
	if err != nil {
		d.t.Fatal(err)
	}
	var summary struct {
		Held     bool  `json:"held"`
		Sessions []row `json:"sessions"`
	}
	if err := json.Unmarshal(raw, &summary); err != nil {
		d.t.Fatal(err)
	}
	if !summary.Held || len(summary.Sessions) != 3 {
		d.t.Fatalf("summary: %s", raw)
	}
	for i, want := range [][]string{{"eu", "us"}, {"eu", "us"}, {"eu"}} {
		r := summary.Sessions[i]
		if !slices.Equal(r.RecordingPlace, want) || r.RecordingBytes == 0 || r.Commands == 0 || r.P50CommandMS <= 0 || (r.Generation > 0) != (i < 2) {
			d.t.Errorf("summary of session %d: %+v", i+1, r)
		}
	}
}

func TestStack(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("looks into /proc for what is left behind")
	}
	bin := programs(t)
	t.Run("netstack", func(t *testing.T) { sampleOverNetstack(t, bin) })
	t.Run("tun", func(t *testing.T) { sampleOverTUN(t, bin) })
	t.Run("killed", func(t *testing.T) { killedInTheMiddle(t, bin) })
	t.Run("interrupted", func(t *testing.T) { interruptedInTheMiddle(t, bin) })
}

// sampleOverNetstack is the stack as `make run` starts it: sample, an unmodified selenium-webdriver and an unmodified
// webdriverio, Ctrl-C, and a second start on the same state.
func sampleOverNetstack(t *testing.T, bin string) {
	dir := filepath.Join(t.TempDir(), "state")
	d := startDevstack(t, bin, dir, "run")
	d.waitFor("The stack is up")
	if strings.Contains(d.said(), "✗") {
		t.Fatal("a claim of the sample did not hold")
	}
	d.checkSummary()
	for _, part := range []string{"postgres", "webkit", "ffmpeg", "versitygw", "netstack"} {
		t.Logf("part: %s real", part)
	}
	t.Run("selenium", func(t *testing.T) { script(t, dir, "selenium", "selenium-webdriver") })
	t.Run("webdriverio", func(t *testing.T) { script(t, dir, "webdriverio", "webdriverio") })
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := d.exit(); code != 0 {
		t.Errorf("exit code %d after Ctrl-C", code)
	}
	d.leavesNothing(2 * time.Second)
	d.leavesNoFile()

	again := startDevstack(t, bin, dir, "demo")
	if code := again.exit(); code != 0 {
		t.Fatalf("exit code %d on the second start", code)
	}
	again.checkSummary()
	again.leavesNothing(2 * time.Second)
	again.leavesNoFile()
}

// script runs test/NAME/script.js, which drives a session with an npm package, against the running stack.
func script(t *testing.T, dir, name, npm string) {
	folder := filepath.Join("../../test", name)
	node, err := exec.LookPath("node")
	if err == nil {
		_, err = os.Stat(filepath.Join(folder, "node_modules", npm))
	}
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: run `make setup-test`", err)
		}
		t.Skipf("part: %s skipped: %v: run `make setup-test`", name, err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "access.json"))
	if err != nil {
		t.Fatal(err)
	}
	var a access
	if err := json.Unmarshal(raw, &a); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, "script.js")
	cmd.Dir = folder
	cmd.Env = append(inherited(), "DRIFTSTACK_URL="+a.URL, "DRIFTSTACK_SERVICE_TOKEN="+a.ServiceToken, "DRIFTSTACK_ACCOUNT="+a.Account, "SITE="+a.Site)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", npm, err, stderr.String())
	}
	var saw struct{ Session, Count string }
	if err := json.Unmarshal(out, &saw); err != nil || saw.Count != "3" {
		t.Fatalf("the script printed %q: %v", out, err)
	}
	fleet, err := client.New(a.URL, a.ServiceToken)
	if err != nil {
		t.Fatal(err)
	}
	s, err := fleet.Wait(ctx, saw.Session, "ended")
	if err != nil || s.Reason != "completed" || s.Account != a.Account {
		t.Fatalf("session after the script: %+v, %v", s, err)
	}
	t.Logf("part: %s real", name)
}

// sampleOverTUN is the same sample over two TUN devices in two network namespaces.
func sampleOverTUN(t *testing.T, bin string) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI must run as root: TUN devices and network namespaces take it")
		}
		t.Skip("part: tun skipped: not root")
	}
	d := startDevstack(t, bin, filepath.Join(t.TempDir(), "state"), "demo", "--tunnel", "tun")
	if code := d.exit(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	d.checkSummary()
	d.leavesNothing(2 * time.Second)
	d.leavesNoFile()
	t.Log("part: tun real")
}

// killedInTheMiddle kills devstack during a session, which nothing can tidy up after: the system ends the children,
// and the next start works on what is left.
func killedInTheMiddle(t *testing.T, bin string) {
	dir := filepath.Join(t.TempDir(), "state")
	d := startDevstack(t, bin, dir, "demo")
	d.waitFor("logged in through the form")
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	d.exit()
	d.leavesNothing(leaveLimit)
	again := startDevstack(t, bin, dir, "demo")
	if code := again.exit(); code != 0 {
		t.Fatalf("exit code %d on the start after the kill", code)
	}
	again.leavesNothing(2 * time.Second)
	again.leavesNoFile()
}

// interruptedInTheMiddle presses Ctrl-C during a session.
func interruptedInTheMiddle(t *testing.T, bin string) {
	d := startDevstack(t, bin, filepath.Join(t.TempDir(), "state"), "run")
	d.waitFor("logged in through the form")
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := d.exit(); code == 0 {
		t.Error("exit code 0 although the sample did not finish")
	}
	d.leavesNothing(2 * time.Second)
	d.leavesNoFile()
}
