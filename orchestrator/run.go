package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/profilestate"
)

// Bounds of the stages; none of them is the customer's time.
const (
	startLimit     = 60 * time.Second // driver and browser up
	recordingLimit = 5 * time.Second  // the recording socket, once the driver is up
	restoreLimit   = 60 * time.Second

	adoptRecordingLimit = 15 * time.Second // what was recorded before is copied
	captureLimit        = 60 * time.Second
	stopLimit           = 20 * time.Second // recording's last bytes here
	releaseLimit        = 20 * time.Second // device clean
	finishLimit         = 60 * time.Second // the ending stored
)

// run takes a session that was claimed or adopted to its end, or leaves it to be adopted.
func (o *Orchestrator) run(ctx context.Context, l *live, claimed time.Time) {
	c := l.claim
	o.measures.take(c)
	defer o.leave(l)
	ctx, cancel := context.WithCancelCause(ctx)
	held := make(chan struct{})
	// Finishing takes its time too, so the lease is held until the ending is stored, not only until the session is cancelled.
	holding, release := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(held)
		o.hold(holding, c, claimed, l.look, cancel)
	}()
	if c.Adopted {
		poke(l.look) // it may have been cancelled while nobody held it
	}
	end, saved := o.line(ctx, l)
	l.conclude(end)
	switch {
	case end.left:
		release()
		<-held // nobody may renew what is given up
		o.handOver(ctx, l)
	case end.again && o.requeue(ctx, l):
	default:
		o.finish(ctx, l, end, saved)
	}
	release()
	cancel(nil)
	<-held
}

// line is a session from its claim to its last stage; an adopted one has the stages before serve behind it. saved is the
// profile generation it published, or 0.
func (o *Orchestrator) line(ctx context.Context, l *live) (end *EndError, saved int64) {
	defer func() {
		if p := recover(); p != nil {
			o.log.Error("panic in a session", zap.String("session", l.claim.Session), zap.String("panic", fmt.Sprintf("%T", p)), zap.ByteString("stack", debug.Stack()))
			end = endWith(Internal, nil)
		}
	}()
	if err := o.awaited(ctx, l); err != nil {
		return o.ended(ctx, l, "nobody waits for the session", "", err), 0
	}
	profile, err := o.openProfile(ctx, l)
	if err != nil {
		return o.ended(ctx, l, "profile cannot be opened", ProfileConflict, err), 0
	}
	defer func() { profile.forget(end) }()
	rec, err := o.openRecording(ctx, l)
	if err != nil {
		return o.ended(ctx, l, "recording cannot be opened", RecordingFailed, err), 0
	}
	defer func() { rec.seal(ctx, end) }()
	dev, err := o.device(ctx, l, rec.rec != nil)
	if err != nil {
		end := o.ended(ctx, l, "driver did not start", "", err)
		var f *wire.Failure
		end.again = errors.As(err, &f) && f.Code == wire.FailureDevice
		return end, 0
	}
	defer func() { o.letGo(ctx, l, dev, rec, end) }()
	rec.ingest(ctx, dev)
	if err := profile.restore(ctx, dev); err != nil {
		return o.ended(ctx, l, "profile cannot be restored", "", err), 0
	}
	if err := o.running(ctx, l, dev); err != nil {
		return err, 0
	}

	end = l.serve(ctx, dev, o.stopping)
	l.relays.Wait() // each has been told; from here on nobody but us drives the browser
	if end.left {
		return end, 0
	}

	l.emit(Event{Kind: EventFinishing, Reason: end.Reason})
	clean, done := o.cleanup(ctx, finishLimit)
	defer done()
	if err := o.deps.Sessions.Finishing(clean, l.claim.Session, l.claim.Term); errors.Is(err, ErrLeaseLost) {
		return leave(err), 0
	}
	rec.stop(ctx, dev) // before the capture: what it does is not part of the customer's recording
	return profile.save(ctx, dev, end)
}

// ended classifies a stage's failure; as is the reason when the failure does not say more.
func (o *Orchestrator) ended(ctx context.Context, l *live, what string, as Reason, err error) *EndError {
	if ctx.Err() != nil {
		err = context.Cause(ctx) // the stage only saw a cancelled context
	}
	end := endOf(err)
	if end.Reason == Internal && as != "" && !errors.Is(err, ErrUnavailable) {
		end = &EndError{Reason: as, cause: err}
	}
	var damage *profilestate.DamageError
	if errors.As(err, &damage) {
		end.Detail = damage.Advice()
	}
	if l.claim.Adopted && (end.Reason == LeaseLost || errors.Is(err, errDrained)) {
		end = leave(err) // it runs: another may go on with it
	}
	o.log.Warn(what, zap.String("session", l.claim.Session), zap.String("reason", string(end.Reason)), cause(err))
	return end
}

// cause is an error for our log. What a driver says may quote the customer's page, so only its code is told.
func cause(err error) zap.Field {
	var w *webdriver.Error
	if errors.As(err, &w) {
		return zap.String("error", string(w.Code))
	}
	return zap.Error(err)
}

// cleanup is a context for undoing something: the session's cancellation does not reach it, a deadline does, and the end
// of the orchestrator's patience when it is stopped.
func (o *Orchestrator) cleanup(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, done := o.patience(ctx)
	ctx, cancel := context.WithTimeout(ctx, limit)
	return ctx, func() {
		cancel()
		done()
	}
}

