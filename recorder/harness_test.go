package recorder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"go.uber.org/goleak"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"

	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/recorder/s3server"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		childMain(dir)
	}
	if arg := os.Getenv(killsEnv); arg != "" {
		killsChild(arg)
	}
	goleak.VerifyTestMain(m)
}

// storage is versitygw with both buckets and, in front of it, what R2 is stricter about.
type storage struct {
	t      *testing.T
	cfg    s3server.Config
	server *s3server.Server
	front  *s3server.Front
	eu, us string // endpoints of the two jurisdictions
}

func newStorage(t *testing.T) *storage {
	t.Helper()
	binary, err := s3server.Find("..")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	s := &storage{t: t, cfg: s3server.Config{Binary: binary, Dir: t.TempDir(), Buckets: []string{"recordings-eu", "recordings-us"}}}
	s.start()
	t.Cleanup(s.stop)
	s.cfg.Addr = s.server.Addr()
	if s.front, err = s3server.StartFront(s.server.Endpoint()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.front.Close)
	s.eu, s.us = s.jurisdiction("recordings-eu"), s.jurisdiction("recordings-us")
	return s
}

func (s *storage) start() {
	s.t.Helper()
	server, err := s3server.Start(s.t.Context(), s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.server = server
}

func (s *storage) stop() { s.server.Stop() }
func (s *storage) kill() { s.server.Kill() }

// jurisdiction is one more endpoint, with these buckets behind it.
func (s *storage) jurisdiction(buckets ...string) (endpoint string) {
	s.t.Helper()
	endpoint, err := s.front.ListenJurisdiction(buckets...)
	if err != nil {
		s.t.Fatal(err)
	}
	return endpoint
}

func (s *storage) target(endpoint, bucket string) Target {
	access, secret := s.server.Keys()
	return Target{Endpoint: endpoint, Bucket: bucket, AccessKey: access, SecretKey: secret}
}

// uploads are the keys of multipart uploads that are neither complete nor aborted.
func (s *storage) uploads(bucket string) (keys []string) {
	s.t.Helper()
	access, secret := s.server.Keys()
	client := s3.New(s3.Options{
		Region: s3server.Region, BaseEndpoint: aws.String(s.server.Endpoint()), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(access, secret, ""), HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	})
	list, err := client.ListMultipartUploads(s.t.Context(), &s3.ListMultipartUploadsInput{Bucket: &bucket})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, u := range list.Uploads {
		keys = append(keys, *u.Key)
	}
	return keys
}

// ledger is a Journal that checks what every journal may rely on.
type ledger struct {
	t  *testing.T
	mu sync.Mutex
	by map[string][]RecordingUpdate
	// fail, when set, is asked before an update is taken.
	fail    func(RecordingUpdate) error
	changed chan struct{}
	running map[string]bool // sessions
}

func newLedger(t *testing.T) *ledger {
	return &ledger{t: t, by: map[string][]RecordingUpdate{}, changed: make(chan struct{})}
}

var order = map[State]int{StateRecording: 1, StateSealed: 2, StateUploading: 3, StateAvailable: 4, StateReplicated: 5, StateEmpty: 6, StateLost: 7, StateQuarantined: 8}

func (l *ledger) RecordingChanged(_ context.Context, u RecordingUpdate) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		if err := l.fail(u); err != nil {
			return err
		}
	}
	for _, us := range l.by {
		if v := us[len(us)-1]; u.Session != "" && v.Session == u.Session && v.Term > u.Term {
			return ErrFenced
		}
	}
	if us := l.by[u.ID]; len(us) > 0 && order[u.State] < order[us[len(us)-1].State] {
		l.t.Errorf("recording %s went from %s back to %s", u.ID, us[len(us)-1].State, u.State)
	}
	l.by[u.ID] = append(l.by[u.ID], u)
	close(l.changed)
	l.changed = make(chan struct{})
	return nil
}

// Outlook implements Journal.
func (l *ledger) Outlook(_ context.Context, id, session string, term int64) (Outlook, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, us := range l.by {
		if u := us[len(us)-1]; u.Session == session && u.Term > term {
			return Superseded, nil
		}
	}
	if l.running[session] {
		return Continues, nil
	}
	return Over, nil
}

// Latest implements Journal.
func (l *ledger) Latest(_ context.Context, session string) (id string, ok bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var term int64
	for i, us := range l.by {
		if u := us[len(us)-1]; u.Session == session && u.Term > term {
			id, ok, term = i, true, u.Term
		}
	}
	return id, ok, nil
}

func (l *ledger) last(id string) (u RecordingUpdate, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if us := l.by[id]; len(us) > 0 {
		u = us[len(us)-1]
	}
	return u, l.changed
}

