package pgcluster

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// binaries are the paths of one Postgres installation.
type binaries struct{ initdb, postgres, psql string }

// findBinaries takes the newest installation that is complete, or the one in PATH.
func findBinaries() (binaries, error) {
	for _, dir := range installations() {
		b := binaries{filepath.Join(dir, "initdb"), filepath.Join(dir, "postgres"), filepath.Join(dir, "psql")}
		if _, err := exec.LookPath(b.psql); err != nil {
			b.psql, _ = exec.LookPath("psql")
		}
		_, errInit := exec.LookPath(b.initdb)
		_, errServer := exec.LookPath(b.postgres)
		if errInit == nil && errServer == nil && b.psql != "" {
			return b, nil
		}
	}
	return binaries{}, errors.New("no Postgres found (initdb, postgres, psql in PATH, /usr/lib/postgresql or Homebrew): " +
		"run `make setup`, or install postgresql (Debian) or postgresql@15 (Homebrew)")
}

func installations() []string {
	var dirs []string
	if p, err := exec.LookPath("postgres"); err == nil {
		dirs = append(dirs, filepath.Dir(p))
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",
		"/opt/homebrew/opt/postgresql@*/bin",
		"/usr/local/opt/postgresql@*/bin",
	} {
		found, _ := filepath.Glob(pattern) // the patterns are well formed
		slices.SortFunc(found, func(a, b string) int { return major(b) - major(a) })
		dirs = append(dirs, found...)
	}
	return dirs
}

// major is the version in the name of an installation's folder, 0 without one.
func major(bin string) int {
	name := filepath.Base(filepath.Dir(bin))
	n, _ := strconv.Atoi(name[strings.LastIndexByte(name, '@')+1:])
	return n
}

// environ is the environment without what would lead the Postgres tools elsewhere, and with messages in English.
func environ() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "LC_") || strings.HasPrefix(kv, "LANG")
	})
	return append(env, "LC_ALL=C")
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("postgres folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("a Postgres cluster is already running in %s: stop the devstack or test that uses it (%w)", dir, err)
	}
	return f, nil
}

// openSocketDir puts the socket into the cluster's folder, or, where its path would be longer than the system's
// limit for socket addresses, into a short temporary folder. That folder is noted, so that the next start
// removes it should this process be killed.
func (c *Cluster) openSocketDir() error {
	if err := c.removeNotedSocketDir(); err != nil {
		return err
	}
	c.socket = filepath.Join(c.dir, "socket")
	if len(filepath.Join(c.socket, socketName)) <= socketPathLimit {
		if err := os.MkdirAll(c.socket, 0o700); err != nil {
			return fmt.Errorf("postgres socket: %w", err)
		}
		return c.as.own(c.socket)
	}
	short, err := os.MkdirTemp("", "pg")
	if err != nil {
		return fmt.Errorf("postgres socket: %w", err)
	}
	if len(filepath.Join(short, socketName)) > socketPathLimit {
		return errors.Join(fmt.Errorf("postgres socket: %s is too long a path for a socket: set TMPDIR to a shorter one", short), os.Remove(short))
	}
	c.socket = short
	if err := os.WriteFile(c.socketNote(), []byte(short), 0o600); err != nil {
		return errors.Join(fmt.Errorf("postgres socket: %w", err), os.Remove(short))
	}
	return c.as.own(short)
}

func (c *Cluster) socketNote() string { return filepath.Join(c.dir, "socket.path") }

func (c *Cluster) closeSocketDir() error {
	if c.socket == "" {
		return nil
	}
	return errors.Join(removeSocketDir(c.socket), c.removeNotedSocketDir())
}

func (c *Cluster) removeNotedSocketDir() error {
	noted, err := os.ReadFile(c.socketNote())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("postgres socket: %w", err)
	}
	return errors.Join(removeSocketDir(string(noted)), os.Remove(c.socketNote()))
}

// removeSocketDir removes only what Postgres puts there: a note that names a wrong folder must not empty it.
func removeSocketDir(dir string) error {
	for _, name := range []string{socketName, socketName + ".lock", ""} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("postgres socket: %w", err)
		}
	}
	return nil
}

// tail is the end of a log file, from offset on.
func tail(path string, offset int64) string {
	const most = 2000
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		offset = max(offset, end-most)
	}
	raw := make([]byte, most)
	n, err := f.ReadAt(raw, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return err.Error()
	}
	return strings.TrimSpace(string(raw[:n]))
}
