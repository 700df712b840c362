package profilestate

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Variables of a child process: see commitStepwise.
const (
	childDir  = "PROFILESTATE_CHILD_DIR"
	childBy   = "PROFILESTATE_CHILD_SESSION"
	childSays = "PROFILESTATE_CHILD_VALUE"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := commitStepwise(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// commitStepwise is what the child processes of the tests below do: it commits once, over a disk and an index that say each step before they
// take it, and wait to be let go on.
func commitStepwise(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	in := bufio.NewReader(os.Stdin)
	wait := func(step string) {
		fmt.Println("step", step)
		if _, err := in.ReadByte(); err != nil {
			os.Exit(3) // the parent is gone
		}
	}
	w := newWorld()
	w.path = filepath.Join(dir, "world.json")
	root, err := ReadRootKey(filepath.Join(dir, "root.key"))
	if err != nil {
		return err
	}
	keys, err := NewKeyring(germany(), root, w.keys(), w.index())
	if err != nil {
		return err
	}
	s, err := Open(Config{Dir: filepath.Join(dir, "profiles"), At: germany(), Keys: keys, Index: w.index(), disk: &stepDisk{osDisk{}, wait}})
	if err != nil {
		return err
	}
	head, err := w.index().Head(ctx, testRef)
	if err != nil {
		return err
	}
	w.before = func() error { wait("swap"); return nil }
	w.after = func() error { wait("swapped"); return nil }
	_, err = s.Commit(ctx, testRef, head, state(os.Getenv(childSays)), Writer{Session: os.Getenv(childBy), Term: 1})
	switch {
	case errors.Is(err, ErrFenced):
		fmt.Println("outcome fenced")
	case errors.Is(err, ErrConflict):
		fmt.Println("outcome conflict")
	case err != nil:
		fmt.Println("outcome", err)
	default:
		fmt.Println("outcome committed")
	}
	return nil
}

// stepDisk says each operation on files that changes something.
type stepDisk struct {
	disk
	say func(string)
}

func (d *stepDisk) Mkdir(path string) error { d.say("mkdir"); return d.disk.Mkdir(path) }
func (d *stepDisk) Remove(path string) error {
	d.say("remove")
	return d.disk.Remove(path)
}
func (d *stepDisk) SyncDir(path string) error               { d.say("syncdir"); return d.disk.SyncDir(path) }
func (d *stepDisk) SyncNew(f diskFile, folder string) error { return syncInTurn(d, f, folder) }
func (d *stepDisk) Stat(path string) (fs.FileInfo, error) {
	d.say("stat")
	return d.disk.Stat(path)
}

func (d *stepDisk) Create(path string) (diskFile, error) {
	d.say("create")
	f, err := d.disk.Create(path)
	return &stepFile{f, d}, err
}

type stepFile struct {
	diskFile
	d *stepDisk
}

func (f *stepFile) Write(b []byte) (int, error) {
	n, err := f.diskFile.Write(b[:len(b)/2])
	f.d.say("write")
	if err != nil {
		return n, err
	}
	m, err := f.diskFile.Write(b[n:])
	return n + m, err
}
func (f *stepFile) Sync() error            { f.d.say("sync"); return f.diskFile.Sync() }
func (f *stepFile) TryLock() (bool, error) { f.d.say("lock"); return f.diskFile.TryLock() }

// child is a writer in a process of its own.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startWriter(t *testing.T, dir, session, value string) *child {
	t.Helper()
	c := &child{cmd: exec.Command(os.Args[0])}
	c.cmd.Env = append(os.Environ(), childDir+"="+dir, childBy+"="+session, childSays+"="+value)
	c.cmd.Stderr = os.Stderr
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewScanner(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // its own process, by its handle; it may be over
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
	})
	return c
}

// next is what it says next: "step …" or "outcome …"; "" when it is over.
func (c *child) next() string {
	for c.out.Scan() {
		if line := c.out.Text(); strings.HasPrefix(line, "step ") || strings.HasPrefix(line, "outcome ") {
			return line
		}
	}
	return ""
}

func (c *child) letGoOn(t *testing.T) {
	t.Helper()
	if _, err := c.in.Write([]byte{'\n'}); err != nil {
		t.Fatal(err)
	}
}

// reach lets it go on until it waits at step n, and says which that is; ok is false when it ended before.
func (c *child) reach(t *testing.T, n int) (step string, ok bool) {
	t.Helper()
	for i := 1; ; i++ {
		step = c.next()
		if !strings.HasPrefix(step, "step ") {
			return step, false
		}
		if i == n {
			return step, true
		}
		c.letGoOn(t)
	}
}

// shared makes a folder that processes share, with a profile that has one generation.
func shared(t *testing.T, first bool) (dir string, f *fixture) {
	t.Helper()
	dir = t.TempDir()
	if err := CreateRootKey(filepath.Join(dir, "root.key")); err != nil {
		t.Fatal(err)
	}
	w := newWorld()
	w.path = filepath.Join(dir, "world.json")
	f = newStoreAt(t, dir, w, osDisk{})
	if first {
		f.commit(t, testRef, "before")
	}
	return dir, f
}

