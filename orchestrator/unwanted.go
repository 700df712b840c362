package orchestrator

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
)

// landLimit is how long after the answer to it was given up a statement may still be carried out: longer than Postgres runs one of
// ours (statement_timeout in pgstore).
const landLimit = time.Minute

// unwanted notes a session that may have been queued although whoever asked for it was told otherwise.
func (o *Orchestrator) unwanted(session string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.unanswered[session] = o.deps.Now()
}

// endUnwanted cancels those sessions, once the database answers. One that is not there may still come to be.
func (o *Orchestrator) endUnwanted(ctx context.Context) {
	o.mu.Lock()
	list := make(map[string]time.Time, len(o.unanswered))
	for id, since := range o.unanswered {
		list[id] = since
	}
	o.mu.Unlock()
	for id, since := range list {
		err := o.deps.Sessions.Cancel(ctx, id)
		switch {
		case err == nil:
			o.log.Warn("a session was queued without an answer, and is ended", zap.String("session", id))
		case !errors.Is(err, ErrNotFound):
			return // it is away, for the others as well
		case o.deps.Now().Sub(since) < landLimit:
			continue
		}
		o.mu.Lock()
		delete(o.unanswered, id)
		o.mu.Unlock()
	}
}

// Abandon is Cancel for a session that nobody will ask for: where the database is away for longer than ctx lasts, the session is ended
// later.
func (o *Orchestrator) Abandon(ctx context.Context, session string) error {
	err := o.Cancel(ctx, session)
	if err != nil && !errors.Is(err, ErrNotFound) {
		o.unwanted(session)
	}
	return err
}
