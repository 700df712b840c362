package tunnel

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/tunnel/tunneltest"
)

// sleeperChild is a host without privilege whose wall clock is ahead by what a file says. It answers a line with the
// caller's address as each gateway sees it; "repairs" says how often it took a new socket, and "held" whether the connection it opened at first still stands.
func sleeperChild(spec childSpec, out *json.Encoder) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	now := func() time.Time {
		b, _ := os.ReadFile(spec.Clock) // not there: right on time
		ahead, _ := time.ParseDuration(string(b))
		return time.Now().Add(ahead)
	}
	l, err := OpenLink(ctx, LinkConfig{StateDir: spec.Dir, Token: spec.Token, Backend: BackendNetstack, Now: now, Log: childLog()})
	if err != nil {
		return err
	}
	g := l.Gateways()[0]
	held, err := l.DialContext(ctx, "tcp", g.Fleet())
	if err == nil {
		err = exchange(held, bufio.NewReader(held), "hello")
	}
	if err == nil {
		err = out.Encode(childLine{Text: "up"})
	}
	in := bufio.NewScanner(os.Stdin)
	for err == nil && in.Scan() {
		var line childLine
		var said error
		if in.Text() == "held" {
			_ = held.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, said = held.Read(make([]byte, 1)); errors.Is(said, os.ErrDeadlineExceeded) {
				line.Text, said = "stands", nil
			} else if said != nil {
				line.Text, said = "closed", nil
			}
		} else if in.Text() == "repairs" {
			line.Text = strconv.Itoa(l.Repairs().Socket)
		} else {
			for _, g := range l.Gateways() {
				if said == nil {
					line.Text, said = whoami(ctx, l, g)
				}
			}
		}
		if said != nil {
			line.Error = said.Error()
		}
		err = out.Encode(line)
	}
	return errors.Join(err, in.Err(), l.Close())
}

// TestSleep stops a real host; while it sleeps for 10 minutes by its wall clock, nothing happens, or everything does.
func TestSleep(t *testing.T) {
	for name, meanwhile := range map[string]func(t *testing.T, x *relayed){
		"alone": func(*testing.T, *relayed) {},
		"while the gateway restarts and the NAT forgets": func(t *testing.T, x *relayed) {
			x.restart(t)
			if err := x.relay.Rebind(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			x := openRelayed(t, tunneltest.RelayConfig{Delay: ocean}, LinkConfig{})
			clock := filepath.Join(t.TempDir(), "clock")
			other := startWorld(t, x.r, worldConfig{number: 2, dir: t.TempDir()})
			token := x.r.mustInvite(t, 257, "sleeper", x.info, other.info)
			x.settle(t)
			other.settle(t)
			x.r.onChange(func() { x.Nudge(""); other.Nudge("") })
			c := startChild(ctx, t, "", childSpec{Role: "sleeper", Dir: t.TempDir(), Token: token, Clock: clock})
			if l := c.read(); l.Text != "up" {
				t.Fatalf("%+v", l)
			}
			// Whatever was said must have been said before the host looked at its clocks last.
			if err := pause(ctx, 2*lookEvery+200*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			if err := c.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			meanwhile(t, x)
			if err := os.WriteFile(clock, []byte("10m"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := c.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			l := c.ask("whoami")
			took := time.Since(began)
			t.Logf("the next answer of both gateways came %s after waking", took.Round(time.Millisecond))
			if l.Error != "" || took > 3*time.Second {
				t.Errorf("after %s: %+v", took, l)
			}
			if l := c.ask("held"); l.Text != "closed" {
				t.Errorf("the connection from before: %+v", l)
			}
			if l := c.ask("repairs"); l.Text == "0" {
				t.Error("a host that slept keeps the socket that every NAT has forgotten")
			}
			c.end()
		})
	}
}
