package recorder

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// draining is how many parts of one sealed recording are in flight to one target; a live one sends one at a time.
const draining = 3

// errConflict says that another object has the key: nothing may be overwritten, so a person has to look.
var errConflict = errors.New("recorder: another object has the key of this recording")

// errStartOver says that an upload is gone: the next attempt begins a new one.
var errStartOver = errors.New("recorder: the upload is gone")

// errCut says that a part was no longer what had been acknowledged because the recording is being sealed: its head, or what follows its last cluster.
var errCut = errors.New("recorder: the recording is cut meanwhile")

// isCut says that the seal has begun to write: the log says so before it does.
func (r *Recording) isCut() (yes bool) {
	r.spool.look(func(p *progress) { yes = p.cut != nil })
	return yes
}

// carry brings one copy to a bucket: parts while it is recorded, the rest once it is sealed. It tries until it is done, ctx ends
// or nothing but a person can help (errConflict, errCorrupt).
//
// Bucket and spool meet in the log: a part is recorded when it is stored, so that a restart goes on after it.
func (r *Recording) carry(ctx context.Context, st *store) error {
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = r.owner.cfg.RetryMax
	log := r.log().With(zap.String("region", string(st.region)))
	if err := st.ready(ctx); err != nil {
		return err
	}
	for {
		begun := r.tally(st)
		err := r.attempt(ctx, st)
		switch {
		case err == nil, ctx.Err() != nil, errors.Is(err, errConflict), errors.Is(err, errCorrupt):
			return err
		case r.tally(st) != begun:
			pause.Reset() // it got somewhere
		}
		wait := pause.NextBackOff()
		if wait == backoff.Stop {
			wait = r.owner.cfg.RetryMax
		}
		log.Warn("upload of a recording failed, it is tried again", zap.Error(err), zap.Duration("in", wait))
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// tally counts what is stored of a copy.
func (r *Recording) tally(st *store) (n int) {
	r.spool.look(func(p *progress) { n = len(p.upload(st.region).parts) })
	return n
}

// view is what an attempt decides by.
type view struct {
	sealed   *sealedRecord
	uploadID string
	parts    map[int32]partRecord
	stored   bool
	ready    int64           // size of the body that may be sent while recording
	changed  <-chan struct{} // closed when any of it changes
}

func (r *Recording) view(st *store) (v view) {
	r.mu.Lock()
	v.ready, v.changed = r.ready, r.changed
	r.mu.Unlock()
	r.spool.look(func(p *progress) {
		u := p.upload(st.region)
		v.sealed, v.uploadID, v.stored = p.sealed, u.id, u.stored != nil
		v.parts = make(map[int32]partRecord, len(u.parts))
		for n, part := range u.parts {
			v.parts[n] = part
		}
	})
	return v
}

// attempt goes as far as it can without an error.
func (r *Recording) attempt(ctx context.Context, st *store) error {
	if err := r.settle(ctx, st); err != nil {
		return err
	}
	for {
		v := r.view(st)
		switch {
		case v.stored:
			return nil
		case v.sealed != nil && v.sealed.Empty:
			if v.uploadID == "" {
				return nil
			}
			return st.abort(ctx, r.spec.Key(), v.uploadID)
		case v.sealed != nil:
			return r.deliver(ctx, st, v)
		}
		next := int32(len(v.parts) + 1)
		if int64(next)*r.partSize > v.ready {
			select {
			case <-v.changed:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		id, err := r.ensureUpload(ctx, st, v)
		if err != nil {
			return err
		}
		err = r.sendPart(ctx, st, id, next, r.partSize, nil)
		for v := r.view(st); errors.Is(err, errCut) && v.sealed == nil; v = r.view(st) {
			select {
			case <-v.changed:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err != nil && !errors.Is(err, errCut) {
			return r.maybeStartOver(st, err)
		}
	}
}

func (r *Recording) ensureUpload(ctx context.Context, st *store, v view) (string, error) {
	if v.uploadID != "" {
		return v.uploadID, nil
	}
	r.unlogged(st, true)
	defer r.unlogged(st, false)
	id, err := st.create(ctx, r.spec.Key())
	if err != nil {
		return "", fmt.Errorf("begin an upload: %w", err)
	}
	return id, r.spool.append(record{Upload: &uploadRecord{Region: st.region, ID: id}}, true)
}

// sendPart sends part n of size bytes, once they are known to be what was acknowledged: want is the checksum that the sealed recording has, nil while
// it is recorded.
func (r *Recording) sendPart(ctx context.Context, st *store, uploadID string, n int32, size int64, want *uint32) error {
	select {
	case st.slots <- struct{}{}:
		defer func() { <-st.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	at := int64(n-1) * r.partSize
	body := io.NewSectionReader(r.spool.body, at, size)
	sum := sha256.New()
	var crc uint32
	var err error
	if want == nil {
		crc, err = r.checkPart(ctx, at, at+size, sum)
		if errors.Is(err, errCorrupt) && r.isCut() {
			return errCut
		}
	} else {
		crc, err = digestOf(ctx, body, sum)
	}
	if err != nil {
		return fmt.Errorf("read part %d: %w", n, err)
	}
	if want != nil && crc != *want {
		return fmt.Errorf("%w: part %d changed after the recording was sealed", errCorrupt, n)
	}
	etag, err := r.arrived(ctx, st, uploadID, n, body)
	if err == nil && etag == "" {
		etag, err = st.part(ctx, r.spec.Key(), uploadID, n, body, size, sum.Sum(nil))
	}
	if err != nil {
		return fmt.Errorf("send part %d: %w", n, err)
	}
	// Not on disk yet: should it be lost, the part is sent again.
	return r.spool.append(record{Part: &partRecord{Region: st.region, Number: n, Size: size, CRC: crc, ETag: etag}}, false)
}

// digestOf reads all of body into h, and leaves it at its start.
func digestOf(ctx context.Context, body *io.SectionReader, h hash.Hash) (crc uint32, err error) {
	buf := make([]byte, 128<<10)
	for {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		n, err := body.Read(buf)
		_, _ = h.Write(buf[:n])
		crc = crcUpdate(crc, buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, err
		}
	}
	_, err = body.Seek(0, io.SeekStart)
	return crc, err
}

// maybeStartOver forgets an upload that the storage has forgotten.
func (r *Recording) maybeStartOver(st *store, err error) error {
	if isCode(err, "NoSuchUpload") {
		err = fmt.Errorf("%w: %w", errStartOver, err)
		return errors.Join(err, r.spool.append(record{Upload: &uploadRecord{Region: st.region}}, true))
	}
	return err
}

// deliver puts the object of a sealed recording together and verifies it.
func (r *Recording) deliver(ctx context.Context, st *store, v view) error {
	if err := r.confirmed(ctx); err != nil {
		return err
	}
	r.markUploading()
	if v.sealed.Size <= r.partSize && v.uploadID == "" {
		return r.putWhole(ctx, st, v.sealed)
	}
	id, err := r.ensureUpload(ctx, st, v)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(draining)
	for i, crc := range v.sealed.Parts {
		n := int32(i + 1)
		size := min(r.partSize, v.sealed.Size-int64(i)*r.partSize)
		if have, ok := v.parts[n]; ok && have.CRC == crc && have.Size == size {
			continue // the first part never is: its head was provisional
		}
		g.Go(func() error { return r.sendPart(gctx, st, id, n, size, &crc) })
	}
	if err := g.Wait(); err != nil {
		if isCode(err, "NoSuchUpload") {
			// It may be gone because it was completed and the answer got lost.
			if etag, ok := r.expected(st, v.sealed); ok {
				if done, checkErr := r.matches(ctx, st, v.sealed.Size, etag); done || checkErr != nil {
					return errors.Join(checkErr, r.stored(st, etag, done))
				}
			}
		}
		return r.maybeStartOver(st, err)
	}
	return r.completeUpload(ctx, st, id, v.sealed)
}

func (r *Recording) putWhole(ctx context.Context, st *store, sealed *sealedRecord) error {
	body := io.NewSectionReader(r.spool.body, 0, sealed.Size)
	h := md5.New() // what the object's ETag has to be, should the answer get lost
	crc, err := digestOf(ctx, body, h)
	if err != nil {
		return fmt.Errorf("read the recording: %w", err)
	}
	if crc != sealed.Parts[0] {
		return fmt.Errorf("%w: the body changed after the recording was sealed", errCorrupt)
	}
	select {
	case st.slots <- struct{}{}:
		defer func() { <-st.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	sum := h.Sum(nil)
	putErr := st.put(ctx, r.spec.Key(), body, sealed.Size, sum)
	exists := isCode(putErr, "PreconditionFailed")
	if putErr != nil && !exists {
		return fmt.Errorf("send the recording: %w", putErr)
	}
	// Either it was just stored, or by an attempt whose answer got lost, or by somebody else.
	etag := hex.EncodeToString(sum)
	ok, err := r.matches(ctx, st, sealed.Size, etag)
	if err == nil && !ok {
		err = fmt.Errorf("%w: %s in %s", errConflict, r.spec.Key(), st.region)
	}
	if err != nil {
		return err
	}
	return r.stored(st, etag, true)
}

// expected gives the ETag of the whole.
func (r *Recording) expected(st *store, sealed *sealedRecord) (etag string, ok bool) {
	etag, err := joinedETag(r.etags(st, sealed))
	return etag, err == nil
}

func (r *Recording) etags(st *store, sealed *sealedRecord) []string {
	v := r.view(st)
	etags := make([]string, len(sealed.Parts))
	for i, crc := range sealed.Parts {
		if p := v.parts[int32(i+1)]; p.CRC == crc {
			etags[i] = p.ETag
		}
	}
	return etags
}

func (r *Recording) completeUpload(ctx context.Context, st *store, id string, sealed *sealedRecord) error {
	want, ok := r.expected(st, sealed)
	if !ok {
		return fmt.Errorf("%w: log: a part of the upload is missing", errStartOver)
	}
	if err := r.spool.sync(); err != nil { // whoever comes after us must be able to tell the object by its parts
		return err
	}
	err := st.complete(ctx, r.spec.Key(), id, r.etags(st, sealed))
	if err != nil && !isCode(err, "NoSuchUpload", "InvalidPart", "InvalidPartOrder", "EntityTooSmall") {
		return fmt.Errorf("complete the upload: %w", err)
	}
	// An error may also mean that an earlier attempt did it and its answer got lost: what is there decides.
	done, checkErr := r.matches(ctx, st, sealed.Size, want)
	if checkErr != nil {
		return checkErr
	}
	if done {
		return r.stored(st, want, true)
	}
	if err == nil {
		err = errors.New("what is stored is not what was sent")
	}
	_ = st.abort(ctx, r.spec.Key(), id) // of no use any more; the storage drops it by itself after a week
	return errors.Join(fmt.Errorf("%w: %w", errStartOver, err), r.spool.append(record{Upload: &uploadRecord{Region: st.region}}, true))
}

// matches reads back size and ETag of the object.
func (r *Recording) matches(ctx context.Context, st *store, size int64, etag string) (bool, error) {
	gotSize, gotETag, found, err := st.head(ctx, r.spec.Key())
	if err != nil {
		return false, fmt.Errorf("verify the object: %w", err)
	}
	return found && gotSize == size && gotETag == etag, nil
}

// stored records a verified copy.
func (r *Recording) stored(st *store, etag string, done bool) error {
	if !done {
		return nil
	}
	if err := r.spool.append(record{Stored: &storedRecord{Region: st.region, ETag: etag, At: r.owner.cfg.Now().UTC()}}, true); err != nil {
		return err
	}
	r.note()
	return nil
}
