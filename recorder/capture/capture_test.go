package capture

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/driftstack/fleet/driverproxy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errCut = errors.New("cut")

// memory is a connection whose other end is the test.
type memory struct {
	up, down chan []byte
	cut      chan struct{}
}

func newMemory() *memory {
	return &memory{up: make(chan []byte), down: make(chan []byte), cut: make(chan struct{})}
}

func (m *memory) Send(ctx context.Context, b []byte) error {
	select {
	case m.up <- b:
		return nil
	case <-m.cut:
		return errCut
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *memory) Receive(ctx context.Context) ([]byte, error) {
	select {
	case b := <-m.down:
		return b, nil
	case <-m.cut:
		return nil, errCut
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// serve plays an orchestrator that acknowledges every chunk at once, until the end or until it has taken most bytes.
func (m *memory) serve(t *testing.T, most int64) (got []byte, end *wire.End) {
	t.Helper()
	for {
		var b []byte
		select {
		case b = <-m.up:
		case <-time.After(20 * time.Second):
			t.Error("nothing arrived for 20 s")
			return got, nil
		}
		v, err := wire.DecodeRecording(b)
		if err != nil {
			t.Error(err)
			return got, nil
		}
		switch v := v.(type) {
		case *wire.Chunk:
			if v.Offset != int64(len(got)) {
				t.Errorf("chunk at %d, want %d", v.Offset, len(got))
			}
			got = append(got, v.Data...)
			if int64(len(got)) > most {
				return got, nil
			}
			m.down <- wire.Ack{Offset: int64(len(got))}.Append(nil)
		case *wire.End:
			return got, v
		}
	}
}

func pump(t *testing.T, c *Capture, r io.Reader, m *memory, stopped func() bool) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- c.Pump(t.Context(), r, m, stopped) }()
	return done
}

func wait(t *testing.T, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("Pump does not return")
		return nil
	}
}

func TestEverythingArrivesOnceAndInOrder(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcdef"), 60_000)
	for reason, stopped := range map[wire.EndReason]func() bool{
		wire.EndStopped: func() bool { return true },
		wire.EndFailed:  func() bool { return false },
	} {
		m := newMemory()
		done := pump(t, New(Config{}), bytes.NewReader(want), m, stopped)
		got, end := m.serve(t, 1<<40)
		if err := wait(t, done); err != nil {
			t.Errorf("Pump: %v", err)
		}
		if !bytes.Equal(got, want) || end == nil || end.Total != int64(len(want)) || end.Reason != reason {
			t.Errorf("got %d bytes and %+v, want %d and reason %d", len(got), end, len(want), reason)
		}
	}
}

func TestReadErrorIsAFailedEncoder(t *testing.T) {
	m := newMemory()
	done := pump(t, New(Config{}), io.MultiReader(strings.NewReader("abc"), errReader{}), m, nil)
	if _, end := m.serve(t, 1<<40); end == nil || end.Reason != wire.EndFailed || end.Total != 3 {
		t.Errorf("end %+v", end)
	}
	if err := wait(t, done); err != nil {
		t.Error(err)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("broken") }

func TestItWaitsForTheLastAcknowledgement(t *testing.T) {
	m := newMemory()
	done := pump(t, New(Config{}), strings.NewReader("abc"), m, nil)
	<-m.up // chunk
	<-m.up // end
	select {
	case err := <-done:
		t.Fatalf("returned %v before the acknowledgement", err)
	case <-time.After(50 * time.Millisecond):
	}
	m.down <- wire.Ack{Offset: 3}.Append(nil)
	if err := wait(t, done); err != nil {
		t.Error(err)
	}
}

// TestHangingUpAfterTheLastAcknowledgementIsNoLoss: that is how an orchestrator ends, and it may be faster than we are.
func TestHangingUpAfterTheLastAcknowledgementIsNoLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if err := New(Config{}).Pump(t.Context(), strings.NewReader("abc"), &hasty{ended: make(chan struct{})}, nil); err != nil {
			t.Error(err)
		}
	})
}

// hasty acknowledges the end and is gone before Send returns.
type hasty struct {
	ended chan struct{}
	acked bool
}

func (h *hasty) Send(ctx context.Context, b []byte) error {
	m, err := wire.DecodeRecording(b)
	if _, isEnd := m.(*wire.End); isEnd && err == nil {
		close(h.ended)
		<-ctx.Done()
		synctest.Wait() // everyone else has heard of it
	}
	return err
}

