package recorder

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/recorder/s3server"
)

const (
	killsEnv    = "RECORDER_TEST_KILLS"
	killsSeed   = "RECORDER_TEST_SEED" // replays a run
	killsAtOnce = 3                    // recordings of one life
	killsWithin = 700 * time.Millisecond
)

// life is one process that records until it is killed.
type life struct {
	Dir   string
	Films []string
	EU    Target
	Names []string // of its recordings, each of the film of its number
}

// killsChild is that process. It goes on with what those before it left.
func killsChild(arg string) {
	var l life
	if err := json.Unmarshal([]byte(arg), &l); err != nil {
		panic(err)
	}
	rec, err := Open(context.Background(), Config{Dir: l.Dir, EU: EUTarget{l.EU}, Journal: deaf{}, PartSize: minPartSize, RetryMax: 200 * time.Millisecond})
	if err != nil {
		panic(err)
	}
	var all sync.WaitGroup
	for i, name := range l.Names {
		all.Go(func() {
			stream, err := os.ReadFile(l.Films[i])
			if err != nil {
				panic(err)
			}
			r, err := rec.Begin(context.Background(), Spec{ID: name, Session: name, Account: "acme", Term: 1, Placement: place.EUOnly})
			if err != nil {
				panic(err)
			}
			if err := r.Ingest(context.Background(), &teller{play(stream), name}); err != nil {
				panic(err)
			}
			if _, err := r.Seal(context.Background()); err != nil {
				panic(err)
			}
		})
	}
	all.Wait()
	select {} // its uploads go on
}

// teller prints what is acknowledged.
type teller struct {
	*script
	name string
}

func (t *teller) Ack(_ context.Context, offset int64) error {
	_, err := fmt.Printf("%s %d\n", t.name, offset)
	return err
}

// written counts the objects that a key had, one after the other, by their files. What versitygw answers tells nothing: one that was killed during a
// Complete says afterwards that it is done, and there is no object.
type written struct {
	next http.Handler
	dir  string // of the storage

	mu sync.Mutex // guards what follows
	by map[string]map[uint64]bool
}

func (w *written) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	final := r.Method == http.MethodPut && !q.Has("partNumber") || r.Method == http.MethodPost && q.Has("uploadId")
	if final {
		w.look(r.URL.Path)       // what came of a request whose client is gone
		defer w.look(r.URL.Path) // also of one that is broken off
	}
	w.next.ServeHTTP(rw, r)
}

func (w *written) look(path string) {
	var is syscall.Stat_t
	if syscall.Stat(filepath.Join(w.dir, "objects", path), &is) != nil {
		return
	}
	key := strings.TrimPrefix(path, "/recordings-eu/")
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by[key] == nil {
		w.by[key] = map[uint64]bool{}
	}
	w.by[key][is.Ino] = true
}

// of is how many there were.
func (w *written) of(key string) int {
	w.look("/recordings-eu/" + key)
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.by[key])
}

