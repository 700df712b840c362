package recorder

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/recorder/capture"
	"github.com/driftstack/fleet/recorder/webm"
)

// TestFromEncoderToBothRegions is the whole line: a real encoder, the host's pump, the wire, spool, parts, both buckets.
func TestFromEncoderToBothRegions(t *testing.T) {
	b := newBench(t)
	for _, tt := range []struct {
		id        string
		placement place.Placement
		want      []State
	}{
		{"both", place.Replicated, []State{StateRecording, StateSealed, StateUploading}},
		{"eu-only", place.EUOnly, []State{StateRecording, StateSealed, StateUploading, StateAvailable}},
	} {
		r := b.begin(tt.id, tt.placement)
		cmd := exec.Command("ffmpeg", append([]string{"-re"}, encoder(3, 1)...)...)
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatalf("ffmpeg, which this test needs (apt-get install ffmpeg): %v", err)
		}
		s := newSocket()
		pumped := make(chan error, 1)
		go func() {
			pumped <- capture.New(capture.Config{}).Pump(t.Context(), stdout, hostEnd{s}, nil)
		}()
		if err := r.Ingest(t.Context(), s); err != nil {
			t.Errorf("Ingest: %v", err)
		}
		if err := <-pumped; err != nil {
			t.Errorf("Pump: %v", err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("ffmpeg: %v", err)
		}
		sealed := b.seal(r)
		if sealed.Partial || sealed.Empty || (sealed.Duration-3*time.Second).Abs() > 50*time.Millisecond {
			t.Errorf("sealed %+v, want all of 3 s", sealed)
		}
		if again := b.seal(r); again != sealed {
			t.Errorf("sealed again: %+v", again)
		}
		b.drain()
		u := b.ledger.awaitState(tt.id, map[place.Placement]State{place.Replicated: StateReplicated, place.EUOnly: StateAvailable}[tt.placement])
		if got := b.ledger.states(tt.id); !isPrefix(got, tt.want...) {
			t.Errorf("%s went through %v, want %v first", tt.id, got, tt.want)
		}
		if u.Bytes != sealed.Bytes || u.SHA256 != sealed.SHA256 || u.Duration != sealed.Duration || u.Partial || u.Key != r.Key() || u.Account != "acme" || !u.State.Final(u.Placement) {
			t.Errorf("journal has %+v, sealed %+v", u, sealed)
		}
		if len(u.Copies) != len(tt.placement.Regions()) {
			t.Errorf("copies %+v", u.Copies)
		}
		for _, c := range u.Copies {
			if c.State != CopyVerified || c.ETag == "" || c.Verified.IsZero() || c.Bucket != "recordings-"+string(c.Region) {
				t.Errorf("copy %+v is not verified", c)
			}
			b.wantObject(c.Region, u.Key, sealed, 30)
		}
		b.wantNoSpool(tt.id)
	}
	if got := b.object(place.US, "recordings/acme/session-eu-only/eu-only.webm"); got != nil {
		t.Errorf("a recording of placement eu has an object of %d bytes in the US", len(got))
	}
	for _, op := range []string{"PutObject", "UploadPart", "Create"} {
		if n := b.storage.front.Calls("recordings-us", op); n > 1 || (n == 1 && op == "UploadPart") { // Create: the probe's
			t.Errorf("%d %s requests to the US, want one PutObject for the replicated one", n, op)
		}
	}
}

func TestPartsGoUpWhileRecording(t *testing.T) {
	b := newBench(t)
	stream := film(t, 20, 8)
	if len(stream) < 3*minPartSize {
		t.Fatalf("the film has %d bytes only", len(stream))
	}
	r := b.begin("long", place.Replicated)
	src := play(stream)
	src.hold = make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- r.Ingest(t.Context(), src) }()
	// Both regions get full parts before the recording ends.
	b.waitFor("parts in both regions", func() bool {
		return b.storage.front.Calls("recordings-eu", "UploadPart") >= 2 && b.storage.front.Calls("recordings-us", "UploadPart") >= 2
	})
	if u, _ := b.ledger.last("long"); u.State != StateRecording {
		t.Errorf("state %s while recording", u.State)
	}
	before := b.storage.front.Calls("recordings-eu", "UploadPart")
	close(src.hold)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	sealed := b.seal(r)
	b.drain()
	u := b.ledger.awaitState("long", StateReplicated)
	b.wantObject(place.EU, u.Key, sealed, 200)
	b.wantObject(place.US, u.Key, sealed, 200)
	if u.Copies[0].ETag != u.Copies[1].ETag || !strings.Contains(u.Copies[0].ETag, "-") {
		t.Errorf("ETags %q and %q of one multipart object", u.Copies[0].ETag, u.Copies[1].ETag)
	}
	parts := partCount(sealed.Bytes, minPartSize)
	if n := int64(b.storage.front.Calls("recordings-eu", "UploadPart")); n != parts+1 {
		t.Errorf("%d parts sent for %d, want the first one twice and the others once", n, parts)
	}
	t.Logf("%d of %d parts were there before the end", before, parts)
	b.wantNoSpool("long")
}

