package tunneltest

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

// Bare is one end of a tunnel without any code of ours: wireguard-go on its own tun/netstack, configured by hand. What
// package tunnel costs is measured against it.
type Bare struct {
	Addr netip.Addr
	net  *netstack.Net
	dev  *device.Device
}

// OpenBare opens an end with a new key and no peers, on a UDP port of its own.
func OpenBare(addr netip.Addr, mtu int) (*Bare, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return OpenBareWith(addr, mtu, key)
}

// OpenBareWith is OpenBare with a key.
func OpenBareWith(addr netip.Addr, mtu int, key *ecdh.PrivateKey) (*Bare, error) {
	t, stack, err := netstack.CreateNetTUN([]netip.Addr{addr}, nil, mtu)
	if err != nil {
		return nil, err
	}
	b := &Bare{Addr: addr, net: stack, dev: device.NewDevice(t, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))}
	if err := b.Set("private_key=" + hex.EncodeToString(key.Bytes()) + "\nlisten_port=0\n"); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	if err := b.dev.Up(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// BarePair opens two ends that know each other: only host knows where gateway is, and reaches it at what via makes of its UDP
// address, for example a relay. A nil via is loopback.
func BarePair(mtu int, via func(netip.AddrPort) (netip.AddrPort, error)) (host, gateway *Bare, err error) {
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return nil, nil, err
		}
	}
	public := func(i int) string { return hex.EncodeToString(keys[i].PublicKey().Bytes()) }
	if host, err = OpenBareWith(netip.MustParseAddr("10.99.0.2"), mtu, keys[0]); err != nil {
		return nil, nil, err
	}
	if gateway, err = OpenBareWith(netip.MustParseAddr("10.99.0.1"), mtu, keys[1]); err != nil {
		return nil, nil, errors.Join(err, host.Close())
	}
	fail := func(err error) (*Bare, *Bare, error) {
		return nil, nil, errors.Join(err, host.Close(), gateway.Close())
	}
	port, err := gateway.port()
	if err != nil {
		return fail(err)
	}
	endpoint := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
	if via != nil {
		if endpoint, err = via(endpoint); err != nil {
			return fail(err)
		}
	}
	err = errors.Join(
		gateway.Set(fmt.Sprintf("public_key=%s\nallowed_ip=%s/32\n", public(0), host.Addr)),
		host.Set(fmt.Sprintf("public_key=%s\nallowed_ip=%s/32\nendpoint=%s\npersistent_keepalive_interval=15\n", public(1), gateway.Addr, endpoint)),
	)
	if err != nil {
		return fail(err)
	}
	return host, gateway, nil
}

// Set configures the device with one call, in WireGuard's cross-platform configuration protocol.
func (b *Bare) Set(config string) error { return b.dev.IpcSet(config) }

func (b *Bare) port() (uint16, error) {
	s, err := b.dev.IpcGet()
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(s) {
		if value, ok := strings.CutPrefix(line, "listen_port="); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 16)
			return uint16(n), err
		}
	}
	return 0, errors.New("tunneltest: the device has no port")
}

// Listen listens for TCP on the end's address.
func (b *Bare) Listen(port uint16) (net.Listener, error) {
	l, err := b.net.ListenTCPAddrPort(netip.AddrPortFrom(b.Addr, port))
	if err != nil {
		return nil, err
	}
	return l, nil
}

// DialContext dials an address of the other end.
func (b *Bare) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return b.net.DialContext(ctx, network, address)
}

// Close stops the device. The stack behind one that carried traffic stays: tun/netstack panics when it is closed
// while it sends, which is one of the reasons not to use it.
func (b *Bare) Close() error { return b.dev.Down() }

// Discard closes a device that never carried traffic, and everything it holds.
func (b *Bare) Discard() { b.dev.Close() }
