package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// markVariable marks the processes of a session in their environment.
const markVariable = "DRIFTSTACK_SESSION_MARK"

// supervisor is the agent's handle of a session's supervisor.
type supervisor struct {
	cmd       *exec.Cmd
	requests  *os.File
	recording *os.File // what the recorder writes
	display   *os.File // what the display server says
	mark      string
	over      chan struct{} // closed when the supervisor is gone and nothing of it runs; err is set before
	err       error

	mu      sync.Mutex // guards what follows
	started map[string]chan event
	exited  map[string]chan struct{}
}

// startSupervisor starts argv with the session's directory as its last argument.
func startSupervisor(argv []string, dir, mark string) (_ *supervisor, err error) {
	var ours, theirs []*os.File
	defer func() {
		closeAll(theirs)
		if err != nil {
			closeAll(ours)
		}
	}()
	for i := range 4 {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("host: pipe to the supervisor: %w", err)
		}
		if i == 0 { // requests go down, the others come up
			r, w = w, r
		}
		ours, theirs = append(ours, r), append(theirs, w)
	}
	cmd := exec.Command(argv[0], append(argv[1:len(argv):len(argv)], dir)...)
	cmd.ExtraFiles = theirs
	cmd.Env = []string{markVariable + "=" + mark}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("host: start the supervisor: %w", err)
	}
	s := &supervisor{
		cmd: cmd, requests: ours[0], recording: ours[2], display: ours[3], mark: mark, over: make(chan struct{}),
		started: map[string]chan event{}, exited: map[string]chan struct{}{},
	}
	go s.watch(ours[1]) // ends with the supervisor, which stop waits for
	return s, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// watch hands out events until the supervisor is gone, and then kills what it may have left.
func (s *supervisor) watch(events *os.File) {
	d := json.NewDecoder(events)
	for {
		var e event
		if err := d.Decode(&e); err != nil {
			break
		}
		s.mu.Lock()
		if e.Exited {
			close(s.exited[e.Name])
		} else {
			s.started[e.Name] <- e
		}
		s.mu.Unlock()
	}
	_ = events.Close()
	// Not waited for yet, so its pid, which is the group's, cannot have been recycled.
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	_ = s.cmd.Wait() // its exit status says nothing: what counts is checked
	s.err = killMarked(s.mark)
	_ = s.display.Close()
	close(s.over)
}

var errSupervisor = errors.New("host: the supervisor of the session's processes is gone")

// start starts a process; the channel is closed when it has exited.
func (s *supervisor) start(ctx context.Context, r request) (pid int, exited <-chan struct{}, err error) {
	path, err := exec.LookPath(r.Args[0])
	if err != nil {
		return 0, nil, fmt.Errorf("host: the %s's program: %w", r.Name, err)
	}
	r.Args = append([]string{path}, r.Args[1:]...)
	up, down := make(chan event, 1), make(chan struct{})
	s.mu.Lock()
	s.started[r.Name], s.exited[r.Name] = up, down
	s.mu.Unlock()
	if err := s.ask(r); err != nil {
		return 0, nil, err
	}
	select {
	case e := <-up:
		if e.Error != "" {
			return 0, nil, fmt.Errorf("host: start the %s: %s", r.Name, e.Error)
		}
		return e.Pid, down, nil
	case <-s.over:
		return 0, nil, errSupervisor
	case <-ctx.Done():
		return 0, nil, context.Cause(ctx)
	}
}

func (s *supervisor) signal(name string, signal syscall.Signal) error {
	return s.ask(request{Name: name, Signal: signal})
}

func (s *supervisor) ask(r request) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_ = s.requests.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if _, err := s.requests.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("%w: %w", errSupervisor, err)
	}
	return nil
}

// stop ends everything and returns when nothing runs any more, or says what does. It is bounded by the supervisor's own limits and
// those of killMarked.
func (s *supervisor) stop() error {
	_ = s.requests.Close()
	patience := time.NewTimer(termLimit + 2*killLimit)
	defer patience.Stop()
	select {
	case <-s.over:
	case <-patience.C:
		_ = s.cmd.Process.Kill()
		<-s.over // the events pipe ends with the process
	}
	_ = s.recording.Close()
	return s.err
}
