package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/recorder"
	"github.com/driftstack/fleet/recorder/s3server"
)

const (
	recordingBucket   = "bench"
	recordingRounds   = 5
	recordingBytes    = 256 << 20 // of a round
	recordingWait     = time.Minute
	recordingParallel = 3        // parts at a time, as a sealed recording has them
	chunkBytes        = 64 << 10 // as the host reads its encoder
	nowhere           = "http://127.0.0.1:9"
)

// benchRecording measures recordings: into the spool, and out of it.
func benchRecording(ctx context.Context, only string) ([]figure, error) {
	return measureAll(ctx, "recording", only, []measurement{{"drain", benchDrain}, {"ingest", benchIngest}, {"stop", benchStop}})
}

// benchDrain compares a recording that waits in its spool, sealed, because storage was away, and then goes to it, with the same file sent
// as plainly as the SDK can: parts of the same size, as many at a time.
func benchDrain(ctx context.Context) (_ []figure, err error) {
	var u undo
	defer func() { err = errors.Join(err, u.close()) }()
	dir, server, err := openStorage(ctx, &u)
	if err != nil {
		return nil, err
	}
	file, err := os.Create(filepath.Join(dir, "plain"))
	if err != nil {
		return nil, err
	}
	u.add(file.Close)
	if _, err := io.Copy(file, io.LimitReader(rand.NewChaCha8([32]byte{}), recordingBytes)); err != nil {
		return nil, err
	}
	if err := file.Sync(); err != nil {
		return nil, err
	}
	stream := liveStream(recordingBytes)
	var ours, plain, ratio []float64
	for round := range recordingRounds + 1 {
		o, err := drain(ctx, filepath.Join(dir, fmt.Sprint("spool", round)), server, stream)
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		if err := server.Plain(ctx, recordingBucket, fmt.Sprint("plain", round), file, recorder.DefaultPartSize, recordingParallel); err != nil {
			return nil, err
		}
		p := perSecond(recordingBytes, time.Since(begin))
		if round > 0 { // the first warms up
			ours, plain, ratio = append(ours, o), append(plain, p), append(ratio, o/p)
		}
	}
	return []figure{atLeast("recording/drain-vs-uploadpart", middle(ours), middle(plain), middle(ratio), "ratio", 0.9)}, nil
}

// drain is the MB a second at which a spool gets to storage, from when the recorder that finds it is opened.
func drain(ctx context.Context, dir string, server *s3server.Server, stream []*wire.Chunk) (float64, error) {
	away, err := openRecorder(ctx, dir, nowhere, server)
	if err != nil {
		return 0, err
	}
	rec, err := away.begin(ctx, "drain")
	if err == nil {
		err = rec.Ingest(ctx, &tape{stream: stream})
	}
	var s recorder.Sealed
	if err == nil {
		s, err = rec.Seal(ctx)
	}
	if err := errors.Join(err, away.close()); err != nil {
		return 0, err
	}
	begin := time.Now()
	back, err := openRecorder(ctx, dir, server.Endpoint(), server)
	if err != nil {
		return 0, err
	}
	err = back.Drain(ctx)
	took := time.Since(begin)
	return perSecond(s.Bytes, took), errors.Join(err, back.close())
}

// benchIngest compares what is acknowledged of a recording with the same chunks written to a file and brought to disk with fdatasync, over
// and over while they are written: as many at a time as there are, which is what ours does too. There is no storage, so that nothing is uploaded meanwhile.
func benchIngest(ctx context.Context) (_ []figure, err error) {
	var u undo
	defer func() { err = errors.Join(err, u.close()) }()
	dir, server, err := openStorage(ctx, &u)
	if err != nil {
		return nil, err
	}
	r, err := openRecorder(ctx, filepath.Join(dir, "spool"), nowhere, server)
	if err != nil {
		return nil, err
	}
	u.add(r.close)
	stream := liveStream(recordingBytes)
	var ours, raw, ratio []float64
	for round := range recordingRounds + 1 {
		o, err := ingest(ctx, r, fmt.Sprint("ingest", round), stream)
		if err != nil {
			return nil, err
		}
		w, err := writeRaw(filepath.Join(dir, "raw"), stream)
		if err != nil {
			return nil, err
		}
		if round > 0 {
			ours, raw, ratio = append(ours, o), append(raw, w), append(ratio, o/w)
		}
	}
	return []figure{atLeast("recording/ingest-vs-fdatasync", middle(ours), middle(raw), middle(ratio), "ratio", 0.5)}, nil
}

func ingest(ctx context.Context, r *spooler, id string, stream []*wire.Chunk) (float64, error) {
	rec, err := r.begin(ctx, id)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := rec.Ingest(ctx, &tape{stream: stream}); err != nil {
		return 0, err
	}
	took := time.Since(begin)
	return perSecond(length(stream), took), rec.Leave(ctx)
}