func (h *hasty) Receive(ctx context.Context) ([]byte, error) {
	select {
	case <-h.ended:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if h.acked {
		return nil, errCut
	}
	h.acked = true
	return wire.Ack{Offset: 3}.Append(nil), nil
}

func TestLostConnectionSaysWhatIsMissingAndEndsTheEncoder(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	m := newMemory()
	done := pump(t, New(Config{}), r, m, nil)
	if _, err := w.Write([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	<-m.up
	m.down <- wire.Ack{Offset: 1}.Append(nil)
	if _, err := w.Write([]byte("defg")); err != nil {
		t.Fatal(err)
	}
	<-m.up
	close(m.cut)
	var lost *UnacknowledgedError
	if err := wait(t, done); !errors.As(err, &lost) || lost.Bytes != 6 || !errors.Is(err, errCut) {
		t.Errorf("error %v, want 6 bytes not acknowledged, because of the cut", err)
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the encoder can still write: %v", err)
	}
}

func TestAtTheBoundCaptureStops(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	m := newMemory()
	done := pump(t, New(Config{Buffer: 300 << 10}), r, m, nil)
	written := make(chan error, 1)
	go func() {
		_, err := w.Write(make([]byte, 4<<20))
		w.Close()
		written <- err
	}()
	// Nothing is received until the encoder was stopped.
	select {
	case err := <-written:
		if !errors.Is(err, syscall.EPIPE) {
			t.Errorf("the encoder was not stopped: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the encoder hangs")
	}
	got, end := m.serve(t, 1<<40)
	if end == nil || end.Reason != wire.EndOverflow || end.Total != int64(len(got)) || len(got) == 0 || len(got) > 300<<10 {
		t.Errorf("%d bytes, then %+v", len(got), end)
	}
	if err := wait(t, done); !errors.Is(err, ErrOverflow) {
		t.Errorf("error %v", err)
	}
}

func TestWrongAcknowledgementsEndIt(t *testing.T) {
	for name, message := range map[string][]byte{
		"beyond what was read": wire.Ack{Offset: 1 << 40}.Append(nil),
		"noise":                []byte("hello"),
	} {
		t.Run(name, func(t *testing.T) {
			r, w := io.Pipe()
			defer w.Close()
			m := newMemory()
			done := pump(t, New(Config{}), r, m, nil)
			m.down <- message
			if err := wait(t, done); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestCancelledContext(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := New(Config{}).Pump(ctx, r, newMemory(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// TestRealDisplay runs the command line against a real X server.
func TestRealDisplay(t *testing.T) {
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	x := exec.Command("Xvfb", "-displayfd", "3", "-screen", "0", "400x860x24", "-nolisten", "tcp")
	x.ExtraFiles = []*os.File{pw}
	if err := x.Start(); err != nil {
		t.Fatalf("Xvfb, which this test needs (apt-get install xvfb): %v", err)
	}
	pw.Close()
	defer func() { _ = x.Process.Kill(); _ = x.Wait() }()
	_ = pr.SetReadDeadline(time.Now().Add(20 * time.Second))
	number := make([]byte, 16)
	n, err := pr.Read(number)
	if err != nil {
		t.Fatal(err)
	}
	args := New(Config{}).Args(":"+strings.TrimSpace(string(number[:n])), 400, 860)
	cmd := exec.Command(args[0], args[1:]...)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	m := newMemory()
	done := pump(t, New(Config{}), stdout, m, func() bool { return true })
	got, _ := m.serve(t, 1000) // more than the head: a cluster, flowing while it runs
	if took := time.Since(begun); took > 15*time.Second {
		t.Errorf("the first bytes took %v", took)
	}
	m.down <- wire.Ack{Offset: int64(len(got))}.Append(nil)
	_ = cmd.Process.Signal(syscall.SIGINT)
	rest := m.tail(t, int64(len(got)))
	if err := wait(t, done); err != nil {
		t.Errorf("Pump: %v", err)
	}
	_ = cmd.Wait()
	path := filepath.Join(t.TempDir(), "x.webm")
	if err := os.WriteFile(path, append(got, rest...), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=codec_name,width,height", "-of", "csv=p=0", path).CombinedOutput()
	if strings.TrimSpace(string(out)) != "vp8,400,860" {
		t.Errorf("ffprobe: %s %v; the encoder said: %s", out, err, complaints.String())
	}
}

func (m *memory) tail(t *testing.T, from int64) (got []byte) {
	t.Helper()
	for {
		select {
		case b := <-m.up:
			v, err := wire.DecodeRecording(b)
			if err != nil {
				t.Fatal(err)
			}
			c, ok := v.(*wire.Chunk)
			if !ok {
				return got
			}
			got = append(got, c.Data...)
			m.down <- wire.Ack{Offset: from + int64(len(got))}.Append(nil)
		case <-time.After(20 * time.Second):
			t.Fatal("the encoder does not end")
		}
	}
}

func TestArgs(t *testing.T) {
	c := New(Config{FPS: 5})
	if got := c.Args(":7", 400, 860); !slices.Contains(got, ":7") || !slices.Contains(got, "400x860") || got[0] != "ffmpeg" || got[len(got)-1] != "pipe:1" {
		t.Errorf("%q", got)
	}
	if got := strings.Join(c.input("darwin", "", 401, 861), " "); !strings.Contains(got, "avfoundation") || !strings.Contains(got, "Capture screen 0:none") || !strings.Contains(got, "400:860") {
		t.Errorf("%q", got)
	}
	if got := strings.Join(c.output(), " "); !strings.Contains(got, "-g 10 ") {
		t.Errorf("key frames are not 2 s apart: %q", got)
	}
}
