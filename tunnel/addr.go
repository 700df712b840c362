package tunnel

import (
	"fmt"
	"net/netip"
)

// Numbers of hosts: below FirstHost are the gateways, and 16 bits are all that an address has room for.
const (
	FirstHost   = 256
	LastHost    = 1<<16 - 1
	LastGateway = 255
)

const (
	ownRange  = 77 // second byte of the addresses of gateways and hosts
	joinRange = 76 // second byte of join addresses
)

// Network is the range all tunnel addresses come from.
func Network() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, joinRange, 0, 0}), 15)
}

// gatewayRange is the part of Network that gateways have their addresses in, and hosts none.
func gatewayRange() netip.Prefix {
	return netip.PrefixFrom(addr(ownRange, 0), 24)
}

// GatewayAddr is the address of gateway n, 1 to LastGateway.
func GatewayAddr(n int) (netip.Addr, error) {
	if n < 1 || n > LastGateway {
		return netip.Addr{}, fmt.Errorf("tunnel: gateway number %d: give each orchestrator its own number from 1 to %d", n, LastGateway)
	}
	return addr(ownRange, n), nil
}

// HostAddr is the own address of host n, FirstHost to LastHost.
func HostAddr(n int) (netip.Addr, error) {
	if err := checkHost(n); err != nil {
		return netip.Addr{}, err
	}
	return addr(ownRange, n), nil
}

// JoinAddr is the join address of host n, FirstHost to LastHost.
func JoinAddr(n int) (netip.Addr, error) {
	if err := checkHost(n); err != nil {
		return netip.Addr{}, err
	}
	return addr(joinRange, n), nil
}

// IsJoin says whether a is the join address of a host.
func IsJoin(a netip.Addr) bool { return number(a, joinRange) >= FirstHost }

// IsHost says whether a is the own address of a host.
func IsHost(a netip.Addr) bool { return number(a, ownRange) >= FirstHost }

// IsGateway says whether a is the address of a gateway.
func IsGateway(a netip.Addr) bool {
	n := number(a, ownRange)
	return n >= 1 && n <= LastGateway
}

// Number is the number of the host that has a as its own or its join address.
func Number(a netip.Addr) (n int, ok bool) {
	n = max(number(a, ownRange), number(a, joinRange))
	return n, n >= FirstHost
}

func checkHost(n int) error {
	if n < FirstHost || n > LastHost {
		return fmt.Errorf("tunnel: host number %d is not between %d and %d", n, FirstHost, LastHost)
	}
	return nil
}

func addr(second byte, n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, second, byte(n >> 8), byte(n)})
}

// number is the last two bytes of an address of the range, or -1.
func number(a netip.Addr, second byte) int {
	a = a.Unmap()
	if !a.Is4() {
		return -1
	}
	b := a.As4()
	if b[0] != 10 || b[1] != second {
		return -1
	}
	return int(b[2])<<8 | int(b[3])
}
