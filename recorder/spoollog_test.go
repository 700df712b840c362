package recorder

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/driftstack/fleet/orchestrator/place"
)

// sampleLog has one record of each kind.
func sampleLog() []record {
	spec := Spec{ID: "r", Session: "s", Account: "a", Term: 3, Placement: place.Replicated, Started: time.Unix(1, 0).UTC()}
	return []record{
		{Spec: &specRecord{Spec: spec, PartSize: minPartSize}},
		{Head: &headRecord{Start: 400, Slot: make([]byte, headSize)}},
		{Frame: &frameRecord{Size: headSize + 10, CRC: 1}},
		{Frame: &frameRecord{Size: headSize + 20, CRC: 2}},
		{Upload: &uploadRecord{Region: place.EU, ID: "u"}},
		{Part: &partRecord{Region: place.EU, Number: 1, Size: 5, CRC: 6, ETag: "e"}},
		{Ended: &endedRecord{Cause: CauseEncoder}},
		{Cut: &cutRecord{Size: headSize + 20, Cause: CauseEncoder}},
		{Sealed: &sealedRecord{Size: headSize + 40, Duration: time.Second, SHA256: "x", Cause: CauseEncoder, Parts: []uint32{7}}},
		{Stored: &storedRecord{Region: place.EU, ETag: "e", At: time.Unix(2, 0).UTC()}},
	}
}

func encodeLog(t testing.TB, records []record) []byte {
	t.Helper()
	var b []byte
	for _, r := range records {
		f, err := encodeRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, f...)
	}
	return b
}

func decodeLog(b []byte) (records []record, whole int64, err error) {
	var p progress
	whole, err = readLog(bytes.NewReader(b), func(r record) error {
		if err := p.apply(r); err != nil {
			return err
		}
		records = append(records, r)
		return nil
	})
	return records, whole, err
}

func TestLogReadsBack(t *testing.T) {
	b := encodeLog(t, sampleLog())
	got, whole, err := decodeLog(b)
	if err != nil || whole != int64(len(b)) {
		t.Fatalf("%d of %d bytes, %v", whole, len(b), err)
	}
	if d := cmp.Diff(sampleLog(), got); d != "" {
		t.Error(d)
	}
}

func TestLogTornAtEveryByteLosesOnlyTheLastRecord(t *testing.T) {
	records := sampleLog()
	b := encodeLog(t, records)
	ends := make([]int, len(records))
	at := 0
	for i := range records {
		at += len(encodeLog(t, records[i:i+1]))
		ends[i] = at
	}
	for cut := range b {
		got, whole, err := decodeLog(b[:cut])
		if err != nil {
			t.Fatalf("torn at %d: %v", cut, err)
		}
		want := 0
		for want < len(ends) && ends[want] <= cut {
			want++
		}
		if len(got) != want || want > 0 && whole != int64(ends[want-1]) {
			t.Fatalf("torn at %d: %d records and %d bytes, want %d", cut, len(got), whole, want)
		}
	}
}

func TestEveryFlippedBitOfTheLogIsFound(t *testing.T) {
	records := sampleLog()
	b := encodeLog(t, records)
	last := len(b) - len(encodeLog(t, records[len(records)-1:]))
	for i := 0; i < last; i++ {
		for bit := range 8 {
			spoilt := bytes.Clone(b)
			spoilt[i] ^= 1 << bit
			if _, _, err := decodeLog(spoilt); !errors.Is(err, errCorrupt) {
				t.Fatalf("bit %d of byte %d: %v", bit, i, err)
			}
		}
		if i > 300 && i < last-600 {
			i += 37 // the head slot is long
		}
	}
}

func TestImpossibleLogs(t *testing.T) {
	s := sampleLog()
	for name, records := range map[string][]record{
		"no spec first":      {s[1]},
		"two specs":          {s[0], s[0]},
		"two heads":          {s[0], s[1], s[1]},
		"frame before head":  {s[0], s[2]},
		"frames backwards":   {s[0], s[1], s[3], s[2]},
		"frame after cut":    {s[0], s[1], s[7], s[3]},
		"sealed without cut": {s[0], s[1], s[8]},
		"sealed twice":       {s[0], s[1], s[7], s[8], s[8]},
		"nothing in it":      {s[0], {}},
		"path as ID":         {{Spec: &specRecord{Spec: Spec{ID: "../x", Session: "s", Account: "a", Placement: place.EUOnly}, PartSize: minPartSize}}},
		"tiny parts":         {{Spec: &specRecord{Spec: s[0].Spec.Spec, PartSize: 1}}},
		"part 0":             {s[0], {Part: &partRecord{Region: place.EU}}},
	} {
		if _, _, err := decodeLog(encodeLog(t, records)); !errors.Is(err, errCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzLogRecords has records that are framed as they should be, and may say anything: FuzzLog hardly ever gets past a checksum.
func FuzzLogRecords(f *testing.F) {
	var all [][]byte
	for _, r := range sampleLog() {
		if r.Head != nil {
			r.Head = &headRecord{Start: r.Head.Start, Slot: []byte("short")} // lengthened below: the fuzzer would change nothing else
		}
		b, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, b)
	}
	f.Add(bytes.Join(all, []byte("\n")))
	f.Add([]byte(`{"spec":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var log []byte
		for line := range bytes.SplitSeq(b, []byte("\n")) {
			var r record
			if json.Unmarshal(line, &r) == nil && r.Head != nil && len(r.Head.Slot) == len("short") {
				r.Head.Slot = make([]byte, headSize)
				line, _ = json.Marshal(r)
			}
			if len(line) == 0 || len(line) > maxRecord {
				continue
			}
			log = append(log, frameOf(line)...)
		}
		var p progress
		var size int64
		whole, err := readLog(bytes.NewReader(log), func(r record) error {
			err := p.apply(r)
			if err == nil && r.Frame != nil && p.framed <= size {
				t.Fatalf("the body goes from %d bytes to %d", size, p.framed)
			}
			size = p.framed
			return err
		})
		switch {
		case err != nil && !errors.Is(err, errCorrupt):
			t.Fatalf("error of another kind: %v", err)
		case err != nil:
			return
		case whole != int64(len(log)):
			t.Fatalf("%d of %d bytes are whole", whole, len(log))
		case p.spec == nil:
			return
		}
		// Whoever goes on from there finds what it counts on.
		if p.spec.Spec.validate() != nil || p.framed > 0 && p.head == nil || p.cut != nil && p.head == nil {
			t.Fatalf("%+v", p)
		}
		if s := p.sealed; s != nil && !s.Empty && (s.Size < headSize || int64(len(s.Parts)) != partCount(s.Size, p.spec.PartSize)) {
			t.Fatalf("sealed %+v", s)
		}
		p.stored()
	})
}

func FuzzLog(f *testing.F) {
	f.Add(encodeLog(f, sampleLog()))
	f.Add([]byte{})
	f.Add(make([]byte, 100))
	f.Add(encodeLog(f, sampleLog()[:1])[:20])
	f.Fuzz(func(t *testing.T, b []byte) {
		records, whole, err := decodeLog(b)
		if whole < 0 || whole > int64(len(b)) {
			t.Fatalf("%d of %d bytes are whole", whole, len(b))
		}
		if err != nil {
			if !errors.Is(err, errCorrupt) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		// What was accepted reads back the same from what is kept of it, and from a new encoding.
		for _, kept := range [][]byte{b[:whole], encodeLog(t, records)} {
			again, _, err := decodeLog(kept)
			if d := cmp.Diff(records, again); err != nil || d != "" {
				t.Fatalf("%v %s", err, d)
			}
		}
	})
}
