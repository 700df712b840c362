package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

func becomeSubreaper() {} // macOS has none: the process group stands in

func childAttr() *syscall.SysProcAttr { return nil }

// descendants are the direct children here; what they started shares their group, which the agent kills when the
// supervisor has exited.
func (s *supervision) descendants() []int {
	var pids []int
	for pid := range s.children {
		pids = append(pids, pid)
	}
	return pids
}

// started identifies the process that has the pid now; "" when there is none.
func started(pid int) string {
	out, err := exec.Command("/bin/ps", "-o", "lstart=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// killMarked has nothing to do: another process's environment is not readable on macOS.
func killMarked(string) error { return nil }

// listens takes the driver's word: another process listens for safaridriver, which nothing ties to it. Nobody else is given one of its ports by chance.
func listens(string, int) bool { return true }

// killGroup kills a recorded process group, if its leader is still the process that was recorded.
func killGroup(group int, start string) error {
	if group <= 1 || start == "" || started(group) != start {
		return nil
	}
	if err := syscall.Kill(-group, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("host: leftover process group %d: %w", group, err)
	}
	return nil
}

// reapDrivers kills the safaridriver processes of this user whose parent is gone: they keep the phone paired ("already paired with another
// WebDriver session").
func reapDrivers(ctx context.Context, program string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "/bin/ps", "-axo", "pid=,ppid=,uid=,comm=").Output()
	if err != nil {
		return fmt.Errorf("host: list processes: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 4 || f[1] != "1" || f[2] != strconv.Itoa(os.Getuid()) || filepath.Base(f[3]) != filepath.Base(program) {
			continue
		}
		if pid, err := strconv.Atoi(f[0]); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone already is as good
		}
	}
	return nil
}

// watchBrowser has nothing to watch: the browser is on the phone.
func watchBrowser(context.Context, *sync.WaitGroup, int) <-chan struct{} { return nil }
