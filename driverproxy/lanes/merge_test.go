package lanes

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// stream is bytes that are unlike those at other offsets.
func stream(n int) []byte {
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		binary.BigEndian.PutUint64(b[i:], uint64(i)*0x9e3779b97f4a7c15)
	}
	return b
}

// split cuts data into chunks of the sizes that size gives.
func split(data []byte, size func() int) []*wire.Chunk {
	var chunks []*wire.Chunk
	for at := 0; at < len(data); {
		n := min(size(), len(data)-at)
		chunks = append(chunks, &wire.Chunk{Offset: int64(at), CRC: wire.Checksum(data[at : at+n]), Data: data[at : at+n]})
		at += n
	}
	return chunks
}

// TestMergeGivesEveryByteOnce delivers what a host that keeps to its window has under way, in any order and more than once.
func TestMergeGivesEveryByteOnce(t *testing.T) {
	all := stream(24 << 20)
	rapid.Check(t, func(t *rapid.T) {
		data := all[:rapid.IntRange(0, len(all)).Draw(t, "length")]
		most := rapid.SampledFrom([]int{64 << 10, 300 << 10, wire.MaxChunkData}).Draw(t, "largest")
		random := rapid.IntRange(1, most)
		chunks := split(data, func() int { return random.Draw(t, "size") })
		end := &wire.End{Total: int64(len(data))}
		var m merge
		var sent, window, given int64 // sent counts chunks; window is the cost of those not given out yet
		missing := map[int]bool{}     // sent, and not here
		endPut, full := false, false
		for step := 0; !m.over; step++ {
			switch rapid.IntRange(0, 9).Draw(t, "act") {
			case 0, 1, 2: // sends
				if sent == int64(len(chunks)) {
					break
				}
				if c := cost(chunks[sent]); window+c <= wire.RecordingWindow {
					window += c
					missing[int(sent)] = true
					sent++
				} else {
					full = true
				}
			case 3, 4, 5, 6: // one arrives
				for i := range missing {
					if _, err := m.put(chunks[i]); err != nil {
						t.Fatal(err)
					}
					delete(missing, i)
					break
				}
			case 7: // one arrives once more
				if sent > 0 {
					i := rapid.IntRange(0, int(sent)-1).Draw(t, "again")
					delete(missing, i)
					if _, err := m.put(chunks[i]); err != nil {
						t.Fatal(err)
					}
				}
			case 8: // the end may overtake everything
				if sent == int64(len(chunks)) {
					endPut = true
					if _, err := m.put(end); err != nil {
						t.Fatal(err)
					}
				}
			default:
				for v := m.pop(); v != nil; v = m.pop() {
					if e, ok := v.(*wire.End); ok {
						if e.Total != given || !endPut {
							t.Fatalf("the end after %d of %d bytes", given, e.Total)
						}
						break
					}
					c := v.(*wire.Chunk)
					if c.Offset != given || !bytes.Equal(c.Data, data[c.Offset:][:len(c.Data)]) {
						t.Fatalf("chunk at %d after %d bytes", c.Offset, given)
					}
					given += int64(len(c.Data))
					window -= cost(c)
				}
			}
			if m.held > window || m.held < 0 {
				t.Fatalf("%d bytes are held of %d under way", m.held, window)
			}
		}
		if given != int64(len(data)) || len(m.early) != 0 || m.held != 0 {
			t.Fatalf("%d of %d bytes, %d chunks left, %d held (window full: %v)", given, len(data), len(m.early), m.held, full)
		}
	})
}

func chunk(offset int64, data string) *wire.Chunk {
	return &wire.Chunk{Offset: offset, CRC: wire.Checksum([]byte(data)), Data: []byte(data)}
}

func TestMergeRefuses(t *testing.T) {
	big := func(offset int64) *wire.Chunk {
		return &wire.Chunk{Offset: offset, Data: make([]byte, wire.MaxChunkData)}
	}
	var flood []any
	for i := range int64(wire.RecordingWindow/(wire.ChunkCost+1) + 1) {
		flood = append(flood, chunk(2*i+1, "x"))
	}
	for name, messages := range map[string][]any{
		"overlap with what was given":   {chunk(0, "abc"), chunk(2, "cd")},
		"overlap with the one before":   {chunk(5, "abc"), chunk(7, "cd")},
		"overlap with the one after":    {chunk(5, "abc"), chunk(3, "xyz")},
		"covers another":                {chunk(5, "abc"), chunk(4, "vwxyz")},
		"same place, other length":      {chunk(5, "abc"), chunk(5, "ab")},
		"same place, other bytes":       {chunk(5, "abc"), chunk(5, "abd")},
		"far ahead":                     {chunk(wire.RecordingWindow, "x")},
		"offset that overflows":         {chunk(math.MaxInt64, "x")},
		"negative offset":               {chunk(-1, "x")},
		"empty":                         {chunk(0, "")},
		"more than the window":          {big(1), big(1 + 1<<20), big(1 + 2<<20), big(1 + 3<<20), big(1 + 4<<20), big(1 + 5<<20), big(1 + 6<<20), big(1 + 7<<20)},
		"many small ones":               flood,
		"end before what was given":     {chunk(0, "abc"), &wire.End{Total: 2}},
		"end before what is here":       {chunk(5, "abc"), &wire.End{Total: 7}},
		"two ends":                      {&wire.End{Total: 5}, &wire.End{Total: 6}},
		"two ends of different reasons": {&wire.End{Total: 5}, &wire.End{Total: 5, Reason: wire.EndFailed}},
		"beyond the end":                {&wire.End{Total: 5}, chunk(4, "xy")},
		"something else":                {wire.Ack{}},
	} {
		var m merge
		for i, v := range messages {
			_, err := m.put(v)
			for m.pop() != nil {
			}
			if last := i == len(messages)-1; last != errors.Is(err, ErrRules) {
				t.Errorf("%s: message %d of %d: %v", name, i+1, len(messages), err)
				break
			}
		}
		if m.held > wire.RecordingWindow {
			t.Errorf("%s: %d bytes are held", name, m.held)
		}
	}
}

func FuzzMerge(f *testing.F) {
	f.Add([]byte{0, 0, 3, 0, 5, 2, 0, 3, 2, 255, 0, 7})
	f.Fuzz(func(t *testing.T, b []byte) {
		data := stream(1 << 16)
		var m merge
		var given int64
		for ; len(b) >= 3; b = b[3:] {
			offset, n := int64(binary.BigEndian.Uint16(b)), int64(b[2])
			var v any = &wire.End{Total: offset}
			if n > 0 && offset+n <= int64(len(data)) {
				v = &wire.Chunk{Offset: offset, CRC: wire.Checksum(data[offset : offset+n]), Data: data[offset : offset+n]}
			}
			if _, err := m.put(v); err != nil {
				if !errors.Is(err, ErrRules) {
					t.Fatal(err)
				}
				return
			}
			for v := m.pop(); v != nil; v = m.pop() {
				if e, ok := v.(*wire.End); ok {
					if e.Total != given {
						t.Fatalf("the end at %d after %d bytes", e.Total, given)
					}
					break
				}
				c := v.(*wire.Chunk)
				if c.Offset != given || !bytes.Equal(c.Data, data[given:given+int64(len(c.Data))]) {
					t.Fatalf("chunk at %d after %d bytes", c.Offset, given)
				}
				given += int64(len(c.Data))
			}
			if m.held > wire.RecordingWindow || m.ready < m.next || m.next != given {
				t.Fatalf("%+v", m)
			}
		}
	})
}
