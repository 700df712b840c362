package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// openKernel: macOS has no WireGuard in its kernel.
func openKernel(context.Context, deviceConfig) (wgDevice, error) {
	return nil, fmt.Errorf("%w: macOS has no WireGuard in its kernel", ErrBackend)
}

// checkTUN returns the name to ask for: macOS numbers its utun interfaces itself.
func checkTUN(string, bool) (string, error) {
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("%w: only root may make utun interfaces: use sudo, or the netstack backend", ErrBackend)
	}
	return "utun", nil
}

// checkRoutes finds nothing: gateways, which check theirs, are Linux's.
func checkRoutes(int, []netip.Prefix) error { return nil }

// configureInterface gives the interface its address and routes and brings it up.
func configureInterface(ctx context.Context, iface string, cfg deviceConfig) error {
	a := cfg.Addr.String()
	if err := run(ctx, "/sbin/ifconfig", iface, "inet", a, a, "netmask", "255.255.255.255", "mtu", strconv.Itoa(cfg.MTU), "up"); err != nil {
		return err
	}
	for _, r := range cfg.Routes {
		if err := run(ctx, "/sbin/route", "-n", "add", "-net", netip.PrefixFrom(r.Addr(), r.Bits()).String(), "-interface", iface); err != nil {
			return err
		}
	}
	return nil
}

func setInterfaceMTU(ctx context.Context, iface string, mtu int) error {
	return run(ctx, "/sbin/ifconfig", iface, "mtu", strconv.Itoa(mtu))
}

func run(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err == nil && strings.Contains(string(out), "routing socket") {
		err = errors.New("no route was added") // route ends with 0 all the same
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
