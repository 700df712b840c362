package recorder

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

func md5Of(s string) []byte {
	sum := md5.Sum([]byte(s))
	return sum[:]
}

// abandon records a part of a stream, then closes the Recorder under it.
func (b *bench) abandon(id string, stream []byte) (acked int64) {
	b.t.Helper()
	r := b.begin(id, place.EUOnly)
	src := play(stream)
	src.lost, src.end = errLost, nil
	if err := r.Ingest(b.t.Context(), src); !errors.Is(err, errLost) {
		b.t.Fatal(err)
	}
	b.close()
	return src.ackedTo()
}

func TestNextProcessGoesOn(t *testing.T) {
	stream := film(t, 20, 8)
	short := film(t, 3, 1)
	for name, tt := range map[string]struct {
		stream []byte
		spoil  func(t *testing.T, dir string)
	}{
		"short":                         {short[:len(short)-500], nil},
		"with parts up":                 {stream[:len(stream)*3/4], nil},
		"torn log":                      {short[:len(short)-500], func(t *testing.T, dir string) { appendTo(t, dir, logName, []byte{0, 0}) }},
		"log lengthened with zeros":     {short[:len(short)-500], func(t *testing.T, dir string) { appendTo(t, dir, logName, make([]byte, 5000)) }},
		"bytes nobody acknowledged":     {short[:len(short)-500], func(t *testing.T, dir string) { appendTo(t, dir, bodyName, short[len(short)-500:len(short)-300]) }},
		"rubbish nobody acknowledged":   {short[:len(short)-500], func(t *testing.T, dir string) { appendTo(t, dir, bodyName, make([]byte, 3000)) }},
		"torn head slot":                {short[:len(short)-500], func(t *testing.T, dir string) { overwrite(t, dir, bodyName, 100, make([]byte, 1000)) }},
		"killed while deleting another": {short[:len(short)-500], func(t *testing.T, dir string) { _ = os.Mkdir(filepath.Join(dir, "..", rubbishPrefix+"x"), 0o700) }},
		"killed while making another":   {short[:len(short)-500], func(t *testing.T, dir string) { _ = os.Mkdir(filepath.Join(dir, "..", "unborn"), 0o700) }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			acked := b.abandon("left", tt.stream)
			if acked != int64(len(tt.stream)) {
				t.Errorf("%d of %d bytes acknowledged", acked, len(tt.stream))
			}
			if tt.spoil != nil {
				tt.spoil(t, filepath.Join(b.cfg.Dir, "left"))
			}
			b.open()
			b.drain()
			u := b.ledger.awaitState("left", StateAvailable)
			if !u.Partial || u.Cause != CauseCrash {
				t.Errorf("journal has %+v", u)
			}
			want := index(t, tt.stream)
			if u.Duration != want.Duration {
				t.Errorf("%v recovered, %v was received", u.Duration, want.Duration)
			}
			b.wantObject(place.EU, u.Key, Sealed{Bytes: u.Bytes, SHA256: u.SHA256, Duration: u.Duration}, int(want.Frames))
			if left, _ := os.ReadDir(b.cfg.Dir); len(left) != 0 {
				t.Errorf("left in the spool folder: %v", left)
			}
		})
	}
}

func appendTo(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, dir, name string, at int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, at); err != nil {
		t.Fatal(err)
	}
}

func TestEndedButNotSealedIsWhole(t *testing.T) {
	b := newBench(t)
	stream := film(t, 3, 1)
	r := b.begin("ended", place.EUOnly)
	if err := r.Ingest(t.Context(), play(stream)); err != nil {
		t.Fatal(err)
	}
	b.close()
	b.open()
	b.drain()
	if u := b.ledger.awaitState("ended", StateAvailable); u.Partial || u.Duration != 3*time.Second {
		t.Errorf("journal has %+v, want all of it", u)
	}
}

