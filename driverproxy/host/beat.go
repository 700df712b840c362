package host

import (
	"hash/fnv"
	"time"
)

// beatMark: hosts send their heartbeats on marks of the wall clock, each host on its own, so that those of many hosts reach
// an orchestrator together. An orchestrator that is woken for each alone spends a third of its time on waking up.
const beatMark = 200 * time.Millisecond

// beatOffset is a host's mark: how long after each multiple of every it sends its heartbeat.
func beatOffset(host string, every time.Duration) time.Duration {
	h := fnv.New32a()
	_, _ = h.Write([]byte(host)) // never fails
	return time.Duration(h.Sum32()) % max(every/beatMark, 1) * beatMark
}

// untilBeat is the time from now to the next heartbeat. After a timer that came early, or when the clock was set, that is
// more than a tenth of every away.
func untilBeat(now time.Time, every, offset time.Duration) time.Duration {
	d := now.Truncate(every).Add(offset).Sub(now)
	for d <= every/10 {
		d += every
	}
	return d
}
