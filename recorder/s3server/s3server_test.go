package s3server

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func binary(t *testing.T) string {
	t.Helper()
	path, err := Find("../..")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return path
}

func TestStartStopAndComeBackAtTheSamePlace(t *testing.T) {
	cfg := Config{Binary: binary(t), Dir: t.TempDir(), Buckets: []string{"recordings-eu", "recordings-us"}, Output: os.Stderr}
	begun := time.Now()
	s, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %v", time.Since(begun))
	for _, bucket := range cfg.Buckets {
		if _, err := os.Stat(filepath.Join(cfg.Dir, "objects", bucket)); err != nil {
			t.Error(err)
		}
	}
	s.Kill()
	select {
	case <-s.Exited():
	default:
		t.Error("not exited after Kill")
	}
	cfg.Addr = s.Addr()
	again, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if again.Endpoint() != s.Endpoint() {
		t.Errorf("came back at %s, was at %s", again.Endpoint(), s.Endpoint())
	}
	again.Stop()
	again.Stop()
	if c, err := net.DialTimeout("tcp", s.Addr(), time.Second); err == nil {
		c.Close()
		t.Error("something still listens")
	}
}

func TestStartFails(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	bin := binary(t)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tt := range map[string]struct {
		ctx context.Context
		cfg Config
	}{
		"port in use":     {t.Context(), Config{Binary: bin, Dir: t.TempDir(), Addr: taken.Addr().String()}},
		"not on loopback": {t.Context(), Config{Binary: bin, Dir: t.TempDir(), Addr: "0.0.0.0:7070"}},
		"no folder":       {t.Context(), Config{Binary: bin}},
		"no program":      {t.Context(), Config{Binary: "/nonexistent", Dir: t.TempDir()}},
		"cancelled":       {cancelled, Config{Binary: bin, Dir: t.TempDir()}},
	} {
		t.Run(name, func(t *testing.T) {
			if s, err := Start(tt.ctx, tt.cfg); err == nil {
				s.Kill()
				t.Error("started")
			}
		})
	}
}

func TestFind(t *testing.T) {
	t.Setenv("PATH", "")
	if _, err := Find(t.TempDir()); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("Find: %v", err)
	}
}
