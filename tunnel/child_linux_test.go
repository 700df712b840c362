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
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
)

// Children are this test binary again, in a network namespace of their own: one process an end, like in production.
const childVar = "DRIFTSTACK_TUNNEL_TEST_CHILD"

// childSpec is what a child is told.
type childSpec struct {
	Role      string // gateway or host
	Dir       string
	Interface string
	Token     string // host: empty when it has joined
	Step      string // after which the child is killed
	Endpoint  string // gateway: its address outside the tunnel
	UDP       int
	Fleet     int
	Every     time.Duration // gateway: 0 is the default
	Box       *boxSpec
	Clock     string // sleeper: a file that says by how much its wall clock is ahead
}

// childLine is what a child says, one JSON object a line.
type childLine struct {
	Error   string `json:",omitempty"`
	Token   string `json:",omitempty"`
	Backend string `json:",omitempty"`
	Text    string `json:",omitempty"`
}

func TestMain(m *testing.M) {
	if spec := os.Getenv(childVar); spec != "" {
		os.Exit(runChild(spec))
	}
	os.Exit(m.Run())
}

func runChild(text string) int {
	var spec childSpec
	out := json.NewEncoder(os.Stdout)
	err := json.Unmarshal([]byte(text), &spec)
	switch {
	case err != nil:
	case spec.Role == "gateway":
		err = gatewayChild(spec, out)
	case spec.Role == "crash-gateway":
		err = crashGateway(spec, out)
	case spec.Role == "crash-host":
		err = crashHost(spec)
	case spec.Role == "sleeper":
		err = sleeperChild(spec, out)
	case spec.Role == "box":
		err = boxChild(*spec.Box, out)
	default:
		err = hostChild(spec, out)
	}
	if err != nil {
		_ = out.Encode(childLine{Error: err.Error()})
		return 1
	}
	return 0
}

func childLog() *zap.Logger {
	log, err := zap.NewDevelopment()
	if err != nil {
		return zap.NewNop()
	}
	return log
}

// gatewayChild serves until its standard input ends.
func gatewayChild(spec childSpec, out *json.Encoder) error {
	r := &registry{file: filepath.Join(spec.Dir, "registry.json")}
	b, err := os.ReadFile(r.file)
	if err == nil {
		err = json.Unmarshal(b, r)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	w, err := openWorld(context.Background(), r, worldConfig{
		number: 1, udp: spec.UDP, fleet: spec.Fleet, dir: spec.Dir,
		backend: BackendTUN, iface: spec.Interface, endpoint: spec.Endpoint, log: childLog(), every: spec.Every,
	})
	if err != nil {
		return err
	}
	line := childLine{Backend: w.Backend()}
	if len(r.Hosts) == 0 {
		if line.Token, err = r.invite(256, "mac", w.info); err != nil {
			return errors.Join(err, w.stop())
		}
		w.Nudge("")
	}
	if err := out.Encode(line); err != nil {
		return errors.Join(err, w.stop())
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, w.stop())
}

// hostChild opens the link, then does what its standard input asks for, a word a line.
func hostChild(spec childSpec, out *json.Encoder) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l, err := OpenLink(ctx, LinkConfig{
		StateDir: spec.Dir, Token: spec.Token, Backend: BackendTUN, Interface: spec.Interface, Log: childLog(),
	})
	if err != nil {
		return err
	}
	if err := out.Encode(childLine{Backend: l.Backend(), Text: l.Host() + " " + l.Addr().String()}); err != nil {
		return errors.Join(err, l.Close())
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var line childLine
		text, err := hostDo(ctx, l, spec, in.Text())
		if line.Text = text; err != nil {
			line.Error = err.Error()
		}
		if err := out.Encode(line); err != nil {
			return errors.Join(err, l.Close())
		}
	}
	return errors.Join(in.Err(), l.Close())
}

func hostDo(ctx context.Context, l *Link, spec childSpec, word string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	g := l.Gateways()[0]
	switch word {
	case "whoami":
		return whoami(ctx, l, g)
	case "echo":
		return "", echo(ctx, l, g, 8<<20)
	case "outside": // the fleet port at the gateway's address outside the tunnel
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(spec.Endpoint, fmt.Sprint(spec.Fleet)))
		if err == nil {
			_ = c.Close()
		}
		return "", err
	}
	return "", fmt.Errorf("unknown word %q", word)
}
