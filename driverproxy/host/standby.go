package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// standby is what a session needs and no client has a part in: directory, supervisor, display and driver. A device has one
// while it waits for a session, which then takes it over with all there is to clean up; a session that finds none starts its own.
type standby struct {
	agent *agent
	of    Device
	kind  kind

	record     record
	dir        string      // "": nothing was started
	supervisor *supervisor // nil: nothing runs outside of this process
	display    Display
	displayPid int
	driver     *driver
	driverPid  int
	ports      []reservation // for the driver
	inside     *inProcess    // the driver of kind fake
	exits      []exit        // what must not exit
	spoiled    bool          // a probe found it not ready: it is to be discarded
	since      time.Time     // when it was started
	answered   time.Time     // when its driver last was ready; by the system's clock
}

// exit is something whose end is the session's.
type exit struct {
	what string
	gone <-chan struct{}
}

// What can exit.
const (
	exitSupervisor = "supervisor"
	exitDisplay    = "display"
	exitDriver     = "driver"
	exitKinds      = 3 // each once at most
)

// newStandby is one of which nothing has been started.
func newStandby(a *agent, d Device) *standby {
	k, _ := newKind(d, a.cfg) // was checked when the agent started
	return &standby{agent: a, of: d, kind: k}
}

// start brings everything up. What it has brought up when it fails is for takeDown, as if it had not.
func (s *standby) start(ctx context.Context) error {
	s.since = s.agent.cfg.Clock.Now()
	if err := s.prepare(); err != nil {
		return err
	}
	if s.kind.display() {
		if err := s.startDisplay(ctx); err != nil {
			return fmt.Errorf("the display did not start: %w", err)
		}
	}
	if err := s.startDriver(ctx); err != nil {
		return fmt.Errorf("the driver did not start: %w", err)
	}
	return nil
}

// prepare makes the directory and its record, and starts the supervisor if a process will run.
func (s *standby) prepare() error {
	s.record = record{Mark: random()}
	s.dir = s.agent.sessionDir(s.record.Mark)
	if err := s.record.write(s.dir); err != nil {
		return err
	}
	for _, d := range confinedDirs() {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o700); err != nil {
			return fmt.Errorf("host: the session's directory: %w", err)
		}
	}
	if s.kind.args(0) == nil {
		return nil
	}
	return s.supervise()
}

// supervise starts the supervisor, unless it runs.
func (s *standby) supervise() error {
	if s.supervisor != nil {
		return nil
	}
	var err error
	if s.supervisor, err = startSupervisor(s.agent.cfg.Supervisor, s.dir, s.record.Mark); err != nil {
		return err
	}
	s.exits = append(s.exits, exit{exitSupervisor, s.supervisor.over})
	s.record.Group = s.supervisor.cmd.Process.Pid
	s.record.Started = started(s.record.Group)
	return s.record.write(s.dir)
}

func (s *standby) environ() []string {
	return append(s.kind.environ(s.dir, s.display.Name), markVariable+"="+s.record.Mark)
}

