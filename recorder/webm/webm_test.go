package webm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// live has real ffmpeg encode seconds of a test picture at 10 frames a second, over a pipe as on a host.
func live(t testing.TB, seconds int) []byte {
	t.Helper()
	cmd := exec.Command("ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=size=160x120:rate=10", "-t", strconv.Itoa(seconds),
		"-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-g", "20", "-f", "webm", "-cluster_time_limit", "1000", "pipe:1")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("ffmpeg, which this test needs (apt-get install ffmpeg): %v", err)
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(pipe); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// finish puts a finished file together from a stream, as the recorder does.
func finish(t testing.TB, stream []byte) ([]byte, Index) {
	t.Helper()
	var s Scanner
	_, _ = s.Write(stream)
	ix, ok := s.Index()
	if !ok {
		t.Fatal("no cluster in the stream")
	}
	shift := HeadSize - ix.Start
	body := stream[ix.Start:ix.End]
	cues := ix.AppendCues(nil, shift)
	at := int64(0)
	if len(cues) > 0 {
		at = HeadSize + int64(len(body))
	}
	head, err := ix.Head.Final(at, HeadSize+int64(len(body)+len(cues)), ix.Duration)
	if err != nil {
		t.Fatal(err)
	}
	return append(append(head, body...), cues...), ix
}

// probe gives what ffprobe says of a file: frames decoded and duration of the container.
func probe(t testing.TB, file []byte) (frames int, d time.Duration) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.webm")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames:format=duration", "-of", "default=nw=1", path).CombinedOutput()
	if err != nil {
		t.Fatalf("ffprobe: %v\n%s", err, out)
	}
	for _, line := range strings.Fields(string(out)) {
		k, v, _ := strings.Cut(line, "=")
		switch k {
		case "nb_read_frames":
			frames, _ = strconv.Atoi(v)
		case "duration":
			s, err := strconv.ParseFloat(v, 64)
			if err != nil {
				t.Fatalf("duration %q", v)
			}
			d = time.Duration(s * float64(time.Second))
		default:
			t.Fatalf("ffprobe complains: %s", out)
		}
	}
	return frames, d
}

