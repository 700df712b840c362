package profilestate

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// disk is every operation of a Store on files, so that tests can stop it at each of them and lose what was not flushed.
// Paths are absolute.
type disk interface {
	Mkdir(path string) error
	// Create makes a file that is not there yet, for its owner only.
	Create(path string) (diskFile, error)
	Open(path string) (diskFile, error)
	Remove(path string) error
	Stat(path string) (fs.FileInfo, error)
	ReadDir(path string) ([]fs.DirEntry, error)
	// SyncDir makes the names in a folder durable.
	SyncDir(path string) error
	// SyncNew makes a new file durable, and its name in the folder.
	SyncNew(f diskFile, folder string) error
}

type diskFile interface {
	io.ReadWriteCloser
	Sync() error
	Stat() (fs.FileInfo, error)
	// TryLock locks the file against other processes until it is closed; false when another has it.
	TryLock() (bool, error)
}

type osDisk struct{}

var _ disk = osDisk{}

func (osDisk) Mkdir(path string) error                    { return os.Mkdir(path, 0o700) }
func (osDisk) Remove(path string) error                   { return os.Remove(path) }
func (osDisk) Stat(path string) (fs.FileInfo, error)      { return os.Lstat(path) }
func (osDisk) ReadDir(path string) ([]fs.DirEntry, error) { return os.ReadDir(path) }
func (osDisk) SyncDir(path string) error                  { return syncFolder(path) }

// SyncNew flushes both at once. Neither needs the other, and a journal commits them together; one after the other each waits for the device.
func (d osDisk) SyncNew(f diskFile, folder string) error {
	name := make(chan error, 1)
	go func() { name <- d.SyncDir(folder) }()
	return errors.Join(f.Sync(), <-name)
}

func (osDisk) Create(path string) (diskFile, error) {
	return asDiskFile(os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600))
}

func (osDisk) Open(path string) (diskFile, error) { return asDiskFile(os.Open(path)) }

func asDiskFile(f *os.File, err error) (diskFile, error) {
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

type osFile struct{ *os.File }

func (f osFile) TryLock() (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
