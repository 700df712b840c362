package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func becomeSubreaper() {
	// Fails on kernels before 3.4 only; the mark finds orphans then.
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// descendants lists the processes below this one that are not dead. As this process is their subreaper it reaps the last of
// each, so a pid listed as a child is not recycled before.
func (s *supervision) descendants() []int {
	parents := map[int][]int{}
	for _, p := range processes() {
		if p.state != 'Z' && p.state != 'X' {
			parents[p.parent] = append(parents[p.parent], p.pid)
		} else if p.parent != 0 {
			parents[p.parent] = append(parents[p.parent], -p.pid) // dead, and may still have children
		}
	}
	var found []int
	todo := []int{os.Getpid()}
	for len(todo) > 0 {
		children := parents[todo[0]]
		todo = todo[1:]
		for _, pid := range children {
			if pid > 0 {
				found = append(found, pid)
			}
			todo = append(todo, max(pid, -pid))
		}
	}
	return found
}

type process struct {
	pid, parent, group int
	state              byte
	started            string // in clock ticks since boot
}

func processes() []process {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var all []process
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if p, ok := readProcess(pid); ok {
				all = append(all, p)
			}
		}
	}
	return all
}

func readProcess(pid int) (process, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, false
	}
	// The name, in parentheses, may hold anything: fields are counted from the last ')'.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return process{}, false
	}
	parent, err1 := strconv.Atoi(fields[1])
	group, err2 := strconv.Atoi(fields[2])
	return process{pid: pid, parent: parent, group: group, state: fields[0][0], started: fields[19]}, err1 == nil && err2 == nil
}

// started identifies the process that has the pid now; "" when there is none.
func started(pid int) string {
	p, ok := readProcess(pid)
	if !ok {
		return ""
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(boot)) + "/" + p.started
}

// marked lists the live processes that carry the mark.
func marked(mark string) []int {
	var found []int
	for _, p := range processes() {
		if p.state != 'Z' && p.state != 'X' && carries(p.pid, mark) {
			found = append(found, p.pid)
		}
	}
	return found
}

// carries looks into the environment of a process, and for the session's directory on its command line: Chromium writes over its
// environment.
func carries(pid int, mark string) bool {
	at := "/proc/" + strconv.Itoa(pid)
	env, err := os.ReadFile(at + "/environ")
	if err == nil && bytes.Contains(env, []byte(markVariable+"="+mark)) {
		return true
	}
	line, err := os.ReadFile(at + "/cmdline")
	return err == nil && bytes.Contains(line, []byte("/sessions/"+dirName(mark)+"/"))
}

// killMarked kills every process that carries the mark, until there is none.
func killMarked(mark string) error {
	deadline := time.Now().Add(killLimit)
	for {
		left := marked(mark)
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("host: %d processes of a session do not die", len(left))
		}
		for _, pid := range left {
			killIf(pid, func() bool { return carries(pid, mark) })
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// listens says whether all that takes connections to the loopback port belongs to processes that carry the mark.
func listens(mark string, port int) bool {
	theirs := listeners(port)
	for _, pid := range marked(mark) {
		fds := "/proc/" + strconv.Itoa(pid) + "/fd/"
		entries, _ := os.ReadDir(fds) // a process that is gone has none
		for _, e := range entries {
			if socket, err := os.Readlink(fds + e.Name()); err == nil {
				if _, ok := theirs[socket]; ok {
					theirs[socket] = true
				}
			}
		}
	}
	for _, own := range theirs {
		if !own {
			return false
		}
	}
	return len(theirs) > 0
}

// listeners are the sockets that listen where 127.0.0.1 and the port lead, as links below /proc name them.
func listeners(port int) map[string]bool {
	const (
		loopback4, any4 = "0100007F", "00000000"
		loopback6, any6 = "0000000000000000FFFF00000100007F", "00000000000000000000000000000000"
		listen          = "0A"
	)
	found := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, _ := os.ReadFile(table) // there is no tcp6 without IPv6
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != listen {
				continue
			}
			addr, hex, _ := strings.Cut(f[1], ":")
			switch n, err := strconv.ParseUint(hex, 16, 16); {
			case err != nil || int(n) != port:
			case addr == loopback4, addr == any4, addr == loopback6, addr == any6:
				found["socket:["+f[9]+"]"] = false
			}
		}
	}
	return found
}

// killIf kills the process if it is still the right one: a pidfd keeps the pid from meaning another one in between.
func killIf(pid int, right func() bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it is gone
	}
	defer unix.Close(fd)
	if right() {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// killGroup ends a leftover process group whose leader was recorded; on Linux marks have found it already.
func killGroup(int, string) error { return nil }

// reapDrivers kills the processes of a driver's program that nobody supervises: their parent is init, or their group's leader, which
// for those of an agent is the supervisor, is gone. Marks find those that an agent has recorded; these are the others.
func reapDrivers(ctx context.Context, program string) error {
	all := processes()
	leads := map[int]bool{}
	for _, p := range all {
		leads[p.pid] = p.state != 'Z' && p.state != 'X'
	}
	for _, p := range all {
		alone := p.parent == 1 || (p.group > 1 && p.group != p.pid && !leads[p.group])
		if ctx.Err() == nil && alone && runs(p.pid, program) {
			killIf(p.pid, func() bool { return runs(p.pid, program) })
		}
	}
	return ctx.Err()
}

// runs says whether the process was started as the program. It is a user's own: another's could not be killed.
func runs(pid int, program string) bool {
	line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return err == nil && bytes.HasPrefix(line, append([]byte(program), 0))
}

// watchBrowser returns a channel that is closed when the driver's child, the browser, exits; at once if there is none. The
// watch ends with ctx; owner waits for it.
func watchBrowser(ctx context.Context, owner *sync.WaitGroup, driver int) <-chan struct{} {
	gone := make(chan struct{})
	fd := openChild(driver)
	if fd < 0 {
		close(gone)
		return gone
	}
	owner.Go(func() { // ends with ctx or the process, at most a poll later
		defer unix.Close(fd)
		for ctx.Err() == nil {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
			if n > 0 || (err != nil && !errors.Is(err, unix.EINTR)) {
				close(gone)
				return
			}
		}
	})
	return gone
}

// openChild returns a pidfd of a live child, or -1.
func openChild(parent int) int {
	for _, p := range processes() {
		if p.parent != parent || p.state == 'Z' {
			continue
		}
		if fd, err := unix.PidfdOpen(p.pid, unix.PIDFD_NONBLOCK); err == nil {
			return fd
		}
	}
	return -1
}
