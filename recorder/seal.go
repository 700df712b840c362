package recorder

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/recorder/webm"
)

// Sealed is what a recording came to.
type Sealed struct {
	Bytes    int64         // of the whole object; 0 when Empty
	Duration time.Duration // end of the last frame
	SHA256   string        // lower-case hex, of the whole object
	Partial  bool          // something is missing at the end, or the index is
	Empty    bool          // not one frame arrived: there is no object
	Cause    Cause         // why it is partial or empty
}

func crcUpdate(crc uint32, b []byte) uint32 { return crc32.Update(crc, castagnoli, b) }

// Seal makes the local file final: cut to its last complete cluster, index appended, head patched. It ends an Ingest that
// still runs: what has not arrived by then is missing. The upload goes on in the background whatever becomes of the
// caller. Safe to repeat.
//
// An error means that it could not be done now (full volume, ctx ended): nothing is lost, and the Recorder tries it again
// in the background until it succeeds, as does the next Open. A spool that turns out to be corrupt is quarantined.
func (r *Recording) Seal(ctx context.Context) (Sealed, error) {
	r.mu.Lock()
	r.wantSeal = true
	if r.endIngest != nil {
		r.endIngest(fmt.Errorf("%w while it arrived", ErrSealed))
	}
	r.wakeLocked()
	r.mu.Unlock()
	return r.trySeal(ctx)
}

func (r *Recording) trySeal(ctx context.Context) (Sealed, error) {
	if err := r.enter(ctx); err != nil {
		return Sealed{}, err
	}
	defer r.leave()
	if r.recovered {
		return Sealed{}, ErrSealed
	}
	if s, ok := r.sealed(); ok {
		return s, nil
	}
	if err := r.whyAside(); err != nil {
		return Sealed{}, fmt.Errorf("recorder: seal: %w", err)
	}
	in := &r.in
	if in.broken != nil {
		// What a failed write left behind is unknown: look at what is really there.
		return r.sealFromDisk(ctx, in.cause)
	}
	cause := in.cause
	r.spool.look(func(p *progress) {
		switch {
		case p.ended != nil:
			cause = p.ended.Cause
		case cause == CauseNone:
			cause = CauseLost // nobody ever sent anything
		}
	})
	ix, ok := in.scanner.Index()
	if !ok || in.start == 0 {
		return r.sealEmpty(ctx, cause)
	}
	return r.seal(ctx, ix, headSize-in.start, cause)
}

// whyAside is why a recording was put aside.
func (r *Recording) whyAside() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.aside {
		return r.condemned
	}
	return nil
}

// sealFromDisk seals by reading the body: after a crash, or when memory and disk may differ.
func (r *Recording) sealFromDisk(ctx context.Context, cause Cause) (Sealed, error) {
	var at progress
	r.spool.look(func(p *progress) { at = *p })
	switch {
	case at.cut != nil:
		cause = at.cut.Cause // as it was decided
	case at.ended != nil:
		cause = at.ended.Cause
	}
	if at.head == nil {
		return r.sealEmpty(ctx, cause)
	}
	size, err := r.spool.body.Size()
	if err != nil {
		return Sealed{}, fmt.Errorf("recorder: seal: %w", err)
	}
	// What follows the last frame of the log was never acknowledged and may be anything.
	size = min(size, at.framed)
	if at.cut != nil {
		size = min(size, at.cut.Size)
	}
	if size < headSize {
		size = headSize // the slot is rebuilt from the log
	}
	// The slot may be torn; the log has the head as well.
	body := io.NewSectionReader(r.spool.body, headSize, size-headSize)
	scanner, err := webm.Scan(io.MultiReader(bytes.NewReader(at.head.Slot), withContext(ctx, body)))
	if ctx.Err() != nil {
		return Sealed{}, fmt.Errorf("recorder: seal: %w", context.Cause(ctx))
	}
	if err != nil && !errors.Is(err, webm.ErrFormat) {
		return Sealed{}, fmt.Errorf("recorder: seal: %w", err)
	}
	ix, ok := scanner.Index()
	if !ok {
		return r.sealEmpty(ctx, cause)
	}
	if cause == CauseNone && at.cut == nil && !scanner.Whole() {
		cause = CauseCrash
	}
	return r.seal(ctx, ix, 0, cause)
}

func (r *Recording) sealEmpty(ctx context.Context, cause Cause) (Sealed, error) {
	// Nothing may look like nothing because it is damaged.
	if err := r.checkBody(ctx, headSize, &digest{whole: sha256.New(), partSize: r.partSize}); err != nil {
		if errors.Is(err, errCorrupt) {
			r.condemn(err)
		}
		return Sealed{}, fmt.Errorf("recorder: seal: %w", err)
	}
	if cause == CauseNone {
		cause = CauseEncoder
	}
	r.spool.dropBallast()
	if err := r.spool.append(record{Sealed: &sealedRecord{Empty: true, Cause: cause}}, true); err != nil {
		return Sealed{}, fmt.Errorf("recorder: seal: %w", err)
	}
	r.note()
	s, _ := r.sealed()
	return s, nil
}

// seal finishes the file; shift is what to add to a byte of ix to get one of the body.
func (r *Recording) seal(ctx context.Context, ix webm.Index, shift int64, cause Cause) (Sealed, error) {
	if ix.Frames == 0 {
		return r.sealEmpty(ctx, cause)
	}
	r.spool.dropBallast()
	cut := ix.End + shift
	final, err := r.finalBytes(ctx, ix, shift, cut)
	if err != nil {
		if errors.Is(err, errCorrupt) {
			r.condemn(err)
		}
		return Sealed{}, fmt.Errorf("recorder: seal: %w", err)
	}
	if err := r.finish(ctx, &final, ix, cut, cause); err != nil {
		return Sealed{}, fmt.Errorf("recorder: seal: %w", err)
	}
	r.note()
	s, _ := r.sealed()
	return s, nil
}

