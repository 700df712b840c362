package tunnel

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// ErrPeer is wrapped by every error about a peer that a gateway refuses to configure.
var ErrPeer = errors.New("peer refused")

// DuplicatePeerError names two peers that claim the same key or address. The device would silently give it to the later.
type DuplicatePeerError struct {
	First, Second string // names of the peers
	What          string // the key or address both claim
}

// Error implements error.
func (e *DuplicatePeerError) Error() string {
	return fmt.Sprintf("tunnel: %v: %q and %q both claim %s", ErrPeer, e.First, e.Second, e.What)
}

// Unwrap makes it an ErrPeer.
func (e *DuplicatePeerError) Unwrap() error { return ErrPeer }

// entry is what a device knows of a peer that a gateway decides. The fields of this and of changes have exported names
// because fmt calls no methods, and so redacts no key, behind unexported ones.
type entry struct {
	PSK   PresharedKey
	Addrs []netip.Prefix // allowed addresses, sorted
}

// table is the peers of a device.
type table map[Key]entry

func tableOf(d *wgtypes.Device) table {
	t := make(table, len(d.Peers))
	for _, p := range d.Peers {
		e := entry{PSK: PresharedKey(p.PresharedKey)}
		for _, ip := range p.AllowedIPs {
			e.Addrs = append(e.Addrs, prefix(ip))
		}
		slices.SortFunc(e.Addrs, comparePrefixes)
		t[Key(p.PublicKey)] = e
	}
	return t
}

func (p Peer) entry() entry { return entry{PSK: p.PresharedKey, Addrs: p.allowed()} }

// allowed is what p may send from, and is sent.
func (p Peer) allowed() []netip.Prefix {
	if p.Next {
		return nil
	}
	return []netip.Prefix{single(p.Addr)}
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func (e entry) equal(f entry) bool { return e.PSK == f.PSK && slices.Equal(e.Addrs, f.Addrs) }

// changes turns one table into another. A peer is in at most one of the lists, and in none when it stays as it is.
type changes struct {
	Remove []Key  // go first, so that their addresses are free
	Update []Peer // are there, and get another address or preshared key
	Add    []Peer
}

func (c changes) size() int { return len(c.Remove) + len(c.Update) + len(c.Add) }

// diff says what turns have into want, which accept has checked.
func diff(want []Peer, have table) changes {
	var c changes
	keep := make(map[Key]bool, len(want))
	for _, p := range want {
		keep[p.PublicKey] = true
		switch old, ok := have[p.PublicKey]; {
		case !ok:
			c.Add = append(c.Add, p)
		case !old.equal(p.entry()):
			c.Update = append(c.Update, p)
		}
	}
	for k := range have {
		if !keep[k] {
			c.Remove = append(c.Remove, k)
		}
	}
	slices.SortFunc(c.Remove, compareKeys)
	byKey := func(a, b Peer) int { return compareKeys(a.PublicKey, b.PublicKey) }
	slices.SortFunc(c.Update, byKey)
	slices.SortFunc(c.Add, byKey)
	return c
}

// accept returns the peers that may be configured, and an error for each that may not. Of peers that claim the same key
// or address only one that the device has already exactly so is accepted: a mistake in one entry, or an attack, must
// not take the link of another host, nor stop the rest from being configured.
func accept(want []Peer, have table, own Key) ([]Peer, error) {
	var errs []error
	ok := make([]Peer, 0, len(want))
	for _, p := range want {
		if err := p.check(own); err != nil {
			errs = append(errs, err)
			continue
		}
		ok = append(ok, p)
	}
	// Those on the device come first and so win.
	slices.SortStableFunc(ok, func(a, b Peer) int { return cmp.Compare(rank(a, have), rank(b, have)) })
	keys, addrs := make(map[Key]int, len(ok)), make(map[netip.Addr]int, len(ok))
	refused := make([]bool, len(ok))
	clash := func(i, j int, what string) {
		errs = append(errs, &DuplicatePeerError{First: ok[i].Name, Second: ok[j].Name, What: what})
		refused[j] = true
		if rank(ok[i], have) != 0 {
			refused[i] = true // nobody knows which of the two is right
		}
	}
	for j, p := range ok {
		if i, there := keys[p.PublicKey]; there {
			clash(i, j, "key "+p.PublicKey.String())
		} else {
			keys[p.PublicKey] = j
		}
		if p.Next {
			continue // has no address yet
		}
		if i, there := addrs[p.Addr]; there {
			clash(i, j, "address "+p.Addr.String())
		} else {
			addrs[p.Addr] = j
		}
	}
	accepted := make([]Peer, 0, len(ok))
	for i, p := range ok {
		if !refused[i] {
			accepted = append(accepted, p)
		}
	}
	return accepted, errors.Join(errs...)
}

func rank(p Peer, have table) int {
	if e, ok := have[p.PublicKey]; ok && e.equal(p.entry()) {
		return 0
	}
	return 1
}

func (p Peer) check(own Key) error {
	switch {
	case p.PublicKey == Key{}:
		return fmt.Errorf("tunnel: %w: %q has no public key", ErrPeer, p.Name)
	case p.PublicKey == own:
		return fmt.Errorf("tunnel: %w: %q has the key of this gateway", ErrPeer, p.Name) // devices drop it without a word
	case p.PresharedKey == PresharedKey{}:
		return fmt.Errorf("tunnel: %w: %q has no preshared key", ErrPeer, p.Name)
	case !p.Addr.Is4() || !IsHost(p.Addr) && !IsJoin(p.Addr):
		return fmt.Errorf("tunnel: %w: %q has address %s, which is no host's", ErrPeer, p.Name, p.Addr)
	}
	return nil
}

// batch is how many peers go into one call, so that each call is short enough for its deadline.
const batch = 1000

// configs renders the changes as calls to a device: removals first.
func (c changes) configs() []wgtypes.Config {
	peers := make([]wgtypes.PeerConfig, 0, c.size())
	for _, k := range c.Remove {
		peers = append(peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(k), Remove: true})
	}
	for _, p := range c.Update {
		pc := p.config()
		pc.UpdateOnly = true // one that vanished meanwhile is found by reading back, and added then
		peers = append(peers, pc)
	}
	for _, p := range c.Add {
		peers = append(peers, p.config())
	}
	var out []wgtypes.Config
	for part := range slices.Chunk(peers, batch) {
		out = append(out, wgtypes.Config{Peers: part})
	}
	return out
}

func (p Peer) config() wgtypes.PeerConfig {
	psk := wgtypes.Key(p.PresharedKey)
	pc := wgtypes.PeerConfig{PublicKey: wgtypes.Key(p.PublicKey), PresharedKey: &psk, ReplaceAllowedIPs: true}
	for _, a := range p.allowed() {
		pc.AllowedIPs = append(pc.AllowedIPs, ipNet(a))
	}
	return pc
}

func prefix(ip net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(ip.IP)
	bits, size := ip.Mask.Size()
	if a.Is4In6() && size == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, bits)
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func compareKeys(a, b Key) int { return bytes.Compare(a[:], b[:]) }
