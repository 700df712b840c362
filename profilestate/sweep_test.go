package profilestate

import (
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// TestSweep: what no generation names goes, however it came to be, and nothing else.
func TestSweep(t *testing.T) {
	f := newStore(t)
	f.keep = 2
	for _, v := range []string{"one", "two", "three", "four"} {
		f.commit(t, testRef, v)
	}
	f.world.before = func() error { return errors.New("the process died here") }
	if _, err := f.Commit(t.Context(), testRef, f.head(t, testRef), state("never"), by); err == nil {
		t.Fatal("published")
	}
	f.world.before = nil
	gone := Ref{testRef.Account, "deleted"}
	f.commit(t, gone, "x")
	f.world.hold(gone, "", 0)
	if err := f.index.DeleteProfile(t.Context(), gone, 1); err != nil { // and then the process dies
		t.Fatal(err)
	}
	strange := filepath.Join(f.dir, "x", "y")
	if err := os.MkdirAll(strange, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(strange, "z.sealed"), []byte("not ours"), 0o600); err != nil {
		t.Fatal(err)
	}

	if got, err := f.Sweep(t.Context(), time.Hour); err != nil || got.Removed+got.Forgotten != 0 || got.Kept != 7 {
		t.Fatalf("young files: %+v, %v", got, err)
	}
	f.clock = f.clock.Add(2 * time.Hour)
	got, err := f.Sweep(t.Context(), time.Hour)
	if err != nil || got.Forgotten != 2 || got.Removed != 4 || got.Kept != 3 || got.Bytes == 0 {
		t.Fatalf("old files: %+v, %v; want the leftover, two generations and what was deleted removed", got, err)
	}
	if f.value(t, testRef) != "four" {
		t.Fatal("the current generation is gone")
	}
	if n, err := f.Rollback(t.Context(), testRef); !errors.Is(err, errHeld) {
		t.Fatal(n, err)
	}
	f.world.hold(testRef, "", 0)
	if n, err := f.Rollback(t.Context(), testRef); err != nil || n != 3 || f.value(t, testRef) != "three" {
		t.Fatalf("rolled back to %d, %v", n, err)
	}
	if again, err := f.Sweep(t.Context(), time.Hour); err != nil || again.Removed != 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
}

// TestSweepDuringCommit sweeps while a writer has been asleep, for much longer than the sweep waits, between having
// written its file and publishing it.
func TestSweepDuringCommit(t *testing.T) {
	f := newStore(t)
	f.commit(t, testRef, "one")
	f.clock = f.clock.Add(1000 * time.Hour)
	f.world.before = func() error {
		got, err := f.Sweep(t.Context(), time.Hour)
		if err != nil || got.Removed != 0 {
			t.Errorf("sweep: %+v, %v", got, err)
		}
		return nil
	}
	if two := f.commit(t, testRef, "two"); f.value(t, testRef) != "two" {
		t.Fatalf("generation %d", two.Number)
	}
}

// TestSweepAsksAboutUnknownProfiles: a database that does not know a profile, because it is the wrong one, removes nothing.
func TestSweepAsksAboutUnknownProfiles(t *testing.T) {
	f := newStore(t)
	f.commit(t, testRef, "1")
	f.clock = f.clock.Add(2 * time.Hour)
	f.Store.index = newWorld().index()
	if got, err := f.Sweep(t.Context(), time.Hour); err == nil || got.Removed != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestSweepBelievesNoStranger: another profile's file in a folder does not make that one the folder's owner, of whom nothing there is used.
func TestSweepBelievesNoStranger(t *testing.T) {
	f := newStore(t)
	f.commit(t, testRef, "mine")
	b, err := os.ReadFile(f.path(f.commit(t, Ref{testRef.Account, "other"}, "other").File))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.path(testRef.folder()+"/0.sealed"), b, 0o600); err != nil { // before all others
		t.Fatal(err)
	}
	f.clock = f.clock.Add(2 * time.Hour)
	if got, err := f.Sweep(t.Context(), time.Hour); err != nil || got.Removed != 1 || f.value(t, testRef) != "mine" {
		t.Errorf("%+v, %v", got, err)
	}
}

// sweptDisk loses a new file before it is locked.
type sweptDisk struct{ osDisk }

type sweptFile struct {
	diskFile
	path string
}

func (d sweptDisk) Create(path string) (diskFile, error) {
	f, err := d.osDisk.Create(path)
	return sweptFile{f, path}, err
}

func (f sweptFile) TryLock() (bool, error) {
	if err := os.Remove(f.path); err != nil {
		return false, err
	}
	return f.diskFile.TryLock()
}

// TestSweptBeforeItWasLocked: a writer that slept between creating its file and locking it does not publish a name that is gone.
func TestSweptBeforeItWasLocked(t *testing.T) {
	f := newStore(t)
	f.commit(t, testRef, "one")
	f.Store.disk = sweptDisk{}
	if _, err := f.Commit(t.Context(), testRef, f.head(t, testRef), state("two"), by); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	f.Store.disk = osDisk{}
	if f.value(t, testRef) != "one" {
		t.Error("another generation is current")
	}
}

func TestCreateLeavesNothingOnFailure(t *testing.T) {
	f := newStore(t)
	if err := os.WriteFile(filepath.Join(f.dir, idName(testRef.Account)), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Commit(t.Context(), testRef, Head{}, state("x"), by); err == nil {
		t.Fatal("a file stands where the folder must be, and nobody noticed")
	}
	if h := f.head(t, testRef); h != (Head{}) {
		t.Error("published without a file")
	}
}