func writeRaw(path string, stream []*wire.Chunk) (_ float64, err error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	dirty, synced := make(chan struct{}, 1), make(chan error, 1)
	begin := time.Now()
	go func() { // ends when dirty is closed
		var err error
		for range dirty {
			err = errors.Join(err, dataSync(f))
		}
		synced <- err
	}()
	for _, c := range stream {
		if _, err := f.Write(c.Data); err != nil {
			return 0, err
		}
		select {
		case dirty <- struct{}{}:
		default:
		}
	}
	close(dirty)
	if err := errors.Join(<-synced, dataSync(f)); err != nil {
		return 0, err
	}
	return perSecond(length(stream), time.Since(begin)), nil
}

// benchStop measures what is left to do when a recording is stopped: nothing that grows with its length. Storage is as strict as R2.
func benchStop(ctx context.Context) (_ []figure, err error) {
	var u undo
	defer func() { err = errors.Join(err, u.close()) }()
	dir, server, err := openStorage(ctx, &u)
	if err != nil {
		return nil, err
	}
	front, err := s3server.StartFront(server.Endpoint())
	if err != nil {
		return nil, err
	}
	u.add(func() error { front.Close(); return nil })
	r, err := openRecorder(ctx, filepath.Join(dir, "spool"), front.Endpoint(), server)
	if err != nil {
		return nil, err
	}
	u.add(r.close)
	parts := func() int { return front.Calls(recordingBucket, "UploadPart") }
	streams := [][]*wire.Chunk{liveStream(50e6), liveStream(500e6)}
	var took []float64
	most := 0
	for round := range recordingRounds {
		for i, stream := range streams {
			t, n, err := stop(ctx, r, fmt.Sprintf("stop-%d-%d", round, i), stream, parts)
			if err != nil {
				return nil, err
			}
			fmt.Printf("recording stop: %d MB available after %v, %d parts sent\n", length(stream)/1e6, t.Round(time.Millisecond), n)
			most = max(most, n)
			if i == len(streams)-1 {
				took = append(took, t.Seconds())
			}
		}
	}
	return []figure{
		atMost("recording/stop-to-available-500MB", middle(took), 0, middle(took), "s", 1),
		atMost("recording/parts-after-stop", float64(most), 0, float64(most), "parts", 2),
	}, nil
}

// stop records a stream, waits until the parts are up that can be, and ends it; it gives the time until the object is verified, and
// how many parts were sent meanwhile.
func stop(ctx context.Context, r *spooler, id string, stream []*wire.Chunk, parts func() int) (time.Duration, int, error) {
	before := parts()
	rec, err := r.begin(ctx, id)
	if err != nil {
		return 0, 0, err
	}
	size, src := length(stream), &tape{stream: stream, hold: make(chan struct{})}
	ended := make(chan error, 1)
	go func() { ended <- rec.Ingest(ctx, src) }()
	if err := until(ctx, func() bool { return src.ackedTo() >= size && parts()-before >= int(size/recorder.DefaultPartSize) }); err != nil {
		return 0, 0, fmt.Errorf("%d of %d bytes, %d parts: %w", src.ackedTo(), size, parts()-before, err)
	}
	before = parts()
	begin := time.Now()
	close(src.hold)
	if err := <-ended; err != nil {
		return 0, 0, err
	}
	if _, err := rec.Seal(ctx); err != nil {
		return 0, 0, err
	}
	at, err := r.journal.available(ctx, id)
	return at.Sub(begin), parts() - before, err
}

// until polls, with a bound.
func until(ctx context.Context, f func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, recordingWait)
	defer cancel()
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for !f() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func openStorage(ctx context.Context, u *undo) (dir string, _ *s3server.Server, err error) {
	if err := os.MkdirAll(".bench", 0o755); err != nil {
		return "", nil, err
	}
	if dir, err = os.MkdirTemp(".bench", "recording-"); err != nil { // a disk, which the folder of temporary files may not be on
		return "", nil, err
	}
	u.add(func() error { return os.RemoveAll(dir) })
	server, err := s3server.Start(ctx, s3server.Config{Dir: filepath.Join(dir, "storage"), Buckets: []string{recordingBucket}})
	if err != nil {
		return "", nil, err
	}
	u.add(func() error { server.Stop(); return nil })
	return dir, server, nil
}

// spooler is a recorder and what it told its journal.
type spooler struct {
	*recorder.Recorder
	journal *arrivals
}

func openRecorder(ctx context.Context, dir, endpoint string, server *s3server.Server) (*spooler, error) {
	access, secret := server.Keys()
	journal := newArrivals()
	r, err := recorder.Open(ctx, recorder.Config{
		Dir: dir, Journal: journal, EU: recorder.EUTarget{Target: recorder.Target{Endpoint: endpoint, Bucket: recordingBucket, AccessKey: access, SecretKey: secret}},
	})
	return &spooler{r, journal}, err
}

