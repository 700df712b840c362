package recorder

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

const (
	bodyName    = "body.webm"
	logName     = "log"
	lockName    = "lock"
	ballastName = "ballast"

	// ballastSize is what sealing and uploading need of a full volume: index, log records, a block or two of slack.
	ballastSize = 256 << 10

	quarantineName = ".quarantine"
	rubbishPrefix  = ".deleted-"
	newPrefix      = ".new-"
)

// errUnborn says that the process before died while it made the spool: nothing was ever in it.
var errUnborn = errors.New("recorder: spool was never begun")

// errBusy says that another process (or Recorder) works on a spool.
var errBusy = errors.New("recorder: spool is in use by another process")

// file is what the recorder does with the body and the log; tests put a failing one in its place.
type file interface {
	WriteAt(b []byte, off int64) (int, error)
	ReadAt(b []byte, off int64) (int, error)
	Truncate(size int64) error
	Sync() error // data and size
	Size() (int64, error)
	Close() error
}

type diskFile struct{ *os.File }

func (f diskFile) Sync() error { return dataSync(f.File) }

func (f diskFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// whole reads a file from its start.
func whole(f file) io.Reader { return io.NewSectionReader(f, 0, math.MaxInt64) }

// spool is the folder of one recording, held by this process.
type spool struct {
	dir  string
	lock *os.File
	body file

	mu      sync.Mutex // guards what follows
	log     file       // nil once closed
	logSize int64
	at      progress
	marks   []mark // of each part: the first frame that reaches into it. Of a spool that was opened there are none
	broken  error  // a write to the log failed half-way: no more writes
}

// mark is a place in the log, and what of the body the frames before it cover.
type mark struct{ log, body int64 }

// createSpool makes the folder of a new recording. It fails with fs.ErrExist when there is one. Until it is locked and has its spec it has another name:
// a scan would take it for what somebody left who died.
func createSpool(root string, spec specRecord) (_ *spool, err error) {
	dir, final := filepath.Join(root, newPrefix+spec.Spec.ID), filepath.Join(root, spec.Spec.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	s := &spool{dir: dir}
	defer func() {
		if err != nil {
			s.close()
			_ = os.RemoveAll(s.dir)
		}
	}()
	if s.lock, err = lockSpool(dir); err != nil {
		return nil, err
	}
	if err = os.WriteFile(filepath.Join(dir, ballastName), make([]byte, ballastSize), 0o600); err != nil {
		return nil, err
	}
	if err = s.open(os.O_RDWR | os.O_CREATE | os.O_EXCL); err != nil {
		return nil, err
	}
	if err = s.append(record{Spec: &spec}, true); err != nil {
		return nil, err
	}
	if err = syncDir(dir); err != nil {
		return nil, err
	}
	if err = os.Rename(dir, final); errors.Is(err, syscall.ENOTEMPTY) {
		err = fs.ErrExist
	}
	if err != nil {
		return nil, err
	}
	s.dir = final
	return s, syncDir(root)
}

// openSpool takes over the folder that a process before left behind. errBusy: someone has it. errCorrupt: it cannot be read; the
// spool returned with it still holds the lock.
func openSpool(dir string) (*spool, error) {
	s := &spool{dir: dir}
	var err error
	if s.lock, err = lockSpool(dir); err != nil {
		return nil, err
	}
	if err := s.open(os.O_RDWR); err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			s.close()
			return nil, err
		}
		if s.unborn() {
			return s, errUnborn
		}
		if s.log != nil {
			_, _ = readLog(whole(s.log), s.at.apply) // whose it is, if it says so
		}
		return s, fmt.Errorf("%w: %v", errCorrupt, err)
	}
	size, err := readLog(whole(s.log), s.at.apply)
	if err == nil && s.at.spec == nil {
		if s.unborn() {
			return s, errUnborn
		}
		err = fmt.Errorf("%w: no spec in the log", errCorrupt)
	}
	if err == nil && s.at.spec.Spec.ID != filepath.Base(dir) {
		err = fmt.Errorf("%w: the log is of recording %q", errCorrupt, s.at.spec.Spec.ID)
		s.at = progress{}
	}
	if err != nil {
		return s, err
	}
	if err := s.log.Truncate(size); err != nil {
		s.close()
		return nil, fmt.Errorf("recorder: cut the log: %w", err)
	}
	s.logSize = size
	return s, nil
}

// unborn says whether there is nothing in the folder that could be of worth: the spec comes first.
func (s *spool) unborn() bool {
	for _, name := range []string{logName, bodyName} {
		if info, err := os.Stat(filepath.Join(s.dir, name)); err == nil && info.Size() > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
			return false
		}
	}
	return true
}

