package outbound

import (
	"net/netip"
	"slices"
	"strings"
)

// Loopback are the addresses that a machine has for itself.
func Loopback() []netip.Prefix { return parse("127.0.0.0/8", "::1/128") }

// Private are the ranges that anybody may give to machines of his own. Source: RFC 1918, RFC 6598, RFC 4193.
func Private() []netip.Prefix {
	return parse("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
}

// Test are the ranges that are nobody's, for networks of tests. Source: RFC 5737, RFC 2544, RFC 3849.
func Test() []netip.Prefix {
	return parse("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15", "2001:db8::/32")
}

// Special are the ranges besides in which no host on the Internet is. Source: https://www.iana.org/assignments/iana-ipv4-special-registry and
// …/iana-ipv6-special-registry; those that embed an IPv4 address (6to4, Teredo, NAT64) are among them, because what they lead to is that.
func special() []netip.Prefix {
	return parse("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"::/128", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2002::/16", "fe80::/10", "ff00::/8")
}

// Public says whether an address is one of the Internet.
func Public(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsValid() && !within(slices.Concat(Loopback(), Private(), Test(), special()), a)
}

func within(list []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

func parse(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func prefixes(list []netip.Prefix) string {
	var all []string
	for _, p := range list {
		all = append(all, p.String())
	}
	return strings.Join(all, ", ")
}
