package pgstore

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"
)

const (
	newsMost  = 4096            // told at once; with more, anything may have changed
	newsLimit = 5 * time.Second // of telling
)

// news notifies the orchestrators of what was committed, all that gathered meanwhile at once. Postgres lets transactions that notify
// commit one at a time, and waits for the disk in between, so that those that every session needs do not notify themselves.
// What is lost with this process costs whoever waits for it a tick.
type news struct {
	pool *pgxpool.Pool
	log  *zap.Logger

	wake chan struct{} // has room for one
	once sync.Once     // closes stop
	stop chan struct{}
	done chan struct{}

	mu      sync.Mutex
	waiting map[item]struct{} // guarded by mu
}

type item struct{ channel, payload string }

func newNews(pool *pgxpool.Pool, log *zap.Logger) *news {
	n := &news{pool: pool, log: log, wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}), waiting: map[item]struct{}{}}
	go n.run()
	return n
}

// tell has the listeners on a channel told soon. It does not wait.
func (n *news) tell(channel, payload string) {
	n.mu.Lock()
	if len(n.waiting) >= newsMost {
		n.waiting = map[item]struct{}{{chanQueue, ""}: {}, {chanSession, ""}: {}}
	}
	n.waiting[item{channel, payload}] = struct{}{}
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// close tells what is left. Again, it does nothing.
func (n *news) close() {
	n.once.Do(func() { close(n.stop) })
	<-n.done
}

func (n *news) run() {
	defer close(n.done)
	for failed := false; ; {
		select {
		case <-n.wake:
		case <-n.stop:
			_ = n.send()
			return
		}
		err := n.send()
		if err != nil && !failed {
			n.log.Warn("news of sessions cannot be told; the tick tells", zap.Error(err))
		}
		failed = err != nil
	}
}

func (n *news) send() error {
	n.mu.Lock()
	waiting := n.waiting
	n.waiting = map[item]struct{}{}
	n.mu.Unlock()
	if len(waiting) == 0 {
		return nil
	}
	var channels, payloads []string
	for i := range waiting {
		channels, payloads = append(channels, i.channel), append(payloads, i.payload)
	}
	ctx, cancel := context.WithTimeout(context.Background(), newsLimit)
	defer cancel()
	_, err := n.pool.Exec(ctx, `
		WITH soon AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)) -- it changes nothing that could be lost
		SELECT pg_notify(u.channel, u.payload) FROM soon, unnest($1::text[], $2::text[]) AS u(channel, payload)`, channels, payloads)
	return err
}
