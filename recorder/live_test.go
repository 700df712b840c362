package recorder

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

// drainLive reads until the recording has ended.
func drainLive(ctx context.Context, l *Live, size int) ([]byte, error) {
	var got []byte
	b := make([]byte, size)
	for {
		n, err := l.Read(ctx, b)
		got = append(got, b[:n]...)
		if err == io.EOF {
			return got, nil
		}
		if err != nil {
			return got, err
		}
	}
}

var clusterID = []byte{0x1f, 0x43, 0xb6, 0x75}

// TestLive: who watches from the start, with a buffer of any size, gets what the object has, but for its index; who comes late gets the newest; and
// who reads nothing holds nothing up.
func TestLive(t *testing.T) {
	b := newBench(t)
	if _, err := b.rec.Live("session-live", false); !errors.Is(err, ErrNotLive) {
		t.Fatalf("before it begins: %v", err)
	}
	stream := film(t, 6, 1)
	r := b.begin("live", place.EUOnly)
	open := func(latest bool) *Live {
		t.Helper()
		l, err := b.rec.Live("session-live", latest)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	open(false) // is never read
	type result struct {
		got []byte
		err error
	}
	watch := func(l *Live, size int) <-chan result {
		ended := make(chan result, 1)
		go func() {
			got, err := drainLive(t.Context(), l, size)
			ended <- result{got, err}
		}()
		return ended
	}
	whole, small := watch(open(false), 64<<10), watch(open(false), 7)

	half := play(stream[:len(stream)/2])
	half.end, half.lost = nil, errLost
	if err := r.Ingest(t.Context(), half); !errors.Is(err, errLost) {
		t.Fatal(err)
	}
	src := play(stream)
	src.pos, src.hold = half.ackedTo(), make(chan struct{})
	ingested := make(chan error, 1)
	go func() { ingested <- r.Ingest(t.Context(), src) }()
	b.waitFor("all that is there", func() bool { return src.ackedTo() == int64(len(stream)) })
	late := watch(open(true), 64<<10)
	// What is there by now can be read by now.
	early := open(false)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	first := make([]byte, headSize+4)
	for n := 0; n < len(first); {
		k, err := early.Read(ctx, first[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += k
	}
	if !bytes.Equal(first[headSize:], clusterID) {
		t.Errorf("% x follows the head", first[headSize:])
	}
	select {
	case v := <-whole:
		t.Fatalf("over with %d bytes, %v, before the recording is", len(v.got), v.err)
	default:
	}
	close(src.hold)
	if err := <-ingested; err != nil {
		t.Fatal(err)
	}
	sealed := b.seal(r)
	b.drain()
	object := b.object(place.EU, r.Key())
	all := <-whole
	if all.err != nil || len(all.got) >= len(object) || !bytes.Equal(all.got[headSize:], object[headSize:len(all.got)]) {
		t.Fatalf("watched %d bytes, %v; the object has %d", len(all.got), all.err, len(object))
	}
	decoded := exec.Command("ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0", "-")
	decoded.Stdin = bytes.NewReader(all.got)
	if out, err := decoded.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "60" {
		t.Errorf("frames that were watched: %s, %v", out, err)
	}
	if v := <-small; v.err != nil || !bytes.Equal(v.got, all.got) {
		t.Errorf("with a small buffer %d bytes, %v", len(v.got), v.err)
	}
	v := <-late
	if v.err != nil || len(v.got) <= headSize+4 || len(v.got) >= len(all.got) || !bytes.Equal(v.got[:headSize], all.got[:headSize]) ||
		!bytes.Equal(v.got[headSize:headSize+4], clusterID) || !bytes.HasSuffix(all.got, v.got[headSize:]) {
		t.Errorf("who came late got %d bytes of %d, %v", len(v.got), len(all.got), v.err)
	}
	// The spool is gone: who has it open goes on.
	if rest, err := drainLive(t.Context(), early, 4096); err != nil || len(rest)+len(first) != len(all.got) {
		t.Errorf("after the end %d bytes more, %v", len(rest), err)
	}
	if _, err := b.rec.Live("session-live", false); !errors.Is(err, ErrNotLive) {
		t.Errorf("after the end: %v", err)
	}
	b.wantObject(place.EU, r.Key(), sealed, 60)
}

// TestLiveEnds: a recording that is left, or in which nothing came, ends for who watches it; who has enough leaves.
func TestLiveEnds(t *testing.T) {
	b := newBench(t)
	left, empty, stays := b.begin("left", place.EUOnly), b.begin("empty", place.EUOnly), b.begin("stays", place.EUOnly)
	open := func(id string) *Live {
		t.Helper()
		l, err := b.rec.Live("session-"+id, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	ends := map[string]*Live{"left": open("left"), "empty": open("empty")}
	if err := left.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.seal(empty)
	for id, l := range ends {
		if got, err := drainLive(t.Context(), l, 100); err != nil || len(got) != 0 {
			t.Errorf("%s: %d bytes, %v", id, len(got), err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := open("stays").Read(ctx, make([]byte, 10)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	b.seal(stays)
}
