package host

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

const redialLimit = 5 * time.Second // one try of a command socket

// owner is the orchestrator that has a session, and the session's term there.
type owner struct {
	mu      sync.Mutex // guards what follows
	link    *link      // may have ended: the next one to the same orchestrator takes its place
	term    int64
	hangUp  context.CancelFunc // ends what is dialled or talked with it; never nil
	changed chan struct{}      // closed when the above have changed
}

func newOwner(l *link, term int64) *owner {
	return &owner{link: l, term: term, hangUp: func() {}, changed: make(chan struct{})}
}

// now is who has the session, and a channel that is closed when that has changed.
func (o *owner) now() (*link, int64, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.link, o.term, o.changed
}

// change gives the session to another link, or another orchestrator: what goes on with the former ends.
func (o *owner) change(l *link, term int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if term != o.term { // a link that is replaced may have a good command socket beside it
		o.hangUp()
	}
	o.link, o.term = l, term
	close(o.changed)
	o.changed = make(chan struct{})
}

// during is a context that ends when another orchestrator gets the session.
func (o *owner) during(ctx context.Context, term int64) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.term != term {
		cancel()
	}
	o.hangUp = cancel
	return ctx, cancel
}

// carryOn carries the session's commands from now on, until drop is called.
func (s *session) carryOn(conn *socket.Conn) {
	ctx, cancel := context.WithCancel(context.Background()) // the life of the session, which ends with drop
	s.drop = cancel
	_, term, _ := s.owner.now() // the first: nobody adopts what has not been assigned
	s.running.Go(func() {
		defer close(s.carried)
		s.carry(ctx, conn, term)
	})
}

// carry holds a command socket until ctx ends; the first one is dialled already. A session that has had none for the orphan limit
// is ended.
func (s *session) carry(ctx context.Context, conn *socket.Conn, term int64) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 50*time.Millisecond, time.Second
	held := time.Now() // when it was last carried
	for {
		carried, err := s.talk(ctx, conn, term)
		if ctx.Err() != nil {
			return
		}
		s.log.Info("the command socket has ended, another is dialled", zap.Error(err))
		if errors.Is(err, errOverflow) {
			s.fail(overflow())
			return
		}
		if carried {
			held = time.Now()
			pause.Reset()
		}
		if conn, term = s.redial(ctx, pause, held); conn == nil {
			return
		}
	}
}

func overflow() *wire.Failure {
	return failed(wire.FailureOverflow, "more than %d commands or %d MiB of answers are not acknowledged", wire.MaxOutstanding, wire.MaxKept>>20)
}

// talk runs one socket to its end, and closes it. It says whether the orchestrator took it as the session's.
func (s *session) talk(ctx context.Context, conn *socket.Conn, term int64) (carried bool, err error) {
	defer conn.Close()
	held, release := s.owner.during(ctx, term)
	defer release()
	stop := context.AfterFunc(held, func() {
		if ctx.Err() == nil { // it is another orchestrator's now
			conn.Close()
			return
		}
		conn.Bye("the session has ended")
		conn.Expire(lingerLimit)
	})
	defer stop()
	return s.carrier.talk(conn)
}

// redial dials until there is a socket. It is nil when ctx has ended, and when the session had none for too long.
func (s *session) redial(ctx context.Context, pause *backoff.ExponentialBackOff, held time.Time) (*socket.Conn, int64) {
	orphan := time.NewTimer(s.agent.cfg.Orphan - time.Since(held))
	defer orphan.Stop()
	wait := time.NewTimer(0) // a socket that was carried is replaced at once
	defer wait.Stop()
	for {
		_, _, changed := s.owner.now()
		select {
		case <-wait.C:
		case <-changed:
			pause.Reset()
		case <-orphan.C:
			s.cancel(errOrphaned)
			return nil, 0
		case <-ctx.Done():
			return nil, 0
		}
		_, term, _ := s.owner.now() // it may have changed during the wait
		conn, err := s.redialOnce(ctx, term)
		if err == nil {
			return conn, term
		}
		s.log.Debug("no command socket", zap.Error(err))
		if _, now, _ := s.owner.now(); now != term {
			pause.Reset()
			wait.Reset(0)
			continue
		}
		wait.Reset(pause.NextBackOff())
	}
}

func (s *session) redialOnce(ctx context.Context, term int64) (*socket.Conn, error) {
	held, release := s.owner.during(ctx, term)
	defer release()
	held, cancel := context.WithTimeout(held, redialLimit)
	defer cancel()
	return s.dial(held, wire.PathCommand, wire.MaxMessage)
}
