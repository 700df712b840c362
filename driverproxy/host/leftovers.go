package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// record is what a session leaves in StateDir for as long as it runs, for the next agent to clean up after this one.
type record struct {
	Mark    string `json:"mark"`
	Group   int    `json:"group,omitempty"`   // process group of the supervisor
	Started string `json:"started,omitempty"` // start of its leader
}

const recordSuffix = ".json"

// write replaces the record of the directory.
func (r record) write(dir string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	fresh := dir + recordSuffix + ".new"
	if err := os.WriteFile(fresh, b, 0o600); err != nil {
		return fmt.Errorf("host: record of a session: %w", err)
	}
	if err := os.Rename(fresh, dir+recordSuffix); err != nil {
		return fmt.Errorf("host: record of a session: %w", err)
	}
	return nil
}

// kill ends what carries the record's mark, and its process group.
func (r record) kill() error { return errors.Join(killGroup(r.Group, r.Started), killMarked(r.Mark)) }

// forget removes the record of a session whose directory has been wiped. There may be none, or half of one: writing it is
// the first thing a session does, and can fail.
func forget(dir string) error {
	for _, path := range []string{dir + recordSuffix + ".new", dir + recordSuffix} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("host: record of a session: %w", err)
		}
	}
	return nil
}

// wipe removes a session's directory and makes sure of it. Its errors name no file: a browser names them after its customer's sites.
func wipe(dir string) error {
	err := os.RemoveAll(dir)
	if err != nil { // directories that their owner may not write are not removed: make them writable and try again
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if d != nil && d.IsDir() {
				_ = os.Chmod(path, 0o700)
			}
			return nil
		})
		err = os.RemoveAll(dir)
	}
	if err != nil {
		if file := (*fs.PathError)(nil); errors.As(err, &file) {
			err = file.Err
		}
		return fmt.Errorf("host: wipe a session's directory: %w", err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return errors.New("host: a session's directory is still there after it was removed")
	}
	return nil
}

// lockState makes this the only agent of the directory. The lock goes with the process.
func lockState(dir string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Join(dir, "sessions"), 0o700); err != nil {
		return nil, fmt.Errorf("host: state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("host: state directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("host: another agent uses %s: stop it first, or give this one its own state directory: %w", dir, err)
	}
	return f, nil
}

// reapLeftovers ends and wipes what an agent that was killed left behind, of its sessions and of its standbys. What kill cannot end
// stays as it is.
func reapLeftovers(ctx context.Context, stateDir, safariDriver string, kill func(record) error) error {
	sessions := filepath.Join(stateDir, "sessions")
	entries, err := os.ReadDir(sessions)
	if err != nil {
		return fmt.Errorf("host: leftovers: %w", err)
	}
	var errs []error
	live := map[string]bool{}   // names of those with a process that would not die
	for _, e := range entries { // processes first, they may still write
		if strings.HasSuffix(e.Name(), recordSuffix) {
			if err := reapLeftover(filepath.Join(sessions, e.Name()), kill); err != nil {
				errs = append(errs, err)
				live[strings.TrimSuffix(e.Name(), recordSuffix)] = true
			}
		}
	}
	for _, e := range entries {
		if live[strings.TrimSuffix(e.Name(), recordSuffix)] {
			continue // or the next agent would not know of it any more
		}
		errs = append(errs, wipe(filepath.Join(sessions, e.Name())))
	}
	return errors.Join(append(errs, reapDrivers(ctx, safariDriver))...)
}

func reapLeftover(path string, kill func(record) error) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("host: leftovers: %w", err)
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil || r.Mark == "" {
		return nil // written half: then nothing had been started yet
	}
	return kill(r)
}
