package tunnel

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"go.uber.org/zap"
)

// kill9 ends this process as a power cut does.
func kill9() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }

// crashHost enrols up to a step, and is killed there.
func crashHost(spec childSpec) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cfg, err := LinkConfig{StateDir: spec.Dir, Token: spec.Token, Backend: BackendNetstack, Log: zap.NewNop()}.withDefaults()
	if err != nil {
		return err
	}
	s, err := prepareState(cfg)
	if err != nil {
		return err
	}
	if spec.Step == "key stored" {
		kill9()
	}
	t, err := ParseToken(cfg.Token)
	if err != nil {
		return err
	}
	key, err := t.JoinKey()
	if err != nil {
		return err
	}
	l, err := openLink(ctx, cfg, s, key, s.JoinAddr)
	if err != nil {
		return err
	}
	offer, err := s.candidate().offer(Key{})
	if err != nil {
		return err
	}
	joined, err := l.redeem(ctx, offer)
	if err != nil {
		return err
	}
	if spec.Step == "token redeemed" {
		kill9()
	}
	done, err := answered(s, joined)
	if err != nil {
		return err
	}
	if err := done.save(cfg.StateDir); err != nil {
		return err
	}
	kill9() // answer stored
	return nil
}

// crashEnroller is killed before or after it has stored a redemption, or when the device knows the key as well.
type crashEnroller struct {
	*registry
	step string
}

func (c crashEnroller) Redeem(ctx context.Context, a netip.Addr, o Offer) (wire.Joined, error) {
	if c.step == "nothing stored" {
		kill9()
	}
	joined, err := c.registry.Redeem(ctx, a, o)
	if c.step == "redemption stored" {
		kill9()
	}
	return joined, err
}

func (c crashEnroller) PeersOf(ctx context.Context, host string) ([]Peer, error) {
	ps, err := c.registry.PeersOf(ctx, host)
	if c.step == "about to configure" && len(ps) > 1 {
		kill9()
	}
	return ps, err
}

func crashGateway(spec childSpec, out *json.Encoder) error {
	r, err := openRegistry(filepath.Join(spec.Dir, "registry.json"))
	if err != nil {
		return err
	}
	c := crashEnroller{r, spec.Step}
	w, err := openWorld(context.Background(), r, worldConfig{number: 1, dir: spec.Dir, udp: spec.UDP, fleet: spec.Fleet, enroller: c, peers: c, log: zap.NewNop()})
	if err != nil {
		return err
	}
	line := childLine{Text: strconv.Itoa(w.Port())}
	if line.Token, err = r.invite(256, "mac", w.info); err != nil {
		return err
	}
	w.Nudge("")
	if err := out.Encode(line); err != nil {
		return err
	}
	select {} // until it is killed
}

func openRegistry(file string) (*registry, error) {
	r := &registry{file: file}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(b, r)
	}
	return r, err
}

func crashChild(t *testing.T, spec childSpec) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVar+"="+string(text))
	cmd.Stderr = os.Stderr
	return cmd
}

func wasKilled(t *testing.T, err error) {
	t.Helper()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child was not killed: %v", err)
	}
}

// TestHostKilledWhileJoining: a host that is killed after any step of its enrolment joins when it is started again, with
// the key and the address it would have had.
func TestHostKilledWhileJoining(t *testing.T) {
	for _, step := range []string{"key stored", "token redeemed", "answer stored"} {
		t.Run(step, func(t *testing.T) {
			r := &registry{}
			w := startWorld(t, r, worldConfig{number: 1, dir: t.TempDir()})
			token, dir := r.mustInvite(t, 256, "mac", w.info), t.TempDir()
			w.settle(t)
			wasKilled(t, crashChild(t, childSpec{Role: "crash-host", Step: step, Dir: dir, Token: token}).Run())
			s, err := loadState(dir)
			if err != nil || s.joined() != (step == "answer stored") {
				t.Fatalf("left %v, %v", s, err)
			}
			if known := r.keyOf("mac") != (Key{}); known != (step != "key stored") {
				t.Fatalf("the registry has its key: %t", known)
			}
			l := openTestLink(t, LinkConfig{StateDir: dir, Token: token})
			checkWhoami(t, l, w.info)
			if l.held().key != s.PrivateKey || r.keyOf("mac") != s.PrivateKey.Public() {
				t.Error("it joined with another key")
			}
		})
	}
}

// TestGatewayKilledWhileJoining: a gateway that is killed in the middle of a redemption comes back, and the host that
// waits for the answer gets it.
func TestGatewayKilledWhileJoining(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"nothing stored", "redemption stored", "about to configure"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			gw, dir := t.TempDir(), t.TempDir()
			const fleet = 7700
			cmd := crashChild(t, childSpec{Role: "crash-gateway", Step: step, Dir: gw, Fleet: fleet})
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var line childLine
			if err := json.NewDecoder(bufio.NewReader(out)).Decode(&line); err != nil || line.Error != "" {
				t.Fatalf("%v, %+v", err, line)
			}
			udp, err := strconv.Atoi(line.Text)
			if err != nil {
				t.Fatal(err)
			}
			joined := make(chan error, 1)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var l *Link
			go func() {
				var err error
				l, err = OpenLink(ctx, LinkConfig{StateDir: dir, Token: line.Token, Backend: BackendNetstack, DialTimeout: 600 * time.Millisecond, Log: testLog(t)})
				joined <- err
			}()
			wasKilled(t, cmd.Wait())
			r, err := openRegistry(filepath.Join(gw, "registry.json"))
			if err != nil {
				t.Fatal(err)
			}
			if known := r.keyOf("mac") != (Key{}); known != (step != "nothing stored") {
				t.Fatalf("the registry has the host's key: %t", known)
			}
			w := startWorld(t, r, worldConfig{number: 1, dir: gw, udp: udp, fleet: fleet})
			if err := <-joined; err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			checkWhoami(t, l, w.info)
			if r.keyOf("mac") != l.held().key.Public() {
				t.Error("the registry has another key")
			}
		})
	}
}