// TestDeathAtEveryStepOfSeal lets the volume fail at each write of Seal in turn, as a process that dies there leaves it,
// and has the next process go on.
func TestDeathAtEveryStepOfSeal(t *testing.T) {
	stream := film(t, 3, 1)
	b := newBench(t)
	for step := 1; ; step++ {
		id := fmt.Sprintf("step%d", step)
		r := b.begin(id, place.EUOnly)
		if err := r.Ingest(t.Context(), play(stream)); err != nil {
			t.Fatal(err)
		}
		disk := &faultyFile{file: r.spool.body, failAt: step, dead: true}
		r.spool.body = disk
		_, err := r.Seal(t.Context())
		if err == nil && disk.failed() == 0 {
			if step < 5 {
				t.Errorf("Seal has only %d steps that can fail", step-1)
			}
			break
		}
		b.close()
		b.open()
		b.drain()
		u := b.ledger.awaitState(id, StateAvailable)
		if u.Duration != 3*time.Second || u.Cause != CauseNone && u.Cause != CauseSpool {
			t.Errorf("step %d: journal has %+v", step, u)
		}
		b.wantObject(place.EU, u.Key, Sealed{Bytes: u.Bytes, SHA256: u.SHA256, Duration: u.Duration}, 30)
	}
}

func TestCorruptSpoolIsQuarantinedAndBlocksNobody(t *testing.T) {
	short := film(t, 3, 1)
	stream := short[:len(short)-500]
	for name, spoil := range map[string]func(t *testing.T, dir string){
		"bit flipped in a frame": func(t *testing.T, dir string) { overwrite(t, dir, bodyName, headSize+5000, []byte{0x55, 0xaa, 0x55}) },
		"bit flipped in the log": func(t *testing.T, dir string) { overwrite(t, dir, logName, 40, []byte{0xff}) },
		"length flipped in log":  func(t *testing.T, dir string) { overwrite(t, dir, logName, 1, []byte{0x7f}) },
		"body cut short":         func(t *testing.T, dir string) { _ = os.Truncate(filepath.Join(dir, bodyName), headSize+5000) },
		"body missing":           func(t *testing.T, dir string) { _ = os.Remove(filepath.Join(dir, bodyName)) },
		"log missing":            func(t *testing.T, dir string) { _ = os.Remove(filepath.Join(dir, logName)) },
		"log of another": func(t *testing.T, dir string) {
			other, err := os.ReadFile(filepath.Join(dir, "..", "good", logName))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, logName), other, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			good := b.begin("good", place.EUOnly)
			if err := good.Ingest(t.Context(), play(short)); err != nil {
				t.Fatal(err)
			}
			b.abandon("bad", stream)
			spoil(t, filepath.Join(b.cfg.Dir, "bad"))
			b.open()
			b.drain()
			u := b.ledger.awaitState("bad", StateQuarantined)
			if u.Cause != CauseCorrupt || u.Bytes != 0 {
				t.Errorf("journal has %+v", u)
			}
			if _, err := os.Stat(filepath.Join(b.cfg.Dir, quarantineName, "bad.1")); err != nil {
				t.Errorf("not moved aside: %v", err)
			}
			b.wantNoSpool("bad")
			if b.object(place.EU, "recordings/acme/session-bad/bad.webm") != nil {
				t.Error("a corrupt recording was uploaded")
			}
			if u := b.ledger.awaitState("good", StateAvailable); u.Partial {
				t.Errorf("the good one: %+v", u)
			}
		})
	}
}

