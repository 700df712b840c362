// Package bulk reads the bodies of commands and answers, which may be 128 MiB long, so that each is in memory once.
//
// [bytes.Buffer] and [io.ReadAll] grow what they read into and copy it over and over: a body of 100 MiB leaves two to five
// times its size behind for a while. Where the sender says how long the body will be, Read makes room for it, but never for
// more than [growth] times of what has come already: who announces much and sends little costs little.
//
// Out of scope: where a body comes from, and what it means.
package bulk

import (
	"errors"
	"io"
)

// ErrTooLong means that a body is longer than its reader wants.
var ErrTooLong = errors.New("bulk: longer than the limit")

const (
	smallest = 512      // room for a body of unknown length; most commands and answers fit
	trusted  = 64 << 10 // room that is made for an announced length at once
	growth   = 16       // what an announcement may multiply what has come with
	segment  = 8 << 20  // longest piece of a body of unknown length
)

// Read reads r to its end. size is what the sender says the length is; 0 or less: it does not say. A sender that is wrong
// about it is read all the same. The peak is 17/16 of the length where size is right, and twice the length where there is
// none. [ErrTooLong] after more than most bytes; any other error is r's.
func Read(r io.Reader, size, most int64) ([]byte, error) {
	want := int(min(size, most)) + 1 // one more, so that the end is seen without another piece of memory
	b := make([]byte, 0, room(want))
	var before [][]byte // of a body that is longer than announced, in pieces that are not copied until the end
	total := 0
	for {
		n, err := r.Read(b[len(b):cap(b)])
		b, total = b[:len(b)+n], total+n
		switch {
		case int64(total) > most:
			return nil, ErrTooLong
		case errors.Is(err, io.EOF):
			return join(before, b, total), nil
		case err != nil:
			return nil, err
		case len(b) < cap(b):
		case total < want:
			b = append(make([]byte, 0, min(want, growth*cap(b))), b...)
		default:
			before = append(before, b)
			b = make([]byte, 0, min(total, segment))
		}
	}
}

// room is what is made for a start: the announced length divided by growth until it can be trusted, so that the last
// step ends at it exactly.
func room(want int) int {
	if want <= 1 {
		return smallest
	}
	for want > trusted {
		want = (want + growth - 1) / growth
	}
	return want
}

func join(before [][]byte, last []byte, total int) []byte {
	if len(before) == 0 {
		return last
	}
	whole := make([]byte, 0, total)
	for _, b := range before {
		whole = append(whole, b...)
	}
	return append(whole, last...)
}
