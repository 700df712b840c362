package tunnel

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"
)

// model is a WireGuard device as the protocol defines it, with its traps: update-only of an absent peer does nothing,
// and an address moves to whoever is given it last.
type model table

func (m model) apply(cfg wgtypes.Config) {
	for _, p := range cfg.Peers {
		k := Key(p.PublicKey)
		if p.Remove {
			delete(m, k)
			continue
		}
		e, ok := m[k]
		if !ok && p.UpdateOnly {
			continue
		}
		if p.PresharedKey != nil {
			e.PSK = PresharedKey(*p.PresharedKey)
		}
		if p.ReplaceAllowedIPs {
			e.Addrs = nil
		}
		for _, ip := range p.AllowedIPs {
			a := prefix(ip)
			e.Addrs = slices.DeleteFunc(slices.Clone(e.Addrs), func(b netip.Prefix) bool { return a == b })
			for other, oe := range m {
				oe.Addrs = slices.DeleteFunc(slices.Clone(oe.Addrs), func(b netip.Prefix) bool { return a == b })
				m[other] = oe
			}
			e.Addrs = append(slices.Clone(e.Addrs), a)
		}
		slices.SortFunc(e.Addrs, comparePrefixes)
		m[k] = e
	}
}

func (m model) equal(want []Peer) bool {
	if len(m) != len(want) {
		return false
	}
	for _, p := range want {
		if e, ok := m[p.PublicKey]; !ok || !e.equal(p.entry()) {
			return false
		}
	}
	return true
}

// drawPeers draws peers out of few keys and addresses, so that they meet. Names tell them apart.
func drawPeers(t *rapid.T, label string, unique bool) []Peer {
	peers := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Peer {
		return Peer{
			PublicKey:    Key{byte(rapid.IntRange(1, 12).Draw(t, "key"))},
			PresharedKey: PresharedKey{byte(rapid.IntRange(1, 3).Draw(t, "psk"))},
			Addr:         addr(rapid.SampledFrom([]byte{ownRange, joinRange}).Draw(t, "range"), rapid.IntRange(256, 262).Draw(t, "n")),
		}
	}), 0, 12).Draw(t, label)
	var out []Peer
	for i, p := range peers {
		p.Name = string(rune('a' + i))
		clash := slices.ContainsFunc(out, func(q Peer) bool { return q.PublicKey == p.PublicKey || q.Addr == p.Addr })
		if !unique || !clash {
			out = append(out, p)
		}
	}
	return out
}

func drawTable(t *rapid.T) table {
	have := table{}
	for _, p := range drawPeers(t, "have", true) {
		e := p.entry()
		switch rapid.IntRange(0, 5).Draw(t, "addresses") {
		case 0:
			e.Addrs = nil // it lost its address to another
		case 1:
			e.Addrs = append(e.Addrs, netip.MustParsePrefix("0.0.0.0/0")) // someone else's idea
			slices.SortFunc(e.Addrs, comparePrefixes)
		}
		have[p.PublicKey] = e
	}
	return have
}

// TestDiffConverges: applied to what a device has, the changes give what is wanted, whatever order batches have; a peer
// that is right is not in them; and there is nothing to change then.
func TestDiffConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want, have := drawPeers(t, "want", true), drawTable(t)
		c := diff(want, have)
		m := model(maps.Clone(have))
		touched := map[Key]int{}
		for _, cfg := range c.configs() {
			if cfg.ReplacePeers || cfg.ListenPort != nil || cfg.PrivateKey != nil {
				t.Fatalf("the changes touch the device itself: %+v", cfg)
			}
			added := false
			for _, p := range cfg.Peers {
				touched[Key(p.PublicKey)]++
				added = added || !p.Remove
				if p.Remove && added {
					t.Fatal("a peer is removed after another was added")
				}
			}
			m.apply(cfg)
		}
		if !m.equal(want) {
			t.Fatalf("want %v\nhave %v\ngot  %v", want, have, m)
		}
		for _, p := range want {
			if old, ok := have[p.PublicKey]; ok && old.equal(p.entry()) && touched[p.PublicKey] != 0 {
				t.Fatalf("%s is touched", p.Name)
			}
		}
		for k, n := range touched {
			if n > 1 {
				t.Fatalf("%s is sent %d times", k, n)
			}
		}
		if again := diff(want, table(m)); again.size() != 0 {
			t.Fatalf("not idempotent: %+v", again)
		}
	})
}

