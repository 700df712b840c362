package lanes

import (
	"cmp"
	"slices"
)

// frame is an encoded chunk that is not acknowledged.
type frame struct {
	message     []byte
	offset, end int64
	cost        int64
	lane        *lane // that carries it; nil: it waits to be sent
	held        bool  // the other end has it
}

// queue holds what is not acknowledged. Its user bounds cost.
type queue struct {
	frames  []*frame // by offset
	fresh   int      // of frames: the first that was never sent
	again   []*frame // by offset: sent over a lane that broke
	cost    int64    // of frames
	waiting int64    // cost of what waits to be sent
	acked   int64
}

func (q *queue) add(f *frame) {
	q.frames = append(q.frames, f)
	q.cost += f.cost
	q.waiting += f.cost
}

// take gives the oldest frame that waits, nil if none does.
func (q *queue) take() *frame {
	var f *frame
	switch {
	case len(q.again) > 0:
		f, q.again = q.again[0], q.again[1:]
	case q.fresh < len(q.frames):
		f = q.frames[q.fresh]
		q.fresh++
	default:
		return nil
	}
	q.waiting -= f.cost
	return f
}

// takeBack makes what a lane carried wait again.
func (q *queue) takeBack(l *lane) {
	for _, f := range q.frames[:q.fresh] {
		if f.lane != l {
			continue
		}
		f.lane = nil
		if !f.held {
			q.again = append(q.again, f)
			q.waiting += f.cost
		}
	}
	slices.SortFunc(q.again, func(a, b *frame) int { return cmp.Compare(a.offset, b.offset) })
}

// acknowledge forgets what is before offset; false: that was known.
func (q *queue) acknowledge(offset int64) bool {
	if offset <= q.acked {
		return false
	}
	q.acked = offset
	n := 0
	for n < len(q.frames) && q.frames[n].end <= offset {
		f := q.frames[n]
		q.cost -= f.cost
		switch {
		case f.held:
		case f.lane != nil:
			f.lane.flight -= f.cost
		default:
			q.waiting -= f.cost
		}
		q.frames[n] = nil
		n++
	}
	q.frames, q.fresh = q.frames[n:], max(0, q.fresh-n)
	q.again = slices.DeleteFunc(q.again, func(f *frame) bool { return f.end <= offset })
	return true
}

// hold notes that the other end has the chunk at offset.
func (q *queue) hold(offset int64) {
	i, found := slices.BinarySearchFunc(q.frames[:q.fresh], offset, func(f *frame, offset int64) int { return cmp.Compare(f.offset, offset) })
	if !found || q.frames[i].held {
		return
	}
	f := q.frames[i]
	f.held = true
	if f.lane != nil {
		f.lane.flight -= f.cost
		return
	}
	q.waiting -= f.cost
	q.again = slices.DeleteFunc(q.again, func(g *frame) bool { return g == f })
}

// restart makes everything wait again: the other end is another, and has nothing that was not acknowledged.
func (q *queue) restart() {
	q.waiting = q.cost
	q.again = slices.Clone(q.frames[:q.fresh])
	for _, f := range q.again {
		f.lane, f.held = nil, false
	}
}
