// Package webm reads a live WebM as it arrives and writes what makes it a finished one: a head with size, duration and
// index positions, and the index (Cues) itself.
//
// A live stream starts with an EBML header, a Segment of unknown size, Info and Tracks; Clusters of frames follow
// until it breaks off. [Scanner] follows it, however it is cut into pieces, and [Index] is what it learned up to the last complete
// cluster. A finished file made from it is laid out as
//
//	[Head.Final, HeadSize bytes][clusters, untouched][Cues]
//
// so that the body never moves: only the head slot is rewritten at the end and the index appended.
//
// Input is hostile: nothing here panics, memory is bounded whatever the input says, and an error says at which byte of the stream.
//
// Out of scope: codecs and what is inside a frame, files, chapters and tags.
package webm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// HeadSize is the size of the head slot in a file.
const HeadSize = 4096

// ErrFormat is wrapped by every error about a stream that is not the WebM it should be.
var ErrFormat = errors.New("webm: not a WebM stream")

var errHead = fmt.Errorf("%w: its head does not fit into %d bytes", ErrFormat, HeadSize)

// EBML element identifiers, with their length markers.
const (
	idEBML          = 0x1A45DFA3
	idDocType       = 0x4282
	idSegment       = 0x18538067
	idSeekHead      = 0x114D9B74
	idSeek          = 0x4DBB
	idSeekID        = 0x53AB
	idSeekPosition  = 0x53AC
	idInfo          = 0x1549A966
	idScale         = 0x2AD7B1
	idDuration      = 0x4489
	idTracks        = 0x1654AE6B
	idTrackEntry    = 0xAE
	idTrackNumber   = 0xD7
	idTrackType     = 0x83
	idFrameDuration = 0x23E383
	idCluster       = 0x1F43B675
	idTimestamp     = 0xE7
	idSimpleBlock   = 0xA3
	idBlockGroup    = 0xA0
	idBlock         = 0xA1
	idBlockDuration = 0x9B
	idReference     = 0xFB
	idCues          = 0x1C53BB6B
	idCuePoint      = 0xBB
	idCueTime       = 0xB3
	idCuePositions  = 0xB7
	idCueTrack      = 0xF7
	idCuePosition   = 0xF1
	idTags          = 0x1254C367
	idChapters      = 0x1043A770
	idAttachments   = 0x1941A469
	idVoid          = 0xEC
	idCRC32         = 0xBF
)

// Head is what a stream says before its first cluster.
type Head struct {
	ebml   []byte // payload of the EBML header
	info   []byte // payload of Info, without Duration, padding and checksum
	tracks []byte // payload of Tracks
	scale  int64  // nanoseconds a tick
	track  uint64 // number of the first video track: the one the index is about
	frame  int64  // nanoseconds a frame of it, 0 when not said
}

// Cue is where a cluster with a key frame begins, and the time of the first one in it.
type Cue struct {
	Time     time.Duration // rounded to the stream's own ticks
	Position int64         // byte of the stream at which the cluster begins
}

// Index is what is known of a stream up to its last complete cluster.
type Index struct {
	Head     Head
	Start    int64         // byte at which the first cluster begins
	End      int64         // byte after the last complete cluster; equal to Start when there is none
	Frames   int64         // complete frames of the video track
	Duration time.Duration // end of the last frame
	Cues     []Cue         // in order, at most maxCues
}

// Live renders the head of a stream that is still going on: unknown size, no duration. It is HeadSize bytes. It fails
// when the head leaves no room for what Final adds, so that what has a live head has a final one.
func (h Head) Live() ([]byte, error) {
	const added = 3*21 + 5 + 11 + 8 // seek head, duration, a longer size of Info
	if len(h.ebml)+len(h.info)+len(h.tracks) > HeadSize-added-64 {
		return nil, errHead
	}
	return h.render(1<<56-1, nil, h.info)
}

// Final renders the head of a finished file whose index begins at byte cues (none when 0) and which ends at byte size.
func (h Head) Final(cues, size int64, d time.Duration) ([]byte, error) {
	segment := int64(len(element(idEBML, h.ebml))) + 12 // 4 bytes of ID, 8 of size
	if size < HeadSize || cues < 0 || cues > size {
		return nil, fmt.Errorf("webm: a file of %d bytes with its index at %d has no final head", size, cues)
	}
	info := append([]byte(nil), h.info...)
	ticks := make([]byte, 8)
	binary.BigEndian.PutUint64(ticks, math.Float64bits(float64(d)/float64(h.scale)))
	info = append(info, element(idDuration, ticks)...)

	// Positions count from the first byte inside the segment. The seek head has a fixed size, so one pass is enough.
	entries := 2
	if cues > 0 {
		entries = 3
	}
	const entry = 21 // two IDs of 2, their sizes, 4 bytes of ID, 8 of position, and the Seek around it
	at := int64(4 + 1 + entries*entry)
	seek := seekEntry(idInfo, at)
	seek = append(seek, seekEntry(idTracks, at+int64(len(element(idInfo, info))))...)
	if cues > 0 {
		seek = append(seek, seekEntry(idCues, cues-segment)...)
	}
	return h.render(size-segment, element(idSeekHead, seek), info)
}

func (h Head) render(size int64, seekHead, info []byte) ([]byte, error) {
	b := element(idEBML, h.ebml)
	b = appendID(b, idSegment)
	b = binary.BigEndian.AppendUint64(b, uint64(size)|1<<56)
	b = append(b, seekHead...)
	b = append(b, element(idInfo, info)...)
	b = append(b, element(idTracks, h.tracks)...)
	pad := HeadSize - len(b)
	if pad < 9 {
		return nil, errHead
	}
	b = append(b, idVoid)
	b = binary.BigEndian.AppendUint64(b, uint64(pad-9)|1<<56)
	return append(b, make([]byte, pad-9)...), nil
}

