package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// childStopLimit is how long a child may take to stop cleanly before it is killed.
const childStopLimit = 20 * time.Second

// child is one program of the stack: in its own process group, so that Ctrl-C reaches devstack alone and devstack
// decides the order, and told to stop by the system should devstack be killed (Linux).
type child struct {
	name string
	log  string // "" when its output is taken by the caller
	pid  int
	done chan struct{} // closed by the waiting goroutine, after err is set
	err  error
}

// spec says how to start a child.
type spec struct {
	name   string
	argv   []string
	env    []string  // added to ours; secrets travel here, where other users cannot see them
	log    string    // file that takes its output, unless stdout is set
	stdout io.Writer // nil: the log
	inside *netSpace // nil: our own network namespace
}

// startChild starts a program and waits for it on a thread kept until it has ended: on Linux the parent's death signal
// is sent when the starting thread ends, not the process.
func startChild(s spec) (*child, error) {
	c := &child{name: s.name, log: s.log, done: make(chan struct{})}
	cmd := exec.Command(s.argv[0], s.argv[1:]...)
	cmd.Env = append(inherited(), s.env...)
	cmd.SysProcAttr = childAttr()
	cmd.WaitDelay = 2 * time.Second
	cmd.Stdout = s.stdout
	var out *os.File
	if s.log != "" {
		var err error
		if out, err = openLog(s.log); err != nil {
			return nil, err
		}
		defer out.Close()
		cmd.Stderr = out
		if s.stdout == nil {
			cmd.Stdout = out
		}
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		// Not unlocked when the thread was moved into another namespace: it must not serve other goroutines.
		if s.inside == nil {
			defer runtime.UnlockOSThread()
		}
		err := s.inside.enter()
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			c.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			c.err = cmd.Wait()
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", s.name, err)
	}
	return c, nil
}

// inherited is our environment without the settings of somebody's own fleet: only devstack configures its children.
func inherited() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "DRIFTSTACK_") })
}

// stop asks the child to end and kills its process group when it does not in time. It returns an error only when
// the child had to be killed.
func (c *child) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, childStopLimit)
	defer cancel()
	c.signal(syscall.SIGTERM)
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
	}
	_ = syscall.Kill(-c.pid, syscall.SIGKILL) // the group exists for as long as the child was not waited for
	<-c.done
	return fmt.Errorf("%s did not stop within %s and was killed; end of its log:\n%s", c.name, childStopLimit, c.tail())
}

func (c *child) signal(s syscall.Signal) {
	select {
	case <-c.done: // the number may belong to somebody else by now
	default:
		_ = syscall.Kill(c.pid, s) // it may end this very moment: its end is what callers wait for
	}
}

// ended says why a child that should run does not.
func (c *child) ended() error {
	what := "ended by itself"
	if c.err != nil {
		what = c.err.Error()
	}
	return fmt.Errorf("%s: %s; end of %s:\n%s", c.name, what, c.log, c.tail())
}

// tail is the end of the child's log, indented.
func (c *child) tail() string {
	const most = 2000
	f, err := os.Open(c.log)
	if err != nil {
		return "  " + err.Error()
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "  " + err.Error()
	}
	raw := make([]byte, most)
	n, err := f.ReadAt(raw, max(0, end-most))
	if err != nil && !errors.Is(err, io.EOF) {
		return "  " + err.Error()
	}
	text := raw[:n]
	if _, whole, cut := bytes.Cut(text, []byte("\n")); cut && end > most {
		text = whole // the first line has lost its beginning
	}
	text = bytes.TrimSpace(text)
	return "  " + string(bytes.ReplaceAll(text, []byte("\n"), []byte("\n  ")))
}

// openLog starts a log afresh: an older one is kept as .old, so that logs do not grow without end.
func openLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	if err := os.Rename(path, path+".old"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("log: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return f, nil
}
