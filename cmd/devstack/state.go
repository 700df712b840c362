package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// state is what must stay the same from one start to the next: ports (an origin contains its port) and secrets of this
// one machine's development stack.
type state struct {
	SitePort     int    `json:"site_port"`
	HTTPPort     int    `json:"http_port"`
	TunnelPort   int    `json:"tunnel_port"`
	ServiceToken string `json:"service_token"`
	SiteKey      string `json:"site_key"` // signs the sample site's login cookie
	EUAccessKey  string `json:"eu_access_key"`
	EUSecretKey  string `json:"eu_secret_key"`
	USAccessKey  string `json:"us_access_key"`
	USSecretKey  string `json:"us_secret_key"`
}

// openState reads dir's state, or makes it, and locks the folder until the returned file is closed.
func openState(dir string) (*state, *os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("state folder: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("state folder: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, nil, fmt.Errorf("another devstack runs in %s: stop it, or use --dir", dir)
	}
	s, err := readState(filepath.Join(dir, "state.json"))
	if err != nil {
		lock.Close()
		return nil, nil, err
	}
	return s, lock, nil
}

func readState(path string) (*state, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return newState(path)
	}
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	s := new(state)
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("state %s: %w; `make clean` starts afresh", path, err)
	}
	return s, nil
}

func newState(path string) (*state, error) {
	s := &state{
		ServiceToken: rand.Text(), SiteKey: rand.Text(),
		EUAccessKey: "eu-" + rand.Text()[:12], EUSecretKey: rand.Text(),
		USAccessKey: "us-" + rand.Text()[:12], USSecretKey: rand.Text(),
	}
	taken := map[int]bool{}
	for _, p := range []*int{&s.SitePort, &s.HTTPPort, &s.TunnelPort} {
		port, err := freePort(taken)
		if err != nil {
			return nil, err
		}
		*p, taken[port] = port, true
	}
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	return s, writeFile(path, raw)
}

// freePort picks a port below those that the system hands out for outgoing connections, so that it is still free at
// the next start.
func freePort(taken map[int]bool) (int, error) {
	const low, high, tries = 20000, 30000, 100
	for range tries {
		n, err := rand.Int(rand.Reader, big.NewInt(high-low))
		if err != nil {
			return 0, fmt.Errorf("choose a port: %w", err)
		}
		port := low + int(n.Int64())
		if taken[port] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			return 0, fmt.Errorf("choose a port: %w", err)
		}
		return port, nil
	}
	return 0, fmt.Errorf("no free port found between %d and %d", low, high)
}

// writeFile replaces a file as a whole.
func writeFile(path string, raw []byte) error {
	next := path + ".new"
	if err := os.WriteFile(next, raw, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
