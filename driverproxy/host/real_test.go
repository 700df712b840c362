package host_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"image/png"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

const elementKey = "element-6066-11e4-a52e-4f735466cecf"

// needReal skips where the real parts are missing; CI must have them.
func needReal(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%s is missing, and CI must test with it: run `make setup-test`", p)
			}
			t.Skipf("%s is missing: run `make setup-test`", p)
		}
	}
}

func (s *stack) realConfig(t *testing.T) host.Config {
	t.Helper()
	needReal(t, "WebKitWebDriver", "Xvfb")
	cfg := s.config(t)
	cfg.Devices[0].Kind = host.KindWebKitGTK
	return cfg
}

func site(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, `<!doctype html><title>start</title><button id=b onclick="document.title='clicked'">b</button>`)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestRealSession(t *testing.T) {
	t.Parallel()
	s := newFleet(t)
	s.run(t, s.realConfig(t))
	url := site(t)
	for i := range 2 { // the second finds nothing of the first
		a := first(fmt.Sprint("s", i), 1)
		a.Capabilities = []byte(`{"browserName":"safari","webkitgtk:browserOptions":{"binary":"/bin/false"}}`)
		session := assign(t, s, a)
		if c := string(session.Capabilities()); !strings.Contains(c, `"browserName":"safari"`) || strings.Contains(c, "MiniBrowser") {
			t.Errorf("capabilities %s", c)
		}
		do[any](t, session, "POST", "/url", map[string]string{"url": url})
		script := `const was = localStorage.getItem("k"); localStorage.setItem("k", "v"); return was`
		if was := do[any](t, session, "POST", "/execute/sync", map[string]any{"script": script, "args": []any{}}); was != nil {
			t.Errorf("session %d found %v in localStorage", i, was)
		}
		button := do[map[string]string](t, session, "POST", "/element", map[string]string{"using": "css selector", "value": "#b"})
		do[any](t, session, "POST", "/element/"+button[elementKey]+"/click", nil)
		if got := do[string](t, session, "GET", "/title", nil); got != "clicked" {
			t.Errorf("title %q after the click", got)
		}
		picture, err := base64.StdEncoding.DecodeString(do[string](t, session, "GET", "/screenshot", nil))
		if err != nil {
			t.Fatal(err)
		}
		shot, err := png.Decode(bytes.NewReader(picture))
		if err != nil {
			t.Fatal(err)
		}
		if size := shot.Bounds().Size(); size.X > host.Width+50 || size.Y > host.Height || size.Y < host.Height*9/10 {
			t.Errorf("screenshot of %v, the display has %dx%d", size, host.Width, host.Height)
		}
		release(t, session)
		s.idle(t)
	}
}

