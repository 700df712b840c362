// Package coredump keeps a crash from writing what a process has in memory to a disk: among it are cookies and keys.
//
// Out of scope: swap. A machine of ours has none, or an encrypted one.
package coredump

import (
	"fmt"
	"syscall"
)

// Disable has neither this process nor those that it starts dump core; a browser's memory holds what ours does. It is a limit that
// is inherited, not Linux's PR_SET_DUMPABLE, which the next exec undoes and which hides /proc/self from its own metrics.
func Disable() error {
	var now syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_CORE, &now)
	if err == nil {
		most := min(limit, now.Max) // what is lower already cannot be raised
		err = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: most, Max: most})
	}
	if err != nil {
		return fmt.Errorf("core dumps cannot be turned off: %w", err)
	}
	return nil
}
