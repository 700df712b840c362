package main

import "syscall"

// childAttr has the system kill the child when devstack is killed. Not a polite signal: all children get it at once, and an
// orchestrator without its database takes long to give up.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
