package recorder

import (
	"errors"
	"hash/crc32"
	"sync/atomic"
	"testing"

	"github.com/driftstack/fleet/orchestrator/place"
)

// readFile counts the bytes that are read of it.
type readFile struct {
	file
	n atomic.Int64
}

func (f *readFile) ReadAt(b []byte, off int64) (int, error) {
	n, err := f.file.ReadAt(b, off)
	f.n.Add(int64(n))
	return n, err
}

// TestPartCostsItsOwnFrames: to check a part takes as much of the log as it has frames, wherever it is, and finds one flipped bit in each of them.
func TestPartCostsItsOwnFrames(t *testing.T) {
	const parts, perPart = 4, 2000
	const step = minPartSize / perPart // odd ends: frames reach over the ends of parts
	sp, err := createSpool(t.TempDir(), specRecord{Spec: Spec{ID: "r", Session: "s", Account: "a", Placement: place.EUOnly}, PartSize: minPartSize})
	if err != nil {
		t.Fatal(err)
	}
	defer sp.close()
	slot := make([]byte, headSize)
	frames := []record{{Head: &headRecord{Start: 1, Slot: slot}}}
	sum := crcUpdate(0, make([]byte, step))
	end := int64(headSize)
	for end < parts*minPartSize {
		end += step
		frames = append(frames, record{Frame: &frameRecord{Size: end, CRC: sum}})
	}
	for _, r := range frames {
		if err := sp.append(r, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := sp.body.Truncate(end); err != nil { // zeros
		t.Fatal(err)
	}
	log := &readFile{file: sp.log}
	sp.log = log
	r := newRecording(nil, "r", sp)
	want := crc32.ChecksumIEEE(make([]byte, minPartSize))
	check := func(n int64) error {
		h := crc32.NewIEEE()
		_, err := r.checkPart(t.Context(), n*minPartSize, (n+1)*minPartSize, h)
		if err == nil && h.Sum32() != want {
			t.Errorf("part %d: another hash", n)
		}
		return err
	}
	for n := range int64(parts) {
		before := log.n.Load()
		if err := check(n); err != nil {
			t.Fatalf("part %d: %v", n, err)
		}
		if read := log.n.Load() - before; read > sp.logSize/parts+2*64<<10 {
			t.Errorf("part %d took %d bytes of a log of %d", n, read, sp.logSize)
		}
	}
	for _, at := range []int64{2*minPartSize - 1, 2 * minPartSize, 3*minPartSize - 1} {
		if _, err := sp.body.WriteAt([]byte{1}, at); err != nil {
			t.Fatal(err)
		}
		for n := int64(1); n < parts; n++ {
			first, last := at/minPartSize, at/minPartSize
			for _, f := range frames[1:] { // the frame of that byte may reach into a second part
				if f.Frame.Size > at {
					first, last = (f.Frame.Size-step)/minPartSize, (f.Frame.Size-1)/minPartSize
					break
				}
			}
			if err := check(n); errors.Is(err, errCorrupt) != (first <= n && n <= last) {
				t.Errorf("byte %d flipped, part %d: %v", at, n, err)
			}
		}
		if _, err := sp.body.WriteAt([]byte{0}, at); err != nil {
			t.Fatal(err)
		}
	}
}
