package tunnel

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// book is what a gateway knows without asking anyone: the peers that are wanted, by host, and the device's table as it
// was read back last, with the changes sent since. With it the peers of one host are compared and sent without a look at
// all the others; what someone else does to the device is found by reading back.
type book struct {
	own    Key
	listed bool // hosts holds every host

	hosts    map[string][]Peer     // as the source says
	keys     map[Key][]Peer        // who wants it; more than one is a mistake or an attack
	addrs    map[netip.Addr][]Peer // likewise
	accepted map[Key]Peer          // those that may be on the device
	have     table

	waiting  map[Key]bool  // next keys without a handshake so far
	promoted map[heir]bool // next keys that made one; true once the source knows
}

// heir is the next key of a host.
type heir struct {
	host string
	key  Key
}

func newBook(own Key) *book {
	b := &book{own: own, have: table{}, promoted: map[heir]bool{}}
	b.clear()
	return b
}

func (b *book) clear() {
	b.hosts, b.keys, b.addrs = map[string][]Peer{}, map[Key][]Peer{}, map[netip.Addr][]Peer{}
	b.accepted, b.waiting = map[Key]Peer{}, map[Key]bool{}
}

// replace takes the whole list, for a device that has what have says.
func (b *book) replace(want []Peer, have table) error {
	b.clear()
	b.listed, b.have = true, have
	for _, p := range want {
		b.hosts[p.Host] = append(b.hosts[p.Host], p)
	}
	gone := maps.Clone(b.promoted)
	all := make([]Peer, 0, len(want))
	for host, peers := range b.hosts {
		for _, p := range peers {
			if p.Next {
				delete(gone, heir{host, p.PublicKey})
			}
		}
		for _, p := range b.of(host) {
			b.claim(p)
			all = append(all, p)
		}
	}
	for k := range gone {
		delete(b.promoted, k) // the source says so itself by now, or the host is gone
	}
	accepted, refused := accept(inOrder(all), have, b.own)
	b.take(accepted)
	return refused
}

// update takes the peers of one host and returns what that changes on the device.
func (b *book) update(host string, want []Peer) (changes, error) {
	return b.change(host, func() {
		former := b.hosts[host]
		delete(b.hosts, host)
		if len(want) > 0 {
			b.hosts[host] = slices.Clone(want)
		}
		for _, p := range slices.Concat(former, want) {
			next := func(q Peer) bool { return q.Next && q.PublicKey == p.PublicKey }
			if !slices.ContainsFunc(want, next) {
				delete(b.promoted, heir{host, p.PublicKey}) // as in replace
			}
		}
	})
}

// promote gives p's host its address under the key p, and returns what that changes on the device.
func (b *book) promote(p Peer) (changes, error) {
	return b.change(p.Host, func() { b.promoted[heir{p.Host, p.PublicKey}] = false })
}

// change judges a host anew after edit, and with it whom its keys and addresses touch, so that the outcome is the one of
// replace.
func (b *book) change(host string, edit func()) (changes, error) {
	old := b.of(host)
	for _, p := range old {
		b.unclaim(p)
	}
	edit()
	now := b.of(host)
	for _, p := range now {
		b.claim(p)
	}
	near := b.around(slices.Concat(old, now))
	accepted, refused := accept(inOrder(near), b.have, b.own)
	part := table{}
	for _, p := range slices.Concat(old, near) {
		if e, ok := b.have[p.PublicKey]; ok {
			part[p.PublicKey] = e
		}
		delete(b.accepted, p.PublicKey)
		delete(b.waiting, p.PublicKey)
	}
	b.take(accepted)
	return diff(accepted, part), refused
}

// of is the peers of a host, where its next key has the address once that has made a handshake here. The source says
// the same as soon as it knows.
func (b *book) of(host string) []Peer {
	peers := slices.Clone(b.hosts[host])
	i := slices.IndexFunc(peers, func(p Peer) bool { return p.Next && b.succeeded(p) })
	if i < 0 {
		return peers
	}
	at := peers[i].Addr
	for j := range peers {
		if peers[j].Addr == at {
			peers[j].Next = i != j
		}
	}
	return peers
}

func (b *book) succeeded(p Peer) bool {
	_, done := b.promoted[heir{p.Host, p.PublicKey}]
	return done
}

func (b *book) take(accepted []Peer) {
	for _, p := range accepted {
		b.accepted[p.PublicKey] = p
		// A former own key without its address waits for nothing.
		if p.Next && slices.ContainsFunc(b.hosts[p.Host], func(q Peer) bool { return q.Next && q.PublicKey == p.PublicKey }) {
			b.waiting[p.PublicKey] = true
		}
	}
}

// applied notes changes that a device has accepted.
func (b *book) applied(c changes) {
	for _, k := range c.Remove {
		delete(b.have, k)
	}
	for _, p := range slices.Concat(c.Update, c.Add) {
		b.have[p.PublicKey] = p.entry()
	}
}

// wanted is all accepted peers.
func (b *book) wanted() []Peer {
	out := make([]Peer, 0, len(b.accepted))
	for _, p := range b.accepted {
		out = append(out, p)
	}
	return out
}

// hostAt is the host that has an address.
func (b *book) hostAt(a netip.Addr) string {
	if who := b.addrs[a]; len(who) > 0 {
		return who[0].Host
	}
	return ""
}

// keyAt is the key that is accepted from an address; zero: none is.
func (b *book) keyAt(a netip.Addr) Key {
	for _, p := range b.addrs[a] {
		if _, ok := b.accepted[p.PublicKey]; ok {
			return p.PublicKey
		}
	}
	return Key{}
}

func (b *book) claim(p Peer) {
	b.keys[p.PublicKey] = append(b.keys[p.PublicKey], p)
	if !p.Next {
		b.addrs[p.Addr] = append(b.addrs[p.Addr], p)
	}
}

func (b *book) unclaim(p Peer) {
	drop(b.keys, p.PublicKey, p)
	if !p.Next {
		drop(b.addrs, p.Addr, p)
	}
}

func drop[K comparable](m map[K][]Peer, k K, p Peer) {
	left := m[k]
	if i := slices.Index(left, p); i >= 0 {
		left = slices.Delete(slices.Clone(left), i, i+1)
	}
	if m[k] = left; len(left) == 0 {
		delete(m, k)
	}
}

// around is every peer that wants a key or an address of peers, of those that want one of theirs, and so on.
func (b *book) around(peers []Peer) []Peer {
	var out []Peer
	keys, addrs := map[Key]bool{}, map[netip.Addr]bool{}
	for todo := slices.Clone(peers); len(todo) > 0; {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !keys[p.PublicKey] {
			keys[p.PublicKey] = true
			out = append(out, b.keys[p.PublicKey]...)
			todo = append(todo, b.keys[p.PublicKey]...)
		}
		if !p.Next && !addrs[p.Addr] {
			addrs[p.Addr] = true
			todo = append(todo, b.addrs[p.Addr]...)
		}
	}
	return out
}

// inOrder makes what is decided by order the same whoever lists the peers.
func inOrder(peers []Peer) []Peer {
	slices.SortFunc(peers, func(a, b Peer) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Name, b.Name), compareKeys(a.PublicKey, b.PublicKey), a.Addr.Compare(b.Addr))
	})
	return peers
}