func TestSpoolThatCannotBeOpenedBlocksNobody(t *testing.T) {
	b := newBench(t)
	stream := film(t, 3, 1)
	b.abandon("good", stream)
	body := filepath.Join(b.cfg.Dir, "odd", bodyName)
	if err := os.MkdirAll(body, 0o700); err != nil { // as good as a broken sector: opening it fails, and not for want of a file
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.cfg.Dir, "odd", logName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.open()
	b.drain()
	b.ledger.awaitState("good", StateAvailable)
	if _, err := os.Stat(body); err != nil {
		t.Errorf("it was not left as it is: %v", err)
	}
}

func TestFlippedBitIsFoundBySeal(t *testing.T) {
	b := newBench(t)
	r := b.begin("flip", place.EUOnly)
	if err := r.Ingest(t.Context(), play(film(t, 3, 1))); err != nil {
		t.Fatal(err)
	}
	overwrite(t, filepath.Join(b.cfg.Dir, "flip"), bodyName, headSize+5000, []byte{0x55, 0xaa, 0x55})
	if _, err := r.Seal(t.Context()); !errors.Is(err, errCorrupt) {
		t.Errorf("Seal: %v", err)
	}
	b.ledger.awaitState("flip", StateQuarantined)
}

// TestFlippedBitIsFoundBeforeItIsSent flips one bit of the body: of the first part, of one that comes while the session runs, in what is sent
// after the seal. Nothing of it leaves, and another recording is stored.
func TestFlippedBitIsFoundBeforeItIsSent(t *testing.T) {
	stream := film(t, 20, 8)
	for name, tt := range map[string]struct {
		pause, at int64 // bytes of the stream that come before the flip, byte of the body that it is in
		sealed    bool  // the flip comes after the seal
		sent      int   // parts that are
	}{
		"head":         {pause: 1 << 20, at: 100, sent: 0},
		"first part":   {pause: 3 << 20, at: 2<<20 + 17, sent: 0},
		"a live part":  {pause: minPartSize + 3<<20, at: minPartSize + 2<<20, sent: 1},
		"a border":     {pause: minPartSize + 3<<20, at: minPartSize - 1, sent: 1},
		"sealed body":  {pause: int64(len(stream)), at: 2 * minPartSize, sealed: true},
		"sealed index": {pause: int64(len(stream)), at: -1, sealed: true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			r := b.begin("bad", place.EUOnly)
			uploads := func() int { return b.storage.front.Calls("recordings-eu", "UploadPart") }
			if tt.sealed {
				b.storage.front.Cut("recordings-eu", true)
			}
			first := play(stream[:tt.pause])
			first.lost = errLost
			if err := r.Ingest(t.Context(), first); !errors.Is(err, errLost) {
				t.Fatal(err)
			}
			if !tt.sealed {
				b.waitFor("parts so far", func() bool { return uploads() == tt.sent })
			}
			size := tt.at
			if tt.sealed {
				if s := b.seal(r); size < 0 {
					size += s.Bytes
				}
			}
			flip(t, filepath.Join(b.cfg.Dir, "bad", bodyName), size)
			if tt.sealed {
				b.storage.front.Cut("recordings-eu", false)
			} else {
				rest := play(stream)
				rest.pos, rest.hold = tt.pause, make(chan struct{}) // its session runs on
				ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
				defer cancel()
				if err := r.Ingest(ctx, rest); name != "a border" && !errors.Is(err, errCorrupt) {
					t.Errorf("Ingest: %v", err)
				}
			}
			u := b.ledger.awaitState("bad", StateQuarantined)
			if u.Cause != CauseCorrupt {
				t.Errorf("journal has %+v", u)
			}
			if n := uploads(); !tt.sealed && n != tt.sent {
				t.Errorf("%d parts were sent, want %d", n, tt.sent)
			}
			if _, err := r.Seal(t.Context()); !tt.sealed && !errors.Is(err, errCorrupt) {
				t.Errorf("Seal: %v", err)
			}
			if err := r.Ingest(t.Context(), play(stream)); !errors.Is(err, ErrSealed) {
				t.Errorf("Ingest once it is aside: %v", err)
			}
			good := b.begin("good", place.EUOnly)
			if err := good.Ingest(t.Context(), play(stream)); err != nil {
				t.Fatal(err)
			}
			sealed := b.seal(good)
			b.drain()
			b.wantObject(place.EU, good.Key(), sealed, 200)
			if b.object(place.EU, r.Key()) != nil {
				t.Error("what was damaged is stored")
			}
			b.wantNoSpool("bad")
			if !tt.sealed { // then parts are on their way that may come after its end
				b.waitFor("end of its upload", func() bool { return len(b.storage.uploads("recordings-eu")) == 0 })
			}
		})
	}
}

