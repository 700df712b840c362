package tunnel

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// boxSpec is a machine of the isolation test. It serves TCP and UDP on every address, and tries what it is told to. With
// a key it has a tunnel too, set up by someone who wants more than is theirs: everything is allowed and routed into it.
type boxSpec struct {
	Interface  string
	Key        [32]byte // of a host
	Gateway    [32]byte
	Endpoint   string
	Addr       netip.Addr
	Spoofed    []netip.Addr // further addresses of the interface, which the gateway has not given
	Routes     []netip.Prefix
	PSK        [32]byte
	TCP, Plain uint16 // ports it serves; Plain is UDP
}

func boxChild(spec boxSpec, out *json.Encoder) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	shake := func() error { return errors.New("there is no tunnel") }
	var tunnel wgDevice
	if spec.Interface != "" {
		d, err := openTUN(ctx, deviceConfig{
			Interface: spec.Interface, Addr: spec.Addr, Routes: spec.Routes, MTU: 1280, Key: spec.Key, Log: childLog(),
		})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.close()) }()
		tunnel = d
		endpoint, psk := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(spec.Endpoint)), wgtypes.Key(spec.PSK)
		keepalive := time.Second // so that the gateway knows where this host is
		shake = func() error {
			return d.apply(ctx, wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: spec.Gateway, Remove: true}, {
				PublicKey: spec.Gateway, PresharedKey: &psk, Endpoint: endpoint, PersistentKeepaliveInterval: &keepalive,
				AllowedIPs: []net.IPNet{ipNet(netip.MustParsePrefix("0.0.0.0/0"))},
			}}})
		}
		if err := shake(); err != nil {
			return err
		}
	}
	stop, err := serveBox(spec)
	if err != nil {
		return err
	}
	defer stop()
	if err := out.Encode(childLine{}); err != nil {
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var line childLine
		try := shake
		if in.Text() != "shake" {
			try = func() error { return boxTry(ctx, tunnel, in.Text()) }
		}
		if err := try(); err != nil {
			line.Error = err.Error()
		}
		if err := out.Encode(line); err != nil {
			return err
		}
	}
	return in.Err()
}

// serveBox greets whoever comes.
func serveBox(spec boxSpec) (stop func(), err error) {
	l, err := net.Listen("tcp4", fmt.Sprintf(":%d", spec.TCP))
	if err != nil {
		return nil, err
	}
	go func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			_, _ = c.Write([]byte("hello"))
			_ = c.Close()
		}
	}()
	u, err := net.ListenPacket("udp4", fmt.Sprintf(":%d", spec.Plain))
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	go func() {
		b := make([]byte, 100)
		for n, from, err := u.ReadFrom(b); err == nil; n, from, err = u.ReadFrom(b) {
			_, _ = u.WriteTo(b[:n], from)
		}
	}()
	return func() { _, _ = l.Close(), u.Close() }, nil
}

// boxTry does "LIMIT tcp TO", "LIMIT tcp TO SOURCE", "LIMIT udp TO", "LIMIT ping TO", and "LIMIT link TO" as a Link dials. Only an answer from the other end
// is a success.
func boxTry(ctx context.Context, tunnel wgDevice, text string) error {
	words := strings.Fields(text)
	attempt, err := time.ParseDuration(words[0])
	if err != nil {
		return err
	}
	words = words[1:]
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	var d net.Dialer
	network := words[0]
	if len(words) > 2 {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(words[2])}
	}
	hello := []byte("hello")
	if network == "ping" {
		network = "ip4:icmp"
		hello = []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0} // echo request
	}
	dial := func() (net.Conn, error) { return d.DialContext(ctx, network, words[1]) }
	if network == "link" {
		network = "tcp"
		dial = func() (net.Conn, error) { return tunnel.dial(ctx, netip.MustParseAddrPort(words[1])) }
	}
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(attempt)); err != nil {
		return err
	}
	if network != "tcp" {
		if _, err := c.Write(hello); err != nil {
			return err
		}
	} else if strings.HasSuffix(words[1], ":7443") { // a web server speaks second
		if _, err := c.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
			return err
		}
	}
	_, err = c.Read(make([]byte, 100))
	return err
}