// killMany kills the recorder's process, and now and then the storage, at random moments of the lives of recordings, and looks at what became
// of each of them.
func killMany(t *testing.T, kills int) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(killsSeed); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("replay with %s=%d", killsSeed, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	b := newBench(t)
	b.close()
	strict, err := s3server.NewStrict(b.storage.server.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	count := &written{next: strict.Jurisdiction("recordings-eu"), dir: b.storage.cfg.Dir, by: map[string]map[uint64]bool{}}
	front := httptest.NewServer(count)
	defer front.Close()
	b.cfg.EU.Endpoint = front.URL
	films := [][]byte{film(t, 20, 8), film(t, 3, 1), film(t, 20, 8)[:minPartSize+1<<20]}
	var paths []string
	for i, f := range films {
		paths = append(paths, filepath.Join(t.TempDir(), fmt.Sprint(i)))
		if err := os.WriteFile(paths[i], f, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	acked := map[string]int64{}
	for n := range kills {
		l := life{Dir: b.cfg.Dir, Films: paths, EU: b.cfg.EU.Target}
		for i := range killsAtOnce {
			l.Names = append(l.Names, fmt.Sprintf("k%d-%d", n, i))
		}
		f := random.Float64() // cubed: most of what happens does so early, to record takes a tenth of what to upload does
		live(t, l, acked, time.Duration(f*f*f*float64(killsWithin)), func() {
			if random.IntN(3) == 0 {
				b.storage.kill()
			}
		})
		select {
		case <-b.storage.server.Exited():
			b.storage.start()
		default:
		}
	}
	b.cfg.Sweeps = done{b}
	b.open()
	b.drain()
	whole, part, none := 0, 0, 0
	hashes := newFrames(t)
	for n := range kills {
		for i, stream := range films {
			name := fmt.Sprintf("k%d-%d", n, i)
			key := Spec{ID: name, Session: name, Account: "acme"}.Key()
			had := index(t, stream[:acked[name]])
			got := b.object(place.EU, key)
			switch {
			case got == nil && had.Frames > 0:
				t.Errorf("%s: no object, of %d bytes acknowledged", name, acked[name])
				continue
			case got == nil:
				none++
				continue
			}
			if body := stream[had.Start:had.End]; !bytes.HasPrefix(got[headSize:], body) {
				t.Errorf("%s: %d acknowledged bytes are not all in the object of %d", name, acked[name], len(got))
			}
			want := hashes.of(stream)
			is := hashes.of(got)
			if int64(len(is)) < had.Frames || len(is) > len(want) || !equal(is, want[:len(is)]) {
				t.Errorf("%s: %d frames, of %d acknowledged and %d sent; or they are not the host's", name, len(is), had.Frames, len(want))
			}
			if len(is) == len(want) {
				whole++
			} else {
				part++
			}
			if c := count.of(key); c != 1 {
				t.Errorf("%s was stored %d times", name, c)
			}
			b.wantNoSpool(name)
		}
	}
	t.Logf("%d kills: %d recordings are whole, %d in part, of %d nothing was acknowledged", kills, whole, part, none)
	if err := b.rec.sweepUploads(t.Context(), b.rec.eu.store); err != nil {
		t.Error(err)
	}
	if left := b.storage.uploads("recordings-eu"); len(left) > 0 {
		t.Errorf("%d uploads are left behind", len(left))
	}
	if whole == 0 || part == 0 {
		t.Error("the kills hit nothing")
	}
}

// done is a journal that knows which recordings are in storage: those that processes before this one brought there have told nobody.
type done struct{ *bench }

func (d done) Useless(_ context.Context, _ place.Region, session, id string) (bool, error) {
	return d.object(place.EU, Spec{ID: id, Session: session, Account: "acme"}.Key()) != nil, nil
}

func (done) CopiesToCheck(context.Context, place.Region, string, time.Duration, time.Duration, int) ([]CheckedCopy, error) {
	return nil, nil
}

func (done) StillAbandoned(context.Context, CheckedCopy) (bool, error) { return false, nil }

func (done) Salvaged(context.Context, CheckedCopy, RecordingUpdate) (bool, error) { return false, nil }

func (done) CopyFound(context.Context, CheckedCopy, Finding, string, time.Time, time.Duration) (bool, error) {
	return true, nil
}

func equal(a, b []string) bool { return strings.Join(a, "\n") == strings.Join(b, "\n") }

// live runs a process and kills it after so long from its first acknowledgement.
func live(t *testing.T, l life, acked map[string]int64, after time.Duration, meanwhile func()) {
	t.Helper()
	arg, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), killsEnv+"="+string(arg))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var kill *time.Timer
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		name, offset, _ := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseInt(offset, 10, 64); err == nil { // the last line may be torn
			acked[name] = n
		}
		if kill == nil {
			kill = time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
			meanwhile()
		}
	}
	if err := cmd.Wait(); kill == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("a process ended by itself: %v %s", err, errs.String())
	}
}

// frames knows the hashes of the frames of films, each decoded once.
type frames struct {
	t  *testing.T
	by map[string][]string
}

func newFrames(t *testing.T) *frames { return &frames{t, map[string][]string{}} }

func (f *frames) of(film []byte) []string {
	f.t.Helper()
	if v, ok := f.by[string(film)]; ok {
		return v
	}
	cmd := exec.Command("ffmpeg", "-nostdin", "-v", "error", "-xerror", "-i", "-", "-f", "framemd5", "-")
	cmd.Stdin = bytes.NewReader(film)
	out, err := cmd.Output()
	if err != nil {
		f.t.Fatalf("ffmpeg: %v", err)
	}
	var sums []string
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "#") {
			sums = append(sums, line[strings.LastIndex(line, ",")+1:])
		}
	}
	f.by[string(film)] = sums
	return sums
}

// TestKillNineAnywhere is a sample of TestSoakKillNine.
func TestKillNineAnywhere(t *testing.T) { killMany(t, 10) }
