package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/driftstack/fleet/orchestrator/api"
)

const (
	wireEnv   = "DEVSTACK_TEST_WIRE" // the programs; this process has a network namespace of its own
	fleetPort = 7700
)

// TestWhatCrossesTheOcean has the EU in one network namespace and a driver host, with the site that it visits, in another, and reads every packet between them, on the
// wire and inside the tunnel. On the wire there is WireGuard and nothing else. Inside it commands cross, with what they carry, and no file of a profile, no key,
// and nothing that is in the databases alone.
func TestWhatCrossesTheOcean(t *testing.T) {
	if bin := os.Getenv(wireEnv); bin != "" {
		crossTheOcean(t, bin)
		return
	}
	t.Parallel()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI must run as root: TUN devices and network namespaces take it")
		}
		t.Skip("part: tun skipped: not root")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", runLimit.String())
	cmd.Env = append(os.Environ(), wireEnv+"="+programs(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("part: tun real")) {
		t.Errorf("%v\n%s", err, out)
	}
	t.Log("part: tun real")
}

func crossTheOcean(t *testing.T, bin string) {
	if err := loopbackUp(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "state")
	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	s, err := startStack(ctx, config{dir: dir, bin: bin, tunnel: "tun", out: &printer{w: testWriter{t}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.stop(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	wire, tunnel := sniff(t, "ds-eu"), sniff(t, "driftgw0")

	// Names are in the database alone, the cookie is in the profile, which goes to the browser by commands.
	name, cookie := "name"+rand.Text(), "cookie"+rand.Text()
	if _, err := s.fleet.PutAccount(ctx, accountA, api.PutAccount{Recordings: "eu"}); err != nil {
		t.Fatal(err)
	}
	profile, err := s.fleet.CreateProfile(ctx, api.CreateProfile{Account: accountA, Name: name, Description: name})
	if err != nil {
		t.Fatal(err)
	}
	b := &broken{t: t, ctx: ctx, stack: s, profile: profile.ID}
	for range 2 { // the second restores what the first has left
		id, browser := b.beginNamed(name, api.Labels{"of": name})
		if err := browser.open(ctx, s.site.origin+"/"); err != nil {
			t.Fatal(err)
		}
		set := map[string]any{"cookie": map[string]any{"name": "known", "value": cookie, "sameSite": "Lax", "expiry": time.Now().Add(time.Hour).Unix()}}
		if err := browser.send(ctx, http.MethodPost, "/cookie", set, nil); err != nil {
			t.Fatal(err)
		}
		if err := browser.quit(ctx); err != nil {
			t.Fatal(err)
		}
		if v := b.wait(id, api.Ended); v.Reason != "completed" || v.Generation == 0 {
			t.Fatalf("%+v", v)
		}
	}
	sealed, err := filepath.Glob(filepath.Join(dir, "orchestrator", "profiles", "*", "*", "*.sealed"))
	if err != nil || len(sealed) < 2 {
		t.Fatalf("%d files of profiles, %v", len(sealed), err)
	}
	secrets := map[string][]byte{"a session's and a profile's name": []byte(name)}
	for _, path := range append(sealed, filepath.Join(dir, "orchestrator", "profile-root.key"), filepath.Join(dir, "orchestrator", "gateway.key")) {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 8 { // pieces, for one may lie across two packets; a sealed file begins with whose it is, in plain, which the host is told as well
			at := len(raw)/2 + len(raw)*i/16
			if piece := raw[at:min(at+24, len(raw))]; len(piece) == 24 {
				secrets[fmt.Sprintf("%s from byte %d on", filepath.Base(path), at)] = piece
			}
		}
	}
	onWire, inTunnel := wire(), tunnel()
	t.Logf("%d packets on the wire, %d in the tunnel; %d pieces that must be in none", len(onWire), len(inTunnel), len(secrets))
	if !found(inTunnel, []byte(cookie)) {
		t.Error("the cookie's value is not found in the tunnel, where it is: this test would hold whatever crosses")
	}
	if found(onWire, []byte(cookie)) {
		t.Error("the cookie's value crosses the wire in plain")
	}
	for what, secret := range secrets {
		if found(inTunnel, secret) || found(onWire, secret) {
			t.Errorf("%s crosses", what)
		}
	}
	for _, p := range onWire {
		if what := p.describe(); what != "" && !p.is(unix.IPPROTO_UDP, s.state.TunnelPort) {
			t.Errorf("on the wire, beside WireGuard: %s", what)
			break
		}
	}
	for _, p := range inTunnel {
		if what := p.describe(); what != "" && !p.is(unix.IPPROTO_TCP, fleetPort) {
			t.Errorf("in the tunnel, beside the fleet's port: %s", what)
			break
		}
	}
	if len(onWire) < 100 || len(inTunnel) < 100 {
		t.Error("too few packets were seen")
	}
	t.Log("part: tun real")
	t.Log("part: webkit real")
}

// packet is one of IP, from its header on.
type packet []byte

// describe says what a packet of IPv4 is; IPv6 has none here but what the kernel says to its neighbours.
func (p packet) describe() string {
	if len(p) < 20 || p[0]>>4 != 4 {
		return ""
	}
	from, to := p.ports()
	return fmt.Sprintf("protocol %d from %s:%d to %s:%d", p[9], net.IP(p[12:16]), from, net.IP(p[16:20]), to)
}

func (p packet) ports() (from, to int) {
	head := int(p[0]&15) * 4
	if len(p) < head+4 {
		return 0, 0
	}
	return int(binary.BigEndian.Uint16(p[head:])), int(binary.BigEndian.Uint16(p[head+2:]))
}

func (p packet) is(protocol byte, port int) bool {
	from, to := p.ports()
	return p[9] == protocol && (from == port || to == port)
}

// found says whether a piece of something is in a packet: as it is, or under a mask of four bytes, as clients of websockets put on what they send.
func found(packets []packet, piece []byte) bool {
	want := unmasked(piece)
	for _, p := range packets {
		if bytes.Contains(p, piece) || bytes.Contains(unmasked(p), want) {
			return true
		}
	}
	return false
}

// unmasked is each byte with the fourth after it: whatever mask was on both is gone.
func unmasked(b []byte) []byte {
	if len(b) <= 4 {
		return nil
	}
	d := make([]byte, len(b)-4)
	for i := range d {
		d[i] = b[i] ^ b[i+4]
	}
	return d
}

// sniff reads all packets of an interface until the function that it returns is called.
func sniff(t *testing.T, name string) (stop func() []packet) {
	t.Helper()
	link, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	all := int(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})) // in the network's order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all)
	if err != nil {
		t.Fatal(err)
	}
	errs := errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: link.Index}),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
	if errs != nil {
		t.Fatal(errs)
	}
	var packets []packet
	var reading sync.WaitGroup
	stopped := make(chan struct{})
	reading.Go(func() { // ends when stopped is closed
		buf := make([]byte, 64<<10)
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err == nil {
				packets = append(packets, bytes.Clone(buf[:n]))
				continue
			}
			select {
			case <-stopped:
				return
			default:
			}
			if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
				t.Errorf("%s: %v", name, err)
				return
			}
		}
	})
	return sync.OnceValue(func() []packet {
		close(stopped)
		reading.Wait()
		stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil || stats.Drops != 0 {
			t.Errorf("%s: packets were missed: %+v, %v", name, stats, err)
		}
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
		return packets
	})
}

// TestMaskedPiecesAreFound: what is looked for would be found.
func TestMaskedPiecesAreFound(t *testing.T) {
	secret := []byte("a secret of some length")
	for _, mask := range []string{"\x00\x00\x00\x00", "\x37\xfa\x21\x3d", "\xff\x00\xff\x01"} {
		for offset := range 5 {
			b := append([]byte(strings.Repeat("x", offset)), secret...)
			for i := range b {
				b[i] ^= mask[i%4]
			}
			if !found([]packet{b}, secret) {
				t.Errorf("mask %x at %d: not found", mask, offset)
			}
		}
	}
	if found([]packet{[]byte("a secreT of some length, and more")}, secret) {
		t.Error("found what is not there")
	}
}
