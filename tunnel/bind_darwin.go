package tunnel

import (
	"os"

	"golang.org/x/sys/unix"
)

// bindTo keeps what a socket sends on one interface, whatever routes there are.
func bindTo(fd uintptr, _ string, index int) error {
	return os.NewSyscallError("setsockopt IP_BOUND_IF", unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BOUND_IF, index))
}
