package profilestate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/driftstack/fleet/orchestrator/place"
)

const (
	headerSize    = 208
	formatVersion = 2
	maxID         = 64
	regionSize    = 8
	magic         = "DSPROFIL"
)

// header is the fixed head of a sealed file; the package comment draws it.
type header struct {
	region     place.Region
	ref        Ref
	generation int64
	epoch      uint32
	term       int64
	previous   Digest
}

// marshal is total for values that passed Ref.check.
func (h header) marshal() []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	binary.BigEndian.PutUint16(b[8:], formatVersion)
	binary.BigEndian.PutUint16(b[10:], headerSize)
	copy(b[12:20], h.region)
	b[20] = byte(len(h.ref.Account))
	copy(b[21:85], h.ref.Account)
	b[85] = byte(len(h.ref.Profile))
	copy(b[86:150], h.ref.Profile)
	binary.BigEndian.PutUint64(b[150:], uint64(h.generation))
	binary.BigEndian.PutUint32(b[158:], h.epoch)
	binary.BigEndian.PutUint64(b[162:], uint64(h.term))
	copy(b[170:202], h.previous[:])
	return b
}

// parseHeader accepts exactly what marshal writes. What it returns is not authentic until the body has been opened.
func parseHeader(b []byte) (header, error) {
	if len(b) < headerSize {
		return header{}, errors.New("the file is shorter than its header")
	}
	b = b[:headerSize]
	if string(b[:8]) != magic {
		return header{}, errors.New("the file is not a sealed profile")
	}
	if v := binary.BigEndian.Uint16(b[8:]); v != formatVersion {
		return header{}, fmt.Errorf("the file has format version %d and this program reads %d", v, formatVersion)
	}
	h := header{
		region:     place.Region(bytes.TrimRight(b[12:20], "\x00")),
		ref:        Ref{Account: padded(b[20:85]), Profile: padded(b[85:150])},
		generation: int64(binary.BigEndian.Uint64(b[150:])),
		epoch:      binary.BigEndian.Uint32(b[158:]),
		term:       int64(binary.BigEndian.Uint64(b[162:])),
		previous:   Digest(b[170:202]),
	}
	if err := h.ref.check(); err != nil || h.generation < 1 || h.term < 0 {
		return header{}, errors.New("the file's header is not well formed")
	}
	if !bytes.Equal(h.marshal(), b) {
		return header{}, errors.New("the file's header is not well formed")
	}
	return h, nil
}

func padded(b []byte) string {
	n := min(int(b[0]), len(b)-1)
	return string(b[1 : 1+n])
}
