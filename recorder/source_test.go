package recorder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"sync"
	"testing"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// encoder gives ffmpeg's arguments for seconds of moving pictures, at 10 frames and about mbit megabits a second.
func encoder(seconds, mbit int) []string {
	return []string{"-nostdin", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=10,noise=alls=60:allf=t", "-t", strconv.Itoa(seconds),
		"-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "16", "-qmin", "2", "-qmax", "20", "-b:v", fmt.Sprint(mbit) + "M", "-g", "20",
		"-f", "webm", "-cluster_time_limit", "1000", "-flush_packets", "1", "pipe:1"}
}

var films sync.Map // of seconds and mbit; encoded once a test binary

// film is a live stream as ffmpeg writes it to a pipe.
func film(t *testing.T, seconds, mbit int) []byte {
	t.Helper()
	v, _ := films.LoadOrStore([2]int{seconds, mbit}, sync.OnceValues(func() ([]byte, error) {
		cmd := exec.Command("ffmpeg", encoder(seconds, mbit)...)
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, fmt.Errorf("ffmpeg, which this test needs (apt-get install ffmpeg): %w", err)
		}
		b, err := io.ReadAll(pipe)
		return b, errors.Join(err, cmd.Wait())
	}))
	b, err := v.(func() ([]byte, error))()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// script is a Source that plays a stream from a byte on, then ends as said.
type script struct {
	stream []byte
	pos    int64
	piece  int
	end    *wire.End
	lost   error         // instead of an end
	hold   chan struct{} // when set, the end waits for it

	mu    sync.Mutex
	acked int64
	acks  []int64
}

func play(stream []byte) *script {
	return &script{stream: stream, piece: 64 << 10, end: &wire.End{Total: int64(len(stream))}}
}

func (s *script) Receive(ctx context.Context) (any, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.pos < int64(len(s.stream)) {
		data := s.stream[s.pos:min(int64(len(s.stream)), s.pos+int64(s.piece))]
		c := &wire.Chunk{Offset: s.pos, CRC: wire.Checksum(data), Data: bytes.Clone(data)}
		s.pos += int64(len(data))
		return c, nil
	}
	if s.hold != nil {
		select {
		case <-s.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if s.lost != nil {
		return nil, s.lost
	}
	return s.end, nil
}

func (s *script) Ack(_ context.Context, offset int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acked = max(s.acked, offset)
	s.acks = append(s.acks, offset)
	return nil
}

func (s *script) ackedTo() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked
}

var errLost = errors.New("host is gone")

// socket joins capture.Pump to Ingest in memory, with the messages they have on the wire.
type socket struct{ up, down chan []byte }

func newSocket() *socket { return &socket{up: make(chan []byte), down: make(chan []byte, 1024)} }

type hostEnd struct{ *socket }

func (h hostEnd) Send(ctx context.Context, b []byte) error {
	select {
	case h.up <- b:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h hostEnd) Receive(ctx context.Context) ([]byte, error) {
	select {
	case b := <-h.down:
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *socket) Receive(ctx context.Context) (any, error) {
	select {
	case b := <-s.up:
		return wire.DecodeRecording(b)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *socket) Ack(ctx context.Context, offset int64) error {
	select {
	case s.down <- wire.Ack{Offset: offset}.Append(nil):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