func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

const childEnv = "RECORDER_TEST_CHILD"

// childMain is a process that records until it is killed. It prints each acknowledged byte.
func childMain(arg string) {
	var cfg struct {
		Dir, Film string
		EU        Target
	}
	if err := json.Unmarshal([]byte(arg), &cfg); err != nil {
		panic(err)
	}
	stream, err := os.ReadFile(cfg.Film)
	if err != nil {
		panic(err)
	}
	rec, err := Open(context.Background(), Config{Dir: cfg.Dir, EU: EUTarget{cfg.EU}, Journal: deaf{}, PartSize: minPartSize})
	if err != nil {
		panic(err)
	}
	r, err := rec.Begin(context.Background(), Spec{ID: "killed", Session: "s", Account: "acme", Placement: place.EUOnly})
	if err != nil {
		panic(err)
	}
	src := &printer{play(stream)}
	src.hold = make(chan struct{})
	fmt.Println("error", r.Ingest(context.Background(), src))
	os.Exit(1)
}

type deaf struct{}

func (deaf) RecordingChanged(context.Context, RecordingUpdate) error { return nil }
func (deaf) Outlook(context.Context, string, string, int64) (Outlook, error) {
	return Over, nil
}
func (deaf) Latest(context.Context, string) (string, bool, error) { return "", false, nil }

type printer struct{ *script }

func (p *printer) Ack(_ context.Context, offset int64) error {
	fmt.Println("ack", offset)
	return nil
}

func TestKillNine(t *testing.T) {
	stream := film(t, 20, 8)
	path := filepath.Join(t.TempDir(), "film")
	if err := os.WriteFile(path, stream, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, after := range []int64{1, 100_000, 6 << 20, 12 << 20} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			b := newBench(t)
			b.close()
			arg, err := json.Marshal(map[string]any{"Dir": b.cfg.Dir, "Film": path, "EU": b.cfg.EU.Target})
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0], "-test.run=^$")
			cmd.Env = append(os.Environ(), childEnv+"="+string(arg))
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var acked int64
			for acked < after {
				var word string
				if _, err := fmt.Fscan(out, &word, &acked); err != nil || word != "ack" {
					t.Fatalf("child: %s %v", word, err)
				}
			}
			_ = cmd.Process.Kill()
			rest, _ := io.ReadAll(out)
			_ = cmd.Wait()
			for _, line := range strings.Split(strings.TrimSpace(string(rest)), "\n") {
				_, _ = fmt.Sscanf(line, "ack %d", &acked)
			}
			b.open()
			b.drain()
			ix := index(t, stream[:min(acked, int64(len(stream)))])
			u := b.ledger.await("killed", func(u RecordingUpdate) bool { return u.State == StateAvailable || u.State == StateEmpty })
			if u.State == StateEmpty {
				if ix.Frames > 0 {
					t.Errorf("empty, with %d frames acknowledged", ix.Frames)
				}
				return
			}
			got := b.object(place.EU, u.Key)
			body := stream[ix.Start:ix.End]
			if len(got) < headSize+len(body) || !bytes.Equal(got[headSize:headSize+len(body)], body) {
				t.Errorf("acknowledged bytes are missing: object of %d bytes, %d of clusters acknowledged", len(got), len(body))
			}
			b.wantObject(place.EU, u.Key, Sealed{Bytes: u.Bytes, SHA256: u.SHA256, Duration: u.Duration}, -1)
			if u.Duration < ix.Duration {
				t.Errorf("%v recovered, %v acknowledged", u.Duration, ix.Duration)
			}
		})
	}
}
