package recorder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// ErrNotLive says that no recording of the session is being made here.
var ErrNotLive = errors.New("recorder: no recording of the session is being made here")

// Live reads a recording as it is made: the head, with which a decoder begins, then whole clusters. It reads the spool by a file of its own, and holds
// nothing and nobody up. For one goroutine; Close it in the end.
type Live struct {
	rec    *Recording
	body   *os.File
	head   []byte // what is left of it; nil until it is known
	latest bool   // begin with the newest clusters
	at     int64  // byte of the body that is next; 0 until the head is known
}

// Live opens the recording of a session that is being made here; latest leaves out all but what came last. ErrNotLive.
func (r *Recorder) Live(session string, latest bool) (*Live, error) {
	var rec *Recording
	r.mu.Lock()
	for _, a := range r.active {
		if a.spec.Session == session && !a.recovered && (rec == nil || a.spec.Term > rec.spec.Term) {
			rec = a
		}
	}
	r.mu.Unlock()
	if rec == nil || rec.isSealed() {
		return nil, ErrNotLive
	}
	body, err := os.Open(filepath.Join(rec.spool.dir, bodyName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotLive // it has just gone
	}
	if err != nil {
		return nil, fmt.Errorf("recorder: live: %w", err)
	}
	return &Live{rec: rec, body: body, latest: latest}, nil
}

// Read waits for bytes; each was acknowledged, and on disk, before. io.EOF: the recording has ended, or goes on elsewhere.
func (l *Live) Read(ctx context.Context, b []byte) (int, error) {
	for {
		limit, over, changed := l.limit()
		switch {
		case len(l.head) > 0:
			n := copy(b, l.head)
			l.head = l.head[n:]
			return n, nil
		case l.at > 0 && l.at < limit:
			n, err := l.body.ReadAt(b[:min(int64(len(b)), limit-l.at)], l.at)
			l.at += int64(n)
			if n > 0 {
				return n, nil
			}
			return 0, fmt.Errorf("recorder: live: %w", err)
		case over:
			return 0, io.EOF
		}
		select {
		case <-changed:
		case <-l.rec.done: // the next look finds it so
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// limit is the end of what may be read now; over says that nothing follows.
func (l *Live) limit() (limit int64, over bool, changed <-chan struct{}) {
	r := l.rec
	select {
	case <-r.done:
		over = true
	default:
	}
	r.mu.Lock()
	newest := r.newest
	limit, changed = r.ready, r.changed
	over = over || r.left || r.condemned != nil
	r.mu.Unlock()
	r.spool.look(func(p *progress) {
		if l.at == 0 && p.head != nil && limit > 0 {
			l.head, l.at = p.head.Slot, headSize
			if l.latest {
				l.at = max(l.at, newest)
			}
		}
		switch {
		case p.sealed != nil && p.sealed.Empty:
			limit, over = 0, true
		case p.sealed != nil: // what follows is its index
			limit, over = p.cut.Size, true
			if l.at == 0 && p.head != nil {
				l.head, l.at = p.head.Slot, headSize
			}
		}
	})
	return limit, over, changed
}

// Close lets go of the file.
func (l *Live) Close() error { return l.body.Close() }
