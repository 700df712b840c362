package host

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// TestLeftoversOfOthersLive has records that name a live process, which is not theirs.
func TestLeftoversOfOthersLive(t *testing.T) {
	state := t.TempDir()
	lock, err := lockState(state)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	innocent := exec.Command("/bin/sleep", "1000")
	innocent.Env = []string{markVariable + "=another"}
	if err := innocent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = innocent.Wait() }()
	defer func() { _ = innocent.Process.Kill() }()
	guilty := exec.Command("/bin/sleep", "1000")
	guilty.Env = []string{markVariable + "=mine"}
	if err := guilty.Start(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(state, "sessions", "d")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "sub"), 0o500); err != nil {
		t.Fatal(err)
	}
	// The pid was recycled: it is the innocent's now.
	if err := (record{Mark: "mine", Group: innocent.Process.Pid, Started: "long ago"}).write(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, "sessions", "half"+recordSuffix), []byte(`{"ma`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := reapLeftovers(t.Context(), state, "/nowhere/safaridriver", record.kill); err != nil {
		t.Fatal(err)
	}
	if status, err := guilty.Process.Wait(); err != nil || status.Success() {
		t.Errorf("the leftover lives: %v %v", status, err)
	}
	if started(innocent.Process.Pid) == "" || len(marked("another")) != 1 {
		t.Error("another's process was killed")
	}
	if left, err := os.ReadDir(filepath.Join(state, "sessions")); err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

// TestLeftoversThatDoNotDie: an agent that cannot end what is left does not start, and leaves the record and the directory of it to
// the next; what it can end and wipe, it does.
func TestLeftoversThatDoNotDie(t *testing.T) {
	state := t.TempDir()
	lock, err := lockState(state)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	sessions := filepath.Join(state, "sessions")
	for _, name := range []string{"dies", "lives"} {
		if err := os.MkdirAll(filepath.Join(sessions, name, "data"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := (record{Mark: name}).write(filepath.Join(sessions, name)); err != nil {
			t.Fatal(err)
		}
	}
	stuck := errors.New("it does not die")
	for range 2 { // the second agent knows of it as well
		err := reapLeftovers(t.Context(), state, "/nowhere/safaridriver", func(r record) error {
			if r.Mark == "lives" {
				return stuck
			}
			return r.kill()
		})
		if !errors.Is(err, stuck) {
			t.Fatalf("the agent starts beside what does not die: %v", err)
		}
		entries, err := os.ReadDir(sessions)
		var left []string
		for _, e := range entries {
			left = append(left, e.Name())
		}
		if err != nil || !slices.Equal(left, []string{"lives", "lives" + recordSuffix}) {
			t.Fatalf("left: %v %v", left, err)
		}
	}
	if err := reapLeftovers(t.Context(), state, "/nowhere/safaridriver", record.kill); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(sessions); err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
}
