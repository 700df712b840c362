package lanes

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// ErrRules means that what a host sends cannot be one recording.
var ErrRules = errors.New("lanes: the host breaks the rules of a recording")

// merge puts chunks in order. Its memory is bounded by wire.RecordingWindow.
type merge struct {
	next  int64         // every byte before it was given out
	ready int64         // every byte before it is here
	early []*wire.Chunk // from next on, by offset, none overlapping another
	held  int64         // cost of early
	end   *wire.End
	over  bool // the end was given out
}

func cost(c *wire.Chunk) int64 { return int64(len(c.Data)) + wire.ChunkCost }

// put takes a *wire.Chunk or *wire.End. waits says that it is a chunk before which something is missing.
func (m *merge) put(message any) (waits bool, err error) {
	switch v := message.(type) {
	case *wire.Chunk:
		return m.putChunk(v)
	case *wire.End:
		return false, m.putEnd(v)
	}
	return false, fmt.Errorf("%w: a %T", ErrRules, message)
}

func (m *merge) putChunk(c *wire.Chunk) (waits bool, err error) {
	size := int64(len(c.Data))
	if size == 0 || c.Offset < 0 || c.Offset > math.MaxInt64-size {
		return false, fmt.Errorf("%w: chunk of %d bytes at %d", ErrRules, size, c.Offset)
	}
	end := c.Offset + size
	switch {
	case end <= m.next:
		return false, nil // it came over another lane too
	case c.Offset < m.next:
		return false, fmt.Errorf("%w: the chunk at %d overlaps what came before %d", ErrRules, c.Offset, m.next)
	case m.end != nil && end > m.end.Total:
		return false, fmt.Errorf("%w: the chunk at %d is beyond the end at %d", ErrRules, c.Offset, m.end.Total)
	case end-m.next > wire.RecordingWindow:
		return false, fmt.Errorf("%w: the chunk at %d is more than %d bytes ahead of byte %d", ErrRules, c.Offset, wire.RecordingWindow, m.next)
	}
	i, same := slices.BinarySearchFunc(m.early, c.Offset, func(e *wire.Chunk, offset int64) int {
		return cmp.Compare(e.Offset, offset)
	})
	switch {
	case same && len(m.early[i].Data) == len(c.Data) && m.early[i].CRC == c.CRC:
		return c.Offset > m.ready, nil
	case same || (i < len(m.early) && end > m.early[i].Offset) ||
		(i > 0 && m.early[i-1].Offset+int64(len(m.early[i-1].Data)) > c.Offset):
		return false, fmt.Errorf("%w: the chunk at %d overlaps another", ErrRules, c.Offset)
	case m.held+cost(c) > wire.RecordingWindow:
		return false, fmt.Errorf("%w: more than %d bytes are unacknowledged", ErrRules, wire.RecordingWindow)
	}
	m.early = slices.Insert(m.early, i, c)
	m.held += cost(c)
	if c.Offset > m.ready {
		return true, nil
	}
	for ; i < len(m.early) && m.early[i].Offset == m.ready; i++ {
		m.ready += int64(len(m.early[i].Data))
	}
	return false, nil
}

func (m *merge) putEnd(e *wire.End) error {
	switch last := len(m.early) - 1; {
	case m.end != nil && *m.end != *e:
		return fmt.Errorf("%w: two different ends", ErrRules)
	case e.Total < m.next, last >= 0 && e.Total < m.early[last].Offset+int64(len(m.early[last].Data)):
		return fmt.Errorf("%w: the end at %d is before the last byte", ErrRules, e.Total)
	}
	m.end = e
	return nil
}

// pop gives the next chunk, the end after the last one, and nil when neither is here yet.
func (m *merge) pop() any {
	if m.next < m.ready {
		c := m.early[0]
		m.early[0] = nil
		m.early = m.early[1:]
		m.held -= cost(c)
		m.next += int64(len(c.Data))
		return c
	}
	if m.end != nil && m.next == m.end.Total && !m.over {
		m.over = true
		return m.end
	}
	return nil
}
