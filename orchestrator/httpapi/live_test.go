package httpapi_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/recorder"
)

// reel is a recording's source: a film in two parts, of which the second waits.
type reel struct {
	film []byte
	pos  int
	hold chan struct{}
}

func (s *reel) Receive(ctx context.Context) (any, error) {
	if s.pos >= len(s.film)/2 {
		select {
		case <-s.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if s.pos == len(s.film) {
		return &wire.End{Total: int64(s.pos)}, nil
	}
	b := s.film[s.pos:min(len(s.film), s.pos+16<<10)]
	c := &wire.Chunk{Offset: int64(s.pos), CRC: wire.Checksum(b), Data: b}
	s.pos += len(b)
	return c, nil
}

func (*reel) Ack(context.Context, int64) error { return nil }

// TestLiveRecording watches the recording of a session that runs, at the orchestrator that runs it and through another one.
func TestLiveRecording(t *testing.T) {
	t.Parallel()
	film, err := exec.Command("ffmpeg", "-nostdin", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=160x120:rate=10", "-t", "6", "-c:v", "libvpx", "-deadline", "realtime",
		"-g", "10", "-f", "webm", "-cluster_time_limit", "1000", "pipe:1").Output()
	if err != nil {
		t.Fatalf("ffmpeg, which this test needs (apt-get install ffmpeg): %v", err)
	}
	_, holder, other := newPeers(t, 10*time.Minute, "eu-1", "eu-2")
	s, err := holder.client.CreateSession(t.Context(), unrecorded(api.CreateSession{}))
	must(t, err)
	_, err = holder.client.Wait(t.Context(), s.ID, api.Running)
	must(t, err)
	get := func(at *mate, query string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", at.url+"/v1/sessions/"+s.ID+"/recording/live"+query, nil)
		must(t, err)
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	for query, want := range map[string]int{"": 404, "?from=yesterday": 422} { // it is not recorded
		if resp := get(other, query); resp.StatusCode != want {
			t.Errorf("%s: %s", query, resp.Status)
		}
	}
	rec, err := holder.recorder.Begin(t.Context(), recorder.Spec{ID: "live", Session: s.ID, Account: "a", Term: s.Term + 1, Placement: place.EUOnly, Started: time.Now()})
	must(t, err)
	src := &reel{film: film, hold: make(chan struct{})}
	ingested := make(chan error, 1)
	go func() { ingested <- rec.Ingest(t.Context(), src) }()

	here, there := get(holder, "?from=start"), get(other, "")
	for name, resp := range map[string]*http.Response{"here": here, "there": there} {
		first := make([]byte, 8<<10) // comes while the recording goes on
		if _, err := io.ReadFull(resp.Body, first); err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "video/webm" {
			t.Fatalf("%s: %s %s, %v", name, resp.Status, resp.Header.Get("Content-Type"), err)
		}
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(first), resp.Body), resp.Body}
	}
	close(src.hold)
	must(t, <-ingested)
	must(t, second(rec.Seal(t.Context())))
	for name, resp := range map[string]*http.Response{"here": here, "there": there} {
		b, err := io.ReadAll(resp.Body)
		must(t, err)
		probe := exec.Command("ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0", "-")
		probe.Stdin = bytes.NewReader(b)
		if out, err := probe.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "60" {
			t.Errorf("%s: frames in %d bytes: %s, %v", name, len(b), out, err)
		}
	}
	eventually(t, "it is known to be sealed", func() bool {
		v, err := holder.client.RecordingByID(t.Context(), "live")
		return err == nil && v.State != "recording"
	})
	resp := get(other, "")
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 409 || !strings.Contains(string(b), "/v1/recordings/live/url") {
		t.Errorf("after its end: %s %s", resp.Status, b)
	}
}