// patience is a context that outlives ctx and ends when the orchestrator has been stopping for drainLimit.
func (o *Orchestrator) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		select {
		case <-o.tired:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// device is the running driver: a new one, which is recorded or not, or the one that an adopted session has.
func (o *Orchestrator) device(ctx context.Context, l *live, record bool) (*driverproxy.Session, error) {
	if l.claim.Adopted {
		return o.adopt(ctx, l)
	}
	return o.startDriver(ctx, l, record)
}

func (o *Orchestrator) startDriver(ctx context.Context, l *live, record bool) (*driverproxy.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	begin := o.deps.Now()
	capabilities, err := o.openCapabilities(l.claim)
	if err != nil {
		return nil, err
	}
	dev, err := o.deps.Fleet.Assign(ctx, driverproxy.Assignment{
		Host: l.claim.Host, Device: l.claim.Device, Session: l.claim.Session, Term: l.claim.Term,
		Capabilities: capabilities, Record: record,
	})
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	l.emit(Event{Kind: EventDriverStarted, Took: o.deps.Now().Sub(begin)})
	return dev, nil
}

// running marks the session as one that takes commands. An adopted one is marked.
func (o *Orchestrator) running(ctx context.Context, l *live, dev *driverproxy.Session) *EndError {
	if l.claim.Adopted {
		return nil
	}
	err := o.patiently(ctx, func() error {
		return o.deps.Sessions.Running(ctx, l.claim.Session, l.claim.Term, dev.Capabilities())
	})
	if err != nil {
		end := o.ended(ctx, l, "session cannot be marked running", "", err)
		end.left = end.Reason == LeaseLost // it may be marked, and then another goes on with it
		return end
	}
	o.measures.ran(l.claim, o.deps.Now().Sub(l.began))
	l.emit(Event{Kind: EventRunning})
	return nil
}

// letGo ends what is still on the host. Of a session that goes on it ends this end only.
func (o *Orchestrator) letGo(ctx context.Context, l *live, dev *driverproxy.Session, rec *openedRecording, end *EndError) {
	if end != nil && end.left {
		dev.Leave()
		return
	}
	rec.stop(ctx, dev)
	o.release(ctx, l, dev)
}

func (o *Orchestrator) release(ctx context.Context, l *live, dev *driverproxy.Session) {
	ctx, cancel := o.cleanup(ctx, releaseLimit)
	defer cancel()
	if err := dev.Release(ctx); err != nil && !errors.Is(err, driverproxy.ErrHostLost) && !errors.Is(err, driverproxy.ErrReleased) {
		o.log.Error("device was not cleaned", zap.String("session", l.claim.Session), zap.String("device", l.claim.Device), zap.Error(err))
		l.emit(Event{Kind: EventDeviceNotCleaned})
	}
	if w := dev.Wiped(); w != nil {
		l.emit(Event{Kind: EventDeviceWiped, Removed: w.Verified, Dropped: w.Unverified, Kept: w.Left})
	}
}

// patiently repeats a step that failed because the database was away, until ctx ends: an outage of seconds must not cost
// a session its profile or its life.
func (o *Orchestrator) patiently(ctx context.Context, step func() error) error {
	wait := backoff.NewExponentialBackOff()
	wait.MaxInterval = 2 * time.Second
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := step()
		if err != nil && !errors.Is(err, ErrUnavailable) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(0))
	return err
}

// requeue gives a session back whose device turned out to be taken: the next free one may have it. The device is stored as busy
// then, and its host may have said before that it is not any more.
func (o *Orchestrator) requeue(ctx context.Context, l *live) bool {
	ctx, cancel := o.cleanup(ctx, finishLimit)
	defer cancel()
	o.journal.flush(ctx)
	again, last := false, l.stamp(Event{Kind: EventRequeued})
	err := o.patiently(ctx, func() (err error) {
		again, err = o.deps.Sessions.Requeue(ctx, last)
		return err
	})
	if err != nil {
		o.log.Warn("session could not be queued again", zap.String("session", l.claim.Session), zap.Error(err))
	}
	o.deps.Fleet.Recheck(l.claim.Host, l.claim.Device)
	return again
}

// finish stores the ending. A database that is away is waited for.
func (o *Orchestrator) finish(ctx context.Context, l *live, end *EndError, saved int64) {
	ctx, cancel := o.cleanup(ctx, finishLimit)
	defer cancel()
	o.journal.flush(ctx)
	last := l.stamp(Event{Kind: EventEnded, Reason: end.Reason})
	err := o.patiently(ctx, func() error { return o.deps.Sessions.Finish(ctx, last, end.Detail, saved) })
	if errors.Is(err, ErrLeaseLost) { // also where it was stored, and the answer was lost
		o.log.Warn("session is another orchestrator's, or has ended", zap.String("session", l.claim.Session), zap.String("reason", string(end.Reason)))
		return
	}
	if err != nil {
		o.log.Error("the ending could not be stored", zap.String("session", l.claim.Session), zap.String("reason", string(end.Reason)), zap.Error(err))
		return
	}
	o.measures.end(end.Reason)
	o.log.Info("session ended", zap.String("session", l.claim.Session), zap.String("reason", string(end.Reason)), cause(end.cause))
}
