package recorder

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

// chromium is Debian's, with one window, by W3C WebDriver.
type chromium struct {
	t       *testing.T
	base    string
	session string
}

func newChromium(t *testing.T) *chromium {
	t.Helper()
	for _, program := range []string{"chromedriver", "chromium"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%s is missing, and CI must test with it: run `make setup-test`", program)
			}
			t.Skipf("part: chromium skipped: %s is missing: run `make setup-test`", program)
		}
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	_ = free.Close()
	driver := exec.Command("chromedriver", fmt.Sprintf("--port=%d", port), "--log-level=OFF")
	if err := driver.Start(); err != nil {
		t.Fatal(err)
	}
	c := &chromium{t: t, base: fmt.Sprintf("http://127.0.0.1:%d", port)}
	t.Cleanup(func() {
		if c.session != "" {
			_, _ = c.send(http.MethodDelete, "/session/"+c.session, nil)
		}
		_ = driver.Process.Kill()
		_ = driver.Wait()
	})
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(60 * time.Second)
	for {
		v, err := c.send(http.MethodPost, "/session", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
			"timeouts":           map[string]any{"script": 120_000},
			"goog:chromeOptions": map[string]any{"args": []string{"--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"}}}}})
		if err == nil {
			var made struct {
				SessionID string `json:"sessionId"`
			}
			if err := json.Unmarshal(v, &made); err != nil || made.SessionID == "" {
				t.Fatalf("New Session: %s", v)
			}
			c.session = made.SessionID
			return c
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("chromedriver: %v", err)
		}
	}
}

func (c *chromium) send(method, path string, body any) (json.RawMessage, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest(method, c.base+path, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 3 * time.Minute}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s: %s %s %v", method, path, resp.Status, all, err)
	}
	var v struct{ Value json.RawMessage }
	return v.Value, json.Unmarshal(all, &v)
}

// watched is what a video element says of a film.
type watched struct {
	Failed             string
	Duration, At, Last float64
	Seekable           bool
	Width, Height      int
}

const watch = `
const [url, goTo, done] = arguments;
const v = document.createElement('video');
document.body.append(v);
v.muted = true;
const end = more => done(JSON.stringify({duration: Number.isFinite(v.duration) ? v.duration : -1, at: v.currentTime, width: v.videoWidth, height: v.videoHeight, ...more}));
v.onerror = () => end({failed: v.error.code + ': ' + v.error.message});
v.onloadedmetadata = () => {
  if (goTo > 0) { v.currentTime = v.duration * goTo; } else { v.play(); }
};
v.onseeked = () => { // the frame is there; the rest plays to its end
  const at = v.currentTime, seekable = v.seekable.length > 0 && v.seekable.end(0) >= at;
  v.onended = () => end({at: at, seekable: seekable, last: v.currentTime});
  v.play();
};
if (goTo === 0) { v.onended = () => end({last: v.currentTime}); }
v.src = url;`

func (c *chromium) watch(url string, goTo float64) (w watched) {
	c.t.Helper()
	page := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/html")
		_, _ = rw.Write([]byte("<!doctype html><title>player</title><body>"))
	}))
	defer page.Close()
	if _, err := c.send(http.MethodPost, "/session/"+c.session+"/url", map[string]any{"url": page.URL}); err != nil {
		c.t.Fatal(err)
	}
	v, err := c.send(http.MethodPost, "/session/"+c.session+"/execute/async", map[string]any{"script": watch, "args": []any{url, goTo}})
	if err != nil {
		c.t.Fatal(err)
	}
	var text string
	if err := json.Unmarshal(v, &text); err != nil {
		c.t.Fatalf("%s: %v", v, err)
	}
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		c.t.Fatalf("%s: %v", text, err)
	}
	return w
}

// TestChromiumPlays opens what a customer gets: the presigned URL of a recording, in a video element. It says how long it is, is sought to 90%, and
// plays from there to its end. A recording that is being made plays as well, without a length.
func TestChromiumPlays(t *testing.T) {
	c := newChromium(t)
	b := newBench(t)
	stream := film(t, 6, 1)
	r := b.begin("play", place.EUOnly)
	if err := r.Ingest(t.Context(), play(stream)); err != nil {
		t.Fatal(err)
	}
	live, err := b.rec.Live("session-play", false)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	sealed := b.seal(r)
	b.drain()
	url, err := b.rec.URL(t.Context(), place.EU, r.Key(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	t.Log("part: chromium real")
	w := c.watch(url, 0.9)
	want := sealed.Duration.Seconds()
	if w.Failed != "" || !near(w.Duration, want) || !near(w.At, 0.9*want) || !w.Seekable || w.Width != 320 || w.Height != 240 || !near(w.Last, want) {
		t.Errorf("the recording of %.2f s: %+v", want, w)
	}

	tv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		rw.Header().Set("Content-Type", "video/webm")
		buf := make([]byte, 64<<10)
		for {
			n, err := live.Read(req.Context(), buf)
			if err != nil {
				return
			}
			_, _ = rw.Write(buf[:n])
		}
	}))
	defer tv.Close()
	if w := c.watch(tv.URL, 0); w.Failed != "" || w.Width != 320 || !near(w.Last, want) {
		t.Errorf("the stream of it: %+v", w)
	}
}

func near(a, b float64) bool { return a > b-0.3 && a < b+0.3 }
