package tunnel

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ruleChain is a chain and its rules in order.
type ruleChain struct {
	chain nftables.Chain
	rules [][]expr.Any
}

// chains is the content of the table; see isolation.
func (i *isolation) chains() []ruleChain {
	base := func(name string, hook *nftables.ChainHook, rules ...[]expr.Any) ruleChain {
		policy := nftables.ChainPolicyAccept // what has nothing to do with the tunnel is none of our business
		return ruleChain{nftables.Chain{
			Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRef(-10), Policy: &policy,
		}, rules}
	}
	in, out := ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, i.iface), ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq, i.iface)
	request := slices.Concat(in, overIPv4(), address(ipSource, Network()), address(ipDestination, single(i.addr)))
	reply := slices.Concat(out, overIPv4(), address(ipSource, single(i.addr)), address(ipDestination, Network()))
	const echoReply, echoRequest = 0, 8 // ICMP types, RFC 792
	accept, drop := verdict(expr.VerdictAccept), verdict(expr.VerdictDrop)
	return []ruleChain{
		base("input", nftables.ChainHookInput,
			slices.Concat(request, protocol(unix.IPPROTO_TCP), port(tcpDestination, i.port), accept),
			slices.Concat(request, protocol(unix.IPPROTO_ICMP), icmpType(echoRequest), accept),
			slices.Concat(in, drop),
			slices.Concat(overIPv4(), address(ipDestination, single(i.addr)), ifname(expr.MetaKeyIIFNAME, expr.CmpOpNeq, i.iface),
				ifname(expr.MetaKeyIIFNAME, expr.CmpOpNeq, "lo"), drop),
		),
		base("forward", nftables.ChainHookForward, slices.Concat(in, drop), slices.Concat(out, drop)),
		base("output", nftables.ChainHookOutput,
			slices.Concat(reply, protocol(unix.IPPROTO_TCP), port(tcpSource, i.port), notSYN(), accept),
			slices.Concat(reply, protocol(unix.IPPROTO_ICMP), icmpType(echoReply), accept),
			slices.Concat(out, drop),
		),
	}
}

// Offsets in the headers of IPv4 and TCP, RFC 791 and 9293.
const (
	ipSource       = 12
	ipDestination  = 16
	tcpSource      = 0
	tcpDestination = 2
	tcpFlags       = 13
)

func ifname(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: b}}
}

func overIPv4() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equals(unix.NFPROTO_IPV4)}
}

func protocol(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equals(p)}
}

func address(offset uint32, p netip.Prefix) []expr.Any {
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	return []expr.Any{
		load(expr.PayloadBaseNetworkHeader, offset, 4),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		equals(p.Masked().Addr().AsSlice()...),
	}
}

func port(offset uint32, p uint16) []expr.Any {
	return []expr.Any{load(expr.PayloadBaseTransportHeader, offset, 2), equals(binary.BigEndian.AppendUint16(nil, p)...)}
}

func icmpType(t byte) []expr.Any {
	return []expr.Any{load(expr.PayloadBaseTransportHeader, 0, 1), equals(t)}
}

// notSYN matches all of TCP but the packet that begins a connection: SYN set and ACK not.
func notSYN() []expr.Any {
	const syn, ack = 0x02, 0x10
	return []expr.Any{
		load(expr.PayloadBaseTransportHeader, tcpFlags, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn | ack}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{syn}},
	}
}

func load(base expr.PayloadBase, offset, size uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: size}
}

func equals(b ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b} }

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }
