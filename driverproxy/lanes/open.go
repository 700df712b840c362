package lanes

import (
	"context"
	"fmt"
	"time"

	"github.com/driftstack/fleet/driverproxy/wire"
)

const (
	idleLimit   = 30 * time.Second // a lane beside the first that carries nothing for so long is closed
	dialLimit   = 5 * time.Second
	dialPause   = 2 * time.Second  // after a further lane could not be dialled
	redialLimit = 32 * time.Second // for the last lane to be dialled anew: as long as a session waits for its sockets, and a little longer
	redialPause = 200 * time.Millisecond
)

// moreLocked orders further lanes when chunks wait although the lanes have as much as they may carry. What is received is
// carried until it is on disk, so that a slow disk opens them too: this end cannot tell it from a slow line.
func (s *Sender) moreLocked() {
	if s.closing || s.err != nil || s.live == 0 || s.queue.waiting == 0 || s.queue.cost <= int64(s.live)*laneWindow {
		return
	}
	if time.Now().Before(s.pause) {
		return
	}
	for n := 0; n < wire.MaxLanes && s.dialing < s.live && s.live+s.dialing < s.cfg.Lanes; n++ {
		if s.lanes[n] == nil && !s.dialled[n] {
			s.orderLocked(n)
		}
	}
}

// redialLocked is called when the last lane is lost. Being taken and dropped again and again is no progress: redialLimit goes on.
func (s *Sender) redialLocked(cause error) {
	now := time.Now()
	if !s.idled {
		s.idled, s.until = true, now.Add(redialLimit)
	}
	switch {
	case s.dialing > 0: // a lane that is being dialled for more is as good
	case now.After(s.until):
		s.failLocked(fmt.Errorf("%w: %w", ErrLost, cause))
	default:
		s.orderLocked(0)
	}
}

func (s *Sender) orderLocked(n int) {
	s.dialled[n] = true
	s.dialing++
	s.orders <- n // never blocks: each number is in it once at most
}

// open dials what is ordered until ctx ends.
func (s *Sender) open(ctx context.Context) {
	for {
		select {
		case n := <-s.orders:
			s.running.Go(func() { s.dial(ctx, n) })
		case <-ctx.Done():
			return
		}
	}
}

func (s *Sender) dial(ctx context.Context, n int) {
	for pause := redialPause; ; pause = min(2*pause, time.Second) {
		sock, err := s.try(ctx, n)
		if s.settled(n, sock, err) {
			return
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

// settled notes how a dial went; false: it is to be tried again.
func (s *Sender) settled(n int, sock Socket, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.err == nil && s.live == 0 && time.Now().Before(s.until) {
		return false
	}
	s.dialled[n] = false
	s.dialing--
	switch {
	case err == nil && s.err == nil && !s.closing:
		s.addLocked(n, sock)
	case err == nil:
		s.running.Go(sock.Close)
	case s.live == 0 && s.dialing == 0:
		s.failLocked(fmt.Errorf("%w: %w", ErrLost, err))
	default:
		s.pause = time.Now().Add(dialPause)
	}
	return true
}

func (s *Sender) try(ctx context.Context, lane int) (Socket, error) {
	limit := dialLimit
	s.mu.Lock()
	if s.live == 0 { // later nobody waits for it
		limit = min(limit, time.Until(s.until))
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return s.cfg.Dial(ctx, lane)
}

// retire closes a lane that is idle. Without a goodbye: the other end may have lost all others, and must wait for those.
func (s *Sender) retire(l *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lanes[l.n] != l {
		return
	}
	if l.writing || l.flight > 0 || s.live == 1 {
		l.idle.Reset(idleLimit)
		return
	}
	s.lanes[l.n] = nil
	s.live--
	s.changed.Broadcast()
	s.running.Go(l.sock.Close)
}
