package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// alias marks kernel interfaces that this program made: a process that was killed leaves its interface behind, and
// only such a one may be replaced.
const alias = "driftstack tunnel"

// openKernel makes an interface of the kernel's WireGuard.
func openKernel(ctx context.Context, cfg deviceConfig) (wgDevice, error) {
	link := &netlink.Wireguard{LinkAttrs: netlink.NewLinkAttrs()}
	link.Name, link.MTU = cfg.Interface, cfg.MTU
	if old, err := netlink.LinkByName(cfg.Interface); err == nil {
		if old.Type() != link.Type() || old.Attrs().Alias != alias {
			return nil, taken(cfg.Interface)
		}
		if err := netlink.LinkDel(old); err != nil {
			return nil, notPermitted(fmt.Errorf("remove the interface %s of an earlier run: %w", cfg.Interface, err))
		}
	}
	err := netlink.LinkAdd(link)
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EAFNOSUPPORT) {
		return nil, fmt.Errorf("%w: this kernel has no WireGuard (%w)", ErrBackend, err)
	}
	if err != nil {
		return nil, notPermitted(fmt.Errorf("make interface %s: %w", cfg.Interface, err))
	}
	release := func() error { return netlink.LinkDel(link) }
	if err := netlink.LinkSetAlias(link, alias); err != nil {
		return nil, errors.Join(err, release())
	}
	d, err := newCtlDevice(cfg.Interface, cfg.Addr, make(chan struct{}), release)
	if err != nil {
		return nil, errors.Join(err, release())
	}
	key := wgtypes.Key(cfg.Key)
	if err = d.apply(ctx, wgtypes.Config{PrivateKey: &key, ListenPort: &cfg.Port}); err == nil {
		err = configureInterface(ctx, cfg.Interface, cfg)
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// checkTUN returns the name to ask for. An interface that exists is never taken over.
func checkTUN(iface string) (string, error) {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return "", fmt.Errorf("%w: %w", ErrBackend, err)
	}
	if _, err := net.InterfaceByName(iface); err == nil {
		return "", taken(iface)
	}
	return iface, nil
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
