package tunnel

import (
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func ptr[T any](v T) *T { return &v }

func TestEncodeUAPI(t *testing.T) {
	got, err := encodeUAPI(wgtypes.Config{
		PrivateKey: &wgtypes.Key{0xab}, ListenPort: ptr(51820), FirewallMark: ptr(7),
		Peers: []wgtypes.PeerConfig{
			{PublicKey: wgtypes.Key{1}, Remove: true},
			{
				PublicKey: wgtypes.Key{2}, UpdateOnly: true, PresharedKey: &wgtypes.Key{3},
				Endpoint:                    &net.UDPAddr{IP: net.ParseIP("2001:db8::1"), Port: 5},
				PersistentKeepaliveInterval: ptr(15 * time.Second), ReplaceAllowedIPs: true,
				AllowedIPs: []net.IPNet{ipNet(netip.MustParsePrefix("10.77.1.0/32")), ipNet(netip.MustParsePrefix("10.76.0.0/15"))},
			},
		},
	})
	zeros := strings.Repeat("0", 62)
	want := "private_key=ab" + zeros + "\nlisten_port=51820\nfwmark=7\n" +
		"public_key=01" + zeros + "\nremove=true\n" +
		"public_key=02" + zeros + "\nupdate_only=true\npreshared_key=03" + zeros + "\nendpoint=[2001:db8::1]:5\n" +
		"persistent_keepalive_interval=15\nreplace_allowed_ips=true\nallowed_ip=10.77.1.0/32\nallowed_ip=10.76.0.0/15\n"
	if err != nil || got != want {
		t.Errorf("%v\n%s", err, got)
	}
}

// TestConfigTraps: what a device would accept and quietly turn into something else is refused before it is sent.
func TestConfigTraps(t *testing.T) {
	peer := func(edit func(*wgtypes.PeerConfig)) wgtypes.Config {
		p := wgtypes.PeerConfig{PublicKey: wgtypes.Key{1}}
		edit(&p)
		return wgtypes.Config{Peers: []wgtypes.PeerConfig{p}}
	}
	for text, cfg := range map[string]wgtypes.Config{
		"ReplacePeers":  {ReplacePeers: true},
		"no public key": peer(func(p *wgtypes.PeerConfig) { p.PublicKey = wgtypes.Key{} }),
		"keepalive":     peer(func(p *wgtypes.PeerConfig) { p.PersistentKeepaliveInterval = ptr(500 * time.Millisecond) }),
		"outside its mask": peer(func(p *wgtypes.PeerConfig) {
			p.AllowedIPs = []net.IPNet{{IP: net.IPv4(10, 77, 0, 5).To4(), Mask: net.CIDRMask(24, 32)}}
		}),
	} {
		if _, err := encodeUAPI(cfg); err == nil {
			t.Errorf("%s: accepted", text)
		} else {
			wantText(t, err, text)
		}
	}
	_, err := LinkConfig{StateDir: "x", Keepalive: 1500 * time.Millisecond}.withDefaults()
	wantText(t, err, "keepalive")
}

// TestUAPIAgainstDevice writes to wireguard-go and reads back through both halves of the converter.
func TestUAPIAgainstDevice(t *testing.T) {
	key := clamp([32]byte{1: 5})
	d, err := openNetstack(t.Context(), deviceConfig{Addr: addr(ownRange, 1), MTU: 1280, Key: key, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	psk := wgtypes.Key{9}
	err = d.apply(t.Context(), wgtypes.Config{Peers: []wgtypes.PeerConfig{{
		PublicKey: wgtypes.Key(clamp([32]byte{1: 6}).Public()), PresharedKey: &psk,
		Endpoint:                    &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1).To4(), Port: 9},
		PersistentKeepaliveInterval: ptr(25 * time.Second),
		AllowedIPs:                  []net.IPNet{ipNet(netip.MustParsePrefix("10.77.1.0/32"))},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.PrivateKey != (wgtypes.Key{}) {
		t.Error("reading a device returns its private key")
	}
	if Key(got.PublicKey) != key.Public() || got.ListenPort == 0 || len(got.Peers) != 1 {
		t.Fatalf("%+v", got)
	}
	p := got.Peers[0]
	if p.PresharedKey != psk || p.Endpoint.String() != "127.0.0.1:9" || p.PersistentKeepaliveInterval != 25*time.Second ||
		!p.LastHandshakeTime.IsZero() || len(p.AllowedIPs) != 1 || p.AllowedIPs[0].String() != "10.77.1.0/32" || p.ProtocolVersion != 1 {
		t.Errorf("%+v", p)
	}
	if err := d.apply(t.Context(), wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: p.PublicKey, Remove: true}}}); err != nil {
		t.Fatal(err)
	}
	if got, err = d.read(t.Context()); err != nil || len(got.Peers) != 0 {
		t.Errorf("after removal: %+v %v", got, err)
	}
}

func FuzzDecodeUAPI(f *testing.F) {
	key := strings.Repeat("01", 32)
	f.Add("private_key=" + key + "\nlisten_port=1\nfwmark=2\npublic_key=" + key + "\npreshared_key=" + key +
		"\nendpoint=[::1]:1\nlast_handshake_time_sec=1\nlast_handshake_time_nsec=2\ntx_bytes=3\nrx_bytes=4\n" +
		"persistent_keepalive_interval=5\nallowed_ip=10.0.0.1/32\nallowed_ip=::/0\nprotocol_version=1\nnew=1\n")
	f.Add("public_key=\n")
	f.Add("listen_port\n")
	f.Add("allowed_ip=1.2.3.4\n")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := decodeUAPI("x", s)
		if err != nil {
			if strings.Contains(err.Error(), key) {
				t.Fatalf("the error quotes a key: %v", err)
			}
			return
		}
		if d.PrivateKey != (wgtypes.Key{}) {
			t.Fatal("the private key is in the result")
		}
		if !reflect.DeepEqual(tableOf(d), tableOf(d)) {
			t.Fatal("not deterministic")
		}
	})
}