// finalBytes works out head and index, and reads the body once: to hold it against the checksums of what was acknowledged and to
// hash the file that is about to be.
func (r *Recording) finalBytes(ctx context.Context, ix webm.Index, shift, cut int64) (final, error) {
	cues := ix.AppendCues(nil, shift)
	f := final{cues: cues, size: cut + int64(len(cues))}
	at := cut
	if len(cues) == 0 {
		at = 0
	}
	var err error
	if f.head, err = ix.Head.Final(at, f.size, ix.Duration); err != nil {
		return final{}, err
	}
	digest := &digest{whole: sha256.New(), partSize: r.partSize}
	digest.add(f.head)
	if err := r.checkBody(ctx, cut, digest); err != nil {
		return final{}, err
	}
	digest.add(cues)
	f.sha, f.parts = hex.EncodeToString(digest.whole.Sum(nil)), digest.close()
	return f, nil
}

// final is what a finished file has that the body has not.
type final struct {
	head, cues []byte
	size       int64
	sha        string
	parts      []uint32
}

// checkBody reads the body after its slot, up to cut into digest, and fails with errCorrupt when it is not what was acknowledged.
func (r *Recording) checkBody(ctx context.Context, cut int64, digest *digest) error {
	var cutBefore bool // an earlier seal got as far as cutting: after that byte there is something else
	r.spool.look(func(p *progress) { cutBefore = p.cut != nil })
	buf := make([]byte, 256<<10)
	pos := int64(headSize)
	read := func(end int64) (crc uint32, err error) {
		for pos < end {
			if ctx.Err() != nil {
				return 0, context.Cause(ctx)
			}
			n := min(int64(len(buf)), end-pos)
			if pos < cut {
				n = min(n, cut-pos)
			}
			if _, err := r.spool.body.ReadAt(buf[:n], pos); err != nil {
				if err == io.EOF {
					return 0, fmt.Errorf("%w: the body ends before byte %d", errCorrupt, pos+n)
				}
				return 0, err
			}
			crc = crcUpdate(crc, buf[:n])
			if pos < cut {
				digest.add(buf[:n])
			}
			pos += n
		}
		return crc, nil
	}
	err := r.spool.frames(0, func(_ int64, f frameRecord) error {
		if cutBefore && f.Size > cut {
			return nil
		}
		from := pos
		crc, err := read(f.Size)
		if err == nil && crc != f.CRC {
			err = fmt.Errorf("%w: bytes %d to %d of the body are not the ones that were acknowledged", errCorrupt, from, f.Size)
		}
		return err
	})
	if err != nil {
		return err
	}
	_, err = read(cut)
	return err
}

// finish writes what finalBytes worked out. When the volume has no room for the index the file does without.
func (r *Recording) finish(ctx context.Context, f *final, ix webm.Index, cut int64, cause Cause) error {
	body := r.spool.body
	if err := r.spool.append(record{Cut: &cutRecord{Size: cut, Cause: cause}}, true); err != nil {
		return err
	}
	if err := body.Truncate(cut); err != nil {
		return err
	}
	if _, err := body.WriteAt(f.cues, cut); err != nil {
		r.log().Warn("no room for the index of a recording", zap.Error(err))
		if cause == CauseNone {
			cause = CauseSpool
		}
		if err := body.Truncate(cut); err != nil {
			return err
		}
		ix.Cues = nil
		if *f, err = r.finalBytes(ctx, ix, 0, cut); err != nil {
			return err
		}
	}
	if err := body.Sync(); err != nil {
		return err
	}
	if _, err := body.WriteAt(f.head, 0); err != nil {
		return err
	}
	if err := body.Sync(); err != nil {
		return err
	}
	return r.spool.append(record{Sealed: &sealedRecord{
		Size: f.size, Duration: ix.Duration, SHA256: f.sha, Cause: cause, Parts: f.parts,
	}}, true)
}

// sealed gives the result once there is one.
func (r *Recording) sealed() (s Sealed, ok bool) {
	r.spool.look(func(p *progress) {
		if p.sealed == nil {
			return
		}
		ok = true
		s = Sealed{Bytes: p.sealed.Size, Duration: p.sealed.Duration, SHA256: p.sealed.SHA256, Cause: p.sealed.Cause,
			Empty: p.sealed.Empty, Partial: p.sealed.Cause != CauseNone}
	})
	return s, ok
}

func (r *Recording) isSealed() bool {
	_, ok := r.sealed()
	return ok
}

// digest hashes a file as a whole and in parts.
type digest struct {
	whole    hash.Hash
	partSize int64
	crc      uint32
	inPart   int64
	parts    []uint32
}

func (d *digest) add(b []byte) {
	_, _ = d.whole.Write(b) // a hash never fails
	for len(b) > 0 {
		n := min(int64(len(b)), d.partSize-d.inPart)
		d.crc = crcUpdate(d.crc, b[:n])
		if d.inPart += n; d.inPart == d.partSize {
			d.parts, d.crc, d.inPart = append(d.parts, d.crc), 0, 0
		}
		b = b[n:]
	}
}

func (d *digest) close() []uint32 {
	if d.inPart > 0 {
		d.parts = append(d.parts, d.crc)
	}
	return d.parts
}

// withContext ends a read when ctx does.
func withContext(ctx context.Context, r io.Reader) io.Reader {
	return readerFunc(func(b []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return r.Read(b)
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