func (s *spooler) begin(ctx context.Context, id string) (*recorder.Recording, error) {
	return s.Begin(ctx, recorder.Spec{ID: id, Session: id, Account: "bench", Term: 1, Placement: place.EUOnly, Started: time.Now()})
}

func (s *spooler) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), recordingWait)
	defer cancel()
	return s.Close(ctx)
}

// arrivals is a journal that knows when recordings became available.
type arrivals struct {
	mu      sync.Mutex // guards what follows
	by      map[string]time.Time
	changed chan struct{}
}

func newArrivals() *arrivals {
	return &arrivals{by: map[string]time.Time{}, changed: make(chan struct{})}
}

// RecordingChanged implements recorder.Journal.
func (a *arrivals) RecordingChanged(_ context.Context, u recorder.RecordingUpdate) error {
	if u.State != recorder.StateAvailable {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.by[u.ID] = time.Now()
	close(a.changed)
	a.changed = make(chan struct{})
	return nil
}

// Outlook implements recorder.Journal.
func (*arrivals) Outlook(context.Context, string, string, int64) (recorder.Outlook, error) {
	return recorder.Over, nil
}

// Latest implements recorder.Journal.
func (*arrivals) Latest(context.Context, string) (string, bool, error) { return "", false, nil }

func (a *arrivals) available(ctx context.Context, id string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, recordingWait)
	defer cancel()
	for {
		a.mu.Lock()
		at, ok := a.by[id]
		changed := a.changed
		a.mu.Unlock()
		if ok {
			return at, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%s is not available: %w", id, ctx.Err())
		}
	}
}

// tape is a recorder.Source that plays a stream as fast as it is listened to.
type tape struct {
	stream []*wire.Chunk
	played int
	hold   chan struct{} // when set, the end waits for it

	mu    sync.Mutex // guards what follows
	acked int64
}

// Receive implements recorder.Source.
func (t *tape) Receive(ctx context.Context) (any, error) {
	if t.played < len(t.stream) {
		t.played++
		return t.stream[t.played-1], nil
	}
	if t.hold != nil {
		select {
		case <-t.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return &wire.End{Total: length(t.stream), Reason: wire.EndStopped}, nil
}

// Ack implements recorder.Source.
func (t *tape) Ack(_ context.Context, offset int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.acked = offset
	return nil
}

func (t *tape) ackedTo() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.acked
}

const (
	liveFrames = 10      // a second
	liveSecond = 1e6 / 8 // bytes of a second
)

// liveStream is a live WebM of 1 Mbit/s and at least so many bytes, a cluster a second as ffmpeg writes it, in the chunks in which a host sends it.
// Its frames are noise.
func liveStream(size int64) (chunks []*wire.Chunk) {
	noise := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise) // never fails
	b := slices.Concat(element(0x1A45DFA3, element(0x4282, []byte("webm"))), []byte{0x18, 0x53, 0x80, 0x67, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		element(0x1549A966, element(0x2AD7B1, []byte{0x0f, 0x42, 0x40})),
		element(0x1654AE6B, element(0xAE, element(0xD7, []byte{1}), element(0x83, []byte{1}), element(0x86, []byte("V_VP8")), element(0xE0, element(0xB0, []byte{1, 0x40}), element(0xBA, []byte{0xf0})))))
	for second := 0; int64(len(b)) < size; second++ {
		blocks := [][]byte{element(0xE7, binary.BigEndian.AppendUint64(nil, uint64(second)*1000))}
		for i := range liveFrames {
			header := binary.BigEndian.AppendUint16([]byte{0x81}, uint16(i*1000/liveFrames))
			if i == 0 {
				header = append(header, 0x80) // a key frame
			} else {
				header = append(header, 0)
			}
			const frame = liveSecond/liveFrames - 13
			at := (second*7919 + i*104729) % (len(noise) - frame)
			blocks = append(blocks, element(0xA3, header, noise[at:at+frame]))
		}
		b = append(b, element(0x1F43B675, blocks...)...)
	}
	for at := 0; at < len(b); at += chunkBytes {
		data := b[at:min(len(b), at+chunkBytes)]
		chunks = append(chunks, &wire.Chunk{Offset: int64(at), CRC: wire.Checksum(data), Data: data})
	}
	return chunks
}

func length(stream []*wire.Chunk) int64 {
	last := stream[len(stream)-1]
	return last.Offset + int64(len(last.Data))
}

// element is one of a WebM, its size in eight bytes.
func element(id uint32, payload ...[]byte) []byte {
	var b []byte
	for shift := 24; shift >= 0; shift -= 8 {
		if v := byte(id >> shift); v != 0 || b != nil {
			b = append(b, v)
		}
	}
	all := slices.Concat(payload...)
	return append(binary.BigEndian.AppendUint64(b, uint64(len(all))|1<<56), all...)
}

func perSecond(bytes int64, took time.Duration) float64 { return float64(bytes) / 1e6 / took.Seconds() }