// waitFor polls what has no event, bounded.
func (b *bench) waitFor(what string, f func() bool) {
	b.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(60 * time.Second)
	for !f() {
		select {
		case <-tick.C:
		case <-limit:
			b.t.Fatalf("no %s within 60 s", what)
		}
	}
}

func TestSourceLostIsPartialAndPlays(t *testing.T) {
	b := newBench(t)
	stream := film(t, 3, 1)
	r := b.begin("cut", place.EUOnly)
	src := play(stream[:len(stream)*2/3])
	src.lost, src.end = errLost, nil
	if err := r.Ingest(t.Context(), src); !errors.Is(err, errLost) {
		t.Fatalf("Ingest: %v", err)
	}
	if src.ackedTo() != int64(len(src.stream)) {
		t.Errorf("%d of %d bytes acknowledged", src.ackedTo(), len(src.stream))
	}
	sealed := b.seal(r)
	if !sealed.Partial || sealed.Cause != CauseLost || sealed.Duration == 0 || sealed.Duration >= 3*time.Second {
		t.Errorf("sealed %+v", sealed)
	}
	b.drain()
	u := b.ledger.awaitState("cut", StateAvailable)
	if !u.Partial || u.Cause != CauseLost {
		t.Errorf("journal has %+v", u)
	}
	b.wantObject(place.EU, u.Key, sealed, -1)
	if err := r.Ingest(t.Context(), play(stream)); !errors.Is(err, ErrSealed) {
		t.Errorf("Ingest after Seal: %v", err)
	}
}

func TestEndReasons(t *testing.T) {
	b := newBench(t)
	stream := film(t, 3, 1)
	ix := index(t, stream)
	for id, tt := range map[string]struct {
		stream []byte
		reason wire.EndReason
		want   Cause
	}{
		"stopped":                {stream, wire.EndStopped, CauseNone},
		"encoder-died":           {stream[:len(stream)-100], wire.EndFailed, CauseEncoder},
		"overflow":               {stream[:len(stream)-100], wire.EndOverflow, CauseOverflow},
		"stopped-in-a-cluster":   {stream[:len(stream)-100], wire.EndStopped, CauseEncoder},
		"stopped-with-a-trailer": {append(bytes.Clone(stream), 0xec, 0x83, 0, 0, 0), wire.EndStopped, CauseNone},
	} {
		t.Run(id, func(t *testing.T) {
			r := b.begin(id, place.EUOnly)
			src := play(tt.stream)
			src.end.Reason = tt.reason
			if err := r.Ingest(t.Context(), src); err != nil {
				t.Fatal(err)
			}
			s := b.seal(r)
			if s.Cause != tt.want || s.Partial != (tt.want != CauseNone) || s.Duration > ix.Duration {
				t.Errorf("sealed %+v, want cause %q", s, tt.want)
			}
		})
	}
	b.drain()
}

