package host

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// chromium is where Debian installs the browser.
const chromium = "/usr/bin/chromium"

type chromeDriver struct{}

func (chromeDriver) args(port int) []string {
	return []string{"chromedriver", "--port=" + strconv.Itoa(port)}
}

func (chromeDriver) display() bool { return false }

func (chromeDriver) here() bool { return true }

func (chromeDriver) contained() bool { return true }

func (chromeDriver) browser() (string, bool) { return chrome, true }

func (chromeDriver) passes(string) bool { return false } // its own options name a program to run, and files to write

// own names the browser's data directory, which is also how its processes are found should everything that watches them be
// killed: Chromium writes over its environment.
func (chromeDriver) own(dir string) (map[string]any, error) {
	if _, err := os.Stat(chromium); err != nil {
		return nil, errors.New("there is no " + chromium + ": install chromium and chromium-driver")
	}
	return map[string]any{"goog:chromeOptions": map[string]any{"binary": chromium, "args": []string{
		"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--user-data-dir=" + filepath.Join(dir, "data", "chromium"),
	}}}, nil
}

// environ has a TMPDIR that counts from the working directory, which is the session's: the path of a unix socket that the
// browser makes in there has room for 107 bytes, and the agent's state may be far down.
func (chromeDriver) environ(dir, _ string) []string {
	env := slices.DeleteFunc(confined(dir), func(v string) bool { return strings.HasPrefix(v, "TMPDIR=") })
	return append(env, "TMPDIR=tmp", "DBUS_SESSION_BUS_ADDRESS=disabled:") // a session bus would be a daemon of its own
}
