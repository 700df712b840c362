package host

import (
	"encoding/json"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// SuperviseCommand is the argument that makes a program call SuperviseMain with the arguments that follow it.
const SuperviseCommand = "supervise-session"

// Descriptors of the supervisor.
const (
	fdRequests  = 3 + iota // read: requests, JSON; its end means that the session is over or the agent dead
	fdEvents               // write: events, JSON
	fdRecording            // write: standard output of the recorder
	fdDisplay              // write: where the display server says its number
)

// termLimit is the time between SIGTERM and SIGKILL; killLimit is for what follows.
const (
	termLimit = time.Second
	killLimit = 5 * time.Second
)

type request struct {
	Name   string         `json:"name"`
	Args   []string       `json:"args,omitempty"` // start this program; Args[0] is an absolute path
	Env    []string       `json:"env,omitempty"`
	Dir    string         `json:"dir,omitempty"`
	Signal syscall.Signal `json:"signal,omitempty"` // or send this signal
}

type event struct {
	Name   string `json:"name"`
	Pid    int    `json:"pid"`
	Exited bool   `json:"exited,omitempty"`
	Status string `json:"status,omitempty"` // how it exited
	Error  string `json:"error,omitempty"`  // why it was not started
}

// Names of the processes of a session.
const (
	procDisplay  = "display"
	procRecorder = "recorder"
	procDriver   = "driver"
)

// supervision is the state of a supervisor; one goroutine owns it.
type supervision struct {
	children map[int]string // by pid
	events   *json.Encoder
	exited   chan os.Signal
}

// SuperviseMain is the supervisor of one session's processes, see the package comment. args is the session's directory, to wipe at the end. It
// returns the exit status when no descendant runs any more.
func SuperviseMain(args []string) int {
	if len(args) != 1 {
		return 2
	}
	runtime.LockOSThread() // pdeathsig looks at the thread that started a process: this one lives as long as the process
	becomeSubreaper()
	for _, fd := range []int{fdRequests, fdEvents, fdRecording, fdDisplay} {
		syscall.CloseOnExec(fd)
	}
	s := &supervision{
		children: map[int]string{}, exited: make(chan os.Signal, 1),
		events: json.NewEncoder(os.NewFile(fdEvents, "events")),
	}
	signal.Notify(s.exited, syscall.SIGCHLD)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE)
	requests := make(chan request)
	go readRequests(requests) // ends with the process
	s.run(requests, stop)
	s.killAll()
	if err := os.RemoveAll(args[0]); err != nil {
		return 1 // the agent, this one or the next, finds what is left
	}
	return 0
}

func readRequests(requests chan<- request) {
	defer close(requests)
	d := json.NewDecoder(os.NewFile(fdRequests, "requests"))
	for {
		var r request
		if err := d.Decode(&r); err != nil { // io.EOF, or an agent that writes nonsense: over either way
			return
		}
		requests <- r
	}
}

func (s *supervision) run(requests <-chan request, stop <-chan os.Signal) {
	for {
		select {
		case r, ok := <-requests:
			if !ok {
				return
			}
			s.handle(r)
		case <-s.exited:
			s.reap()
		case <-stop:
			return
		}
	}
}

func (s *supervision) handle(r request) {
	if r.Signal != 0 {
		for pid, name := range s.children {
			if name == r.Name {
				_ = syscall.Kill(pid, r.Signal) // not reaped yet, so it is the same process
			}
		}
		return
	}
	pid, err := spawn(r)
	e := event{Name: r.Name, Pid: pid}
	if err != nil {
		e.Error = err.Error()
	} else {
		s.children[pid] = r.Name
	}
	s.tell(e)
}

// tell ignores errors: an agent that reads no events is dead, and the requests pipe says so too.
func (s *supervision) tell(e event) { _ = s.events.Encode(e) }

// spawn starts a process with nothing but its own descriptors.
func spawn(r request) (int, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	files := []uintptr{null.Fd(), null.Fd(), null.Fd()}
	switch r.Name {
	case procRecorder:
		files[1] = fdRecording
		defer syscall.Close(fdRecording) // so that the recording ends with the recorder
	case procDisplay:
		files = append(files, fdDisplay)
		defer syscall.Close(fdDisplay)
	}
	return syscall.ForkExec(r.Args[0], r.Args, &syscall.ProcAttr{Dir: r.Dir, Env: r.Env, Files: files, Sys: childAttr()})
}

// reap collects every child that has exited, adopted ones included.
func (s *supervision) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if name, ok := s.children[pid]; ok {
			delete(s.children, pid)
			s.tell(event{Name: name, Pid: pid, Exited: true, Status: describe(status)})
		}
	}
}

func describe(w syscall.WaitStatus) string {
	if w.Signaled() {
		return "killed by signal " + w.Signal().String()
	}
	return "exited with status " + strconv.Itoa(w.ExitStatus())
}

// killAll ends every descendant: SIGTERM first, for what has files outside of the session's directory to remove.
func (s *supervision) killAll() {
	for _, step := range []struct {
		signal syscall.Signal
		limit  time.Duration
	}{{syscall.SIGTERM, termLimit}, {syscall.SIGKILL, killLimit}} {
		deadline := time.NewTimer(step.limit)
		again := time.NewTicker(10 * time.Millisecond)
		for over := false; !over; {
			s.reap()
			left := s.descendants()
			if len(left) == 0 {
				deadline.Stop()
				again.Stop()
				return
			}
			for _, pid := range left {
				_ = syscall.Kill(pid, step.signal)
			}
			select {
			case <-s.exited:
			case <-again.C:
			case <-deadline.C:
				over = true
			}
		}
		again.Stop()
	}
}
