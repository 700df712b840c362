package s3server

import "syscall"

// childAttr puts the child into a process group of its own and has the kernel kill it when the thread that started it is gone.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
