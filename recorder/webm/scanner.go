package webm

import (
	"errors"
	"fmt"
	"io"
	"math"
	"time"
)

const (
	maxHeadElement = 64 << 10 // EBML header, Info or Tracks
	maxBeforeBody  = 256 << 10
	maxCues        = 4096
	blockPrefix    = 12 // track number, timestamp, flags
	maxTicks       = int64(1) << 53
)

// Scanner follows a stream that is written to it. The zero value is ready. Not safe for concurrent use.
type Scanner struct {
	pos   int64  // bytes consumed: everything before carry
	carry []byte // start of something not complete yet
	want  int    // size of carry at which step can go on
	skip  int64  // bytes of an element nobody looks at
	rest  int64  // bytes of a block after what is gathered of it
	into  uint32 // element whose payload is being gathered in carry; 0: an element header is
	err   error

	gotEBML, gotSegment bool
	segmentEnd          int64 // unknown, or the byte after the segment
	cluster             master
	group               master

	blockTicks int64 // of the block in the open group
	blockSpan  int64 // its BlockDuration, -1 when not said
	blockKey   bool
	blockOurs  bool

	index    Index
	done     state // up to index.End
	now      state // including the open cluster
	cue      *Cue
	cueEvery int64 // one of so many key frame clusters is kept, doubled each time Cues is full
	cueCount int64
}

// master is an open element with children.
type master struct {
	open  bool
	start int64
	end   int64 // unknown, or the byte after it
	base  int64 // timestamp of a cluster, in ticks
	based bool
	keyed bool // a key frame of the video track was seen
}

type state struct {
	frames       int64
	last         int64 // ticks of the newest frame
	before       int64 // ticks between the two newest frames
	end          int64 // nanoseconds, end of the frame that ends last
	seen, paired bool
}

// Index is what is known up to the last complete cluster. ok is false until the first cluster begins.
func (s *Scanner) Index() (ix Index, ok bool) {
	if s.index.Start == 0 {
		return Index{}, false
	}
	ix = s.index
	ix.Frames, ix.Duration = s.done.frames, time.Duration(s.done.end)
	ix.Cues = append([]Cue(nil), s.index.Cues...)
	return ix, true
}

// Start is the byte at which the first cluster begins, 0 until it has.
func (s *Scanner) Start() int64 { return s.index.Start }

// Whole says whether what was written so far ends where a cluster, or another element of the top level, does.
func (s *Scanner) Whole() bool {
	return s.err == nil && s.skip == 0 && s.rest == 0 && s.into == 0 && len(s.carry) == 0 && !s.group.open &&
		(!s.cluster.open || s.cluster.end == unknown)
}

// Complete is the byte after the last complete cluster, 0 until the first cluster begins.
func (s *Scanner) Complete() int64 { return s.index.End }

