package pgcluster

import (
	"os/exec"
	"runtime"
	"syscall"
)

// process is a child that is waited for.
type process struct {
	pid  int
	done chan struct{} // closed by the waiting goroutine, after err is set
	err  error
}

// startProcess starts cmd and waits for it on one thread that is kept until the child has ended: on Linux the parent's
// death signal is sent when the starting thread ends, not the process.
func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	return p, <-started
}

func (p *process) signal(s syscall.Signal) {
	select {
	case <-p.done: // the number may belong to somebody else by now
	default:
		_ = syscall.Kill(p.pid, s) // it may end this very moment: its end is what the callers wait for
	}
}
