package tunnel

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
)

// needRoot skips a test that makes network interfaces, except where the project's checks run: there it must run.
func needRoot(t *testing.T) {
	t.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "it is not root"
	} else if _, err := os.Stat("/dev/net/tun"); err != nil {
		missing = "there is no /dev/net/tun"
	} else if _, err := exec.LookPath("ip"); err != nil {
		missing = "there is no ip command: install iproute2"
	}
	if missing == "" {
		return
	}
	if os.Getenv("CI") != "" && os.Geteuid() == 0 {
		t.Fatalf("the test of real TUN devices must run here, but %s", missing)
	}
	t.Skipf("SKIPPED, not tested: WireGuard over real TUN devices in network namespaces, because %s. Run the tests as root to include it.", missing)
}

// twoNamespaces makes two network namespaces joined by a veth pair, 192.0.2.1 and 192.0.2.2. Nothing outside of them is touched.
func twoNamespaces(t *testing.T) (a, b string) {
	t.Helper()
	tag := fmt.Sprintf("dst%d", os.Getpid())
	a, b = tag+"a", tag+"b"
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	t.Cleanup(func() {
		for _, ns := range []string{a, b} {
			if out, err := exec.Command("ip", "netns", "del", ns).CombinedOutput(); err != nil {
				t.Errorf("remove namespace %s: %v: %s", ns, err, out)
			}
		}
	})
	ip("netns", "add", a)
	ip("netns", "add", b)
	ip("-n", a, "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", b)
	for ns, addr := range map[string]string{a: "192.0.2.1/24", b: "192.0.2.2/24"} {
		ip("-n", ns, "addr", "add", addr, "dev", "veth0")
		ip("-n", ns, "link", "set", "veth0", "up")
		ip("-n", ns, "link", "set", "lo", "up")
	}
	return a, b
}

// child is a process of this test binary inside a namespace.
type child struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Scanner
	done bool
}

func startChild(ctx context.Context, t *testing.T, ns string, spec childSpec) *child {
	t.Helper()
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", ns, self)
	if ns == "" { // in that of the test
		cmd = exec.CommandContext(ctx, self)
	}
	cmd.Env = append(os.Environ(), childVar+"="+string(b))
	cmd.WaitDelay = 5 * time.Second
	log := &strings.Builder{}
	cmd.Stderr = log
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, cmd: cmd, in: in, out: bufio.NewScanner(out)}
	t.Cleanup(func() {
		if !c.done {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		if t.Failed() {
			t.Logf("log of the %s:\n%s", spec.Role, log)
		}
	})
	return c
}

func (c *child) read() childLine {
	c.t.Helper()
	if !c.out.Scan() {
		c.t.Fatalf("child ended early: %v", c.out.Err())
	}
	var l childLine
	if err := json.Unmarshal(c.out.Bytes(), &l); err != nil {
		c.t.Fatalf("child said %q: %v", c.out.Text(), err)
	}
	return l
}

func (c *child) ask(word string) childLine {
	c.t.Helper()
	if _, err := io.WriteString(c.in, word+"\n"); err != nil {
		c.t.Fatal(err)
	}
	return c.read()
}

// end closes the child's input and wants a clean exit.
func (c *child) end() {
	c.t.Helper()
	_ = c.in.Close()
	for c.out.Scan() {
		c.t.Errorf("child said %s", c.out.Text())
	}
	c.done = true
	if err := c.cmd.Wait(); err != nil {
		c.t.Errorf("child: %v", err)
	}
}