func (l *ledger) states(id string) (out []State) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, u := range l.by[id] {
		if len(out) == 0 || out[len(out)-1] != u.State {
			out = append(out, u.State)
		}
	}
	return out
}

// await waits until f holds of the newest update.
func (l *ledger) await(id string, f func(RecordingUpdate) bool) RecordingUpdate {
	l.t.Helper()
	limit := time.After(60 * time.Second)
	for {
		u, changed := l.last(id)
		if f(u) {
			return u
		}
		select {
		case <-changed:
		case <-limit:
			l.t.Fatalf("recording %s is still %+v", id, u)
		}
	}
}

func (l *ledger) awaitState(id string, s State) RecordingUpdate {
	l.t.Helper()
	return l.await(id, func(u RecordingUpdate) bool { return u.State == s })
}

// bench is a Recorder with everything around it.
type bench struct {
	t       *testing.T
	storage *storage
	ledger  *ledger
	cfg     Config
	rec     *Recorder
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, storage: newStorage(t), ledger: newLedger(t)}
	b.cfg = Config{Dir: t.TempDir(), EU: EUTarget{b.storage.target(b.storage.eu, "recordings-eu")}, US: &USTarget{b.storage.target(b.storage.us, "recordings-us")}, Journal: b.ledger,
		PartSize: minPartSize, RetryMax: 200 * time.Millisecond, Log: zaptest.NewLogger(t, zaptest.Level(zapcore.FatalLevel))}
	b.open()
	t.Cleanup(func() { b.close() })
	return b
}

func (b *bench) open() {
	b.t.Helper()
	rec, err := Open(b.t.Context(), b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.rec = rec
}

func (b *bench) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := b.rec.Close(ctx); err != nil {
		b.t.Error(err)
	}
}

func (b *bench) begin(id string, p place.Placement) *Recording {
	b.t.Helper()
	r, err := b.rec.Begin(b.t.Context(), Spec{ID: id, Session: "session-" + id, Account: "acme", Term: 1, Placement: p, Started: time.Now()})
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *bench) seal(r *Recording) Sealed {
	b.t.Helper()
	s, err := r.Seal(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *bench) drain() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 60*time.Second)
	defer cancel()
	if err := b.rec.Drain(ctx); err != nil {
		b.t.Fatal(err)
	}
}

// object fetches an object as a customer does; nil when there is none.
func (b *bench) object(region place.Region, key string) []byte {
	b.t.Helper()
	url, err := b.rec.URL(b.t.Context(), region, key, time.Hour)
	if err != nil {
		b.t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return nil
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.t.Fatalf("GET %s: %s %v", key, resp.Status, err)
	}
	return body
}

func (b *bench) wantNoSpool(id string) {
	b.t.Helper()
	if _, err := os.Stat(filepath.Join(b.cfg.Dir, id)); !errors.Is(err, os.ErrNotExist) {
		b.t.Errorf("the spool of %s is still there (%v)", id, err)
	}
}

// wantObject checks the object of a recording against what was sealed, and has ffprobe decode all of it.
func (b *bench) wantObject(region place.Region, key string, s Sealed, frames int) {
	b.t.Helper()
	got := b.object(region, key)
	sum := sha256.Sum256(got)
	if hex.EncodeToString(sum[:]) != s.SHA256 || int64(len(got)) != s.Bytes {
		b.t.Fatalf("%s object has %d bytes and hash %x, sealed were %d bytes and %s", region, len(got), sum, s.Bytes, s.SHA256)
	}
	n, d := probe(b.t, got)
	if (frames >= 0 && n != frames) || n == 0 || (d-s.Duration).Abs() > 2*time.Millisecond {
		b.t.Errorf("ffprobe decodes %d frames and says %v, want %d and %v", n, d, frames, s.Duration)
	}
}

func probe(t *testing.T, film []byte) (frames int, d time.Duration) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "film.webm")
	if err := os.WriteFile(path, film, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames:format=duration", "-of", "json", path).CombinedOutput()
	var v struct {
		Streams []struct {
			Frames string `json:"nb_read_frames"`
		}
		Format struct{ Duration string }
	}
	if jsonErr := json.Unmarshal(out, &v); err != nil || jsonErr != nil || len(v.Streams) != 1 {
		t.Fatalf("ffprobe: %v %v\n%s", err, jsonErr, out)
	}
	frames, _ = strconv.Atoi(v.Streams[0].Frames)
	s, err := strconv.ParseFloat(v.Format.Duration, 64)
	if err != nil {
		t.Fatalf("ffprobe gives no duration: %s", out)
	}
	return frames, time.Duration(s * float64(time.Second))
}

func isPrefix(states []State, want ...State) bool {
	return strings.HasPrefix(fmt.Sprint(states), strings.TrimSuffix(fmt.Sprint(want), "]"))
}
