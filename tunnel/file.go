package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const maxSecretFile = 1 << 20

// readSecret reads a file that holds a key. It refuses files that others can open: what they could read is spent.
func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("tunnel: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("tunnel: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("tunnel: %s is not a regular file", path)
	}
	if st.Mode().Perm()&^0o600 != 0 {
		return nil, fmt.Errorf("tunnel: %s holds a private key and has mode %#o, so others may read it: run `chmod 600 %s`, "+
			"and replace the key if someone else uses this machine", path, st.Mode().Perm(), path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return nil, fmt.Errorf("tunnel: %w", err)
	}
	if len(b) > maxSecretFile {
		return nil, fmt.Errorf("tunnel: %s is too large to be what this program wrote", path)
	}
	return b, nil
}

// writeSecret puts b at path with mode 0600 so that a crash leaves the old content or the new, never less. Without
// replace an existing file is an fs.ErrExist error and stays as it is.
func writeSecret(path string, b []byte, replace bool) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("tunnel: write %s: %w", path, err)
		}
	}()
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".tunnel-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already when it was renamed
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if replace {
		err = os.Rename(f.Name(), path)
	} else {
		err = os.Link(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// loadOrCreateKey reads a private key in the form `wg genkey` writes, or makes it.
func loadOrCreateKey(path string) (PrivateKey, error) {
	if path == "" {
		return PrivateKey{}, errors.New("tunnel: no file for the gateway's private key is configured")
	}
	b, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		k, err := NewPrivateKey()
		if err != nil {
			return PrivateKey{}, err
		}
		if err := writeSecret(path, []byte(reveal(k)+"\n"), false); err == nil {
			return k, nil
		} else if !errors.Is(err, fs.ErrExist) {
			return PrivateKey{}, err
		}
		b, err = readSecret(path) // another process was faster: its key counts
		if err != nil {
			return PrivateKey{}, err
		}
		return parsePrivate(path, b)
	}
	if err != nil {
		return PrivateKey{}, err
	}
	return parsePrivate(path, b)
}

func parsePrivate(path string, b []byte) (PrivateKey, error) {
	k, err := decodeKey(string(bytes.TrimSpace(b)))
	if err != nil {
		return PrivateKey{}, fmt.Errorf("tunnel: %s is not a private key (%w): restore it, or remove it to make a new one, which every host must then learn", path, err)
	}
	return clamp(k), nil
}
