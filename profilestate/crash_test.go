package profilestate

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// memDisk is a disk whose power can be cut at every operation. What was not flushed is lost, or not, or half: see survive.
type memDisk struct {
	root  *memNode
	now   func() time.Time
	ops   int
	cutAt int // operation at which the power is cut; 0 never
	dead  bool
	trace []string
}

type memNode struct {
	dir     bool
	data    []byte // of a file, as processes see it
	flushed []byte // as the disk has it
	names   map[string]*memNode
	durable map[string]*memNode // the names that the disk has
	at      time.Time
}

var errPower = errors.New("the power is cut")

func newMemDisk(dir string, now func() time.Time) *memDisk {
	d := &memDisk{root: memDir(), now: now}
	at := d.root
	for _, name := range strings.Split(strings.Trim(dir, "/"), "/") {
		next := memDir()
		at.names[name], at.durable[name] = next, next
		at = next
	}
	return d
}

func memDir() *memNode {
	return &memNode{dir: true, names: make(map[string]*memNode), durable: make(map[string]*memNode)}
}

// step is called before each operation.
func (d *memDisk) step(name, path string) error {
	if d.dead {
		return errPower
	}
	d.ops++
	d.trace = append(d.trace, name+" "+filepath.Base(path))
	if d.ops == d.cutAt {
		d.cut()
	}
	return nil
}

// cut ends the process: nothing it does afterwards happens.
func (d *memDisk) cut() {
	d.dead = true
	panic(errPower)
}

func (d *memDisk) find(path string) (parent, node *memNode, name string) {
	node = d.root
	for _, name = range strings.Split(strings.Trim(path, "/"), "/") {
		if parent = node; parent == nil || !parent.dir {
			return nil, nil, name
		}
		node = parent.names[name]
	}
	return parent, node, name
}

func (d *memDisk) Mkdir(path string) error {
	if err := d.step("mkdir", path); err != nil {
		return err
	}
	parent, node, name := d.find(path)
	if parent == nil {
		return fs.ErrNotExist
	}
	if node != nil {
		return fs.ErrExist
	}
	parent.names[name] = memDir()
	return nil
}

func (d *memDisk) Create(path string) (diskFile, error) {
	if err := d.step("create", path); err != nil {
		return nil, err
	}
	parent, node, name := d.find(path)
	if parent == nil {
		return nil, fs.ErrNotExist
	}
	if node != nil {
		return nil, fs.ErrExist
	}
	node = &memNode{at: d.now()}
	parent.names[name] = node
	return &memFile{d, node, name, 0}, nil
}

func (d *memDisk) Open(path string) (diskFile, error) {
	if err := d.step("open", path); err != nil {
		return nil, err
	}
	_, node, name := d.find(path)
	if node == nil {
		return nil, fs.ErrNotExist
	}
	return &memFile{d, node, name, 0}, nil
}

func (d *memDisk) Remove(path string) error {
	if err := d.step("remove", path); err != nil {
		return err
	}
	parent, node, name := d.find(path)
	if node == nil {
		return fs.ErrNotExist
	}
	delete(parent.names, name)
	return nil
}

func (d *memDisk) Stat(path string) (fs.FileInfo, error) {
	if err := d.step("stat", path); err != nil {
		return nil, err
	}
	_, node, name := d.find(path)
	if node == nil {
		return nil, fs.ErrNotExist
	}
	return memInfo{node, name}, nil
}

