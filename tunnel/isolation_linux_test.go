package tunnel

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
)

// yard is a gateway with everything a host could be after, each in a network namespace of its own:
//
//	host  192.0.2.2  ───── 192.0.2.1  gateway, forwarding 198.51.100.1 ───── 198.51.100.2  behind
//	other 203.0.113.2 ─── 203.0.113.1
type yard struct {
	gw, host, other, behind string // namespaces
	spec                    childSpec
	attacker, victim        boxSpec
}

func newYard(t *testing.T, every time.Duration) *yard {
	t.Helper()
	tag := fmt.Sprintf("dsy%d", os.Getpid())
	y := &yard{gw: tag + "g", host: tag + "h", other: tag + "o", behind: tag + "b"}
	t.Cleanup(func() {
		for _, ns := range []string{y.gw, y.host, y.other, y.behind} {
			if out, err := exec.Command("ip", "netns", "del", ns).CombinedOutput(); err != nil {
				t.Errorf("remove namespace %s: %v: %s", ns, err, out)
			}
		}
	})
	for _, ns := range []string{y.gw, y.host, y.other, y.behind} {
		command(t, "ip", "netns", "add", ns)
		command(t, "ip", "-n", ns, "link", "set", "lo", "up")
	}
	for i, to := range []struct{ ns, here, there string }{
		{y.host, "192.0.2.1/24", "192.0.2.2/24"}, {y.other, "203.0.113.1/24", "203.0.113.2/24"}, {y.behind, "198.51.100.1/24", "198.51.100.2/24"},
	} {
		veth := fmt.Sprint("veth", i)
		command(t, "ip", "-n", y.gw, "link", "add", veth, "type", "veth", "peer", "name", "veth0", "netns", to.ns)
		command(t, "ip", "-n", y.gw, "addr", "add", to.here, "dev", veth)
		command(t, "ip", "-n", y.gw, "link", "set", veth, "up")
		command(t, "ip", "-n", to.ns, "addr", "add", to.there, "dev", "veth0")
		command(t, "ip", "-n", to.ns, "link", "set", "veth0", "up")
	}
	command(t, "ip", "-n", y.behind, "route", "add", "default", "via", "198.51.100.1")
	command(t, "ip", "netns", "exec", y.gw, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

	iface := fmt.Sprintf("dsi%d", os.Getpid())
	y.spec = childSpec{Role: "gateway", Dir: t.TempDir(), Interface: iface + "g", Endpoint: "192.0.2.1", UDP: 51820, Fleet: 7443, Every: every}
	key, err := loadOrCreateKey(filepath.Join(y.spec.Dir, "gateway.key"))
	if err != nil {
		t.Fatal(err)
	}
	r := &registry{file: filepath.Join(y.spec.Dir, "registry.json")}
	box := func(n int, name, endpoint string, routes ...string) boxSpec {
		own, psk := clamp([32]byte{1: byte(n), 2: 1}), PresharedKey{byte(n), 1}
		r.Hosts = append(r.Hosts, &registered{
			Name: name, Number: n, JoinPSK: psk[:], HostPSK: psk[:], HostKey: own.Public(), JoinKey: clamp([32]byte{1: byte(n), 2: 2}).Public(),
		})
		s := boxSpec{
			Interface: iface + name[:1], Key: own, PSK: psk, Gateway: key.Public(), Endpoint: endpoint, Addr: addr(ownRange, n), TCP: 8888, Plain: 8889,
		}
		for _, to := range routes {
			s.Routes = append(s.Routes, netip.MustParsePrefix(to))
		}
		return s
	}
	y.attacker = box(256, "attacker", "192.0.2.1:51820", "10.76.0.0/15", "198.51.100.0/24")
	y.victim = box(257, "victim", "203.0.113.1:51820", "10.76.0.0/15")
	if err := r.save(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // left behind only by a child that was killed
		for _, end := range []string{"g", "a", "v"} {
			_ = os.Remove(uapiPath(iface + end))
		}
	})
	return y
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := commandContext(t.Context(), name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func commandContext(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// nft runs nft in the gateway's namespace.
func (y *yard) nft(t *testing.T, args ...string) string {
	t.Helper()
	return command(t, "ip", append([]string{"netns", "exec", y.gw, "nft"}, args...)...)
}

// awaitRules waits until the gateway's rules are whole.
func (y *yard) awaitRules(ctx context.Context, t *testing.T, whole string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		out, err := commandContext(ctx, "ip", "netns", "exec", y.gw, "nft", "list", "table", "inet", "driftstack_"+y.spec.Interface)
		if err == nil && out == whole {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the rules are\n%s\ninstead of\n%s", out, whole)
		}
	}
}

func startBox(ctx context.Context, t *testing.T, ns string, spec boxSpec) *child {
	t.Helper()
	c := startChild(ctx, t, ns, childSpec{Role: "box", Box: &spec})
	if l := c.read(); l.Error != "" {
		t.Fatalf("box in %s: %s", ns, l.Error)
	}
	return c
}

// TestIsolation attacks a TUN gateway from a host that allows and routes everything into its tunnel, and from outside,
// with the rules and without them.
func TestIsolation(t *testing.T) {
	needRoot(t)
	y := newYard(t, time.Hour) // nothing repairs the rules once they are taken away
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	gw := startChild(ctx, t, y.gw, y.spec)
	if l := gw.read(); l.Error != "" || l.Backend != BackendTUN {
		t.Fatalf("gateway: %+v", l)
	}
	services := boxSpec{TCP: 8888, Plain: 8889}
	inside := startBox(ctx, t, y.gw, services)
	startBox(ctx, t, y.behind, services)
	victim := startBox(ctx, t, y.other, y.victim)
	attacker := startBox(ctx, t, y.host, y.attacker)
	outside := startBox(ctx, t, y.host, boxSpec{TCP: 8890, Plain: 8891})
	command(t, "ip", "-n", y.host, "addr", "add", "10.77.1.9/32", "dev", y.attacker.Interface)

	matrix := []struct {
		name       string
		from       *child
		try        string
		ruled, not bool // whether it reaches with the rules, and without
	}{
		{"fleet port", attacker, "tcp 10.77.0.1:7443", true, true},
		{"echo", attacker, "ping 10.77.0.1", true, true},
		{"fleet port from the other host", victim, "tcp 10.77.0.1:7443", true, true},
		{"another port", attacker, "tcp 10.77.0.1:8888", false, true},
		{"another protocol", attacker, "udp 10.77.0.1:8889", false, true},
		{"a service on another address of the gateway", attacker, "tcp 198.51.100.1:8888", false, true},
		{"echo of another address", attacker, "ping 198.51.100.1", false, true},
		{"a network behind the gateway", attacker, "tcp 198.51.100.2:8888", false, true},
		{"the same by UDP", attacker, "udp 198.51.100.2:8889", false, true},
		{"another host in the tunnel", attacker, "tcp 10.77.1.1:8888", false, true},
		{"another host's echo", attacker, "ping 10.77.1.1", false, true},
		{"a host from the gateway", inside, "tcp 10.77.1.0:8888", false, true},
		{"a host's echo from the gateway", inside, "ping 10.77.1.0", false, true},
		{"the tunnel address from outside", outside, "tcp 10.77.0.1:8888 192.0.2.2", false, true},
		{"an address that is not the host's", attacker, "tcp 10.77.0.1:7443 10.77.1.9", false, false}, // WireGuard itself drops it
		{"the gateway's own loopback", inside, "tcp 10.77.0.1:8888", true, true},
		{"what has nothing to do with the tunnel", outside, "tcp 192.0.2.1:8888", true, true},
	}
	try := func(title string, expect func(i int) bool) {
		for i, c := range matrix {
			if strings.HasPrefix(c.name, "the tunnel address") { // the host's own route into its tunnel is in the way
				command(t, "ip", "-n", y.host, "route", "replace", "10.77.0.1/32", "via", "192.0.2.1")
			}
			limit := noAnswer
			if expect(i) {
				limit = anAnswer
			}
			l := c.from.ask(fmt.Sprint(limit, " ", c.try))
			if got := l.Error == ""; got != expect(i) {
				t.Errorf("%s: %s (%s): reached %t: %s", title, c.name, c.try, got, l.Error)
			}
			if strings.HasPrefix(c.name, "the tunnel address") {
				command(t, "ip", "-n", y.host, "route", "del", "10.77.0.1/32", "via", "192.0.2.1")
			}
		}
	}
	try("with the rules", func(i int) bool { return matrix[i].ruled })
	y.nft(t, "delete", "table", "inet", "driftstack_"+y.spec.Interface)
	try("without the rules", func(i int) bool { return matrix[i].not })
	gw.end()
}

// TestRulesRepaired: whoever flushes or changes the rules does so for a moment only.
func TestRulesRepaired(t *testing.T) {
	needRoot(t)
	y := newYard(t, 50*time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	gw := startChild(ctx, t, y.gw, y.spec)
	if l := gw.read(); l.Error != "" {
		t.Fatalf("gateway: %+v", l)
	}
	table := "driftstack_" + y.spec.Interface
	whole := y.nft(t, "list", "table", "inet", table)
	for _, how := range []string{
		"flush ruleset",
		"delete table inet " + table,
		"insert rule inet " + table + " input accept",
		"flush chain inet " + table + " forward",
		"add chain inet " + table + " more",
		"add table inet " + table + " { flags dormant; }",
	} {
		y.nft(t, how)
		y.awaitRules(ctx, t, whole)
	}
	gw.end()
	// A gateway that was killed leaves its table, which would drop what comes to its address by another name.
	y.nft(t, "add", "table", "inet", tablePrefix+"gone0")
	y.nft(t, "add", "table", "inet", tablePrefix+"veth0") // whose interface is there
	y.nft(t, "add", "table", "inet", "someone_else")
	again := startChild(ctx, t, y.gw, y.spec)
	if l := again.read(); l.Error != "" {
		t.Fatalf("again: %+v", l)
	}
	tables := y.nft(t, "list", "tables")
	if strings.Contains(tables, tablePrefix+"gone0") || !strings.Contains(tables, tablePrefix+"veth0") || !strings.Contains(tables, "someone_else") {
		t.Errorf("tables once another gateway is up: %s", tables)
	}
	again.end()
	if out := y.nft(t, "list", "tables"); strings.Contains(out, table) {
		t.Errorf("rules left behind: %s", out)
	}
}

// How long a box waits: for an answer that must come, and for one that must not.
const (
	anAnswer = 10 * time.Second
	noAnswer = 400 * time.Millisecond
)

// TestNoRulesNoGateway: where rules cannot be installed, a gateway with a network interface does not start, and auto goes
// on to the netstack.
func TestNoRulesNoGateway(t *testing.T) {
	cfg := deviceConfig{Interface: "x", Addr: addr(ownRange, 1), Log: testLog(t)}
	_, err := isolate(t.Context(), cfg)
	wantText(t, err, "fleet port")
	cfg.FleetPort = 7443
	d, _, err := openAmong(t.Context(), []backend{
		{BackendTUN, func(ctx context.Context, cfg deviceConfig) (wgDevice, error) {
			_, err := isolateBy(ctx, cfg, func() *nftables.Conn {
				return &nftables.Conn{NetNS: 1 << 20} // no such file: the kernel's nftables cannot be reached
			})
			return nil, err
		}},
		{BackendNetstack, func(context.Context, deviceConfig) (wgDevice, error) { return lostDevice{}, nil }},
	}, BackendAuto, cfg)
	if err != nil || d != (lostDevice{}) {
		t.Errorf("without nftables: %v, %v", d, err)
	}
}
