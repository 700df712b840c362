package wire

import (
	"bytes"
	"math"
	"strconv"
	"strings"
	"time"
)

// Heartbeats are most of what an idle fleet says, and a tenth of its cost was package json. What follows writes the same
// bytes and reads only these: whatever looks another way, package json reads.
const (
	beatHead  = `{"heartbeat":{"seq":`
	beatEpoch = `,"epoch":"`
	beatTrip  = `,"round_trip_ns":`
	beatTail  = `}}`
)

// append renders the heartbeat as package json would; ok is false when that needs package json.
func (h Heartbeat) append(b []byte) (_ []byte, ok bool) {
	if !plain(h.Epoch) {
		return b, false
	}
	b = strconv.AppendUint(append(b, beatHead...), h.Seq, 10)
	if h.Epoch != "" {
		b = append(append(append(b, beatEpoch...), h.Epoch...), '"')
	}
	if h.RoundTrip != 0 {
		b = strconv.AppendInt(append(b, beatTrip...), int64(h.RoundTrip), 10)
	}
	return append(b, beatTail...), true
}

// readHeartbeat reads what append writes; ok is false for everything else.
func readHeartbeat(b []byte) (h Heartbeat, ok bool) {
	b, ok = bytes.CutPrefix(b, []byte(beatHead))
	if !ok {
		return h, false
	}
	if h.Seq, b, ok = digits(b); !ok {
		return h, false
	}
	if rest, there := bytes.CutPrefix(b, []byte(beatEpoch)); there {
		end := bytes.IndexByte(rest, '"')
		if end < 0 || !plain(string(rest[:end])) {
			return h, false
		}
		h.Epoch, b = string(rest[:end]), rest[end+1:]
	}
	if rest, there := bytes.CutPrefix(b, []byte(beatTrip)); there {
		n, rest, ok := digits(rest)
		if !ok || n > math.MaxInt64 {
			return h, false
		}
		h.RoundTrip, b = time.Duration(n), rest
	}
	return h, string(b) == beatTail
}

// digits takes a number off b.
func digits(b []byte) (n uint64, rest []byte, ok bool) {
	end := 0
	for end < len(b) && b[end] >= '0' && b[end] <= '9' {
		end++
	}
	if end == 0 || end > 1 && b[0] == '0' {
		return 0, b, false
	}
	n, err := strconv.ParseUint(string(b[:end]), 10, 64)
	return n, b[end:], err == nil
}

// plain says whether package json writes s as it is.
func plain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' || strings.ContainsRune(`"\<>&`, r) })
}
