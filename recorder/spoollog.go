package recorder

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/recorder/webm"
)

// record is one entry of a spool's log: exactly one field is set. Stored, so fields are only ever added.
type record struct {
	Spec   *specRecord   `json:"spec,omitempty"`   // first
	Head   *headRecord   `json:"head,omitempty"`   // the stream reached its first cluster
	Frame  *frameRecord  `json:"frame,omitempty"`  // bytes are on disk
	Ended  *endedRecord  `json:"ended,omitempty"`  // the host said that this is all
	Cut    *cutRecord    `json:"cut,omitempty"`    // sealing begins: from now on bytes after Size are not the received ones
	Sealed *sealedRecord `json:"sealed,omitempty"` // the body is final
	Upload *uploadRecord `json:"upload,omitempty"` // a multipart upload was begun; it replaces an earlier one of the region
	Part   *partRecord   `json:"part,omitempty"`   // a part is stored
	Stored *storedRecord `json:"stored,omitempty"` // the object is verified
}

type specRecord struct {
	Spec     Spec  `json:"spec"`
	PartSize int64 `json:"part_size"`
}

type headRecord struct {
	Start int64  `json:"start"` // byte of the stream that is byte HeadSize of the body
	Slot  []byte `json:"slot"`  // the live head
}

type frameRecord struct {
	Size int64  `json:"size"` // of the body, once this is on disk
	CRC  uint32 `json:"crc"`  // of what was added since the frame before
}

type endedRecord struct {
	Cause Cause `json:"cause,omitempty"`
}

type cutRecord struct {
	Size  int64 `json:"size"` // of the body, without an index
	Cause Cause `json:"cause,omitempty"`
}

type sealedRecord struct {
	Empty    bool          `json:"empty,omitempty"`
	Size     int64         `json:"size"`
	Duration time.Duration `json:"duration_ns"`
	SHA256   string        `json:"sha256"`
	Cause    Cause         `json:"cause,omitempty"`
	Parts    []uint32      `json:"parts"` // checksum of each part
}

type uploadRecord struct {
	Region place.Region `json:"region"`
	ID     string       `json:"id"` // "": there is none any more
}

type partRecord struct {
	Region place.Region `json:"region"`
	Number int32        `json:"number"`
	Size   int64        `json:"size"`
	CRC    uint32       `json:"crc"`
	ETag   string       `json:"etag"`
}

type storedRecord struct {
	Region place.Region `json:"region"`
	ETag   string       `json:"etag"`
	At     time.Time    `json:"at"`
}

// A frame of the log:
//
//	length:u32 crc(length):u32 crc(payload):u32 payload
//
// Big-endian, Castagnoli. The length has a checksum of its own so that a flipped bit in it is not taken for a torn end.
const (
	headSize = webm.HeadSize

	frameHeader = 12
	maxRecord   = 1 << 20
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	// errCorrupt is wrapped by every error that says that a spool is not what was written to it.
	errCorrupt = errors.New("recorder: spool is corrupt")
)

func encodeRecord(r record) ([]byte, error) {
	payload, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("recorder: encode a log record: %w", err)
	}
	if len(payload) > maxRecord {
		return nil, fmt.Errorf("recorder: log record of %d bytes", len(payload))
	}
	return frameOf(payload), nil
}

func frameOf(payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, frameHeader+len(payload)), uint32(len(payload)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b[:4], castagnoli))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(payload, castagnoli))
	return append(b, payload...)
}