// TestRealDeaths kills each process of a session in its middle.
func TestRealDeaths(t *testing.T) {
	t.Parallel()
	s := newFleet(t)
	s.run(t, s.realConfig(t))
	for i, victim := range []string{"MiniBrowser", "WebKitWebDriver", "Xvfb", host.SuperviseCommand, "WebKitWebProcess"} {
		t.Run(victim, func(t *testing.T) {
			session := assign(t, s, first(fmt.Sprint("s", i), 1))
			do[any](t, session, "POST", "/url", map[string]string{"url": "about:blank"})
			inFlight := make(chan webdriver.Answer, 1)
			go func() {
				script := command(t, "POST", "/execute/async", map[string]any{"script": "", "args": []any{}})
				a, _, _ := session.Do(context.Background(), script)
				inFlight <- a
			}()
			// The browser's processes need not have started by themselves: the script's command makes them.
			eventually(t, victim+" runs", func() bool { return pidOf(s.state, victim) != 0 })
			if err := syscall.Kill(pidOf(s.state, victim), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			select {
			case a := <-inFlight:
				if a.Status < 400 {
					t.Errorf("the command in flight succeeded: %s", a.Body)
				}
			case <-time.After(limit):
				t.Fatal("the command in flight has no answer")
			}
			if victim != "WebKitWebProcess" { // a crashed page alone may leave the browser usable
				within(t, "the session ends", session.Done())
				var f *wire.Failure
				if err := session.Err(); !errors.As(err, &f) || f.Code != wire.FailureDriver {
					t.Errorf("Err %v, want driver_failed", err)
				}
			}
			release(t, session)
			s.ready(t, "phone")
			s.idle(t)
		})
	}
	session := assign(t, s, first("last", 1))
	do[any](t, session, "POST", "/url", map[string]string{"url": "about:blank"})
	release(t, session)
}

// TestRealBrowserDiesWhileIdle has no command to find out by.
func TestRealBrowserDiesWhileIdle(t *testing.T) {
	t.Parallel()
	s := newFleet(t)
	s.run(t, s.realConfig(t))
	session := assign(t, s, first("s1", 1))
	if err := syscall.Kill(pidOf(s.state, "MiniBrowser"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	within(t, "the session ends", session.Done())
	var f *wire.Failure
	if err := session.Err(); !errors.As(err, &f) || f.Code != wire.FailureDriver || f.Message != "the browser died" {
		t.Errorf("Err %v, want driver_failed", err)
	}
	release(t, session)
}

// pidOf finds the session's process whose program, or first argument, is name.
func pidOf(state, name string) int {
	if pids := pidsOf(state, name); len(pids) > 0 {
		return pids[0]
	}
	return 0
}

func pidsOf(state, name string) []int {
	var pids []int
	for _, p := range processesBelow(state) {
		pid, line, _ := strings.Cut(p, " ")
		args := strings.Fields(line)
		if len(args) > 0 && (filepath.Base(args[0]) == name || (len(args) > 1 && args[1] == name)) {
			n, _ := strconv.Atoi(pid)
			pids = append(pids, n)
		}
	}
	return pids
}

// recorder is a stand-in for recorder/capture: the real encoder, without flow control.
type recorder struct{ args func(d host.Display) []string }

func (r recorder) Args(d host.Display) []string { return r.args(d) }

func (recorder) Pump(ctx context.Context, stdout io.Reader, c host.RecordingConn, stopped func() bool) error {
	buf, total := make([]byte, 32<<10), int64(0)
	for {
		n, err := stdout.Read(buf)
		if n > 0 {
			chunk := wire.Chunk{Offset: total, CRC: wire.Checksum(buf[:n]), Data: buf[:n]}
			if err := c.Send(ctx, chunk.Append(nil)); err != nil {
				return err
			}
			total += int64(n)
		}
		if err != nil {
			reason := wire.EndFailed
			if stopped() {
				reason = wire.EndStopped
			}
			return c.Send(ctx, wire.End{Total: total, Reason: reason}.Append(nil))
		}
	}
}

func ffmpeg(d host.Display) []string {
	return []string{"ffmpeg", "-nostdin", "-loglevel", "error", "-f", "x11grab", "-framerate", "10",
		"-video_size", fmt.Sprintf("%dx%d", d.Width, d.Height), "-i", d.Name,
		"-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-f", "webm", "-flush_packets", "1", "pipe:1"}
}

// take reads a recording to its end.
func take(t *testing.T, c *driverproxy.RecordingConn, enough func(got int)) ([]byte, *wire.End) {
	t.Helper()
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var got []byte
	for {
		m, err := c.Receive(ctx)
		if err != nil {
			t.Fatalf("Receive after %d bytes: %v", len(got), err)
		}
		switch m := m.(type) {
		case *wire.End:
			return got, m
		case *wire.Chunk:
			got = append(got, m.Data...)
			if err := c.Ack(ctx, int64(len(got))); err != nil {
				t.Fatal(err)
			}
			enough(len(got))
		}
	}
}

func TestRealRecording(t *testing.T) {
	t.Parallel()
	needReal(t, "ffmpeg", "ffprobe")
	s := newFleet(t)
	cfg := s.realConfig(t)
	cfg.Recorder = recorder{args: ffmpeg}
	s.run(t, cfg)
	stop := func(session *driverproxy.Session) {
		if err := session.StopRecording(t.Context()); err != nil {
			t.Error(err)
		}
	}
	kill := func(name string) func(*driverproxy.Session) {
		return func(*driverproxy.Session) {
			if err := syscall.Kill(pidOf(s.state, name), syscall.SIGKILL); err != nil {
				t.Errorf("kill %s: %v", name, err)
			}
		}
	}
	for i, test := range []struct {
		name   string
		act    func(*driverproxy.Session)
		reason wire.EndReason
		whole  bool // the encoder has finished its output
		lives  bool // the session goes on
	}{
		{"stop", stop, wire.EndStopped, true, true},
		{"kill ffmpeg", kill("ffmpeg"), wire.EndFailed, false, true},
		{"kill browser", kill("MiniBrowser"), wire.EndStopped, true, false},
		{"release", func(session *driverproxy.Session) { go session.Release(context.Background()) }, wire.EndStopped, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := first(fmt.Sprint("s", i), 1)
			a.Record = true
			session := assign(t, s, a)
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			conn, err := session.Recording(ctx)
			if err != nil {
				t.Fatal(err)
			}
			acted := false
			video, end := take(t, conn, func(got int) {
				if got > 5_000 && !acted {
					acted = true
					test.act(session)
				}
			})
			if end.Reason != test.reason || end.Total != int64(len(video)) {
				t.Errorf("end %+v after %d bytes", end, len(video))
			}
			probe := exec.Command("ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=width,height,nb_read_frames", "-of", "csv=p=0", "-")
			probe.Stdin = bytes.NewReader(video)
			out, err := probe.CombinedOutput()
			if test.whole && (err != nil || !strings.HasPrefix(string(out), "400,860,")) {
				t.Errorf("ffprobe: %v: %s", err, out)
			}
			if test.lives {
				do[any](t, session, "POST", "/url", map[string]string{"url": "about:blank"})
			}
			release(t, session)
			s.ready(t, "phone")
			s.idle(t)
		})
	}
}

func TestRecordingThatCannotStart(t *testing.T) {
	t.Parallel()
	s := newFleet(t)
	cfg := s.config(t)
	cfg.Recorder = recorder{args: func(host.Display) []string { return []string{"no-such-encoder"} }}
	s.run(t, cfg)
	a := first("s1", 1)
	a.Record = true
	session := assign(t, s, a)
	conn, err := session.Recording(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, end := take(t, conn, func(int) {}); len(got) != 0 || end.Reason != wire.EndFailed || end.Total != 0 {
		t.Errorf("%d bytes and %+v", len(got), end)
	}
	do[any](t, session, "GET", "/url", nil)
	release(t, session)
	s.idle(t)
}

// TestStubbornRecorder does not listen to SIGINT.
func TestStubbornRecorder(t *testing.T) {
	t.Parallel()
	s := newFleet(t)
	cfg := s.config(t)
	cfg.Recorder = recorder{args: func(host.Display) []string {
		return []string{"/bin/sh", "-c", `trap "" INT TERM; echo begun; setsid sleep 1000 >/dev/null & while :; do sleep 1000 >/dev/null; done`}
	}}
	s.run(t, cfg)
	a := first("s1", 1)
	a.Record = true
	session := assign(t, s, a)
	conn, err := session.Recording(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{})
	taken := make(chan struct{})
	go func() {
		defer close(taken)
		defer conn.Close()
		for {
			m, err := conn.Receive(context.Background())
			if err != nil {
				return
			}
			if _, ok := m.(*wire.Chunk); ok {
				close(begun)
			}
		}
	}()
	within(t, "it begins", begun)
	release(t, session)
	s.ready(t, "phone")
	s.idle(t) // also not the sleep that made itself a session of its own
	within(t, "the recording socket ends", taken)
}
