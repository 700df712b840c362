package driverproxy

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// LinkHealth is what is known of the control socket to a connected host. The socket takes the path that commands take, so
// that a heartbeat on it says more than any handshake.
type LinkHealth struct {
	Host      string
	Since     time.Time     // when the host said hello, by Config.Now
	Heard     time.Time     // its last heartbeat, or its hello
	RoundTrip time.Duration // of a heartbeat, as the host measured it; 0: not known yet
	Late      bool          // more than one heartbeat is missing
	Damping   *Damping      // nil: it is not damped
}

// Links is the health of every connected host, sorted by name.
func (f *Fleet) Links() []LinkHealth {
	now := f.cfg.Now()
	f.mu.Lock()
	hosts := make([]*hostConn, 0, len(f.hosts))
	damped := f.dampedLocked(now)
	for _, h := range f.hosts {
		if h.up {
			hosts = append(hosts, h)
		}
	}
	f.mu.Unlock()
	links := make([]LinkHealth, 0, len(hosts))
	for _, h := range hosts {
		h.mu.Lock()
		links = append(links, LinkHealth{Host: h.name, Since: h.came, Heard: h.seen, RoundTrip: h.round, Late: f.lateLocked(h, now), Damping: damped[h.name]})
		h.mu.Unlock()
	}
	slices.SortFunc(links, func(a, b LinkHealth) int { return cmp.Compare(a.Host, b.Host) })
	return links
}

// Drop cuts a host off at once: its control, command and recording sockets are closed, and its sessions have ended with
// [ErrHostLost], which wraps the cause, when Drop returns. It says whether the host was connected, and does not keep it
// from coming back: that is the Directory's.
func (f *Fleet) Drop(host string, cause error) bool {
	f.mu.Lock()
	h := f.hosts[host]
	if h != nil {
		h.up, h.dropped = false, true // from here on no session is added
	}
	delete(f.damped, host)
	f.mu.Unlock()
	why := fmt.Errorf("%w: %s: %w", ErrHostLost, host, cause)
	if h != nil {
		h.give(cause)
		why = h.err()
	}
	for _, s := range f.sessionsOf(host) { // those that wait for it as well
		s.giveUp(why)
		s.cutRecording()
	}
	return h != nil
}

// cutRecording closes the recording socket: of a host that is not trusted any more nothing is taken.
func (s *Session) cutRecording() {
	s.mu.Lock()
	c := s.recording
	s.mu.Unlock()
	if c != nil {
		_ = c.Close() // it is never an error
	}
}
