package pgstore

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

const (
	batchMost  = 256              // calls in one statement
	batchLimit = 10 * time.Second // of one, where its callers would wait for longer
)

// batch makes one statement of what many callers do at once: of all calls that came while the one before ran. A statement costs more than
// a row of it does, and each is a commit that waits for the disk. Who calls alone waits for nobody.
type batch[T, R any] struct {
	// run does several calls, and has an answer for each.
	run func(ctx context.Context, calls []T) ([]R, error)

	mu      sync.Mutex
	waiting []*call[T, R]  // guarded by mu
	busy    bool           // guarded by mu; somebody runs what waits
	running sync.WaitGroup // who does
}

type call[T, R any] struct {
	ctx    context.Context
	of     T
	answer R
	err    error
	done   chan struct{}
}

// batches are what every session needs.
type batches struct {
	offers     *batch[wanted, []webdriver.Offer]
	creates    *batch[creation, admission]
	looks      *batch[string, *api.Session]
	wheres     *batch[string, *orchestrator.Whereabouts]
	renewals   *batch[renewal, *string]
	runnings   *batch[running, *string]
	finishings *batch[lease, *string]
	finishes   *batch[finish, *string]
	devices    *batch[[]deviceNews, struct{}]
}

func newBatches(pool *pgxpool.Pool) batches {
	return batches{
		offers: newOffers(pool), creates: newCreates(pool), looks: newLooks(pool), wheres: newWheres(pool), renewals: newRenewals(pool), runnings: newRunnings(pool), finishings: newFinishings(pool), finishes: newFinishes(pool),
		devices: newDeviceNews(pool),
	}
}

// close waits for what runs. Nothing may be called afterwards.
func (b batches) close() {
	b.offers.running.Wait()
	b.creates.running.Wait()
	b.looks.running.Wait()
	b.wheres.running.Wait()
	b.renewals.running.Wait()
	b.runnings.running.Wait()
	b.finishings.running.Wait()
	b.finishes.running.Wait()
	b.devices.running.Wait()
}

// do has a call run, with others. One whose ctx is done is given up, and may still happen: as with every statement.
func (b *batch[T, R]) do(ctx context.Context, of T) (R, error) {
	c := &call[T, R]{ctx: ctx, of: of, done: make(chan struct{})}
	b.mu.Lock()
	b.waiting = append(b.waiting, c)
	if !b.busy {
		b.busy = true
		b.running.Go(b.work)
	}
	b.mu.Unlock()
	select {
	case <-c.done:
		return c.answer, c.err
	case <-ctx.Done():
		var none R
		return none, unavailable(ctx.Err())
	}
}

func (b *batch[T, R]) work() {
	for {
		b.mu.Lock()
		n := min(len(b.waiting), batchMost)
		calls := b.waiting[:n:n]
		b.waiting = b.waiting[n:]
		if n == 0 {
			b.waiting, b.busy = nil, false
		}
		b.mu.Unlock()
		if n == 0 {
			return
		}
		b.settle(calls)
	}
}

func (b *batch[T, R]) settle(calls []*call[T, R]) {
	live := calls[:0]
	for _, c := range calls {
		if c.err = unavailable(c.ctx.Err()); c.err != nil {
			close(c.done)
			continue
		}
		live = append(live, c)
	}
	if len(live) == 0 {
		return
	}
	err := b.ask(live)
	if alone(err) && len(live) > 1 { // one of them was refused, or locked what another needs: each has an answer of its own
		for _, c := range live {
			c.err = unavailable(b.ask([]*call[T, R]{c}))
		}
	} else {
		for _, c := range live {
			c.err = unavailable(err)
		}
	}
	for _, c := range live {
		close(c.done)
	}
}

// errAlone is what run says when it has done nothing, and might do some of the calls.
var errAlone = errors.New("each alone")

// alone says whether a statement that failed may not fail for each of its calls.
func alone(err error) bool {
	var pg *pgconn.PgError
	told := unavailable(err)
	return errors.Is(told, errAlone) || deadlocked(err) || errors.As(err, &pg) && !errors.Is(told, orchestrator.ErrUnavailable)
}

// ask runs calls for as long as the most patient of their callers waits.
func (b *batch[T, R]) ask(calls []*call[T, R]) error {
	now := time.Now()
	var until time.Time
	of := make([]T, len(calls))
	for i, c := range calls {
		of[i] = c.of
		end, ok := c.ctx.Deadline()
		if limit := now.Add(batchLimit); !ok || end.After(limit) {
			end = limit
		}
		if end.After(until) {
			until = end
		}
	}
	ctx, cancel := context.WithDeadline(context.Background(), until)
	defer cancel()
	answers, err := b.run(ctx, of)
	if err != nil {
		return err
	}
	for i, c := range calls {
		c.answer = answers[i]
	}
	return nil
}

// single is the answer to a call that asked for one row. ErrNotFound.
func single[R any](answer *R, err error) (R, error) {
	var none R
	switch {
	case err != nil:
		return none, err
	case answer == nil:
		return none, orchestrator.ErrNotFound
	}
	return *answer, nil
}

// column is one thing of each row.
func column[T, C any](rows []T, of func(T) C) []C {
	out := make([]C, len(rows))
	for i, r := range rows {
		out[i] = of(r)
	}
	return out
}
