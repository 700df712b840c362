package main

import (
	"errors"
	"net"
	"syscall"
)

func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// netSpace is Linux's; see netspace_linux.go.
type netSpace struct{}

const (
	gatewayAddr = ""
	hostAddr    = ""
)

func newNetSpace() (*netSpace, error) {
	return nil, errors.New("--tunnel tun joins two network namespaces, which only Linux has: use --tunnel netstack")
}

func (*netSpace) enter() error { return nil }

func (*netSpace) listen(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }

func (*netSpace) close() error { return nil }

func unshared() (bool, error) { return false, nil }