func (s *standby) startDisplay(ctx context.Context) error {
	pid, gone, err := s.supervisor.start(ctx, request{Name: procDisplay, Dir: s.dir, Env: s.environ(), Args: []string{
		"Xvfb", "-displayfd", "3", "-screen", "0", fmt.Sprintf("%dx%dx24", Width, Height), "-nolisten", "tcp", "-noreset",
	}})
	if err != nil {
		return err
	}
	s.displayPid = pid
	s.exits = append(s.exits, exit{exitDisplay, gone})
	if limit, ok := ctx.Deadline(); ok {
		_ = s.supervisor.display.SetReadDeadline(limit) // a pipe of ours
	}
	stop := context.AfterFunc(ctx, func() { _ = s.supervisor.display.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReader(s.supervisor.display).ReadString('\n')
	if err != nil {
		return fmt.Errorf("no display number from Xvfb: %w", err)
	}
	number, err := strconv.ParseUint(strings.TrimSpace(line), 10, 16)
	if err != nil {
		return fmt.Errorf("no display number from Xvfb: %w", err)
	}
	s.display = Display{Name: ":" + strconv.FormatUint(number, 10), Width: Width, Height: Height}
	return nil
}

// startDriver tries a few ports: another program may take one before the driver does.
func (s *standby) startDriver(ctx context.Context) error {
	if f, ok := s.kind.(fake); ok {
		var err error
		if s.inside, err = serveFake(f.driver()); err != nil {
			return err
		}
		s.driver = newDriver(s.inside.addr, s.agent.cfg.SlowStart)
		s.exits = append(s.exits, exit{exitDriver, s.inside.driver.Dead()})
		return nil
	}
	var err error
	for range 3 {
		var port reservation
		if port, err = reservePort(); err != nil {
			return err
		}
		s.ports = append(s.ports, port)
		var pid int
		var gone <-chan struct{}
		pid, gone, err = s.supervisor.start(ctx, request{Name: procDriver, Args: s.kind.args(port.port), Env: s.environ(), Dir: s.dir})
		if err != nil {
			return err
		}
		s.driver = newDriver("127.0.0.1:"+strconv.Itoa(port.port), s.agent.cfg.SlowStart)
		own := func() bool { return listens(s.record.Mark, port.port) }
		if err = s.driver.ready(ctx, own, gone, s.supervisor.over); err == nil {
			s.exits = append(s.exits, exit{exitDriver, gone})
			s.driverPid = pid
			return nil
		}
		s.driver.close()
		s.driver = nil
		if !errors.Is(err, errDriverExited) {
			return err
		}
	}
	return err
}

// gone names what has exited; "" if all of it runs.
func (s *standby) gone() string {
	for _, e := range s.exits {
		select {
		case <-e.gone:
			return e.what
		default:
		}
	}
	return ""
}

// driverDied says whether the driver has exited by itself. Of one that broke off it waits to hear that: its connection ends first.
// Where something else is known to be gone, that is why it broke off.
func (s *standby) driverDied() bool {
	patience := time.Duration(0)
	if s.driver != nil && s.driver.broke.Load() && s.gone() == "" {
		patience = deathLimit
	}
	for _, e := range s.exits {
		if e.what == exitDriver {
			return closes(e.gone, patience)
		}
	}
	return false
}

// closes says whether the channel is closed, or is soon.
func closes(c <-chan struct{}, patience time.Duration) bool {
	select {
	case <-c:
		return true
	default:
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-c:
		return true
	case <-t.C:
		return false
	}
}

// status asks the driver whether it is ready, and says what is wrong if it is not, and how long it took.
func (s *standby) status(ctx context.Context) (grade, time.Duration) {
	begin := time.Now()
	ready, err := s.driver.status(ctx)
	took := time.Since(begin)
	s.driver.pause() // the next one is far away, and a driver may close a connection that is not used
	switch {
	case s.gone() != "" || s.driverDied():
		return gradeCrashes, took
	case err != nil || !ready || took > slowStatus:
		return gradeSlowDriver, took
	}
	s.answered = time.Now()
	return gradeNone, took
}

// usable says whether a session can begin with it. A driver that has not answered just now is asked, as it may hang.
func (s *standby) usable(ctx context.Context) bool {
	if s.spoiled || s.gone() != "" {
		return false
	}
	if time.Since(s.answered) < trusted {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, trusted)
	defer cancel()
	g, _ := s.status(ctx)
	return g == gradeNone
}

// fault is what it counts as that the standby cannot be used.
func (s *standby) fault() grade {
	if s.gone() != "" {
		return gradeCrashes
	}
	return gradeSlowDriver
}

// startGrade is what it counts as that start failed.
func startGrade(err error) grade {
	if errors.Is(err, errDriverExited) {
		return gradeCrashes
	}
	return gradeStart
}

// takeDown undoes start and whatever a session added. What could not be undone is residue.
func (s *standby) takeDown() error {
	var errs []error
	if s.inside != nil {
		errs = append(errs, s.inside.stop())
	}
	if s.supervisor != nil {
		errs = append(errs, s.supervisor.stop())
	}
	if s.driver != nil {
		s.driver.close()
	}
	for _, p := range s.ports {
		_ = p.Close() // no driver listens any more
	}
	forgetDisplay(s.display.Name, s.displayPid)
	if s.dir == "" {
		return errors.Join(errs...)
	}
	if err := errors.Join(append(errs, wipe(s.dir))...); err != nil {
		return err
	}
	return forget(s.dir)
}

// residue is what is left of the standby when takeDown failed.
func (s *standby) residue() residue { return residue{record: s.record, dir: s.dir} }

// residue is what a session or standby has left because it could not be removed.
type residue struct {
	record record
	dir    string
}

// clear tries again.
func (r residue) clear() error {
	if r.dir == "" {
		return nil
	}
	if err := errors.Join(r.record.kill(), wipe(r.dir)); err != nil {
		return err
	}
	return forget(r.dir)
}
