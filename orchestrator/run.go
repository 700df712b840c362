package orchestrator

import (
	"context"
	"errors"
	"runtime/debug"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/profilestate"
	"github.com/driftstack/fleet/recorder"
)

// Bounds of the stages; none of them is the customer's time.
const (
	startLimit     = 60 * time.Second // driver and browser up
	recordingLimit = 5 * time.Second  // the recording socket, once the driver is up
	restoreLimit   = 60 * time.Second
	captureLimit   = 60 * time.Second
	stopLimit      = 20 * time.Second // recording's last bytes here
	releaseLimit   = 20 * time.Second // device clean
	finishLimit    = 60 * time.Second // the ending stored
)

// run takes a claimed session to its end.
func (o *Orchestrator) run(ctx context.Context, c Claim, claimed time.Time) {
	l := newLive(c, o.journal, o.deps.Now)
	o.enter(l)
	defer o.leave(l)
	ctx, cancel := context.WithCancelCause(ctx)
	held := make(chan struct{})
	// Finishing takes its time too, so the lease is held until the ending is stored, not only until the session is cancelled.
	holding, release := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(held)
		o.hold(holding, c, claimed, l.look, cancel)
	}()
	end, saved := o.line(ctx, l)
	l.stop(end)
	if !end.again || !o.requeue(ctx, l) {
		o.finish(ctx, l, end, saved)
	}
	release()
	cancel(nil)
	<-held
}

// line is a session from its claim to its last stage. saved is the profile generation it published, or 0.
func (o *Orchestrator) line(ctx context.Context, l *live) (end *EndError, saved int64) {
	defer func() {
		if p := recover(); p != nil {
			o.log.Error("panic in a session", zap.String("session", l.claim.Session), zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			end = endWith(Internal, nil)
		}
	}()
	profile, err := o.openProfile(ctx, l)
	if err != nil {
		return o.ended(ctx, l, "profile cannot be opened", ProfileConflict, err), 0
	}
	rec, err := o.openRecording(ctx, l)
	if err != nil {
		return o.ended(ctx, l, "recording cannot be opened", RecordingFailed, err), 0
	}
	defer rec.seal(ctx)
	dev, err := o.startDriver(ctx, l)
	if err != nil {
		end := o.ended(ctx, l, "driver did not start", "", err)
		var f *wire.Failure
		end.again = errors.As(err, &f) && f.Code == wire.FailureDevice
		return end, 0
	}
	defer o.release(ctx, l, dev)
	rec.ingest(ctx, dev)
	defer rec.stop(ctx, dev)
	if err := profile.restore(ctx, dev); err != nil {
		return o.ended(ctx, l, "profile cannot be restored", "", err), 0
	}
	err = o.patiently(ctx, func() error {
		return o.deps.Sessions.Running(ctx, l.claim.Session, l.claim.Term, dev.Capabilities())
	})
	if err != nil {
		return o.ended(ctx, l, "session cannot be marked running", "", err), 0
	}
	l.emit(Event{Kind: EventRunning})

	end = l.serve(ctx, dev)

	l.emit(Event{Kind: EventFinishing, Reason: end.Reason})
	clean, done := o.cleanup(ctx, finishLimit)
	defer done()
	if err := o.deps.Sessions.Finishing(clean, l.claim.Session, l.claim.Term); errors.Is(err, ErrLeaseLost) {
		return endWith(LeaseLost, nil), 0
	}
	rec.stop(ctx, dev) // before the capture: what it does is not part of the customer's recording
	return end, profile.save(ctx, dev, end)
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

func (o *Orchestrator) startDriver(ctx context.Context, l *live) (*driverproxy.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	begin := o.deps.Now()
	dev, err := o.deps.Fleet.Assign(ctx, driverproxy.Assignment{
		Host: l.claim.Host, Device: l.claim.Device, Session: l.claim.Session, Term: l.claim.Term,
		Capabilities: l.claim.Capabilities, Record: l.claim.Recording,
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

func (o *Orchestrator) release(ctx context.Context, l *live, dev *driverproxy.Session) {
	ctx, cancel := o.cleanup(ctx, releaseLimit)
	defer cancel()
	if err := dev.Release(ctx); err != nil && !errors.Is(err, driverproxy.ErrHostLost) && !errors.Is(err, driverproxy.ErrReleased) {
		o.log.Error("device was not cleaned", zap.String("session", l.claim.Session), zap.String("device", l.claim.Device), zap.Error(err))
		l.emit(Event{Kind: EventDeviceNotCleaned})
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

// requeue gives a session back whose device turned out to be taken: the next free one may have it.
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
	return again
}

// finish stores the ending. A database that is away is waited for.
func (o *Orchestrator) finish(ctx context.Context, l *live, end *EndError, saved int64) {
	ctx, cancel := o.cleanup(ctx, finishLimit)
	defer cancel()
	o.journal.flush(ctx)
	last := l.stamp(Event{Kind: EventEnded, Reason: end.Reason})
	err := o.patiently(ctx, func() error { return o.deps.Sessions.Finish(ctx, last, end.Detail, saved) })
	if err != nil {
		o.log.Error("the ending could not be stored", zap.String("session", l.claim.Session), zap.String("reason", string(end.Reason)), zap.Error(err))
		return
	}
	o.log.Info("session ended", zap.String("session", l.claim.Session), zap.String("reason", string(end.Reason)), cause(end.cause))
}

// openedRecording is the recording stage of one session; every method does nothing when none was asked for.
type openedRecording struct {
	o    *Orchestrator
	l    *live
	rec  *recorder.Recording
	done chan struct{} // closed when no more bytes come
	quit bool
}

func (o *Orchestrator) openRecording(ctx context.Context, l *live) (*openedRecording, error) {
	r := &openedRecording{o: o, l: l}
	if !l.claim.Recording {
		return r, nil
	}
	var err error
	r.rec, err = o.deps.Recorder.Begin(ctx, recorder.Spec{
		ID: uuid.NewString(), Session: l.claim.Session, Account: l.claim.Account, Term: l.claim.Term,
		Placement: l.claim.Placement, Started: o.deps.Now(),
	})
	return r, err
}

// ingest takes the recording's bytes in the background until the host says that there are no more, or is lost.
func (r *openedRecording) ingest(ctx context.Context, dev *driverproxy.Session) {
	if r.rec == nil {
		return
	}
	r.done = make(chan struct{})
	// The bytes are worth having however the session ends; stop bounds the wait for them.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stopped := r.done
	go func() {
		defer close(stopped)
		defer cancel()
		// The host dials it before it starts the driver, which has started: it is there, or will not come.
		open, opened := context.WithTimeout(ctx, recordingLimit)
		conn, err := dev.Recording(open)
		opened()
		if err != nil {
			r.failed("no recording arrived", err)
			return
		}
		defer conn.Close()
		r.l.emit(Event{Kind: EventRecording, Took: r.o.deps.Now().Sub(conn.Since())})
		if err := r.rec.Ingest(ctx, conn); err != nil {
			r.failed("recording is not whole", err)
		}
	}()
}

func (r *openedRecording) failed(what string, err error) {
	r.o.log.Warn(what, zap.String("session", r.l.claim.Session), zap.Error(err))
	r.l.emit(Event{Kind: EventRecordingFailed})
}

// stop asks the host for the last bytes and waits for them. Calling it again is harmless.
func (r *openedRecording) stop(ctx context.Context, dev *driverproxy.Session) {
	if r.done == nil || r.quit {
		return
	}
	r.quit = true
	ctx, cancel := r.o.cleanup(ctx, stopLimit)
	defer cancel()
	if err := dev.StopRecording(ctx); err != nil {
		r.o.log.Warn("recording could not be stopped", zap.String("session", r.l.claim.Session), zap.Error(err))
	}
	select {
	case <-r.done:
	case <-ctx.Done():
	}
}

// seal makes the local file final; its upload is the recorder's own business from then on.
func (r *openedRecording) seal(ctx context.Context) {
	if r.rec == nil {
		return
	}
	ctx, cancel := r.o.cleanup(ctx, stopLimit)
	defer cancel()
	s, err := r.rec.Seal(ctx)
	if err != nil {
		r.failed("recording could not be sealed", err)
		return
	}
	r.l.emit(Event{Kind: EventRecordingSealed, BytesOut: s.Bytes, Took: s.Duration, Partial: s.Partial})
}

// openedProfile is the profile stage of one session; every method does nothing when it has no profile.
type openedProfile struct {
	o        *Orchestrator
	l        *live
	ref      profilestate.Ref
	current  profilestate.Generation
	snapshot *profilestate.Snapshot
	restored profilestate.Report
}

func (o *Orchestrator) openProfile(ctx context.Context, l *live) (*openedProfile, error) {
	p := &openedProfile{o: o, l: l, ref: profilestate.Ref{Account: l.claim.Account, Profile: l.claim.Profile}}
	if l.claim.Profile == "" {
		return p, nil
	}
	err := o.patiently(ctx, func() (err error) {
		p.snapshot, p.current, err = o.deps.Profiles.Load(ctx, p.ref)
		return err
	})
	return p, err
}

func (p *openedProfile) restore(ctx context.Context, dev device) error {
	if p.l.claim.Profile == "" || p.current.Number == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, restoreLimit)
	defer cancel()
	begin := p.o.deps.Now()
	var err error
	if p.restored, err = profilestate.Restore(ctx, driver{dev}, p.snapshot); err != nil {
		return err
	}
	n := p.restored.Counts()
	p.l.emit(Event{Kind: EventProfileRestored, Generation: p.current.Number, Took: p.o.deps.Now().Sub(begin),
		Restored: n.Restored, Altered: n.Altered, Dropped: n.Dropped + n.Unsupported})
	return nil
}

// save captures, seals and publishes the profile, and returns the new generation's number. When it cannot, the
// generation before stays the current one and the log says so.
func (p *openedProfile) save(ctx context.Context, dev device, end *EndError) int64 {
	if p.l.claim.Profile == "" {
		return 0
	}
	switch end.Reason {
	case HostLost, DriverFailed, LeaseLost, CommandDeadline:
		p.l.emit(Event{Kind: EventProfileNotSaved, Reason: end.Reason})
		return 0
	}
	ctx, cancel := p.o.cleanup(ctx, captureLimit)
	defer cancel()
	begin := p.o.deps.Now()
	next, n, err := p.capture(ctx, dev)
	if err != nil {
		reason := endOf(err).Reason
		if errors.Is(err, profilestate.ErrConflict) {
			reason = ProfileConflict
		}
		p.o.log.Warn("profile not saved", zap.String("session", p.l.claim.Session), zap.String("profile", p.l.claim.Profile), cause(err))
		p.l.emit(Event{Kind: EventProfileNotSaved, Reason: reason})
		return 0
	}
	p.l.emit(Event{Kind: EventProfileSaved, Generation: next.Number, BytesOut: next.Bytes, Took: p.o.deps.Now().Sub(begin),
		Captured: n.Captured, Kept: n.Kept, Removed: n.Removed})
	return next.Number
}

func (p *openedProfile) capture(ctx context.Context, dev device) (profilestate.Generation, profilestate.Counts, error) {
	visited := profilestate.Visited{Origins: p.l.pages()}
	snapshot, report, err := profilestate.Capture(ctx, driver{dev}, visited, p.snapshot, p.restored)
	if err != nil {
		return profilestate.Generation{}, profilestate.Counts{}, err
	}
	// Committing again is safe: the compare-and-swap lets one of the attempts win.
	var next profilestate.Generation
	err = p.o.patiently(ctx, func() (err error) {
		next, err = p.o.deps.Profiles.Commit(ctx, p.ref, p.current, snapshot, p.l.claim.Session, p.l.claim.Term)
		return err
	})
	return next, report.Counts(), err
}
