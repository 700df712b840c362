package host_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/recorder/capture"
)

// cuttable remembers the connections over which recording sockets were dialled.
type cuttable struct {
	mu    sync.Mutex
	lanes []net.Conn
}

func (c *cuttable) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &sniffed{Conn: conn, of: c}, nil
}

func (c *cuttable) dialled() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.lanes)
}

// cut breaks the connections from..to, without a goodbye.
func (c *cuttable) cut(from, to int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.lanes[from:to] {
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}
}

// sniffed looks at the request that opens a connection.
type sniffed struct {
	net.Conn
	of   *cuttable
	once sync.Once
}

func (s *sniffed) Write(b []byte) (int, error) {
	s.once.Do(func() {
		if bytes.HasPrefix(b, []byte("GET "+wire.PathRecording+"?")) {
			s.of.mu.Lock()
			s.of.lanes = append(s.of.lanes, s.Conn)
			s.of.mu.Unlock()
		}
	})
	return s.Conn.Write(b)
}

// pumped is the recorder's real pump behind an encoder that only writes a file.
type pumped struct {
	*capture.Capture
	file string
}

func (p pumped) Args(host.Display) []string { return []string{"cat", p.file} }

func (p pumped) Pump(ctx context.Context, stdout io.Reader, c host.RecordingConn, stopped func() bool) error {
	return p.Capture.Pump(ctx, stdout, c, func() bool { return true })
}

// TestRecordingOverLanes: a backlog opens further sockets; those that are cut, in the end all of them, lose nothing.
func TestRecordingOverLanes(t *testing.T) {
	t.Parallel()
	s, net := newFleet(t), &cuttable{}
	video := make([]byte, 24<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(video) // never fails
	file := filepath.Join(t.TempDir(), "video")
	if err := os.WriteFile(file, video, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := s.config(t)
	cfg.Dial, cfg.RecordingLanes = net.dial, 3
	cfg.Recorder = pumped{capture.New(capture.Config{}), file}
	s.run(t, cfg)
	a := first("s1", 1)
	a.Record = true
	session := assign(t, s, a)
	conn, err := session.Recording(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Nothing is acknowledged: the window fills.
	eventually(t, "further sockets are opened", func() bool { return net.dialled() == 3 })
	net.cut(1, 2)
	all := false
	got, end := take(t, conn, func(got int) {
		if got > 4<<20 && !all {
			all = true
			net.cut(0, net.dialled())
		}
	})
	if !bytes.Equal(got, video) || end.Total != int64(len(video)) || end.Reason != wire.EndStopped {
		t.Errorf("%d bytes of %d, equal: %v, %+v", len(got), len(video), bytes.Equal(got, video), end)
	}
	if n := net.dialled(); n < 4 {
		t.Errorf("%d sockets were dialled although all of 3 were cut", n)
	}
	do[any](t, session, "GET", "/url", nil)
	release(t, session)
	s.idle(t)
}
