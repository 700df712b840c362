package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"
)

// alias marks kernel interfaces that this program made: a process that was killed leaves its interface behind, and
// only such a one may be replaced.
const alias = "driftstack tunnel"

// openKernel makes an interface of the kernel's WireGuard.
func openKernel(ctx context.Context, cfg deviceConfig) (wgDevice, error) {
	link := &netlink.Wireguard{LinkAttrs: netlink.NewLinkAttrs()}
	link.Name, link.MTU = cfg.Interface, cfg.MTU
	if err := clearKernel(cfg); err != nil {
		return nil, err
	}
	err := netlink.LinkAdd(link)
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EAFNOSUPPORT) {
		return nil, fmt.Errorf("%w: this kernel has no WireGuard (%w)", ErrBackend, err)
	}
	if err != nil {
		return nil, notPermitted(fmt.Errorf("make interface %s: %w", cfg.Interface, err))
	}
	release := func() error {
		if err := netlink.LinkDel(link); !errors.Is(err, syscall.ENODEV) { // someone else was faster
			return err
		}
		return nil
	}
	if err := netlink.LinkSetAlias(link, alias); err != nil {
		return nil, errors.Join(err, release())
	}
	d, err := newCtlDevice(cfg, cfg.Interface, make(chan struct{}), ends{release: release, abandon: func() {}})
	if err != nil {
		return nil, errors.Join(err, release())
	}
	if err := d.start(ctx, cfg); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// clearKernel removes the interface of an earlier run, or what took the place of ours meanwhile.
func clearKernel(cfg deviceConfig) error {
	old, err := netlink.LinkByName(cfg.Interface)
	if err != nil {
		return nil // the usual case; another trouble shows when the interface is made
	}
	if !cfg.Ours && (old.Type() != (&netlink.Wireguard{}).Type() || old.Attrs().Alias != alias) {
		return taken(cfg.Interface)
	}
	if err := netlink.LinkDel(old); err != nil {
		return notPermitted(fmt.Errorf("remove the former interface %s: %w", cfg.Interface, err))
	}
	return nil
}

// checkTUN returns the name to ask for. An interface that exists is never taken over, but for one that stands where ours
// was a moment ago: interface and socket of that name are removed.
func checkTUN(iface string, ours bool) (string, error) {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return "", fmt.Errorf("%w: %w", ErrBackend, err)
	}
	if old, err := netlink.LinkByName(iface); err == nil && !ours {
		return "", taken(iface)
	} else if err == nil {
		if err := netlink.LinkDel(old); err != nil {
			return "", notPermitted(fmt.Errorf("remove what took the place of interface %s: %w", iface, err))
		}
	}
	if ours {
		_ = os.Remove(filepath.Join("/var/run/wireguard", iface+".sock")) // there is one only if someone else made it
	}
	return iface, nil
}

// checkRoutes says which routes the interface has lost.
func checkRoutes(index int, want []netip.Prefix) error {
	for _, r := range want {
		dst := ipNet(r)
		have, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: index, Dst: &dst}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST)
		if err != nil {
			return fmt.Errorf("read the routes: %w", err)
		}
		if len(have) == 0 {
			return fmt.Errorf("%w: it has lost its route to %s", ErrDeviceAlien, r)
		}
	}
	return nil
}

func taken(iface string) error {
	return fmt.Errorf("interface %s exists already and is not ours: stop what uses it, or configure another interface name", iface)
}

// configureInterface gives the interface its address and routes and brings it up. It adds and never replaces: an
// address or route that is there already belongs to someone else.
func configureInterface(_ context.Context, iface string, cfg deviceConfig) error {
	link, err := netlink.LinkByName(iface)
	if err != nil {
		return fmt.Errorf("interface %s: %w", iface, err)
	}
	own := ipNet(netip.PrefixFrom(cfg.Addr, cfg.Addr.BitLen()))
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &own}); err != nil {
		return fmt.Errorf("interface %s: add address %s: %w", iface, cfg.Addr, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("interface %s: bring up: %w", iface, err)
	}
	for _, r := range cfg.Routes {
		dst := ipNet(r)
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: &dst, Scope: netlink.SCOPE_LINK, Src: own.IP}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("interface %s: add route to %s: %w (another tunnel on this machine may have it)", iface, r, err)
		}
	}
	return nil
}

func setInterfaceMTU(_ context.Context, iface string, mtu int) error {
	link, err := netlink.LinkByName(iface)
	var absent netlink.LinkNotFoundError
	if errors.As(err, &absent) {
		err = syscall.ENODEV
	} else if err == nil {
		err = netlink.LinkSetMTU(link, mtu)
	}
	if err != nil {
		return fmt.Errorf("interface %s: MTU %d: %w", iface, mtu, err)
	}
	return nil
}