func TestFinishedFileOfRealEncoder(t *testing.T) {
	stream := live(t, 5)
	file, ix := finish(t, stream)
	if ix.Frames != 50 || ix.Duration != 5*time.Second {
		t.Errorf("index has %d frames and %v, want 50 and 5s", ix.Frames, ix.Duration)
	}
	if len(ix.Cues) < 3 || ix.Cues[0].Time != 0 || ix.Cues[0].Position != ix.Start {
		t.Errorf("cues %+v: want one for each of the key frames, from the start on", ix.Cues)
	}
	for _, c := range ix.Cues {
		if id := binary.BigEndian.Uint32(stream[c.Position:]); id != idCluster {
			t.Errorf("cue at %v points at %#x, not at a cluster", c.Time, id)
		}
	}
	if frames, d := probe(t, file); frames != 50 || d != 5*time.Second {
		t.Errorf("ffprobe counts %d frames and %v, want 50 and 5s", frames, d)
	}
	// The finished file reads back as the same thing, with a known segment size.
	again, err := Scan(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	ix2, _ := again.Index()
	if ix2.Start != HeadSize || ix2.End-ix2.Start != ix.End-ix.Start || ix2.Frames != ix.Frames || len(ix2.Cues) != len(ix.Cues) {
		t.Errorf("read back: %+v, want %+v", ix2, ix)
	}
}

func TestSeekUsesTheIndex(t *testing.T) {
	file, ix := finish(t, live(t, 8))
	// All between the first and the last cluster is made undecodable: only a reader that jumps by the index gets the frame.
	last := ix.Cues[len(ix.Cues)-1]
	for i := int(ix.Cues[1].Position-ix.Start) + HeadSize; i < int(last.Position-ix.Start)+HeadSize; i++ {
		file[i] = 0xff
	}
	path := filepath.Join(t.TempDir(), "x.webm")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ffmpeg", "-v", "error", "-ss", strconv.FormatFloat(last.Time.Seconds(), 'f', 3, 64), "-i", path, "-frames:v", "1", "-f", "framemd5", "-").CombinedOutput()
	if err != nil || strings.Count(string(out), "\n0,") != 1 {
		t.Errorf("no frame at %v through the index: %v\n%s", last.Time, err, out)
	}
}

func TestEveryCutPlaysAndPiecesDoNotMatter(t *testing.T) {
	stream := live(t, 3)
	whole, err := Scan(bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	want, _ := whole.Index()
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		var s Scanner
		for rest := stream; len(rest) > 0; {
			k := min(len(rest), 1+rnd.IntN(5000))
			if rnd.IntN(3) == 0 {
				k = 1
			}
			if n, err := s.Write(rest[:k]); n != k || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
			rest = rest[k:]
		}
		if got, _ := s.Index(); got.End != want.End || got.Frames != want.Frames || got.Duration != want.Duration || len(got.Cues) != len(want.Cues) {
			t.Fatalf("in pieces %+v, whole %+v", got, want)
		}
	}
	for _, at := range []int{int(want.Start) + 20, int(want.End) / 2, int(want.End) - 1} {
		var s Scanner
		if _, err := s.Write(stream[:at]); err != nil {
			t.Fatal(err)
		}
		ix, ok := s.Index()
		if !ok || ix.End > int64(at) || ix.End >= want.End {
			t.Fatalf("cut at %d: complete up to %d", at, ix.End)
		}
		if ix.Frames == 0 {
			continue
		}
		file, _ := finish(t, stream[:at])
		if frames, d := probe(t, file); int64(frames) != ix.Frames || (d-ix.Duration).Abs() > time.Millisecond {
			t.Errorf("cut at %d: ffprobe %d frames %v, index %d %v", at, frames, d, ix.Frames, ix.Duration)
		}
	}
}

// synthetic builds a stream by hand: what ffmpeg does not write.
func synthetic(clusters ...[]byte) []byte {
	b := element(idEBML, element(idDocType, []byte("webm")))
	b = append(appendID(b, idSegment), 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	b = append(b, element(idVoid, make([]byte, 30))...)
	b = append(b, element(idInfo, element(idScale, uintBytes(1_000_000)))...)
	b = append(b, element(idTracks, element(idTrackEntry, append(element(idTrackNumber, []byte{1}), element(idTrackType, []byte{1})...)))...)
	for _, c := range clusters {
		b = append(b, c...)
	}
	return b
}

func simple(ticks int16, key bool) []byte {
	flags := byte(0)
	if key {
		flags = 0x80
	}
	return element(idSimpleBlock, append(binary.BigEndian.AppendUint16([]byte{0x81}, uint16(ticks)), flags, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12))
}

func cluster(ticks uint64, unknownSize bool, blocks ...[]byte) []byte {
	p := element(idTimestamp, uintBytes(ticks))
	for _, b := range blocks {
		p = append(p, b...)
	}
	if unknownSize {
		return append(append(appendID(nil, idCluster), 0xff), p...)
	}
	return element(idCluster, p)
}

func group(ticks int16, span uint64, key bool) []byte {
	p := element(idBlock, append(binary.BigEndian.AppendUint16([]byte{0x81}, uint16(ticks)), 0, 1, 2, 3))
	p = append(p, element(idBlockDuration, uintBytes(span))...)
	if !key {
		p = append(p, element(idReference, []byte{0xff})...)
	}
	return element(idBlockGroup, p)
}

func TestSyntheticStreams(t *testing.T) {
	tests := []struct {
		name   string
		stream []byte
		frames int64
		d      time.Duration
		cues   int
		cut    int // bytes at the end that are not complete
	}{
		{"no cluster complete", append(synthetic(), cluster(0, false, simple(0, true))[:9]...), 0, 0, 0, 9},
		{"unknown size clusters", synthetic(cluster(0, true, simple(0, true), simple(100, false)), cluster(1000, true, simple(0, true))), 3, 1900 * time.Millisecond, 2, 0},
		{"unknown size, cut in a frame", append(synthetic(), cluster(0, true, simple(0, true), simple(100, false), simple(200, false))[:50]...), 2, 200 * time.Millisecond, 1, 0},
		{"block groups with durations", synthetic(cluster(0, false, group(0, 40, true), group(40, 500, false))), 2, 540 * time.Millisecond, 1, 0},
		{"cluster without key frame is not in the index", synthetic(cluster(0, false, simple(0, true)), cluster(500, false, simple(0, false))), 2, time.Second, 1, 0},
		{"other track does not count", synthetic(cluster(0, false, element(idSimpleBlock, []byte{0x82, 0, 0, 0x80, 1}), simple(7, true))), 1, 7 * time.Millisecond, 1, 0},
		{"foreign index after the clusters", append(synthetic(cluster(0, false, simple(0, true))), element(idCues, make([]byte, 50))...), 1, 0, 1, 54 + 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s Scanner
			if _, err := s.Write(tt.stream); err != nil {
				t.Fatal(err)
			}
			ix, ok := s.Index()
			if !ok || ix.Frames != tt.frames || ix.Duration != tt.d || len(ix.Cues) != tt.cues {
				t.Errorf("got %d frames, %v, %d cues; want %d, %v, %d", ix.Frames, ix.Duration, len(ix.Cues), tt.frames, tt.d, tt.cues)
			}
			if tt.cut > 0 && ix.End != int64(len(tt.stream)-tt.cut) {
				t.Errorf("complete up to %d of %d bytes, want all but %d", ix.End, len(tt.stream), tt.cut)
			}
		})
	}
}

func TestHostileStreams(t *testing.T) {
	big := func(id uint32, n uint64) []byte {
		return binary.BigEndian.AppendUint64(appendID(nil, id), n|1<<56)
	}
	tests := map[string][]byte{
		"noise":                      []byte("GIF89a, not a film"),
		"zero bytes":                 make([]byte, 100),
		"other document":             element(idEBML, element(idDocType, []byte("doc"))),
		"huge EBML header":           big(idEBML, 1<<40),
		"cluster before tracks":      append(append(element(idEBML, element(idDocType, []byte("webm"))), big(idSegment, 1<<56-1)...), cluster(0, false)...),
		"huge Void before the body":  append(append(element(idEBML, element(idDocType, []byte("webm"))), big(idSegment, 1<<56-1)...), big(idVoid, 1<<50)...),
		"block longer than cluster":  synthetic(element(idCluster, append(element(idTimestamp, []byte{0}), idSimpleBlock, 0xc0))),
		"block without timestamp":    synthetic(element(idCluster, simple(0, true))),
		"timestamp out of range":     synthetic(element(idCluster, element(idTimestamp, bytes.Repeat([]byte{0xff}, 8)))),
		"Info without end":           append(append(element(idEBML, element(idDocType, []byte("webm"))), big(idSegment, 1<<56-1)...), bytes.Repeat(element(idInfo, nil), 200_000)...),
		"scale of nothing":           append(append(element(idEBML, element(idDocType, []byte("webm"))), big(idSegment, 1<<56-1)...), element(idInfo, element(idScale, []byte{0}))...),
		"cluster in a cluster":       synthetic(element(idCluster, cluster(0, false))),
		"unknown size inside":        synthetic(append(append(appendID(nil, idCluster), 0xff), idSimpleBlock, 0xff)),
		"cluster longer than int64s": synthetic(big(idCluster, 1<<56-2), []byte{idSimpleBlock, 0x80}),
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			var s Scanner
			_, err := s.Write(b)
			if !errors.Is(err, ErrFormat) {
				t.Errorf("accepted, error %v", err)
			}
			if _, again := s.Write([]byte{1}); again == nil {
				t.Error("went on after an error")
			}
		})
	}
}

