package tunnel

import (
	"context"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestInterfaceLost: whatever is done to the gateway's interface, host and gateway are together again soon after, on the
// same port, with the same rules and listeners, and without anyone's help.
func TestInterfaceLost(t *testing.T) {
	needRoot(t)
	y := newYard(t, 100*time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	gw := startChild(ctx, t, y.gw, y.spec)
	if l := gw.read(); l.Error != "" {
		t.Fatalf("gateway: %+v", l)
	}
	host := startBox(ctx, t, y.host, y.attacker)
	iface := y.spec.Interface
	rules := y.nft(t, "list", "table", "inet", "driftstack_"+iface)
	ip := func(args ...string) { t.Helper(); command(t, "ip", append([]string{"-n", y.gw}, args...)...) }
	index := func() string {
		return strings.Fields(command(t, "ip", "-n", y.gw, "-o", "link", "show", "dev", iface))[0]
	}
	for _, c := range []struct {
		name string
		do   func()
		anew bool // the interface is another one afterwards
	}{
		{"deleted", func() { ip("link", "del", iface) }, true},
		{"deleted and recreated by someone", func() {
			gw.signal(syscall.SIGSTOP) // it would be faster
			ip("link", "del", iface)
			ip("tuntap", "add", "dev", iface, "mode", "tun")
			gw.signal(syscall.SIGCONT)
		}, true},
		{"brought down", func() { ip("link", "set", iface, "down") }, true},
		{"its address taken", func() { ip("addr", "flush", "dev", iface) }, true},
		{"its route taken", func() { ip("route", "del", "10.76.0.0/15") }, true},
		{"another key", func() { setKey(t, iface) }, true},
		{"its socket removed", func() { _ = os.Remove(uapiPath(iface)) }, true},
		{"its daemon hung", func() { hang(t, iface) }, true},
		{"its rules flushed", func() { y.nft(t, "flush", "ruleset") }, false},
	} {
		before := index()
		c.do()
		began := time.Now()
		for {
			host.ask("shake") // what the watch of a Link does
			if l := host.ask("500ms tcp 10.77.0.1:7443"); l.Error == "" && (!c.anew || indexOr(ctx, y.gw, iface, before) != before) {
				break
			} else if ctx.Err() != nil {
				t.Fatalf("%s: the host does not reach the gateway any more: %s", c.name, l.Error)
			}
		}
		t.Logf("%s: back after %s", c.name, time.Since(began).Round(time.Millisecond))
		y.awaitRules(ctx, t, rules)
		if l := host.ask("400ms tcp 10.77.0.1:8888"); l.Error == "" {
			t.Errorf("%s: the host reaches more than it should", c.name)
		}
	}
	gw.end()
}

func indexOr(ctx context.Context, ns, iface, otherwise string) string {
	out, err := commandContext(ctx, "ip", "-n", ns, "-o", "link", "show", "dev", iface)
	if err != nil {
		return otherwise
	}
	return strings.Fields(out)[0]
}

// setKey does what `wg set IFACE private-key` does.
func setKey(t *testing.T, iface string) {
	t.Helper()
	d, err := newCtlDevice(deviceConfig{Log: testLog(t)}, iface, nil, ends{release: func() error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.apply(t.Context(), keyConfig(clamp([32]byte{9: 9}))); err != nil {
		t.Fatal(err)
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
}

// hang puts a socket that accepts and never answers in the place of the device's.
func hang(t *testing.T, iface string) {
	t.Helper()
	mute := uapiPath(iface + ".mute")
	l, err := net.Listen("unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if err := os.Rename(mute, uapiPath(iface)); err != nil {
		t.Fatal(err)
	}
}

// TestDialKeepsToTunnel: what a host dials goes into its tunnel, whatever routes the network around it hands out.
func TestDialKeepsToTunnel(t *testing.T) {
	needRoot(t)
	y := newYard(t, time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	gw := startChild(ctx, t, y.gw, y.spec)
	if l := gw.read(); l.Error != "" {
		t.Fatalf("gateway: %+v", l)
	}
	host := startBox(ctx, t, y.host, y.attacker)
	if l := host.ask("15s link 10.77.0.1:7443"); l.Error != "" {
		t.Fatalf("before: %s", l.Error)
	}
	command(t, "ip", "-n", y.host, "route", "add", "10.77.0.1/32", "via", "192.0.2.1")
	if l := host.ask("300ms tcp 10.77.0.1:7443"); l.Error == "" {
		t.Error("the route takes nothing away")
	}
	if l := host.ask("15s link 10.77.0.1:7443"); l.Error != "" {
		t.Errorf("with the route: %s", l.Error)
	}
}