func (s *spool) open(flag int) error {
	log, err := os.OpenFile(filepath.Join(s.dir, logName), flag, 0o600)
	if err != nil {
		return err
	}
	s.log = diskFile{log}
	body, err := os.OpenFile(filepath.Join(s.dir, bodyName), flag, 0o600)
	if err != nil {
		return err
	}
	s.body = diskFile{body}
	return nil
}

func lockSpool(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errBusy
		}
		return nil, fmt.Errorf("recorder: lock %s: %w", dir, err)
	}
	return f, nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// append adds a record to the log and to what is known. With sync it is on disk on return.
func (s *spool) append(r record, sync bool) error {
	b, err := encodeRecord(r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	if s.log == nil {
		return os.ErrClosed
	}
	before := s.at
	if err := s.at.apply(r); err != nil {
		s.at = before
		return err
	}
	if _, err := s.log.WriteAt(b, s.logSize); err != nil {
		s.at = before
		err = fmt.Errorf("recorder: write the log: %w", err)
		// A part of it may be there: a shorter record written over it would end in what reads as a corrupt log.
		if cutErr := s.log.Truncate(s.logSize); cutErr != nil {
			s.broken = errors.Join(err, cutErr)
		}
		return err
	}
	for r.Frame != nil && int64(len(s.marks))*s.at.spec.PartSize < s.at.framed {
		s.marks = append(s.marks, mark{s.logSize, before.framed})
	}
	s.logSize += int64(len(b))
	if !sync {
		return nil
	}
	return s.syncLocked()
}

// sync brings the records to disk that were added without.
func (s *spool) sync() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.broken != nil:
		return s.broken
	case s.log == nil:
		return os.ErrClosed
	}
	return s.syncLocked()
}

func (s *spool) syncLocked() error {
	if err := s.log.Sync(); err != nil {
		s.broken = fmt.Errorf("recorder: sync the log: %w", err)
		return s.broken
	}
	return nil
}

// look calls f with what the log says.
func (s *spool) look(f func(p *progress)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.at)
}

// errEnough ends frames early.
var errEnough = errors.New("recorder: enough frames")

// frames calls f for each stretch of the body that was acknowledged, in order, from the first one on that reaches beyond from, or from an earlier one;
// begin is where it begins.
func (s *spool) frames(from int64, f func(begin int64, fr frameRecord) error) error {
	s.mu.Lock()
	log, size, start := s.log, s.logSize, mark{body: headSize}
	if n := from / s.at.spec.PartSize; n < int64(len(s.marks)) {
		start = s.marks[n]
	}
	s.mu.Unlock()
	if log == nil {
		return os.ErrClosed
	}
	begin := start.body
	_, err := readLog(io.NewSectionReader(log, start.log, size-start.log), func(r record) error {
		if r.Frame == nil {
			return nil
		}
		at := begin
		begin = r.Frame.Size
		return f(at, *r.Frame)
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// dropBallast frees the space that was kept back.
func (s *spool) dropBallast() {
	_ = os.Remove(filepath.Join(s.dir, ballastName)) // missing is fine; otherwise the writes to come say so
}

// close lets go of the files and the lock.
func (s *spool) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.log != nil {
		_ = s.log.Close()
		s.log = nil
	}
	if s.body != nil {
		_ = s.body.Close()
	}
	if s.lock != nil {
		_ = s.lock.Close()
		s.lock = nil
	}
}

// remove deletes the folder. Only for a spool whose every copy is verified, or which has nothing in it. It is renamed
// first, so that a crash half-way leaves something that is known to be rubbish.
func (s *spool) remove(root string) error {
	defer s.close()
	to := filepath.Join(root, rubbishPrefix+filepath.Base(s.dir))
	if err := os.Rename(s.dir, to); err != nil {
		return fmt.Errorf("recorder: delete the spool: %w", err)
	}
	return os.RemoveAll(to)
}

// quarantine moves the folder aside, below root.
func (s *spool) quarantine(root string) (string, error) {
	aside := filepath.Join(root, quarantineName)
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return "", fmt.Errorf("recorder: quarantine: %w", err)
	}
	defer s.close()
	for n := 1; ; n++ {
		to := filepath.Join(aside, fmt.Sprintf("%s.%d", filepath.Base(s.dir), n))
		err := os.Rename(s.dir, to)
		switch {
		case err == nil:
			return to, errors.Join(syncDir(aside), syncDir(root))
		case n < 1000 && (errors.Is(err, os.ErrExist) || errors.Is(err, syscall.ENOTEMPTY)):
		default:
			return "", fmt.Errorf("recorder: quarantine: %w", err)
		}
	}
}
