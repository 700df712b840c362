// Package capture is the host end of a recording: the encoder's command line, and the pump that carries what the encoder writes
// to the orchestrator.
//
// Nothing touches the host's disk. Bytes the orchestrator has not acknowledged are kept in bounded memory; when the
// bound is reached, because the ocean or the other end is too slow, capture stops for good and the recording ends as
// overflowed: a hole in the middle would make the rest unplayable.
//
// Out of scope: starting and stopping the encoder (driverproxy/host), sockets, what happens to the bytes (recorder).
package capture

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
)

// Defaults of [Config].
const (
	DefaultFPS     = 10
	DefaultBuffer  = 32 << 20
	DefaultBitrate = 1_000_000
)

// Config is how to capture. Zero fields take the defaults.
type Config struct {
	FPS     int    // frames a second
	Bitrate int    // bits a second
	Buffer  int64  // most bytes that may wait for an acknowledgement
	FFmpeg  string // program to run, "ffmpeg" from PATH by default
	Input   string // macOS: the avfoundation device, "Capture screen 0" by default; elsewhere unused
}

// Conn is the way to the orchestrator: whole binary messages (package wire). Send and Receive are called from different goroutines,
// each from one at a time. A call returns an error when ctx ends or the connection is lost. Conn may keep a message that was
// sent until it is acknowledged, to send it again; so does the pump, and the bytes are in memory once.
type Conn interface {
	Send(ctx context.Context, message []byte) error
	Receive(ctx context.Context) ([]byte, error)
}

// Capture holds a valid Config. It has no state: one serves every session of a host.
type Capture struct{ cfg Config }

// New fills in the defaults.
func New(cfg Config) *Capture {
	if cfg.FPS <= 0 {
		cfg.FPS = DefaultFPS
	}
	if cfg.Bitrate <= 0 {
		cfg.Bitrate = DefaultBitrate
	}
	if cfg.Buffer <= 0 {
		cfg.Buffer = DefaultBuffer
	}
	if cfg.FFmpeg == "" {
		cfg.FFmpeg = "ffmpeg"
	}
	if cfg.Input == "" {
		cfg.Input = "Capture screen 0"
	}
	return &Capture{cfg: cfg}
}

// Args is the encoder's command line, the program first: display (an X display such as ":7"; unused on macOS) of the given size
// as a live VP8 WebM on its standard output. SIGINT or SIGTERM make it end the stream properly.
func (c *Capture) Args(display string, width, height int) []string {
	return append(append([]string{c.cfg.FFmpeg, "-nostdin", "-hide_banner", "-loglevel", "error"},
		c.input(runtime.GOOS, display, width, height)...), c.output()...)
}

func (c *Capture) input(goos, display string, width, height int) []string {
	fps := strconv.Itoa(c.cfg.FPS)
	if goos == "darwin" {
		return []string{"-f", "avfoundation", "-capture_cursor", "0", "-framerate", fps, "-i", c.cfg.Input + ":none",
			"-vf", fmt.Sprintf("scale=%d:%d", width&^1, height&^1)}
	}
	return []string{"-f", "x11grab", "-draw_mouse", "0", "-framerate", fps,
		"-video_size", fmt.Sprintf("%dx%d", width, height), "-i", display}
}

// output encodes for little CPU and a cluster a second, each flushed at once, so that what is lost with a host is about a second.
func (c *Capture) output() []string {
	rate := strconv.Itoa(c.cfg.Bitrate)
	return []string{"-an", "-pix_fmt", "yuv420p", "-r", strconv.Itoa(c.cfg.FPS),
		"-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-threads", "1", "-lag-in-frames", "0",
		"-b:v", rate, "-maxrate", rate, "-bufsize", strconv.Itoa(2 * c.cfg.Bitrate), "-g", strconv.Itoa(2 * c.cfg.FPS),
		"-f", "webm", "-cluster_time_limit", "1000", "-flush_packets", "1", "pipe:1"}
}