// TestAccept: what is accepted has no duplicates, nobody on the device loses key or address to a newcomer, and every
// peer left out is named.
func TestAccept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want, have := drawPeers(t, "want", false), drawTable(t)
		got, err := accept(want, have, Key{99})
		keys, addrs := map[Key]bool{}, map[netip.Addr]bool{}
		for _, p := range got {
			if keys[p.PublicKey] || addrs[p.Addr] {
				t.Fatalf("duplicate in %v", got)
			}
			keys[p.PublicKey], addrs[p.Addr] = true, true
		}
		if (err == nil) != (len(got) == len(want)) {
			t.Fatalf("%d of %d accepted, error %v", len(got), len(want), err)
		}
		if err != nil && !errors.Is(err, ErrPeer) {
			t.Fatal(err)
		}
		for _, p := range want {
			if e, ok := have[p.PublicKey]; ok && e.equal(p.entry()) && !keys[p.PublicKey] {
				t.Fatalf("%s is on the device and was thrown out", p.Name)
			}
			alone := true
			for _, q := range want {
				if q.Name != p.Name && (q.PublicKey == p.PublicKey || q.Addr == p.Addr) {
					alone = false
				}
			}
			if alone && !keys[p.PublicKey] {
				t.Fatalf("%s has its key and address for itself and was refused: %v", p.Name, err)
			}
		}
	})
}

func TestPeerRefused(t *testing.T) {
	good := Peer{Name: "mac", PublicKey: Key{1}, PresharedKey: PresharedKey{1}, Addr: addr(ownRange, 256)}
	for name, edit := range map[string]func(*Peer){
		"no key":          func(p *Peer) { p.PublicKey = Key{} },
		"the gateway's":   func(p *Peer) { p.PublicKey = Key{99} },
		"no PSK":          func(p *Peer) { p.PresharedKey = PresharedKey{} },
		"no address":      func(p *Peer) { p.Addr = netip.Addr{} },
		"gateway address": func(p *Peer) { p.Addr = addr(ownRange, 1) },
		"outside":         func(p *Peer) { p.Addr = netip.MustParseAddr("192.0.2.1") },
		"mapped":          func(p *Peer) { p.Addr = netip.AddrFrom16(p.Addr.As16()) },
	} {
		bad := good
		edit(&bad)
		bad.Name = "bad one"
		got, err := accept([]Peer{bad, good}, table{}, Key{99})
		if name == "the gateway's" || len(got) == 1 {
			wantText(t, err, `"bad one"`)
		}
		if len(got) != 1 || got[0].Name != "mac" {
			t.Errorf("%s: accepted %v", name, got)
		}
	}
	newcomer := good
	newcomer.Name, newcomer.PublicKey = "thief", Key{2}
	got, err := accept([]Peer{newcomer, good}, table{good.PublicKey: good.entry()}, Key{99})
	var dup *DuplicatePeerError
	if !errors.As(err, &dup) || dup.First != "mac" || dup.Second != "thief" || dup.What != "address 10.77.1.0" {
		t.Errorf("duplicate: %v", err)
	}
	if len(got) != 1 || got[0].Name != "mac" {
		t.Errorf("accepted %v", got)
	}
}

func TestBatches(t *testing.T) {
	var want []Peer
	for n := FirstHost; n < FirstHost+2*batch+1; n++ {
		want = append(want, Peer{PublicKey: Key{byte(n), byte(n >> 8)}, PresharedKey: PresharedKey{1}, Addr: addr(ownRange, n)})
	}
	cfgs := diff(want, table{}).configs()
	m := model{}
	for _, cfg := range cfgs {
		if len(cfg.Peers) > batch {
			t.Errorf("a call with %d peers", len(cfg.Peers))
		}
		m.apply(cfg)
	}
	if len(cfgs) != 3 || !m.equal(want) {
		t.Errorf("%d calls, %d peers", len(cfgs), len(m))
	}
}
