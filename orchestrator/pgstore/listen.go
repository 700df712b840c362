package pgstore

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"
)

// Wakes says what to call on a notification. After a lost connection each is called once with an empty identifier,
// which means "anything may have changed".
type Wakes struct {
	Queue   func(waiter string) // that a session was queued for, or empty
	Adopt   func()              // may be nil
	Hosts   func(name string)
	Session func(id string)
	Cancel  func(id string)
	Gateway func(name string) // may be nil
}

// Listen calls w until ctx is done. A broken connection is dialled again, so callers also tick.
func (s *Store) Listen(ctx context.Context, w Wakes) {
	wait := backoff.NewExponentialBackOff()
	wait.MaxInterval = 5 * time.Second
	for {
		err := s.listen(ctx, w, wait.Reset)
		if ctx.Err() != nil {
			return
		}
		s.log.Warn("not listening to the database; changes are seen by the tick alone", zap.Error(err))
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait.NextBackOff()):
		}
	}
}

func (s *Store) listen(ctx context.Context, w Wakes, connected func()) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	// A connection that listens must not go back to the pool.
	c := conn.Hijack()
	defer c.Close(context.WithoutCancel(ctx))
	for _, channel := range []string{chanQueue, chanAdopt, chanHosts, chanSession, chanCancel, chanGateway} {
		if _, err := c.Exec(ctx, "LISTEN "+channel); err != nil {
			return err
		}
	}
	if w.Adopt == nil {
		w.Adopt = func() {}
	}
	if w.Gateway == nil {
		w.Gateway = func(string) {}
	}
	connected()
	w.Queue("")
	w.Adopt()
	w.Hosts("")
	w.Session("")
	w.Cancel("")
	w.Gateway("")
	for {
		n, err := c.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		switch n.Channel {
		case chanQueue:
			w.Queue(n.Payload)
		case chanAdopt:
			w.Adopt()
		case chanHosts:
			w.Hosts(n.Payload)
		case chanSession:
			w.Session(n.Payload)
		case chanCancel:
			w.Cancel(n.Payload)
		case chanGateway:
			w.Gateway(n.Payload)
		}
	}
}