func (c *child) signal(s os.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

// kill is kill -9.
func (c *child) kill() {
	c.t.Helper()
	c.done = true
	if err := c.cmd.Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
	_ = c.cmd.Wait() // "signal: killed"
}

// TestTUNInNamespaces is the real thing: two processes in two network namespaces, TUN devices, wgctrl.
func TestTUNInNamespaces(t *testing.T) {
	needRoot(t)
	a, b := twoNamespaces(t)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	gwIface, hostIface := fmt.Sprintf("dsg%d", os.Getpid()), fmt.Sprintf("dsh%d", os.Getpid())
	t.Cleanup(func() {
		for _, i := range []string{gwIface, hostIface} { // left behind only by a child that was killed
			_ = os.Remove(uapiPath(i))
		}
	})
	gwSpec := childSpec{Role: "gateway", Dir: t.TempDir(), Interface: gwIface, Endpoint: "192.0.2.1", UDP: 51820, Fleet: 7443}
	gw := startChild(ctx, t, a, gwSpec)
	ready := gw.read()
	if ready.Error != "" || ready.Backend != BackendTUN {
		t.Fatalf("gateway: %+v", ready)
	}
	hostSpec := childSpec{Role: "host", Dir: t.TempDir(), Interface: hostIface, Token: ready.Token, Endpoint: "192.0.2.1", Fleet: 7443}
	host := startChild(ctx, t, b, hostSpec)
	if l := host.read(); l.Error != "" || l.Text != "mac 10.77.1.0" || l.Backend != BackendTUN {
		t.Fatalf("host: %+v", l)
	}
	wantHost := func(h *child) {
		t.Helper()
		l := h.ask("whoami")
		if from, err := netip.ParseAddrPort(l.Text); err != nil || from.Addr().String() != "10.77.1.0" {
			t.Fatalf("whoami: %+v", l)
		}
	}
	wantHost(host)
	if l := host.ask("echo"); l.Error != "" {
		t.Errorf("echo: %s", l.Error)
	}
	if l := host.ask("outside"); !strings.Contains(l.Error, "refused") {
		t.Errorf("the fleet listener outside the tunnel: %+v", l)
	}
	checkThroughWgctrl(t, gwIface)

	restartGateway := func() {
		t.Helper()
		gw.kill()
		if _, err := os.Stat(uapiPath(gwIface)); err != nil {
			t.Errorf("the killed gateway left no socket file, so this test shows nothing: %v", err)
		}
		gw = startChild(ctx, t, a, gwSpec)
		if l := gw.read(); l.Error != "" {
			t.Fatalf("gateway: %+v", l)
		}
	}
	// A gateway that was killed leaves its socket file behind; the next one takes over, the host finds it.
	restartGateway()
	began := time.Now()
	wantHost(host)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the host found the restarted gateway after %s", took)
	} else {
		t.Logf("the host found the restarted gateway after %s", took)
	}

	// Whatever is done to the host's interface, the next dial reaches the gateway.
	ip := func(args ...string) { t.Helper(); command(t, "ip", append([]string{"-n", b}, args...)...) }
	for name, do := range map[string]func(){
		"deleted": func() { ip("link", "del", hostIface) },
		"deleted and recreated by someone": func() {
			host.signal(syscall.SIGSTOP) // it would be faster
			ip("link", "del", hostIface)
			ip("tuntap", "add", "dev", hostIface, "mode", "tun")
			host.signal(syscall.SIGCONT)
		},
		"brought down":      func() { ip("link", "set", hostIface, "down") },
		"its address taken": func() { ip("addr", "flush", "dev", hostIface) },
		// Until something has to be repaired, nobody asks the daemon.
		"its socket removed": func() { _ = os.Remove(uapiPath(hostIface)); restartGateway() },
	} {
		index := func() string { return indexOr(ctx, b, hostIface, "") }
		before, began := index(), time.Now()
		do()
		for {
			if l := host.ask("whoami"); l.Error == "" && index() != "" && index() != before {
				break
			} else if ctx.Err() != nil {
				t.Fatalf("the host's interface %s: it does not reach the gateway any more: %s", name, l.Error)
			}
		}
		t.Logf("the host's interface %s: back after %s", name, time.Since(began).Round(time.Millisecond))
	}

	host.end()
	hostSpec.Token = ""
	host = startChild(ctx, t, b, hostSpec)
	if l := host.read(); l.Error != "" {
		t.Fatalf("host after a restart: %+v", l)
	}
	wantHost(host)
	host.end()
	gw.end()
	for _, i := range []string{gwIface, hostIface} {
		if _, err := os.Stat(uapiPath(i)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("socket file of %s: %v", i, err)
		}
	}
	for _, ns := range []string{a, b} {
		out, err := exec.CommandContext(ctx, "ip", "-n", ns, "-o", "link").CombinedOutput()
		if err != nil || strings.Contains(string(out), gwIface) || strings.Contains(string(out), hostIface) {
			t.Errorf("interfaces left in %s: %v\n%s", ns, err, out)
		}
	}
}

func uapiPath(iface string) string { return filepath.Join("/var/run/wireguard", iface+".sock") }

// checkThroughWgctrl looks at the gateway's device as any other program would.
func checkThroughWgctrl(t *testing.T, iface string) {
	t.Helper()
	c, err := wgctrl.New()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d, err := c.Device(iface)
	if err != nil {
		t.Fatal(err)
	}
	if d.ListenPort != 51820 || len(d.Peers) != 2 {
		t.Errorf("device: port %d, %d peers", d.ListenPort, len(d.Peers))
	}
	want := map[string]bool{"10.76.1.0/32": true, "10.77.1.0/32": true}
	for _, p := range d.Peers {
		if len(p.AllowedIPs) != 1 || !want[p.AllowedIPs[0].String()] || p.PresharedKey == [32]byte{} {
			t.Errorf("peer with addresses %v", p.AllowedIPs)
			continue
		}
		delete(want, p.AllowedIPs[0].String())
	}
}

// TestHungDaemon: wgctrl has no deadlines. A daemon that accepts and never answers is an error with a name.
func TestHungDaemon(t *testing.T) {
	needRoot(t)
	iface := fmt.Sprintf("dsx%d", os.Getpid())
	if err := os.MkdirAll(filepath.Dir(uapiPath(iface)), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", uapiPath(iface))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, err := newCtlDevice(deviceConfig{Addr: addr(ownRange, 1), Log: testLog(t)}, iface, nil, ends{release: func() error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	d.limit = 100 * time.Millisecond
	if _, err := d.read(t.Context()); !errors.Is(err, ErrDeviceHung) {
		t.Errorf("read: %v", err)
	}
	if err := d.apply(t.Context(), changes{Add: []Peer{{PublicKey: Key{1}, Addr: addr(ownRange, 256)}}}.configs()[0]); !errors.Is(err, ErrDeviceHung) {
		t.Errorf("configure: %v", err)
	}
	if err := d.close(); !errors.Is(err, ErrDeviceHung) {
		t.Errorf("close: %v", err)
	}
	// Once the daemon is gone the stuck call ends, and the device is named as gone.
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	d.limit = 5 * time.Second
	if err := d.settle(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.read(t.Context()); !errors.Is(err, ErrDeviceGone) {
		t.Errorf("read of a device that is gone: %v", err)
	}
}

// TestKernelDetection: a kernel without WireGuard is told apart cleanly and leaves no interface; one that has it works.
func TestKernelDetection(t *testing.T) {
	needRoot(t)
	iface := fmt.Sprintf("dsk%d", os.Getpid())
	d, err := openKernel(t.Context(), deviceConfig{Interface: iface, Addr: addr(ownRange, 1), MTU: 1280, Key: clamp([32]byte{1}), Log: testLog(t)})
	if err == nil {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	} else if !errors.Is(err, ErrBackend) {
		t.Errorf("detection: %v", err)
	}
	if _, err := net.InterfaceByName(iface); err == nil {
		t.Errorf("interface %s was left behind", iface)
	}
}
