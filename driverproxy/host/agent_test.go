package host_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/driftstack/fleet/driverproxy/host"
)

// agentCommand makes the test program an agent, which can be killed.
const agentCommand = "test-agent"

func agentMain(args []string) int {
	var cfg host.Config
	if err := json.Unmarshal([]byte(args[0]), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
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
	b, err := json.Marshal(map[string]any{
		"Name": cfg.Name, "StateDir": cfg.StateDir, "Orchestrators": cfg.Orchestrators, "Devices": cfg.Devices,
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
	for _, both := range []bool{false, true} {
		t.Run(fmt.Sprintf("supervisor too %v", both), func(t *testing.T) {
			s := newFleet(t)
			cfg := s.realConfig(t)
			agent := s.startAgent(t, cfg)
			s.connected(t)
			session := assign(t, s, first("s1", 1))
			do[any](t, session, "POST", "/url", map[string]string{"url": "about:blank"})
			if n := len(processesBelow(s.state)); n < 4 {
				t.Fatalf("only %d processes", n)
			}
			supervisor := pidOf(s.state, host.SuperviseCommand)
			victims := []int{agent.Process.Pid}
			if both { // stopped, so that it cannot do its work before it is killed
				if err := syscall.Kill(supervisor, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				victims = append(victims, supervisor)
			}
			for _, pid := range victims {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			_ = agent.Wait()
			within(t, "the session ends", session.Done())
			if !both {
				eventually(t, "no process is left", func() bool { return len(processesBelow(s.state)) == 0 })
			}
			s.run(t, cfg) // the next agent reaps and wipes the rest
			s.nothingLeft(t)
			next := assign(t, s, first("s2", 1))
			do[any](t, next, "POST", "/url", map[string]string{"url": "about:blank"})
			release(t, next)
		})
	}
}