func index(t *testing.T, stream []byte) webm.Index {
	t.Helper()
	s, err := webm.Scan(bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	ix, _ := s.Index()
	return ix
}

func TestNothingRecorded(t *testing.T) {
	b := newBench(t)
	stream := film(t, 3, 1)
	lost := &script{lost: errLost}
	for id, tt := range map[string]struct {
		src  *script
		want Cause
	}{
		"never-connected": {nil, CauseLost},
		"lost-at-once":    {lost, CauseLost},
		"encoder-failed":  {&script{end: &wire.End{Reason: wire.EndFailed}}, CauseEncoder},
		"stopped-at-once": {&script{end: &wire.End{}}, CauseEncoder},
		"head-only":       {play(stream[:index(t, stream).Start]), CauseEncoder},
		"half-a-cluster":  {play(stream[:index(t, stream).Start+1000]), CauseEncoder},
	} {
		t.Run(id, func(t *testing.T) {
			r := b.begin(id, place.Replicated)
			if tt.src != nil {
				_ = r.Ingest(t.Context(), tt.src)
			}
			s := b.seal(r)
			if !s.Empty || s.Bytes != 0 || s.Cause != tt.want {
				t.Errorf("sealed %+v, want empty because of %q", s, tt.want)
			}
			u := b.ledger.awaitState(id, StateEmpty)
			if u.Cause != tt.want || u.Partial {
				t.Errorf("journal has %+v", u)
			}
			<-r.Done()
			b.wantNoSpool(id)
		})
	}
	if n := b.storage.front.Calls("recordings-eu", "PutObject") + b.storage.front.Calls("recordings-eu", "Create"); n != 1 { // the probe's
		t.Errorf("%d objects begun for recordings with nothing in them", n-1)
	}
}

func TestHostileChunks(t *testing.T) {
	b := newBench(t)
	stream := film(t, 3, 1)
	chunk := func(at int64, data []byte) *wire.Chunk {
		return &wire.Chunk{Offset: at, CRC: wire.Checksum(data), Data: data}
	}
	chunks := func(b []byte) (out []any) {
		for at := 0; at < len(b); at += 64 << 10 {
			out = append(out, chunk(int64(at), b[at:min(len(b), at+64<<10)]))
		}
		return out
	}
	flipped := chunk(0, stream[:1000])
	flipped.CRC++
	for name, tt := range map[string]struct {
		items []any
		want  error
	}{
		"a gap":                   {[]any{chunk(0, stream[:1000]), chunk(1001, stream[1001:2000])}, ErrGap},
		"a gap at the start":      {[]any{chunk(5, stream[5:10])}, ErrGap},
		"end beyond what came":    {[]any{chunk(0, stream[:1000]), &wire.End{Total: 2000}}, ErrGap},
		"end before what came":    {[]any{chunk(0, stream[:1000]), &wire.End{Total: 500}}, ErrGap},
		"a flipped bit":           {[]any{flipped}, ErrChunk},
		"a negative offset":       {[]any{chunk(-1, stream[:10])}, ErrChunk},
		"nothing in it":           {[]any{chunk(0, nil)}, ErrChunk},
		"too much in it":          {[]any{chunk(0, make([]byte, wire.MaxChunkData+1))}, ErrChunk},
		"something else":          {[]any{"hello"}, ErrChunk},
		"no film":                 {[]any{chunk(0, []byte("GIF89a........."))}, webm.ErrFormat},
		"rubbish after a cluster": {append(chunks(stream), chunk(int64(len(stream)), make([]byte, 100))), webm.ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			r := b.begin(strings.ReplaceAll(name, " ", "-"), place.EUOnly)
			err := r.Ingest(t.Context(), &items{items: tt.items})
			if !errors.Is(err, tt.want) {
				t.Errorf("Ingest: %v, want %v", err, tt.want)
			}
			s := b.seal(r)
			if s.Cause != CauseMalformed || !s.Partial {
				t.Errorf("sealed %+v", s)
			}
		})
	}
	b.drain()
}

// items is a Source of whatever one likes.
type items struct{ items []any }

func (i *items) Receive(context.Context) (any, error) {
	if len(i.items) == 0 {
		return nil, io.EOF
	}
	v := i.items[0]
	i.items = i.items[1:]
	return v, nil
}

func (i *items) Ack(context.Context, int64) error { return nil }

