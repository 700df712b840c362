package tunnel

import (
	"encoding/binary"
	"maps"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// nullTUN has no packets.
type nullTUN struct {
	events chan tun.Event
	once   sync.Once
}

func (*nullTUN) File() *os.File                           { return nil }
func (n *nullTUN) Read([][]byte, []int, int) (int, error) { <-n.events; return 0, os.ErrClosed }
func (*nullTUN) Write(b [][]byte, _ int) (int, error)     { return len(b), nil }
func (*nullTUN) MTU() (int, error)                        { return 1280, nil }
func (*nullTUN) Name() (string, error)                    { return "null", nil }
func (n *nullTUN) Events() <-chan tun.Event               { return n.events }
func (*nullTUN) BatchSize() int                           { return 1 }
func (n *nullTUN) Close() error                           { n.once.Do(func() { close(n.events) }); return nil }

// drawnConfig makes a configuration out of fuzzed bytes: few keys and addresses, so that they meet.
func drawnConfig(b []byte) (cfg wgtypes.Config) {
	next := func() byte {
		if len(b) == 0 {
			return 0
		}
		defer func() { b = b[1:] }()
		return b[0]
	}
	if next()&1 != 0 {
		cfg.PrivateKey = (*wgtypes.Key)(ptr(clamp([32]byte{1: next(), 2: 77})))
	}
	if next()&1 != 0 {
		cfg.ListenPort = ptr(int(binary.BigEndian.Uint16([]byte{next(), next()})))
	}
	for len(b) > 0 && len(cfg.Peers) < 20 {
		flags := next()
		p := wgtypes.PeerConfig{
			PublicKey: wgtypes.Key{1 + next()%6}, Remove: flags&1 != 0, UpdateOnly: flags&2 != 0, ReplaceAllowedIPs: flags&4 != 0,
		}
		if flags&8 != 0 {
			p.PresharedKey = &wgtypes.Key{next()}
		}
		if flags&16 != 0 {
			p.PersistentKeepaliveInterval = ptr(time.Duration(next()) * time.Second)
		}
		if flags&32 != 0 {
			p.Endpoint = &net.UDPAddr{IP: net.IPv4(127, next(), next(), 1).To4(), Port: int(next()) + 1}
		}
		for range flags >> 6 {
			a := addr(ownRange, 256+int(next()%8))
			p.AllowedIPs = append(p.AllowedIPs, ipNet(netip.PrefixFrom(a, 24+int(next()%9)).Masked()))
		}
		cfg.Peers = append(cfg.Peers, p)
	}
	return cfg
}

// FuzzUAPIAgainstDevice: what is encoded does to wireguard-go what the protocol says, and what wireguard-go says of itself
// is read as that.
func FuzzUAPIAgainstDevice(f *testing.F) {
	f.Add([]byte{1, 9, 1, 200, 1, 0x7c, 1, 5, 15, 3, 4, 5, 6, 8, 0x7c, 2, 5, 15, 3, 4, 5, 6, 8})
	f.Add([]byte{0, 0, 0xc4, 1, 1, 8, 1, 7, 2, 6, 0x44, 2, 1, 8})          // an address moves to the next peer
	f.Add([]byte{0, 0, 2, 3, 0x42, 4, 1, 8, 0x40, 3, 1, 8, 0x42, 3, 2, 8}) // update-only of one that is not there
	f.Add([]byte{0, 0, 0x40, 3, 1, 8, 3, 3, 1, 3, 0x48, 3, 7, 1, 0})       // removed and added again
	f.Fuzz(func(t *testing.T, b []byte) {
		cfg := drawnConfig(b)
		text, err := encodeUAPI(cfg)
		if err != nil {
			t.Fatalf("%+v: %v", cfg, err)
		}
		dev := device.NewDevice(&nullTUN{events: make(chan tun.Event)}, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
		defer dev.Close()
		if err := dev.IpcSet(text); err != nil {
			t.Fatalf("wireguard-go refuses %v", err)
		}
		said, err := dev.IpcGet()
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeUAPI("x", said)
		if err != nil {
			t.Fatal(err)
		}
		m := model{}
		m.apply(cfg)
		if !maps.EqualFunc(m, tableOf(got), entry.equal) {
			t.Errorf("sent\n%s\nwant %v\ngot  %v", text, m, tableOf(got))
		}
		if cfg.PrivateKey != nil && Key(got.PublicKey) != PrivateKey(*cfg.PrivateKey).Public() {
			t.Errorf("public key %s", got.PublicKey)
		}
		if cfg.ListenPort != nil && got.ListenPort != *cfg.ListenPort {
			t.Errorf("port %d instead of %d", got.ListenPort, *cfg.ListenPort)
		}
		checkPeerSettings(t, cfg, got)
	})
}

// checkPeerSettings compares what a gateway's table leaves out: endpoints and keepalives.
func checkPeerSettings(t *testing.T, cfg wgtypes.Config, got *wgtypes.Device) {
	t.Helper()
	type settings struct {
		endpoint  string
		keepalive time.Duration
	}
	want, have := map[wgtypes.Key]settings{}, map[wgtypes.Key]settings{}
	for _, p := range cfg.Peers {
		s, ok := want[p.PublicKey]
		if p.Remove {
			delete(want, p.PublicKey)
			continue
		} else if !ok && p.UpdateOnly {
			continue
		}
		if p.Endpoint != nil {
			s.endpoint = p.Endpoint.String()
		}
		if p.PersistentKeepaliveInterval != nil {
			s.keepalive = *p.PersistentKeepaliveInterval
		}
		want[p.PublicKey] = s
	}
	for _, p := range got.Peers {
		s := settings{keepalive: p.PersistentKeepaliveInterval}
		if p.Endpoint != nil {
			s.endpoint = p.Endpoint.String()
		}
		have[p.PublicKey] = s
	}
	if !maps.Equal(want, have) {
		t.Errorf("peers are %v instead of %v", have, want)
	}
}