func TestCuesStayBounded(t *testing.T) {
	var s Scanner
	_, _ = s.Write(synthetic())
	for i := range uint64(3 * maxCues) {
		if _, err := s.Write(cluster(i*1000, false, simple(0, true))); err != nil {
			t.Fatal(err)
		}
	}
	ix, _ := s.Index()
	if len(ix.Cues) >= maxCues || len(ix.Cues) < maxCues/2 {
		t.Errorf("%d cues, want at least %d and less than %d", len(ix.Cues), maxCues/2, maxCues)
	}
	for i, c := range ix.Cues[1:] {
		if c.Time-ix.Cues[i].Time != ix.Cues[1].Time-ix.Cues[0].Time {
			t.Fatalf("uneven index at %d", i)
		}
	}
}

func TestHeadThatLeavesNoRoom(t *testing.T) {
	b := synthetic()
	b = append(b, element(idInfo, append(element(idScale, uintBytes(1_000_000)), element(0x7BA9, make([]byte, 4000))...))...)
	b = append(b, cluster(0, false, simple(0, true))...)
	var s Scanner
	_, _ = s.Write(b)
	ix, ok := s.Index()
	if !ok {
		t.Fatal("no index")
	}
	if _, err := ix.Head.Live(); !errors.Is(err, ErrFormat) {
		t.Errorf("head of over 4096 bytes: %v", err)
	}
}

func FuzzScanner(f *testing.F) {
	f.Add(synthetic(cluster(0, true, simple(0, true), simple(100, false)), cluster(1000, false, group(0, 40, true))), 3)
	f.Add(synthetic(cluster(0, false, simple(0, true))), 1000)
	f.Add(element(idEBML, nil), 1)
	f.Fuzz(func(t *testing.T, b []byte, piece int) {
		if piece <= 0 {
			piece = 1
		}
		var whole, pieces Scanner
		_, err := whole.Write(b)
		for rest := b; len(rest) > 0; {
			k := min(len(rest), piece)
			if _, err := pieces.Write(rest[:k]); err != nil {
				break
			}
			rest = rest[k:]
		}
		a, ok := whole.Index()
		c, ok2 := pieces.Index()
		if ok != ok2 || a.End != c.End || a.Frames != c.Frames || a.Duration != c.Duration {
			t.Fatalf("whole %+v, in pieces of %d %+v (%v)", a, piece, c, err)
		}
		if !ok {
			return
		}
		if a.End < a.Start || a.End > int64(len(b)) || a.Duration < 0 {
			t.Fatalf("impossible index %+v of %d bytes", a, len(b))
		}
		if _, err := a.Head.Live(); err != nil {
			return
		}
		if a.Frames == 0 {
			return
		}
		// What was made of it reads back as the same thing.
		file, _ := finish(t, b)
		again, err := Scan(bytes.NewReader(file))
		if err != nil {
			t.Fatalf("finished file does not read back: %v", err)
		}
		if d, _ := again.Index(); d.Frames != a.Frames || d.Duration != a.Duration || d.End-d.Start > a.End-a.Start {
			t.Fatalf("reads back as %+v, was %+v", d, a)
		}
	})
}