// readLog calls f for each record and gives the length of what is whole. A torn end (the process or the machine died while
// writing) is no error; anything else that does not read back is errCorrupt.
func readLog(r io.Reader, f func(record) error) (whole int64, err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	var buf []byte
	for {
		var h [frameHeader]byte
		n, err := io.ReadFull(br, h[:])
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			return whole, nil
		}
		if err != nil {
			return whole, fmt.Errorf("recorder: read the log: %w", err)
		}
		length := binary.BigEndian.Uint32(h[:4])
		if crc32.Checksum(h[:4], castagnoli) != binary.BigEndian.Uint32(h[4:]) || length == 0 || length > maxRecord {
			if onlyZeros(h[:n], br) { // a file system may lengthen a file before it writes the bytes
				return whole, nil
			}
			return whole, fmt.Errorf("%w: log at byte %d", errCorrupt, whole)
		}
		if cap(buf) < int(length) {
			buf = make([]byte, length)
		}
		buf = buf[:length]
		if _, err := io.ReadFull(br, buf); err != nil {
			if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
				return whole, nil
			}
			return whole, fmt.Errorf("recorder: read the log: %w", err)
		}
		if crc32.Checksum(buf, castagnoli) != binary.BigEndian.Uint32(h[8:]) {
			if _, err := br.Peek(1); err == io.EOF {
				return whole, nil // the last one: torn
			}
			return whole, fmt.Errorf("%w: log record at byte %d", errCorrupt, whole)
		}
		var rec record
		if err := json.Unmarshal(buf, &rec); err != nil {
			return whole, fmt.Errorf("%w: log record at byte %d: %v", errCorrupt, whole, err)
		}
		if err := f(rec); err != nil {
			return whole, err
		}
		whole += frameHeader + int64(length)
	}
}

func onlyZeros(b []byte, r io.Reader) bool {
	buf := make([]byte, 4096)
	for {
		for _, c := range b {
			if c != 0 {
				return false
			}
		}
		n, err := r.Read(buf)
		if err != nil && n == 0 {
			return err == io.EOF
		}
		b = buf[:n]
	}
}

// progress is what a log says, all records together.
type progress struct {
	spec    *specRecord
	head    *headRecord
	framed  int64 // size of the body that frames cover
	ended   *endedRecord
	cut     *cutRecord
	sealed  *sealedRecord
	uploads map[place.Region]*upload
}

// upload is what is known of one copy.
type upload struct {
	id     string
	parts  map[int32]partRecord
	stored *storedRecord
}

func (p *progress) upload(r place.Region) *upload {
	if p.uploads == nil {
		p.uploads = map[place.Region]*upload{}
	}
	u := p.uploads[r]
	if u == nil {
		u = &upload{parts: map[int32]partRecord{}}
		p.uploads[r] = u
	}
	return u
}

// apply adds a record, or says why it cannot follow those before.
func (p *progress) apply(r record) error {
	bad := func(what string) error { return fmt.Errorf("%w: log: %s", errCorrupt, what) }
	if (p.spec == nil) != (r.Spec != nil) {
		return bad("the first record, and no other, is the spec")
	}
	switch {
	case r.Spec != nil:
		if err := r.Spec.Spec.validate(); err != nil {
			return bad(err.Error())
		}
		if r.Spec.PartSize < minPartSize || r.Spec.PartSize > maxPartSize {
			return bad("part size out of range")
		}
		p.spec = r.Spec
	case r.Head != nil:
		if p.head != nil || r.Head.Start <= 0 || len(r.Head.Slot) != headSize {
			return bad("impossible head")
		}
		p.head, p.framed = r.Head, headSize
	case r.Frame != nil:
		if p.head == nil || p.cut != nil || r.Frame.Size <= p.framed {
			return bad("impossible frame")
		}
		p.framed = r.Frame.Size
	case r.Ended != nil:
		p.ended = r.Ended
	case r.Cut != nil:
		if p.head == nil || r.Cut.Size < headSize {
			return bad("impossible cut")
		}
		p.cut = r.Cut
	case r.Sealed != nil:
		if p.sealed != nil || !r.Sealed.Empty && (p.cut == nil || r.Sealed.Size < p.cut.Size || int64(len(r.Sealed.Parts)) != partCount(r.Sealed.Size, p.spec.PartSize)) {
			return bad("impossible seal")
		}
		p.sealed = r.Sealed
	case r.Upload != nil:
		u := p.upload(r.Upload.Region)
		u.id, u.parts = r.Upload.ID, map[int32]partRecord{}
	case r.Part != nil:
		if r.Part.Number < 1 || r.Part.Number > maxParts {
			return bad("impossible part")
		}
		p.upload(r.Part.Region).parts[r.Part.Number] = *r.Part
	case r.Stored != nil:
		p.upload(r.Stored.Region).stored = r.Stored
	default:
		return bad("empty record")
	}
	return nil
}

func partCount(size, partSize int64) int64 { return (size + partSize - 1) / partSize }
