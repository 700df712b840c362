package tunnel

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// encodeUAPI writes cfg in WireGuard's cross-platform configuration protocol, as wgctrl does for a socket: a netstack
// device has no socket that wgctrl could find. https://www.wireguard.com/xplatform/#configuration-protocol
//
// ReplacePeers is refused: applying the same peers with it cuts every connection for seconds.
func encodeUAPI(cfg wgtypes.Config) (string, error) {
	if err := checkConfig(cfg); err != nil {
		return "", err
	}
	var b strings.Builder
	line := func(key string, value any) { fmt.Fprintf(&b, "%s=%v\n", key, value) }
	if cfg.PrivateKey != nil {
		line("private_key", hex.EncodeToString(cfg.PrivateKey[:]))
	}
	if cfg.ListenPort != nil {
		line("listen_port", *cfg.ListenPort)
	}
	if cfg.FirewallMark != nil {
		line("fwmark", *cfg.FirewallMark)
	}
	for _, p := range cfg.Peers {
		line("public_key", hex.EncodeToString(p.PublicKey[:]))
		if p.Remove {
			line("remove", true)
		}
		if p.UpdateOnly {
			line("update_only", true)
		}
		if p.PresharedKey != nil {
			line("preshared_key", hex.EncodeToString(p.PresharedKey[:]))
		}
		if p.Endpoint != nil {
			line("endpoint", p.Endpoint.String())
		}
		if p.PersistentKeepaliveInterval != nil {
			line("persistent_keepalive_interval", int64(*p.PersistentKeepaliveInterval/time.Second))
		}
		if p.ReplaceAllowedIPs {
			line("replace_allowed_ips", true)
		}
		for _, ip := range p.AllowedIPs {
			line("allowed_ip", ip.String())
		}
	}
	return b.String(), nil
}

// checkConfig refuses what a device would take and silently change or regret. It guards wgctrl and UAPI alike.
func checkConfig(cfg wgtypes.Config) error {
	if cfg.ReplacePeers {
		return errors.New("ReplacePeers cuts the connections of unchanged peers: send changes only")
	}
	for _, p := range cfg.Peers {
		key := Key(p.PublicKey)
		if key == (Key{}) {
			return errors.New("a peer has no public key")
		}
		if k := p.PersistentKeepaliveInterval; k != nil && (*k < 0 || *k%time.Second != 0 || *k > 65535*time.Second) {
			return fmt.Errorf("peer %s: keepalive of %s is not a whole number of seconds up to 65535", key, *k)
		}
		for _, ip := range p.AllowedIPs {
			if masked := ip.IP.Mask(ip.Mask); masked == nil || !masked.Equal(ip.IP) {
				return fmt.Errorf("peer %s: allowed address %s has bits outside its mask, and the device would cut them off", key, ip.String())
			}
		}
	}
	return nil
}

// decodeUAPI reads a device's answer to "get". The private key stays out of the result.
func decodeUAPI(name, s string) (*wgtypes.Device, error) {
	d := &wgtypes.Device{Name: name, Type: wgtypes.Userspace}
	var p *wgtypes.Peer
	lines := bufio.NewScanner(strings.NewReader(s))
	for n := 1; lines.Scan(); n++ {
		key, value, ok := strings.Cut(lines.Text(), "=")
		if !ok {
			return nil, errors.New("UAPI: a line without =") // not quoted: it may hold a key
		}
		if key == "public_key" {
			k, err := hexKey(value)
			if err != nil {
				return nil, fmt.Errorf("UAPI: public key in line %d: %w", n, err)
			}
			d.Peers = append(d.Peers, wgtypes.Peer{PublicKey: k})
			p = &d.Peers[len(d.Peers)-1]
			continue
		}
		var err error
		if p == nil {
			err = decodeDeviceLine(d, key, value)
		} else {
			err = decodePeerLine(p, key, value)
		}
		if err != nil {
			return nil, fmt.Errorf("UAPI: line %d is malformed", n) // the parsers' errors quote the line, which may hold a key
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("UAPI: %w", err)
	}
	return d, nil
}

func decodeDeviceLine(d *wgtypes.Device, key, value string) (err error) {
	switch key {
	case "private_key":
		k, err := hexKey(value)
		if err != nil {
			return err
		}
		d.PublicKey = wgtypes.Key(PrivateKey(k).Public())
	case "listen_port":
		d.ListenPort, err = strconv.Atoi(value)
	case "fwmark":
		d.FirewallMark, err = strconv.Atoi(value)
	}
	return err // keys of newer versions are left alone, as the protocol asks
}

func decodePeerLine(p *wgtypes.Peer, key, value string) (err error) {
	number := func() (n int64) {
		if err == nil {
			n, err = strconv.ParseInt(value, 10, 64)
		}
		return n
	}
	switch key {
	case "preshared_key":
		p.PresharedKey, err = hexKey(value)
	case "endpoint":
		var a netip.AddrPort
		if a, err = netip.ParseAddrPort(value); err == nil {
			p.Endpoint = net.UDPAddrFromAddrPort(a)
		}
	case "last_handshake_time_sec":
		if n := number(); n > 0 {
			p.LastHandshakeTime = time.Unix(n, 0)
		}
	case "last_handshake_time_nsec":
		if n := number(); !p.LastHandshakeTime.IsZero() {
			p.LastHandshakeTime = p.LastHandshakeTime.Add(time.Duration(n))
		}
	case "tx_bytes":
		p.TransmitBytes = number()
	case "rx_bytes":
		p.ReceiveBytes = number()
	case "persistent_keepalive_interval":
		p.PersistentKeepaliveInterval = time.Duration(number()) * time.Second
	case "allowed_ip":
		var ip netip.Prefix
		if ip, err = netip.ParsePrefix(value); err == nil {
			p.AllowedIPs = append(p.AllowedIPs, ipNet(ip))
		}
	case "protocol_version":
		p.ProtocolVersion = int(number())
	}
	return err
}

func hexKey(s string) (wgtypes.Key, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != wgtypes.KeyLen {
		return wgtypes.Key{}, errors.New("not a key")
	}
	return wgtypes.Key(b), nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