// TestKilledAtEveryStep kills a writer with SIGKILL before each of its steps. What is current opens; what is left behind does not
// keep the next from committing, and is swept.
func TestKilledAtEveryStep(t *testing.T) {
	steps := 0
	for at := 1; ; at++ {
		dir, f := shared(t, at%2 == 0) // with a generation before, and as the first one
		c := startWriter(t, dir, by.Session, "killed")
		step, ok := c.reach(t, at)
		if !ok && step != "outcome committed" {
			t.Fatalf("it ended with %q", step)
		}
		if !ok && at%2 == 0 {
			break // its steps are over; a first commit has more of them
		}
		if err := c.cmd.Process.Signal(syscall.SIGKILL); err != nil && ok {
			t.Fatal(err)
		}
		_ = c.cmd.Wait()
		steps++
		s, h, err := f.Load(t.Context(), testRef)
		if err != nil {
			t.Fatalf("killed at %d, %s: %v", at, step, err)
		}
		want := map[int64]string{0: "", 1: "killed"}
		if at%2 == 0 {
			want = map[int64]string{1: "before", 2: "killed"}
		}
		if got, ok := want[h.Current.Number]; !ok || got != valueOf(s) {
			t.Errorf("killed at %d, %s: generation %d has %q", at, step, h.Current.Number, valueOf(s))
		}
		f.commit(t, testRef, "after")
		f.clock = f.clock.Add(2 * time.Hour)
		if _, err := f.Sweep(t.Context(), time.Hour); err != nil || f.value(t, testRef) != "after" {
			t.Errorf("killed at %d, %s: swept: %v", at, step, err)
		}
		if files, err := f.index.Files(t.Context(), testRef); err != nil || len(files) != len(f.sealed(t)) {
			t.Errorf("killed at %d, %s: %d files of %d generations", at, step, len(f.sealed(t)), len(files))
		}
	}
	if steps < 8 {
		t.Fatalf("%d steps were seen", steps)
	}
}

func (f *fixture) sealed(t *testing.T) (names []string) {
	t.Helper()
	for _, name := range f.files(t) {
		if info, err := os.Stat(name); err == nil && info.Size() > 0 { // an empty one names nobody whom a sweep could ask about
			names = append(names, name)
		}
	}
	return names
}

// TestPausedWriterIsFenced stops a writer with SIGSTOP before each of its steps, gives the profile to another, which commits, sweeps everything
// that looks old, and lets the first go on: it changes nothing. If the swap was behind it, its generation stays too.
func TestPausedWriterIsFenced(t *testing.T) {
	for at := 1; ; at++ {
		dir, f := shared(t, true)
		c := startWriter(t, dir, by.Session, "paused")
		step, ok := c.reach(t, at)
		if !ok {
			if at < 6 || step != "outcome committed" {
				t.Fatalf("it ended with %q after %d steps", step, at)
			}
			return
		}
		if err := c.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		f.world.hold(testRef, "another", 2)
		swapped := step == "step swapped"
		head := f.head(t, testRef)
		if head.Current.Number == 2 != swapped {
			t.Fatalf("paused at %s it is at generation %d", step, head.Current.Number)
		}
		g, err := f.Commit(t.Context(), testRef, head, state("another's"), Writer{Session: "another", Term: 2})
		if err != nil {
			t.Fatalf("paused at %s: %v", step, err)
		}
		f.clock = f.clock.Add(1000 * time.Hour)
		if _, err := f.Sweep(t.Context(), time.Hour); err != nil {
			t.Fatalf("paused at %s: sweep: %v", step, err)
		}
		if err := c.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		outcome := step
		for strings.HasPrefix(outcome, "step ") {
			c.letGoOn(t)
			outcome = c.next()
		}
		if want := "outcome committed"; (outcome == want) != swapped {
			t.Errorf("paused at %s it says %q", step, outcome)
		}
		if now := f.head(t, testRef).Current; now.Number != g.Number || f.value(t, testRef) != "another's" {
			t.Errorf("paused at %s: generation %d has %q", step, now.Number, f.value(t, testRef))
		}
	}
}

// TestTwoWriterProcesses has two processes of the same session, one step each in turn, commit from the same head: one wins.
func TestTwoWriterProcesses(t *testing.T) {
	dir, f := shared(t, true)
	writers := []*child{startWriter(t, dir, by.Session, "a"), startWriter(t, dir, by.Session, "b")}
	outcome := make([]string, 2)
	for outcome[0] == "" || outcome[1] == "" {
		for i, c := range writers {
			if outcome[i] != "" {
				continue
			}
			if line := c.next(); strings.HasPrefix(line, "step ") {
				c.letGoOn(t)
			} else {
				outcome[i] = line
			}
		}
	}
	winner := map[string]string{"outcome committed|outcome conflict": "a", "outcome conflict|outcome committed": "b"}[outcome[0]+"|"+outcome[1]]
	if winner == "" || f.value(t, testRef) != winner || f.head(t, testRef).Last != 2 {
		t.Fatalf("%q, and the profile has %q", outcome, f.value(t, testRef))
	}
}
