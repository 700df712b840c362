package orchestrator

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"
)

// Events are written in batches, off the path of commands: a batch is what gathered while the one before was written,
// and at least this much time lies between two, so that a busy session costs few transactions.
const (
	batchPause = 10 * time.Millisecond
	batchMost  = 512
)

// journal stores the events of this process's sessions in the order they were given.
type journal struct {
	store SessionStore
	log   *zap.Logger

	stored func([]Event) // told what was stored; may be nil

	in   chan entry // written by sessions, read by run; bounded, so that a slow database slows commands, not memory
	stop chan struct{}
	done chan struct{}
}

// entry is an event, or a mark that everything before it is stored.
type entry struct {
	event Event
	mark  chan<- struct{}
}

func newJournal(store SessionStore, log *zap.Logger) *journal {
	return &journal{store: store, log: log, in: make(chan entry, 4096), stop: make(chan struct{}), done: make(chan struct{})}
}

// add queues an event.
func (j *journal) add(e Event) {
	select {
	case j.in <- entry{event: e}:
	case <-j.done:
	}
}

// flush waits until every event added before it is stored or given up.
func (j *journal) flush(ctx context.Context) {
	mark := make(chan struct{})
	select {
	case j.in <- entry{mark: mark}:
	case <-j.done:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-mark:
	case <-j.done:
	case <-ctx.Done():
	}
}

// close stores what is queued and stops. Nothing may be added afterwards.
func (j *journal) close() {
	close(j.stop)
	<-j.done
}

// run stores events until close. Cancelling ctx gives up on a database that does not answer.
func (j *journal) run(ctx context.Context) {
	defer close(j.done)
	for {
		var first entry
		select {
		case first = <-j.in:
		case <-j.stop:
			select {
			case first = <-j.in:
			default:
				return
			}
		}
		j.write(ctx, first)
	}
}

func (j *journal) write(ctx context.Context, first entry) {
	var batch []Event
	var marks []chan<- struct{}
	take := func(e entry) {
		if e.mark != nil {
			marks = append(marks, e.mark)
		} else {
			batch = append(batch, e.event)
		}
	}
	take(first)
	pause := time.NewTimer(batchPause)
	defer pause.Stop()
gather:
	for len(batch) < batchMost && len(marks) == 0 {
		select {
		case e := <-j.in:
			take(e)
		case <-pause.C:
			break gather
		case <-j.stop:
			break gather
		}
	}
	for more := true; more && len(batch) < batchMost; { // what came meanwhile has somebody waiting as well
		select {
		case e := <-j.in:
			take(e)
		default:
			more = false
		}
	}
	if len(batch) > 0 {
		_, err := backoff.Retry(ctx, func() (struct{}, error) {
			c, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			return struct{}{}, j.store.AppendEvents(c, batch)
		}, backoff.WithMaxElapsedTime(time.Minute), backoff.WithNotify(func(err error, _ time.Duration) {
			j.log.Warn("events cannot be stored, trying again", zap.Int("events", len(batch)), zap.Error(err))
		}))
		if err != nil {
			j.log.Error("events given up", zap.Int("events", len(batch)), zap.Error(err))
		} else if j.stored != nil {
			j.stored(batch)
		}
	}
	for _, m := range marks {
		close(m)
	}
}
