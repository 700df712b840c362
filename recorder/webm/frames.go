package webm

import (
	"fmt"
	"time"
)

// block takes the first bytes of a block.
func (s *Scanner) block(id uint32, p []byte) error {
	n := sizeLength(p[0])
	if n == 0 || len(p) < n+3 {
		return fmt.Errorf("%w: broken block header", ErrFormat)
	}
	if !s.cluster.based {
		return fmt.Errorf("%w: block before the timestamp of its cluster", ErrFormat)
	}
	ours := uint64(size(p[:n])) == s.index.Head.track
	ticks := s.cluster.base + int64(int16(beUint(p[n:n+2])))
	if id == idBlock {
		s.blockTicks, s.blockOurs = ticks, ours
		return nil
	}
	if ours {
		s.frame(ticks, -1, p[n+2]&0x80 != 0)
	}
	return nil
}

func (s *Scanner) frame(ticks, span int64, key bool) {
	h := &s.index.Head
	ticks = max(ticks, 0)
	if key && !s.cluster.keyed {
		s.cluster.keyed = true
		s.cue = &Cue{Time: time.Duration(ticks * h.scale), Position: s.cluster.start}
	}
	st := &s.now
	if st.seen && ticks > st.last {
		st.before, st.paired = ticks-st.last, true
	}
	st.last, st.seen = ticks, true
	st.frames++
	length := h.frame
	switch {
	case span >= 0:
		length = span * h.scale
	case length == 0 && st.paired:
		length = min(st.before*h.scale, int64(time.Minute))
	}
	st.end = max(st.end, ticks*h.scale+length)
}

// settle closes what ends at this byte.
func (s *Scanner) settle() {
	if s.group.open && s.pos >= s.group.end {
		s.group.open = false
		if s.blockOurs {
			s.frame(s.blockTicks, s.blockSpan, s.blockKey)
		}
	}
	if !s.cluster.open || s.group.open {
		return
	}
	switch {
	case s.cluster.end == unknown:
		if s.now.frames > s.done.frames { // such a cluster may be cut after any frame
			s.commit()
		}
	case s.pos >= s.cluster.end:
		s.closeCluster(s.pos)
	}
}

func (s *Scanner) closeCluster(end int64) {
	s.commit()
	s.index.End = end
	s.cluster.open = false
}

// commit makes everything up to here count.
func (s *Scanner) commit() {
	s.done, s.index.End = s.now, s.pos
	if s.cue == nil {
		return
	}
	if s.cueCount%s.cueEvery == 0 {
		s.index.Cues = append(s.index.Cues, *s.cue)
	}
	s.cueCount++
	s.cue = nil
	if len(s.index.Cues) >= maxCues { // a sparser index rather than one that grows without bound
		for i := range maxCues / 2 {
			s.index.Cues[i] = s.index.Cues[2*i]
		}
		s.index.Cues = s.index.Cues[:maxCues/2]
		s.cueEvery *= 2
	}
}
