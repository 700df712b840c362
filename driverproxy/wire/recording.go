package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Chunk is a run of bytes of the recording that starts at Offset; CRC is the Castagnoli checksum of Data.
type Chunk struct {
	Offset int64
	CRC    uint32
	Data   []byte
}

// EndReason says why a recording ended on the host.
type EndReason byte

// End reasons.
const (
	EndStopped  EndReason = 0 // as asked
	EndFailed   EndReason = 1 // the encoder died
	EndOverflow EndReason = 2 // too much was unacknowledged, capture stopped
)

// End is the last frame of a recording of Total bytes.
type End struct {
	Total  int64
	Reason EndReason
}

// Ack says that every byte before Offset is on the orchestrator's disk.
type Ack struct{ Offset int64 }

// Held says that the orchestrator has the chunk that starts at Offset while one before it is still missing: it need not be sent again
// while the session lasts, but it is not on disk.
type Held struct{ Offset int64 }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC of a chunk's data.
func Checksum(data []byte) uint32 { return crc32.Checksum(data, castagnoli) }

// Append renders the chunk after b.
func (c Chunk) Append(b []byte) []byte {
	b = append(b, kindChunk)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Offset))
	b = binary.BigEndian.AppendUint32(b, c.CRC)
	return append(b, c.Data...)
}

// Append renders the end after b.
func (e End) Append(b []byte) []byte {
	b = append(b, kindEnd)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Total))
	return append(b, byte(e.Reason))
}

// ErrChecksum says that a chunk is not what was sent: it may be sent again. It is an [ErrFrame].
var ErrChecksum = fmt.Errorf("%w: the checksum does not hold", ErrFrame)

// DecodeRecording parses what a host sends on a recording socket: a *Chunk whose checksum holds, or an *End.
// A chunk's Data shares b's memory. ErrChecksum.
func DecodeRecording(b []byte) (any, error) {
	r := reader{b: b}
	switch r.u8() {
	case kindChunk:
		c := &Chunk{Offset: int64(r.u63()), CRC: r.u32()}
		c.Data = r.b
		if r.err == nil && (len(c.Data) == 0 || len(c.Data) > MaxChunkData) {
			return nil, fmt.Errorf("%w: chunk of %d bytes", ErrFrame, len(c.Data))
		}
		if r.err == nil && Checksum(c.Data) != c.CRC {
			return nil, fmt.Errorf("%w: chunk at %d", ErrChecksum, c.Offset)
		}
		return c, r.err
	case kindEnd:
		e := &End{Total: int64(r.u63()), Reason: EndReason(r.u8())}
		if r.err == nil && (len(r.b) != 0 || e.Reason > EndOverflow) {
			r.err = fmt.Errorf("%w: end", ErrFrame)
		}
		return e, r.err
	}
	return nil, fmt.Errorf("%w: unknown kind on a recording socket", ErrFrame)
}

// Append renders the acknowledgement after b.
func (a Ack) Append(b []byte) []byte {
	b = append(b, kindAck)
	return binary.BigEndian.AppendUint64(b, uint64(a.Offset))
}

// Append renders the confirmation after b.
func (h Held) Append(b []byte) []byte {
	b = append(b, kindHeld)
	return binary.BigEndian.AppendUint64(b, uint64(h.Offset))
}

// DecodeAck parses an acknowledgement.
func DecodeAck(b []byte) (Ack, error) {
	r := reader{b: b}
	r.kind(kindAck)
	a := Ack{Offset: int64(r.u63())}
	r.nothing("an ack")
	return a, r.err
}

// DecodeReceipt parses what an orchestrator sends on a recording socket: an [Ack] or a [Held].
func DecodeReceipt(b []byte) (any, error) {
	r := reader{b: b}
	switch r.u8() {
	case kindAck:
		a, err := DecodeAck(b)
		return a, err
	case kindHeld:
		h := Held{Offset: int64(r.u63())}
		r.nothing("a held")
		return h, r.err
	}
	return nil, fmt.Errorf("%w: unknown kind on a recording socket", ErrFrame)
}
