package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
)

// Binary messages begin with one byte that names their kind; integers are big-endian.
//
//	command    0x01 seq:u64 ack:u64 origin len:u8 method len:u16 path body…
//	answer     0x02 seq:u64 outcome:u8 status:u16 took:u64(ns) body…
//	chunk      0x03 offset:u64 crc:u32 data…
//	end        0x04 total:u64 reason:u8
//	ack        0x05 offset:u64
//	held       0x06 offset:u64
//	resume     0x07 received:u64 (seq:u64 origin)…
//	resumed    0x08 answered:u64
//	forget     0x09 seq:u64…
//
// An origin is stream:[16]byte number:u64.
const (
	kindCommand byte = iota + 1
	kindAnswer
	kindChunk
	kindEnd
	kindAck
	kindHeld
	kindResume
	kindResumed
	kindForget
)

// Limits of one binary message.
const (
	MaxMessage   = 128 << 20 // command or answer, body included
	MaxChunkData = 1 << 20
)

// Limits of one recording.
const (
	MaxLanes        = 8       // sockets at once; lane numbers count from 0
	RecordingWindow = 8 << 20 // most bytes that may be unacknowledged, each chunk counted with ChunkCost
	ChunkCost       = 512     // what a chunk costs beside its data, so that many small ones are bounded too
)

// Limits of one session.
const (
	MaxOutstanding = 1024      // commands that have no answer, or one that is not acknowledged
	MaxKept        = 256 << 20 // bytes of answers that are not acknowledged, on the host
)

// ErrFrame is wrapped by every decoding error of a binary message.
var ErrFrame = errors.New("wire: malformed frame")

// Origin says which command of which client stream a command is, so that the stream can go on at another orchestrator. It is
// zero for commands that came over W3C HTTP, whose clients do not outlive their orchestrator.
type Origin struct {
	Stream [16]byte // random
	Number uint64   // counts from 1 within the stream
}

// Command is one driver command. Seq counts from 1 within a session, also when its term changes; Ack is the highest Seq up to
// which every answer has reached whoever asked, so that the host may forget them.
type Command struct {
	Seq, Ack uint64
	Origin   Origin
	Method   string // GET, POST or DELETE
	Path     string // below /session/{session id}, with its leading slash
	Body     []byte
}

// Outcome says what is known of a command's execution.
type Outcome byte

// Outcomes.
const (
	OutcomeDone    Outcome = 0 // the driver answered
	OutcomeUnknown Outcome = 1 // the driver may or may not have executed it; Body is a W3C error
	OutcomeNotRun  Outcome = 2 // the driver never saw it; Body is a W3C error
)

// Answer answers the command of the same Seq.
type Answer struct {
	Seq     uint64
	Outcome Outcome
	Status  int           // HTTP status of the driver
	Took    time.Duration // as the host measured it, at the driver
	Body    []byte
}

// Kept is a command that a host has taken and whose answer is not acknowledged: it waits, runs, or has been answered.
type Kept struct {
	Seq    uint64
	Origin Origin
}

// Resume is the first message of a command socket, by the host: all it knows of the session's commands. Received is the
// highest Seq it has taken; what is not in Kept up to that has been acknowledged.
type Resume struct {
	Received uint64
	Kept     []Kept // in order of Seq
}

// Resumed is the orchestrator's first message, without waiting for the host's: it has the answers up to Answered. The host
// sends those above again; the orchestrator sends the commands above Received again.
type Resumed struct{ Answered uint64 }

// Forget acknowledges single answers, above the Ack of commands: one client may be slower than another.
type Forget struct{ Seqs []uint64 }

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

// Append renders the command after b.
func (c Command) Append(b []byte) ([]byte, error) {
	if len(c.Method) > 255 || len(c.Path) > 65535 {
		return b, fmt.Errorf("wire: method of %d and path of %d bytes: too long for a frame", len(c.Method), len(c.Path))
	}
	b = append(b, kindCommand)
	b = binary.BigEndian.AppendUint64(b, c.Seq)
	b = binary.BigEndian.AppendUint64(b, c.Ack)
	b = c.Origin.append(b)
	b = append(b, byte(len(c.Method)))
	b = append(b, c.Method...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(c.Path)))
	b = append(b, c.Path...)
	return append(b, c.Body...), nil
}

// DecodeCommand parses a command; Body shares b's memory.
func DecodeCommand(b []byte) (Command, error) {
	r := reader{b: b}
	r.kind(kindCommand)
	c := Command{Seq: r.u64(), Ack: r.u64(), Origin: r.origin()}
	c.Method = string(r.bytes(int(r.u8())))
	c.Path = string(r.bytes(int(r.u16())))
	c.Body = r.b
	return c, r.err
}

// Append renders the message after b.
func (m Forget) Append(b []byte) []byte {
	b = append(b, kindForget)
	for _, seq := range m.Seqs {
		b = binary.BigEndian.AppendUint64(b, seq)
	}
	return b
}

// DecodeOrder parses what an orchestrator sends on a command socket after [Resumed]: a *[Command], whose Body shares b's
// memory, or a *[Forget].
func DecodeOrder(b []byte) (any, error) {
	if len(b) > 0 && b[0] == kindForget {
		return decodeForget(b)
	}
	c, err := DecodeCommand(b)
	return &c, err
}

