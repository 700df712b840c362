package tunnel

import (
	"os"

	"golang.org/x/sys/unix"
)

// bindTo keeps what a socket sends on one interface, whatever routes there are.
func bindTo(fd uintptr, iface string, _ int) error {
	return os.NewSyscallError("setsockopt SO_BINDTODEVICE", unix.BindToDevice(int(fd), iface))
}