// Scan reads a stream to its end, or to where it stops making sense. A stream that ends in the middle of something is no error.
func Scan(r io.Reader) (*Scanner, error) {
	s := &Scanner{}
	_, err := io.CopyBuffer(struct{ io.Writer }{s}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	return s, err
}

// Write takes the next bytes of the stream. An error is final; what Index gives stays true.
func (s *Scanner) Write(p []byte) (int, error) {
	n := len(p)
	for s.err == nil {
		if s.skip > 0 {
			k := min(s.skip, int64(len(p)))
			s.skip -= k
			s.pos += k
			p = p[k:]
			if s.skip > 0 {
				return n, nil
			}
			s.settle()
		}
		s.want = max(s.want, 1)
		k := min(s.want-len(s.carry), len(p))
		s.carry = append(s.carry, p[:k]...)
		p = p[k:]
		if len(s.carry) < s.want {
			return n, nil
		}
		if err := s.step(); err != nil {
			s.err = fmt.Errorf("%w (byte %d)", err, s.pos)
			s.carry = nil
		}
	}
	return n - len(p), s.err
}

// consume drops what was gathered, which the caller has dealt with.
func (s *Scanner) consume() {
	s.pos += int64(len(s.carry))
	s.carry, s.want, s.into = s.carry[:0], 0, 0
}

// step deals with carry, which has the size that was wanted.
func (s *Scanner) step() error {
	if s.into != 0 {
		return s.payload()
	}
	n := idLength(s.carry[0])
	if n == 0 {
		return fmt.Errorf("%w: no element begins here", ErrFormat)
	}
	if len(s.carry) < n+1 {
		s.want = n + 1
		return nil
	}
	m := sizeLength(s.carry[n])
	if m == 0 {
		return fmt.Errorf("%w: impossible element size", ErrFormat)
	}
	if len(s.carry) < n+m {
		s.want = n + m
		return nil
	}
	id, length, at := uint32(beUint(s.carry[:n])), size(s.carry[n:n+m]), s.pos
	s.consume()
	return s.open(id, length, at)
}

// open deals with the header of an element that begins at byte at and has length bytes of payload from s.pos.
func (s *Scanner) open(id uint32, length, at int64) error {
	if length > math.MaxInt64-s.pos {
		return fmt.Errorf("%w: element too long", ErrFormat)
	}
	if s.cluster.open && s.cluster.end == unknown && !s.group.open && topLevel(id) {
		s.closeCluster(at)
	}
	limit := s.segmentEnd
	switch {
	case s.group.open:
		limit = s.group.end
	case s.cluster.open && s.cluster.end != unknown:
		limit = s.cluster.end
	}
	if s.gotSegment && limit != unknown && (s.pos > limit || length > limit-s.pos) {
		return fmt.Errorf("%w: element reaches beyond its parent", ErrFormat)
	}
	if length == unknown && id != idSegment && id != idCluster {
		return fmt.Errorf("%w: element of unknown size", ErrFormat)
	}
	switch {
	case !s.gotEBML:
		if id != idEBML {
			return fmt.Errorf("%w: no EBML header", ErrFormat)
		}
		return s.gather(id, length, maxHeadElement)
	case !s.gotSegment:
		if id != idSegment {
			return fmt.Errorf("%w: no segment after the header", ErrFormat)
		}
		s.gotSegment, s.segmentEnd = true, unknown
		if length != unknown {
			s.segmentEnd = s.pos + length
		}
		return nil
	case s.group.open:
		return s.inGroup(id, length)
	case s.cluster.open:
		return s.inCluster(id, length)
	}
	return s.inSegment(id, length, at)
}

func topLevel(id uint32) bool {
	switch id {
	case idCluster, idCues, idTags, idChapters, idAttachments, idSeekHead, idInfo, idTracks:
		return true
	}
	return false
}

func (s *Scanner) inSegment(id uint32, length, at int64) error {
	switch id {
	case idCluster:
		if s.index.Start == 0 {
			if s.index.Head.info == nil || s.index.Head.tracks == nil {
				return fmt.Errorf("%w: a cluster before Info and Tracks", ErrFormat)
			}
			s.index.Start, s.index.End, s.cueEvery = at, at, 1
		}
		s.cluster = master{open: true, start: at, end: unknown}
		if length != unknown {
			s.cluster.end = s.pos + length
		}
		s.now, s.cue = s.done, nil
		if length == 0 {
			s.settle()
		}
		return nil
	}
	if s.index.Start != 0 {
		return s.pass(length)
	}
	// Whatever it is: a caller keeps all of this in memory.
	if s.pos > maxBeforeBody || length > maxBeforeBody-s.pos {
		return fmt.Errorf("%w: no cluster within the first %d bytes", ErrFormat, maxBeforeBody)
	}
	if id == idInfo || id == idTracks {
		return s.gather(id, length, maxHeadElement)
	}
	return s.pass(length)
}

func (s *Scanner) inCluster(id uint32, length int64) error {
	switch id {
	case idTimestamp:
		return s.gather(id, length, 8)
	case idSimpleBlock:
		return s.gather(id, length, blockPrefix)
	case idBlockGroup:
		s.group = master{open: true, end: s.pos + length}
		s.blockTicks, s.blockSpan, s.blockKey, s.blockOurs = 0, -1, true, false
		s.settle()
		return nil
	case idCluster, idSegment, idEBML:
		return fmt.Errorf("%w: element inside a cluster that belongs outside", ErrFormat)
	}
	return s.pass(length)
}

func (s *Scanner) inGroup(id uint32, length int64) error {
	switch id {
	case idBlock:
		return s.gather(id, length, blockPrefix)
	case idBlockDuration:
		return s.gather(id, length, 8)
	case idReference:
		s.blockKey = false
	case idCluster, idSegment, idEBML, idBlockGroup:
		return fmt.Errorf("%w: element inside a block group that belongs outside", ErrFormat)
	}
	return s.pass(length)
}

// gather wants the payload of id in carry: all of it when it has to fit into most, or the first bytes of a block.
func (s *Scanner) gather(id uint32, length, most int64) error {
	if id == idSimpleBlock || id == idBlock {
		if length < 4 {
			return fmt.Errorf("%w: block without a frame", ErrFormat)
		}
		s.into, s.want = id, int(min(length, most))
		s.rest = length - int64(s.want)
		return nil
	}
	if length > most {
		return fmt.Errorf("%w: element of %d bytes where at most %d make sense", ErrFormat, length, most)
	}
	if length == 0 {
		s.into = id
		return s.payload()
	}
	s.into, s.want = id, int(length)
	return nil
}

// pass ignores the payload.
func (s *Scanner) pass(length int64) error {
	s.skip = length
	if length == 0 {
		s.settle()
	}
	return nil
}

func (s *Scanner) payload() error {
	id, p := s.into, s.carry
	var err error
	switch id {
	case idEBML:
		err, s.gotEBML = s.index.Head.setEBML(p), true
	case idInfo:
		err = s.index.Head.setInfo(p)
	case idTracks:
		err = s.index.Head.setTracks(p)
	case idTimestamp:
		v := beUint(p)
		if v > uint64(maxTicks/max(1, s.index.Head.scale)) {
			err = fmt.Errorf("%w: timestamp out of range", ErrFormat)
		}
		s.cluster.base, s.cluster.based = int64(v), true
	case idBlockDuration:
		if v := beUint(p); v <= uint64(maxTicks/s.index.Head.scale) {
			s.blockSpan = int64(v)
		}
	case idSimpleBlock, idBlock:
		err = s.block(id, p)
	default:
		err = errors.New("webm: gathered an element nobody asked for")
	}
	if err != nil {
		return err
	}
	s.consume()
	if id == idSimpleBlock || id == idBlock {
		s.skip, s.rest = s.rest, 0
		if s.skip > 0 {
			return nil
		}
	}
	s.settle()
	return nil
}
