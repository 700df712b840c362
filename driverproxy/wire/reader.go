package wire

import (
	"encoding/binary"
	"fmt"
)

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
