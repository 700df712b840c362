package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The two ends of the wire between the namespaces, in the stead of the Internet. Outside the tunnel's own range.
const (
	gatewayAddr = "10.99.0.1"
	hostAddr    = "10.99.0.2"
	wirePrefix  = "/30"
)

// netSpace is a second network namespace, the driver host's, joined to ours by a veth pair. It has no name in the file
// system: it ends with the last process and descriptor that uses it, and the pair with it.
type netSpace struct{ ns *os.File }

// unshared moves the whole of devstack into a network namespace of its own, so that interfaces and routes of the
// machine stay as they are. It does so by executing devstack again and returns only in the new one, or with an error.
func unshared() (bool, error) {
	const mark = "DEVSTACK_UNSHARED"
	if os.Getenv(mark) != "" {
		if err := os.Unsetenv(mark); err != nil {
			return false, err
		}
		return true, loopbackUp()
	}
	if os.Geteuid() != 0 {
		return false, errors.New("--tunnel tun makes network namespaces and TUN devices, which takes root: use sudo, or --tunnel netstack")
	}
	self, err := os.Executable()
	if err != nil {
		return false, err
	}
	runtime.LockOSThread() // exec continues on this thread, with its namespaces
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return false, fmt.Errorf("make a network namespace: %w", err)
	}
	return false, syscall.Exec(self, os.Args, append(os.Environ(), mark+"=1"))
}

func newNetSpace() (*netSpace, error) {
	type result struct {
		ns  *os.File
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{nil, fmt.Errorf("make a network namespace: %w", err)}
			return
		}
		ns, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		made <- result{ns, errors.Join(err, loopbackUp())}
	}()
	r := <-made
	if r.err != nil {
		return nil, r.err
	}
	s := &netSpace{r.ns}
	if err := s.join(); err != nil {
		return nil, errors.Join(fmt.Errorf("join the network namespaces: %w", err), s.close())
	}
	return s, nil
}

// join lays the veth pair.
func (s *netSpace) join() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "ds-eu"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "ds-host", PeerNamespace: netlink.NsFd(s.ns.Fd())}); err != nil {
		return err
	}
	if err := linkUp("ds-eu", gatewayAddr); err != nil {
		return err
	}
	return s.do(func() error { return linkUp("ds-host", hostAddr) })
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return netlink.LinkSetUp(lo)
}

func linkUp(name, addr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr + wirePrefix)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, a); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// enter moves the calling thread, which must be locked and must not be unlocked again. A nil space is ours.
func (s *netSpace) enter() error {
	if s == nil {
		return nil
	}
	if err := unix.Setns(int(s.ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the host's network namespace: %w", err)
	}
	return nil
}

// do runs f on a thread inside the namespace.
func (s *netSpace) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := s.enter(); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// listen opens a TCP listener inside the namespace; it can be served from anywhere.
func (s *netSpace) listen(addr string) (l net.Listener, err error) {
	if s == nil {
		return net.Listen("tcp", addr)
	}
	err = s.do(func() error {
		l, err = net.Listen("tcp", addr)
		return err
	})
	return l, err
}

func (s *netSpace) close() error {
	if s == nil {
		return nil
	}
	return s.ns.Close()
}