func (d *memDisk) ReadDir(path string) (list []fs.DirEntry, err error) {
	if err := d.step("readdir", path); err != nil {
		return nil, err
	}
	_, node, _ := d.find(path)
	if node == nil {
		return nil, fs.ErrNotExist
	}
	for name, n := range node.names {
		list = append(list, fs.FileInfoToDirEntry(memInfo{n, name}))
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, nil
}

func (d *memDisk) SyncDir(path string) error {
	if err := d.step("syncdir", path); err != nil {
		return err
	}
	_, node, _ := d.find(path)
	if node == nil {
		return fs.ErrNotExist
	}
	node.durable = make(map[string]*memNode)
	for name, n := range node.names {
		node.durable[name] = n
	}
	return nil
}

// SyncNew can be cut between the two, as power can.
func (d *memDisk) SyncNew(f diskFile, folder string) error { return syncInTurn(d, f, folder) }

func syncInTurn(d disk, f diskFile, folder string) error {
	if err := f.Sync(); err != nil {
		return err
	}
	return d.SyncDir(folder)
}

// loss is what a cut leaves of what was not flushed.
type loss string

const (
	lostAll      loss = "all is lost"
	lostNone     loss = "nothing is lost"
	lostContents loss = "names are there, contents are not"
	lostHalf     loss = "names are there, contents are half"
	lostNames    loss = "contents are there, names are not"
)

// survive is the disk after the power came back.
func (d *memDisk) survive(l loss) *memDisk {
	return &memDisk{root: d.root.survive(l), now: d.now}
}

func (n *memNode) survive(l loss) *memNode {
	if !n.dir {
		data := n.flushed
		switch {
		case l == lostNone || l == lostNames:
			data = n.data
		case l == lostHalf && len(n.data) > len(n.flushed):
			data = n.data[:len(n.data)/2]
		}
		data = slices.Clone(data)
		return &memNode{data: data, flushed: data, at: n.at}
	}
	kept := n.durable
	if l != lostAll && l != lostNames {
		kept = n.names
	}
	out := memDir()
	for name, c := range kept {
		s := c.survive(l)
		out.names[name], out.durable[name] = s, s
	}
	return out
}

type memFile struct {
	d    *memDisk
	n    *memNode
	name string
	at   int
}

func (f *memFile) Read(b []byte) (int, error) {
	if err := f.d.step("read", f.name); err != nil {
		return 0, err
	}
	if f.at >= len(f.n.data) {
		return 0, io.EOF
	}
	n := copy(b, f.n.data[f.at:])
	f.at += n
	return n, nil
}

// Write may be cut in its middle.
func (f *memFile) Write(b []byte) (int, error) {
	if f.d.dead {
		return 0, errPower
	}
	f.n.data = append(f.n.data, b[:len(b)/2]...)
	if err := f.d.step("write", f.name); err != nil {
		return 0, err
	}
	f.n.data = append(f.n.data, b[len(b)/2:]...)
	return len(b), nil
}

func (f *memFile) Sync() error {
	if err := f.d.step("sync", f.name); err != nil {
		return err
	}
	f.n.flushed = slices.Clone(f.n.data)
	return nil
}

func (f *memFile) Close() error               { return nil }
func (f *memFile) Stat() (fs.FileInfo, error) { return memInfo{f.n, f.name}, nil }
func (f *memFile) TryLock() (bool, error)     { return true, f.d.step("lock", f.name) }

type memInfo struct {
	n    *memNode
	name string
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return int64(len(i.n.data)) }
func (i memInfo) ModTime() time.Time { return i.n.at }
func (i memInfo) IsDir() bool        { return i.n.dir }
func (i memInfo) Sys() any           { return nil }
func (i memInfo) Mode() fs.FileMode {
	if i.n.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}

// story is what the process does whose power is cut: it fills a profile, loses a commit, sweeps, and goes on. done is called for
// what has been promised to somebody.
func story(t *testing.T, f *fixture, done func(value string)) {
	t.Helper()
	commit := func(value string) {
		if _, err := f.Commit(t.Context(), testRef, f.head(t, testRef), state(value), by); err != nil {
			t.Fatal(err)
		}
		done(value)
	}
	commit("one")
	commit("two")
	f.clock = f.clock.Add(2 * time.Hour)
	commit("three")
	if _, err := f.Sweep(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	commit("four")
}

// TestPowerCut cuts the power at every operation of the story, and in the swap, with each kind of loss. A generation that the index
// says is current opens, and it is never older than the last that was promised.
func TestPowerCut(t *testing.T) {
	dir := t.TempDir()
	if err := CreateRootKey(filepath.Join(dir, "root.key")); err != nil {
		t.Fatal(err)
	}
	clock := time.Now()
	run := func(cutAt, cutSwap int, after bool) (f *fixture, d *memDisk, promised string) {
		w := newWorld()
		d = newMemDisk(filepath.Join(dir, "profiles"), func() time.Time { return clock })
		d.cutAt = cutAt
		f = newStoreAt(t, dir, w, d)
		f.clock, f.keep = clock, 1
		d.now = func() time.Time { return f.clock }
		swaps := 0
		cut := func() error {
			if swaps++; swaps == cutSwap {
				d.cut()
			}
			return nil
		}
		if after {
			w.after = cut
		} else {
			w.before = cut
		}
		defer func() {
			if p := recover(); p != nil && p != any(errPower) {
				panic(p)
			}
			w.before, w.after = nil, nil
		}()
		story(t, f, func(value string) { promised = value })
		return f, d, promised
	}
	_, whole, _ := run(0, 0, false)
	if n := whole.ops; n < 30 || !slices.ContainsFunc(whole.trace, func(op string) bool { return strings.HasPrefix(op, "remove") }) {
		t.Fatalf("%d operations, or nothing was swept: %v", n, whole.trace)
	}
	values := []string{"", "one", "two", "three", "four"}
	check := func(name string, before *fixture, d *memDisk, promised string) {
		for _, l := range []loss{lostAll, lostNone, lostContents, lostHalf, lostNames} {
			f := newStoreAt(t, dir, &world{s: clone(t, before.world.s)}, d.survive(l))
			f.clock, f.keep = before.clock, 1
			s, h, err := f.Load(t.Context(), testRef)
			if err != nil {
				t.Errorf("%s, %s: generation %d: %v", name, l, h.Current.Number, err)
				continue
			}
			if got := valueOf(s); values[h.Current.Number] != got || slices.Index(values, got) < slices.Index(values, promised) {
				t.Errorf("%s, %s: generation %d has %q, and %q was promised", name, l, h.Current.Number, got, promised)
			}
			f.commit(t, testRef, "after")
			f.clock = f.clock.Add(2 * time.Hour)
			if _, err := f.Sweep(t.Context(), time.Hour); err != nil {
				t.Errorf("%s, %s: sweep: %v", name, l, err)
			}
			if f.value(t, testRef) != "after" {
				t.Errorf("%s, %s: a sweep took the current generation", name, l)
			}
		}
	}
	for at := 1; at <= whole.ops; at++ {
		f, d, promised := run(at, 0, false)
		if !d.dead {
			t.Fatalf("the power was not cut at operation %d", at)
		}
		check(fmt.Sprintf("cut at operation %d, %s", at, d.trace[len(d.trace)-1]), f, d, promised)
	}
	for swap := 1; swap <= 4; swap++ {
		for _, after := range []bool{false, true} {
			f, d, promised := run(0, swap, after)
			check(fmt.Sprintf("cut in swap %d (after it: %v)", swap, after), f, d, promised)
		}
	}
}

// TestDiskFails has each operation of a commit fail once: the generation before stays, and nothing is left that a retry trips over.
func TestDiskFails(t *testing.T) {
	f := newStore(t)
	f.commit(t, testRef, "one")
	failing := &failDisk{disk: f.Store.disk}
	f.Store.disk = failing
	for at := 1; ; at++ {
		failing.left = at
		_, err := f.Commit(t.Context(), testRef, f.head(t, testRef), state(fmt.Sprint(at)), by)
		failed := failing.left <= 0
		failing.left = 0
		if !failed && err == nil {
			if at < 4 {
				t.Fatalf("a commit has %d operations", at)
			}
			return
		}
		if !failed || !errors.Is(err, errDisk) {
			t.Fatalf("operation %d failed: %v, and Commit says %v", at, failed, err)
		}
		if f.value(t, testRef) != "one" || len(f.files(t)) != 1 {
			t.Fatalf("operation %d failed, and %d files are left", at, len(f.files(t)))
		}
	}
}

var errDisk = errors.New("input/output error")

// failDisk fails the operation at which left reaches 0.
type failDisk struct {
	disk
	left int
}

func (d *failDisk) fail() error {
	if d.left--; d.left == 0 {
		return errDisk
	}
	return nil
}

func (d *failDisk) SyncNew(f diskFile, folder string) error { return syncInTurn(d, f, folder) }

func (d *failDisk) Create(path string) (diskFile, error) {
	if err := d.fail(); err != nil {
		return nil, err
	}
	f, err := d.disk.Create(path)
	return &failFile{f, d}, err
}

func (d *failDisk) SyncDir(path string) error { return errors.Join(d.fail(), d.disk.SyncDir(path)) }

type failFile struct {
	diskFile
	d *failDisk
}

func (f *failFile) Write(b []byte) (int, error) {
	if err := f.d.fail(); err != nil {
		n, _ := f.diskFile.Write(b[:len(b)/2])
		return n, err
	}
	return f.diskFile.Write(b)
}

func (f *failFile) Sync() error { return errors.Join(f.d.fail(), f.diskFile.Sync()) }

func (f *failFile) TryLock() (bool, error) {
	if err := f.d.fail(); err != nil {
		return false, err
	}
	return f.diskFile.TryLock()
}
