package host_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// agentCommand makes the test program an agent, which can be killed.
const agentCommand = "test-agent"

func agentMain(args []string) int {
	var given struct {
		host.Config
		Orchestrators []string
	}
	if err := json.Unmarshal([]byte(args[0]), &given); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	cfg := given.Config
	cfg.Orchestrators = host.Fixed(given.Orchestrators...)
	cfg.Dial = (&net.Dialer{}).DialContext
	if err := host.Run(context.Background(), cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// startAgent runs an agent as a process of its own.
func (s *stack) startAgent(t *testing.T, cfg host.Config) *exec.Cmd {
	t.Helper()
	addrs, _ := cfg.Orchestrators()
	b, err := json.Marshal(map[string]any{
		"Name": cfg.Name, "StateDir": cfg.StateDir, "Orchestrators": addrs, "Devices": cfg.Devices,
		"Supervisor": cfg.Supervisor, "SafariDriver": cfg.SafariDriver,
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], agentCommand, string(b))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be dead already
		_ = cmd.Wait()
	})
	return cmd
}

func TestRealAgentKilled(t *testing.T) {
	t.Parallel()
	for _, both := range []bool{false, true} {
		t.Run(fmt.Sprintf("supervisor too %v", both), func(t *testing.T) {
			t.Parallel()
			s := newImpatientFleet(t)
			cfg := s.realConfig(t)
			agent := s.startAgent(t, cfg)
			s.connected(t)
			session := assign(t, s, first("s1", 1))
			do[any](t, session, "POST", "/url", map[string]string{"url": "about:blank"})
			if n := len(processesBelow(s.state)); n < 4 {
				t.Fatalf("only %d processes", n)
			}
			type result struct {
				answer  webdriver.Answer
				receipt driverproxy.Receipt
				err     error
			}
			inFlight := make(chan result, 1)
			called := make(chan struct{})
			go func() { // never ends by itself: the script does not call back
				close(called)
				script := command(t, "POST", "/execute/async", map[string]any{"script": "window.called = 1", "args": []any{}})
				a, r, err := session.Do(context.Background(), script)
				inFlight <- result{a, r, err}
			}()
			<-called
			// A second command is sent behind it: when that waits, the first is in flight.
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			if _, r, _ := session.Do(ctx, webdriver.Command{Method: "GET", Path: "/url"}); r.Seq == 0 {
				t.Fatal("the command behind was not sent")
			}
			cancel()
			supervisor := pidOf(s.state, host.SuperviseCommand)
			victims := []int{agent.Process.Pid}
			if both { // stopped, so that it cannot do its work before it is killed
				freeze(t, supervisor)
				victims = append(victims, supervisor)
			}
			for _, pid := range victims {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			_ = agent.Wait()
			a := <-inFlight
			if a.receipt.Outcome != wire.OutcomeUnknown || !errors.Is(a.err, driverproxy.ErrHostLost) {
				t.Errorf("command in flight: outcome %d, %v", a.receipt.Outcome, a.err)
			}
			wantOutcome(t, a.answer, "unknown")
			within(t, "the session ends", session.Done())
			if !both {
				eventually(t, "no process is left", func() bool { return len(processesBelow(s.state)) == 0 })
			}
			s.run(t, cfg) // the next agent reaps and wipes the rest
			s.idle(t)
			next := assign(t, s, first("s2", 1))
			do[any](t, next, "POST", "/url", map[string]string{"url": "about:blank"})
			release(t, next)
		})
	}
}