func decodeForget(b []byte) (*Forget, error) {
	r := reader{b: b}
	r.kind(kindForget)
	if len(r.b) > 8*MaxOutstanding {
		return nil, fmt.Errorf("%w: more than %d commands are acknowledged", ErrFrame, MaxOutstanding)
	}
	m := &Forget{}
	for r.err == nil && len(r.b) > 0 {
		m.Seqs = append(m.Seqs, r.u64())
	}
	return m, r.err
}

func (o Origin) append(b []byte) []byte {
	b = append(b, o.Stream[:]...)
	return binary.BigEndian.AppendUint64(b, o.Number)
}

// Append renders the message after b.
func (m Resume) Append(b []byte) []byte {
	b = append(b, kindResume)
	b = binary.BigEndian.AppendUint64(b, m.Received)
	for _, k := range m.Kept {
		b = binary.BigEndian.AppendUint64(b, k.Seq)
		b = k.Origin.append(b)
	}
	return b
}

// DecodeResume parses what a host sends first on a command socket.
func DecodeResume(b []byte) (Resume, error) {
	r := reader{b: b}
	r.kind(kindResume)
	m := Resume{Received: r.u64()}
	for r.err == nil && len(r.b) > 0 {
		if len(m.Kept) == MaxOutstanding {
			return m, fmt.Errorf("%w: more than %d commands are kept", ErrFrame, MaxOutstanding)
		}
		m.Kept = append(m.Kept, Kept{Seq: r.u64(), Origin: r.origin()})
	}
	for last, i := uint64(0), 0; i < len(m.Kept) && r.err == nil; i++ {
		if seq := m.Kept[i].Seq; seq <= last || seq > m.Received {
			r.err = fmt.Errorf("%w: command %d is kept after %d, and %d were received", ErrFrame, seq, last, m.Received)
		}
		last = m.Kept[i].Seq
	}
	return m, r.err
}

// Append renders the message after b.
func (m Resumed) Append(b []byte) []byte {
	b = append(b, kindResumed)
	return binary.BigEndian.AppendUint64(b, m.Answered)
}

// DecodeResumed parses what an orchestrator sends first on a command socket.
func DecodeResumed(b []byte) (Resumed, error) {
	r := reader{b: b}
	r.kind(kindResumed)
	m := Resumed{Answered: r.u64()}
	r.nothing("a resumed")
	return m, r.err
}

// Append renders the answer after b.
func (a Answer) Append(b []byte) []byte {
	b = append(b, kindAnswer)
	b = binary.BigEndian.AppendUint64(b, a.Seq)
	b = append(b, byte(a.Outcome))
	b = binary.BigEndian.AppendUint16(b, uint16(a.Status))
	b = binary.BigEndian.AppendUint64(b, uint64(a.Took))
	return append(b, a.Body...)
}

// DecodeAnswer parses an answer; Body shares b's memory.
func DecodeAnswer(b []byte) (Answer, error) {
	r := reader{b: b}
	r.kind(kindAnswer)
	a := Answer{Seq: r.u64(), Outcome: Outcome(r.u8()), Status: int(r.u16()), Took: time.Duration(r.u63()), Body: nil}
	a.Body = r.b
	if r.err == nil && a.Outcome > OutcomeNotRun {
		r.err = fmt.Errorf("%w: outcome %d", ErrFrame, a.Outcome)
	}
	return a, r.err
}

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

// DecodeRecording parses what a host sends on a recording socket: a *Chunk whose checksum holds, or an *End.
// A chunk's Data shares b's memory.
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
			return nil, fmt.Errorf("%w: checksum of the chunk at %d does not hold", ErrFrame, c.Offset)
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

// reader takes fields off a frame and remembers the first error.
type reader struct {
	b   []byte
	err error
}

func (r *reader) bytes(n int) []byte {
	if r.err != nil {
		return nil
	}
	if len(r.b) < n {
		r.err = fmt.Errorf("%w: %d bytes missing", ErrFrame, n-len(r.b))
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) kind(want byte) {
	if got := r.u8(); r.err == nil && got != want {
		r.err = fmt.Errorf("%w: kind %d, want %d", ErrFrame, got, want)
	}
}

// nothing may be left after what.
func (r *reader) nothing(what string) {
	if r.err == nil && len(r.b) != 0 {
		r.err = fmt.Errorf("%w: %d bytes after %s", ErrFrame, len(r.b), what)
	}
}

func (r *reader) origin() Origin {
	var o Origin
	copy(o.Stream[:], r.bytes(len(o.Stream)))
	o.Number = r.u64()
	return o
}

func (r *reader) u8() byte {
	if v := r.bytes(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if v := r.bytes(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if v := r.bytes(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if v := r.bytes(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// u63 is a u64 that fits an int64.
func (r *reader) u63() uint64 {
	v := r.u64()
	if r.err == nil && v > 1<<63-1 {
		r.err = fmt.Errorf("%w: number above 2^63-1", ErrFrame)
		return 0
	}
	return v
}
