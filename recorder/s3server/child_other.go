//go:build !linux

package s3server

import "syscall"

// childAttr puts the child into a process group of its own.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
