package coredump

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

const (
	childEnv = "COREDUMP_CHILD"
	coreEnv  = "COREDUMP_ALLOWED"
)

// TestMain is also a process that dies as one that may dump core does.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: 1 << 30, Max: 1 << 30}); err != nil {
		os.Exit(3)
	}
	if os.Getenv(coreEnv) == "" {
		if err := Disable(); err != nil {
			os.Exit(4)
		}
	}
	// A shell, so that it is seen that what we start inherits it; Go itself takes most signals.
	cmd := exec.Command("sh", "-c", "kill -ABRT $$")
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).CoreDump() {
		os.Exit(1)
	}
	os.Exit(0)
}

func TestNoCoreDump(t *testing.T) {
	dumped := func(env ...string) int {
		t.Helper()
		cmd := exec.Command(os.Args[0])
		cmd.Dir = t.TempDir()
		cmd.Env = append(append(os.Environ(), childEnv+"=1"), env...)
		if err := cmd.Run(); err != nil {
			return cmd.ProcessState.ExitCode()
		}
		return 0
	}
	switch code := dumped(coreEnv + "=1"); code {
	case 1: // it would have
	case 0, 3:
		t.Skipf("this system makes no core dumps (%d)", code)
	default:
		t.Fatalf("exit code %d", code)
	}
	if code := dumped(); code != 0 {
		t.Errorf("exit code %d: there was a core dump", code)
	}
}
