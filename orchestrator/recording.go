package orchestrator

import (
	"context"
	"errors"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/recorder"
)

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
	if !l.claim.Recording || l.claim.Adopted {
		return r, nil
	}
	var err error
	r.rec, err = o.deps.Recorder.Begin(ctx, recorder.Spec{
		ID: uuid.NewString(), Session: l.claim.Session, Account: l.claim.Account, Term: l.claim.Term,
		Placement: l.claim.Placement, Started: o.deps.Now(),
	})
	if errors.Is(err, recorder.ErrNoRoom) {
		r.failed("the session is not recorded", err)
		return r, nil
	}
	return r, err
}

// ingest takes the recording's bytes in the background until the host says that there are no more, or is lost.
func (r *openedRecording) ingest(ctx context.Context, dev *driverproxy.Session) {
	if r.l.claim.Adopted && r.l.claim.Recording {
		r.adopt(ctx, dev)
		return
	}
	if r.rec == nil {
		return
	}
	r.take(ctx, func(ctx context.Context) (*driverproxy.RecordingConn, error) {
		// The host dials it before it starts the driver, which has started: it is there, or will not come.
		open, opened := context.WithTimeout(ctx, recordingLimit)
		defer opened()
		return dev.Recording(open)
	})
}

// take ingests what comes over the socket that open opens.
func (r *openedRecording) take(ctx context.Context, open func(context.Context) (*driverproxy.RecordingConn, error)) {
	r.done = make(chan struct{})
	// The bytes are worth having however the session ends; stop bounds the wait for them.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stopped := r.done
	go func() {
		defer close(stopped)
		defer cancel()
		conn, err := open(ctx)
		if err != nil {
			r.failed("no recording arrived", err)
			return
		}
		defer conn.Close()
		if !r.l.claim.Adopted {
			r.l.emit(Event{Kind: EventRecording, Took: r.o.deps.Now().Sub(conn.Since())})
		}
		if err := r.rec.Ingest(ctx, conn); err != nil && !r.l.leaving() {
			r.failed("recording is not whole", err)
		}
	}()
}

// adopt goes on with the recording of an adopted session. The session's former holder has no way to its host any more, so that what it has on disk
// is all that it acknowledged; the host has the rest.
func (r *openedRecording) adopt(ctx context.Context, dev *driverproxy.Session) {
	call, cancel := context.WithTimeout(ctx, adoptRecordingLimit)
	defer cancel()
	rec, from, err := r.o.deps.Recorder.Adopt(call, recorder.Spec{ID: uuid.NewString(), Session: r.l.claim.Session, Term: r.l.claim.Term})
	if err != nil {
		r.abandon(ctx, dev, err)
		return
	}
	r.rec = rec
	conn := dev.ResumeRecording(from)
	r.take(ctx, func(context.Context) (*driverproxy.RecordingConn, error) { return conn, nil })
}

// abandon ends the recording of an adopted session: what came before is where its former holder put it, and nobody takes the rest.
func (r *openedRecording) abandon(ctx context.Context, dev *driverproxy.Session, why error) {
	ctx, cancel := context.WithTimeout(ctx, recordingLimit)
	defer cancel()
	r.failed("the recording ends where the session was adopted", errors.Join(why, dev.StopRecording(ctx)))
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

// seal makes the local file final; its upload is the recorder's own business from then on. That of a session that goes on elsewhere is left
// for it.
func (r *openedRecording) seal(ctx context.Context, end *EndError) {
	if r.rec == nil {
		return
	}
	ctx, cancel := r.o.cleanup(ctx, stopLimit)
	defer cancel()
	if end != nil && end.left {
		if err := r.rec.Leave(ctx); err != nil {
			r.o.log.Warn("the recording is not left as it should be", zap.String("session", r.l.claim.Session), zap.Error(err))
		}
		return
	}
	s, err := r.rec.Seal(ctx)
	if err != nil {
		r.failed("recording could not be sealed", err)
		return
	}
	r.l.emit(Event{Kind: EventRecordingSealed, BytesOut: s.Bytes, Took: s.Duration, Partial: s.Partial})
}