// TestDamagedChunkIsSentAgain: what is refused is not acknowledged, and comes again; the recording is whole.
func TestDamagedChunkIsSentAgain(t *testing.T) {
	b := newBench(t)
	stream := film(t, 3, 1)
	r := b.begin("again", place.EUOnly)
	var from int64
	for _, at := range []int64{0, 200 << 10} { // the head, and in the middle
		src := &damaging{play(stream), at}
		src.pos = from
		if err := r.Ingest(t.Context(), src); !errors.Is(err, ErrChunk) || src.ackedTo() > at {
			t.Fatalf("Ingest: %v, %d bytes are acknowledged", err, src.ackedTo())
		}
		from = max(from, src.ackedTo())
	}
	back := play(stream)
	back.pos = from
	if err := r.Ingest(t.Context(), back); err != nil {
		t.Fatal(err)
	}
	sealed := b.seal(r)
	if sealed.Partial {
		t.Errorf("sealed %+v", sealed)
	}
	b.drain()
	ix := index(t, stream)
	if got := b.object(place.EU, r.Key()); !bytes.HasPrefix(got[headSize:], stream[ix.Start:ix.End]) {
		t.Error("the object is not what was recorded")
	}
	b.wantObject(place.EU, r.Key(), sealed, 30)
}

// damaging is a script that flips a bit of the chunk which has byte at.
type damaging struct {
	*script
	at int64
}

func (d *damaging) Receive(ctx context.Context) (any, error) {
	v, err := d.script.Receive(ctx)
	if c, ok := v.(*wire.Chunk); ok && c.Offset <= d.at && d.at < c.Offset+int64(len(c.Data)) {
		c.Data[d.at-c.Offset] ^= 4
	}
	return v, err
}

func TestDuplicatesAndOverlapsAreDropped(t *testing.T) {
	b := newBench(t)
	stream := film(t, 3, 1)
	src := &items{}
	for at := 0; at < len(stream); at += 700 {
		from := max(0, at-300)
		data := stream[from:min(len(stream), at+700)]
		c := &wire.Chunk{Offset: int64(from), CRC: wire.Checksum(data), Data: data}
		src.items = append(src.items, c, c)
	}
	src.items = append(src.items, &wire.End{Total: int64(len(stream))})
	r := b.begin("twice", place.EUOnly)
	if err := r.Ingest(t.Context(), src); err != nil {
		t.Fatal(err)
	}
	sealed := b.seal(r)
	b.drain()
	b.wantObject(place.EU, r.Key(), sealed, 30)
}

func TestAcknowledgedOnlyOnceOnDisk(t *testing.T) {
	b := newBench(t)
	stream := film(t, 3, 1)
	r := b.begin("sync", place.EUOnly)
	disk := &faultyFile{file: r.spool.body}
	r.spool.body = disk
	src := play(stream)
	src.piece = 1000
	checked := &ackCheck{script: src, disk: disk, start: index(t, stream).Start, t: t}
	if err := r.Ingest(t.Context(), checked); err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(src.acks) || src.ackedTo() != int64(len(stream)) {
		t.Errorf("acknowledged %v of %d", src.acks, len(stream))
	}
	b.seal(r)
	b.drain()
}

type ackCheck struct {
	*script
	disk  *faultyFile
	start int64
	t     *testing.T
}

func (a *ackCheck) Ack(ctx context.Context, offset int64) error {
	if synced := a.disk.syncedTo(); offset-a.start > synced-headSize {
		a.t.Errorf("byte %d acknowledged with %d bytes of the body on disk", offset, synced)
	}
	return a.script.Ack(ctx, offset)
}

func TestURL(t *testing.T) {
	b := newBench(t)
	for _, ttl := range []time.Duration{0, -1, time.Hour + 1, 24 * time.Hour} {
		if _, err := b.rec.URL(t.Context(), place.EU, "recordings/a/b/c.webm", ttl); err == nil {
			t.Errorf("a URL for %v", ttl)
		}
	}
	for _, key := range []string{"", "profiles/x", "recordings/../profiles/x"} {
		if _, err := b.rec.URL(t.Context(), place.EU, key, time.Minute); err == nil {
			t.Errorf("a URL for %q", key)
		}
	}
	if _, err := b.rec.URL(t.Context(), "mars", "recordings/a/b/c.webm", time.Minute); err == nil {
		t.Error("a URL for mars")
	}
	u, err := b.rec.URL(t.Context(), place.EU, "recordings/a/b/c.webm", time.Hour)
	if err != nil || !strings.Contains(u, "X-Amz-Expires=3600") || strings.Contains(u, b.cfg.EU.SecretKey) {
		t.Errorf("%s %v", u, err)
	}
}
