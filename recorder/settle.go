package recorder

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"io"
)

// shelf is what this process knows of one copy beside the log. Guarded by Recording.mu.
type shelf struct {
	settled  bool                // settle is done
	unlogged bool                // an upload is being begun: the storage may have it already, the log has not
	upload   string              // the upload that was looked at by settle
	parts    map[int32]foundPart // what it had
}

func (r *Recording) shelf(st *store, f func(*shelf)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.shelves[st.region]
	if s == nil {
		s = &shelf{settled: !r.recovered}
		r.shelves[st.region] = s
	}
	f(s)
}

func (r *Recording) unlogged(st *store, yes bool) {
	r.shelf(st, func(s *shelf) { s.unlogged = yes })
}

// arrived is the ETag of a part that is among those that settle found, "" when it is not. The storage's is an MD5, which is computed for one of its size alone.
func (r *Recording) arrived(ctx context.Context, st *store, uploadID string, n int32, body *io.SectionReader) (etag string, err error) {
	var found foundPart
	r.shelf(st, func(s *shelf) {
		if s.upload == uploadID {
			found = s.parts[n]
		}
	})
	if found.size != body.Size() {
		return "", nil
	}
	sum := md5.New()
	if _, err := digestOf(ctx, body, sum); err != nil || hex.EncodeToString(sum.Sum(nil)) != found.etag {
		return "", err
	}
	return found.etag, nil
}

// holds says whether an upload is this recording's, or may be.
func (r *Recording) holds(st *store, uploadID string) (yes bool) {
	r.shelf(st, func(s *shelf) { yes = s.unlogged || !s.settled })
	if yes {
		return true
	}
	r.spool.look(func(p *progress) { yes = p.upload(st.region).id == uploadID })
	return yes
}

// settle compares the log of an earlier process with the storage, once: that process may have died before it logged the upload it had begun, or a
// part that had arrived. What the storage has is not sent again, what it has not is.
func (r *Recording) settle(ctx context.Context, st *store) error {
	settled := false
	r.shelf(st, func(s *shelf) { settled = s.settled })
	if settled {
		return nil
	}
	v := r.view(st)
	id := v.uploadID
	var found map[int32]foundPart
	if large := v.sealed != nil && v.sealed.Size > r.partSize; large && !v.stored && !r.mayBeComplete(st, v) {
		if id == "" {
			u, err := st.newestUpload(ctx, r.spec.Key())
			if err != nil {
				return err
			}
			id = u.id
		}
		if id != "" {
			// One that is gone was completed, or is begun anew: whoever uses it next finds out which.
			var err error
			if found, err = st.parts(ctx, r.spec.Key(), id); err == nil {
				err = r.rewrite(st, v, id, found)
			}
			if err != nil && !isCode(err, "NoSuchUpload") {
				return err
			}
		}
	}
	r.shelf(st, func(s *shelf) { s.settled, s.upload, s.parts = true, id, found })
	return nil
}

// mayBeComplete says that the log has every part of an upload. Complete may have been sent, and may be going on: it says whether they are there, and
// by their ETags the object is known.
func (r *Recording) mayBeComplete(st *store, v view) bool {
	_, all := r.expected(st, v.sealed)
	return v.uploadID != "" && all
}

// rewrite has the log say what the storage has.
func (r *Recording) rewrite(st *store, v view, id string, found map[int32]foundPart) error {
	var both []partRecord
	for n, p := range v.parts {
		if (foundPart{p.Size, p.ETag}) == found[n] {
			both = append(both, p)
		}
	}
	if id == v.uploadID && len(both) == len(v.parts) {
		return nil
	}
	if err := r.spool.append(record{Upload: &uploadRecord{Region: st.region, ID: id}}, true); err != nil {
		return err
	}
	for _, p := range both {
		if err := r.spool.append(record{Part: &p}, true); err != nil {
			return err
		}
	}
	return nil
}
