// Package safari is a safaridriver that misbehaves as the one of macOS does with a phone, as a process of its own. The phone is a folder:
// what it holds is what is wrong with the phone, and a log of what the drivers did.
//
// It serves tests of whoever runs drivers as processes; they have their test program call [Main] when it is started as [Program].
// Out of scope: pages and commands (drivertest).
package safari

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/driftstack/fleet/driverproxy/drivertest"
)

// Program is the name of the driver's program.
const Program = "safaridriver"

// Quirk is something that is wrong with a phone or its driver.
type Quirk string

// Quirks without a value: they are there or not.
const (
	Locked        Quirk = "locked"
	Untrusted     Quirk = "untrusted"
	AutomationOff Quirk = "automation-off"
	Hidden        Quirk = "hidden"  // it could not be used, and no reason is given
	Unready       Quirk = "unready" // the status says so
	Keeps         Quirk = "keeps"   // what a session stores is there in the next
	Stuck         Quirk = "stuck"   // a session is not ended when it is deleted
	Silent        Quirk = "silent"  // no site answers
	Clings        Quirk = "clings"  // to its cookies: they are not deleted
	Fragile       Quirk = "fragile" // a visit to a site whose name begins with "breaks" costs the session its window
	Held          Quirk = "held"    // a driver that starts does not listen yet
	Deadly        Quirk = "deadly"  // such a visit ends the driver instead
	Sullen        Quirk = "sullen"  // Delete All Cookies never answers, in no session
	// Leftover has every session held by one more process, which is no child of the driver and lives on when that is killed.
	Leftover Quirk = "leftover"
)

// Quirks of a number of times, after which they are over.
const (
	CrashAtStart   Quirk = "crash-at-start"
	CrashAtSession Quirk = "crash-at-session"
)

// Quirks of a time, as in 100ms.
const (
	SlowStart   Quirk = "slow-start"
	SlowStatus  Quirk = "slow-status"
	SlowSession Quirk = "slow-session"
)

// Phone is a phone. It has one session at most, whichever driver process asks: what holds it holds a lock on one of its files.
type Phone struct{ dir string }

// NewPhone makes a phone of an empty folder.
func NewPhone(dir string) (Phone, error) {
	self, err := os.Executable()
	if err != nil {
		return Phone{}, err
	}
	p := Phone{dir}
	return p, os.Symlink(self, p.Driver())
}

// Driver is the program that drives the phone.
func (p Phone) Driver() string { return filepath.Join(p.dir, Program) }

// Set gives the phone a quirk; value is that of the quirk, or nothing.
func (p Phone) Set(q Quirk, value string) error {
	fresh := p.path("." + string(q))
	if err := os.WriteFile(fresh, []byte(value), 0o600); err != nil {
		return err
	}
	return os.Rename(fresh, p.path(string(q)))
}

// Clear takes a quirk away.
func (p Phone) Clear(q Quirk) error {
	if err := os.Remove(p.path(string(q))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (p Phone) path(name string) string { return filepath.Join(p.dir, name) }

func (p Phone) has(q Quirk) bool {
	_, err := os.Stat(p.path(string(q)))
	return err == nil
}

// wait waits as long as a quirk says.
func (p Phone) wait(q Quirk) {
	b, err := os.ReadFile(p.path(string(q)))
	if err != nil {
		return
	}
	if d, err := time.ParseDuration(string(b)); err == nil {
		time.Sleep(d)
	}
}

// spend says whether a quirk that has a number of times hits once more.
func (p Phone) spend(q Quirk) bool {
	b, err := os.ReadFile(p.path(string(q)))
	if err != nil {
		return false
	}
	n, err := strconv.Atoi(string(b))
	if err != nil || n < 1 {
		return false
	}
	return p.Set(q, strconv.Itoa(n-1)) == nil
}

// Log is what the drivers of the phone did, in order: "start", "status" (once it is known), "session" with "refused" or "crash" if that
// is what became of it, and each command as its method and path.
func (p Phone) Log() ([]string, error) {
	b, err := os.ReadFile(p.path("log"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.Fields(string(b)), err
}

// Kept is what the phone has of sessions before, if it keeps that.
func (p Phone) Kept() (s drivertest.Stored, err error) {
	b, err := os.ReadFile(p.path("kept"))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	return s, err
}

// Keep makes it what the phone has of sessions before.
func (p Phone) Keep(s drivertest.Stored) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return p.Set("kept", string(b))
}

func (p Phone) note(what string) {
	f, err := os.OpenFile(p.path("log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	_, _ = f.WriteString(what + "\n") // one write: lines of several processes do not mix
	_ = f.Close()
}

// pair takes the phone; whoever has the file, or inherits it, holds it. It is nil when the phone is held.
func (p Phone) pair() *os.File {
	f, err := os.OpenFile(p.path("pairing"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil
	}
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		_ = f.Close()
		return nil
	}
	return f
}

// Paired says whether something holds the phone.
func (p Phone) Paired() bool {
	f := p.pair()
	if f == nil {
		return true
	}
	_ = f.Close()
	return false
}

// Occupy has the phone held by a driver process that an agent of which nothing is known has left behind: it bears no mark, and
// whoever started it is gone.
func (p Phone) Occupy() error {
	cmd := exec.Command(p.Driver(), argOccupy)
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("occupy the phone: %w: %s", err, out)
	}
	return nil
}
