package tunnel

import (
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// TestCongestion: sockets that are dialled and those that are accepted use the algorithm, it is said once, and one that
// is not there is said with what to do about it, and is no reason to fail.
func TestCongestion(t *testing.T) {
	available, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	if err != nil {
		t.Fatal(err)
	}
	for _, algorithm := range []string{congestion, "reno", "nonesuch"} {
		core, logs := observer.New(zapcore.InfoLevel)
		s := &sender{device: "wg0", algorithm: algorithm, log: zap.New(core)}
		lc := net.ListenConfig{Control: s.control}
		l, err := lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		d := net.Dialer{Control: s.control}
		dialled, err := d.DialContext(t.Context(), "tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		there := slices.Contains(strings.Fields(string(available)), algorithm)
		for what, c := range map[string]net.Conn{"dialled": dialled, "accepted": accepted} {
			if got := congestionOf(t, c); (got == algorithm) != there {
				t.Errorf("a socket that was %s uses %s instead of %s", what, got, algorithm)
			}
			_ = c.Close()
		}
		_ = l.Close()
		if logs.Len() != 1 {
			t.Errorf("%s: said %d times", algorithm, logs.Len())
		} else if m := logs.All()[0].Message; strings.Contains(m, "modprobe tcp_bbr") == there {
			t.Errorf("%s: said %q", algorithm, m)
		}
	}
}

func congestionOf(t *testing.T, c net.Conn) string {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var name string
	if ctl := raw.Control(func(fd uintptr) { name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION) }); ctl != nil || err != nil {
		t.Fatal(ctl, err)
	}
	return strings.TrimRight(name, "\x00")
}