func seekEntry(id uint32, position int64) []byte {
	b := element(idSeekID, appendID(nil, id))
	return element(idSeek, append(b, element(idSeekPosition, binary.BigEndian.AppendUint64(nil, uint64(position)))...))
}

// AppendCues renders the index of a file made from ix: shift is added to every position of the stream to get the one
// in the file. It renders nothing when there is nothing to point at.
func (ix Index) AppendCues(b []byte, shift int64) []byte {
	segment := int64(len(element(idEBML, ix.Head.ebml))) + 12
	var points []byte
	for _, c := range ix.Cues {
		at := element(idCueTrack, uintBytes(ix.Head.track))
		at = append(at, element(idCuePosition, uintBytes(uint64(c.Position+shift-segment)))...)
		p := element(idCueTime, uintBytes(uint64(int64(c.Time)/ix.Head.scale)))
		points = append(points, element(idCuePoint, append(p, element(idCuePositions, at)...))...)
	}
	if points == nil {
		return b
	}
	return append(b, element(idCues, points)...)
}

func element(id uint32, payload []byte) []byte {
	b := appendID(make([]byte, 0, 12+len(payload)), id)
	switch n := uint64(len(payload)); {
	case n < 0x7f:
		b = append(b, byte(n)|0x80)
	case n < 0x3fff:
		b = binary.BigEndian.AppendUint16(b, uint16(n)|0x4000)
	default:
		b = binary.BigEndian.AppendUint64(b, n|1<<56)
	}
	return append(b, payload...)
}

func appendID(b []byte, id uint32) []byte {
	for shift := 24; shift >= 0; shift -= 8 {
		if v := id >> shift; v != 0 {
			b = append(b, byte(v))
		}
	}
	return b
}

func uintBytes(v uint64) []byte {
	b := binary.BigEndian.AppendUint64(nil, v)
	for len(b) > 1 && b[0] == 0 {
		b = b[1:]
	}
	return b
}

// idLength and sizeLength give how many bytes an identifier or a size takes, from its first byte; 0 when it cannot be one.
func idLength(first byte) int {
	for n := 1; n <= 4; n++ {
		if first&(0x80>>(n-1)) != 0 {
			return n
		}
	}
	return 0
}

func sizeLength(first byte) int {
	for n := 1; n <= 8; n++ {
		if first&(0x80>>(n-1)) != 0 {
			return n
		}
	}
	return 0
}

const unknown = -1

// size decodes a size or a vint number; all ones mean unknown.
func size(b []byte) int64 {
	v := uint64(b[0]) & (0xff >> len(b))
	for _, c := range b[1:] {
		v = v<<8 | uint64(c)
	}
	if v == 1<<(7*len(b))-1 {
		return unknown
	}
	return int64(v)
}

func beUint(b []byte) uint64 {
	var v uint64
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v
}

// children calls f for each element in a payload; f's error or a broken element ends it.
func children(b []byte, f func(id uint32, raw, payload []byte) error) error {
	for len(b) > 0 {
		n := idLength(b[0])
		if n == 0 || len(b) < n+1 {
			return fmt.Errorf("%w: broken element in the head", ErrFormat)
		}
		id := uint32(beUint(b[:n]))
		m := sizeLength(b[n])
		if m == 0 || len(b) < n+m {
			return fmt.Errorf("%w: broken size in the head", ErrFormat)
		}
		s := size(b[n : n+m])
		if s < 0 || s > int64(len(b)-n-m) {
			return fmt.Errorf("%w: element of the head is longer than its parent", ErrFormat)
		}
		end := n + m + int(s)
		if err := f(id, b[:end], b[n+m:end]); err != nil {
			return err
		}
		b = b[end:]
	}
	return nil
}

func (h *Head) setEBML(p []byte) error {
	h.ebml = append([]byte(nil), p...)
	doc := ""
	err := children(p, func(id uint32, _, payload []byte) error {
		if id == idDocType {
			doc = string(payload)
		}
		return nil
	})
	if err == nil && doc != "webm" && doc != "matroska" {
		err = fmt.Errorf("%w: document type %.20q", ErrFormat, doc)
	}
	return err
}

func (h *Head) setInfo(p []byte) error {
	h.info, h.scale = []byte{}, 1_000_000
	return children(p, func(id uint32, raw, payload []byte) error {
		switch id {
		case idDuration, idVoid, idCRC32:
			return nil
		case idScale:
			v := beUint(payload)
			if len(payload) > 8 || v == 0 || v > uint64(time.Second) {
				return fmt.Errorf("%w: timestamp scale out of range", ErrFormat)
			}
			h.scale = int64(v)
		}
		h.info = append(h.info, raw...)
		return nil
	})
}

func (h *Head) setTracks(p []byte) error {
	h.tracks, h.track, h.frame = append([]byte{}, p...), 0, 0
	err := children(p, func(id uint32, _, entry []byte) error {
		if id != idTrackEntry || h.track != 0 {
			return nil
		}
		var number, kind, frame uint64
		err := children(entry, func(id uint32, _, payload []byte) error {
			switch id {
			case idTrackNumber:
				number = beUint(payload)
			case idTrackType:
				kind = beUint(payload)
			case idFrameDuration:
				frame = beUint(payload)
			}
			return nil
		})
		if err == nil && kind == 1 && number != 0 && number < 1<<56 {
			h.track = number
			if frame <= uint64(time.Minute) {
				h.frame = int64(frame)
			}
		}
		return err
	})
	if err == nil && h.track == 0 {
		err = fmt.Errorf("%w: no video track", ErrFormat)
	}
	return err
}
