package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
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
