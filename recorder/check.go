package recorder

import (
	"bytes"
	"context"
	"fmt"
	"hash"
	"io"
)

// checkPart reads bytes from to to of the body of a recording that is not sealed, into h, and holds them against what was acknowledged: the frames that
// reach into it, whole, and the head. What is sent is read once more; the storage refuses it unless it is what went into h.
func (r *Recording) checkPart(ctx context.Context, from, to int64, h hash.Hash) (crc uint32, err error) {
	buf := make([]byte, 128<<10)
	read := func(at, end int64, f func([]byte)) error {
		for at < end {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			b := buf[:min(int64(len(buf)), end-at)]
			if _, err := r.spool.body.ReadAt(b, at); err == io.EOF {
				return fmt.Errorf("%w: the body ends before byte %d", errCorrupt, end)
			} else if err != nil {
				return err
			}
			f(b)
			if a, z := max(from-at, 0), min(to-at, int64(len(b))); a < z {
				_, _ = h.Write(b[a:z]) // a hash never fails
				crc = crcUpdate(crc, b[a:z])
			}
			at += int64(len(b))
		}
		return nil
	}
	if from < headSize {
		var slot, is []byte
		r.spool.look(func(p *progress) { slot = p.head.Slot })
		if err := read(0, headSize, func(b []byte) { is = append(is, b...) }); err != nil {
			return 0, err
		}
		if !bytes.Equal(is, slot) {
			return 0, fmt.Errorf("%w: the head is not the one that was written", errCorrupt)
		}
	}
	at := int64(headSize)
	err = r.spool.frames(from, func(begin int64, f frameRecord) error {
		if begin >= to {
			return errEnough
		}
		at = f.Size
		if f.Size <= from {
			return nil
		}
		var is uint32
		if err := read(begin, f.Size, func(b []byte) { is = crcUpdate(is, b) }); err != nil {
			return err
		}
		if is != f.CRC {
			return fmt.Errorf("%w: bytes %d to %d of the body are not the ones that were acknowledged", errCorrupt, begin, f.Size)
		}
		return nil
	})
	if err == nil && at < to {
		err = fmt.Errorf("recorder: a part up to byte %d, of which %d are on disk", to, at)
	}
	return crc, err
}
