package orchestrator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/stream"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator/api"
)

const (
	maxStreams = 8
	// maxLost is how many streams that gave their place away are remembered: one in streamKeep at most can be added for each place.
	maxLost = 1024
	// streamKeep is how long the answers of a stream without a connection are kept when another stream needs its place.
	streamKeep = 10 * time.Minute
)

// ErrElsewhere says that a session runs, and not here.
var ErrElsewhere = errors.New("the session is not run by this orchestrator")

// TooManyStreamsError says that a session has as many streams as it can have.
type TooManyStreamsError struct{}

func (*TooManyStreamsError) Error() string {
	return fmt.Sprintf("the session has %d streams whose answers are not all acknowledged: resume one with its token, or acknowledge what it answered; "+
		"one without a connection gives its place away after %s", maxStreams, streamKeep)
}

// Stream finds a stream of a session, or begins one; the caller serves its seat. Errors: ErrNotFound, *EndError, *ConflictError
// when the session is still queued or the stream does not go on there, *TooManyStreamsError, ErrElsewhere, ErrUnavailable.
func (o *Orchestrator) Stream(ctx context.Context, session string, r stream.Resume) (*stream.Seat, error) {
	if l := o.find(session); l != nil {
		if !l.started(ctx) {
			return nil, &ConflictError{Problem: "the session has not started yet; wait with GET /v1/sessions/{id}?wait=running"}
		}
		return l.streams.sit(r)
	}
	s, err := o.look(ctx, session)
	switch {
	case err != nil:
		return nil, err
	case s.State == api.Ended:
		return nil, Ended(s)
	case s.State == api.Queued:
		return nil, &ConflictError{Problem: "the session is still queued; wait with GET /v1/sessions/{id}?wait=running"}
	}
	return nil, ErrElsewhere
}

// streams are the clients' streams of one session, which ends with close.
type streams struct {
	live   *live
	nobody sync.WaitGroup // waits for answers that nobody wants

	mu   sync.Mutex // guards what follows; held while a stream is found and its seat taken, or it could be dropped in between
	open map[stream.Token]*stream.Stream
	lost map[stream.Token]uint64 // streams that gave their place away with answers not acknowledged: the highest number of each
}

func newStreams(l *live) *streams {
	return &streams{live: l, open: map[stream.Token]*stream.Stream{}, lost: map[stream.Token]uint64{}}
}

// sit finds the stream, or begins it.
func (s *streams) sit(r stream.Resume) (*stream.Seat, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	end := s.live.ended()
	if moved(end) {
		return nil, ErrElsewhere
	}
	st := s.open[r.Token]
	if st == nil {
		if end != nil {
			return nil, end
		}
		if high := s.lost[r.Token]; r.Answered < high { // its commands would run again
			return nil, &ConflictError{Problem: fmt.Sprintf("the stream gave its place to another, with its answers after %d: whether those commands ran is not known any more; begin a new stream", r.Answered)}
		}
		if !s.roomLocked() {
			return nil, &TooManyStreamsError{}
		}
		if r.Token == (stream.Token{}) {
			r.Token = stream.NewToken()
		}
		st = stream.New(r.Token, r.Answered, &streamed{s.live, r.Token}, s.live.now)
		s.open[r.Token] = st
	}
	seat, err := st.Sit(r.Answered)
	if errors.Is(err, stream.ErrNumber) {
		err = &ConflictError{Problem: err.Error()}
	}
	return seat, err
}

// roomLocked makes room for one more stream, at the cost of one that is not connected: the one that has been so for the longest time of
// those that nobody can miss, or else of those whose client does not come back.
func (s *streams) roomLocked() bool {
	if len(s.open) < maxStreams {
		return true
	}
	type idle struct {
		token stream.Token
		since time.Time
		clean bool
	}
	var all []idle
	for token, st := range s.open {
		since, clean, connected := st.Idle()
		if !connected && (clean || s.live.now().Sub(since) > streamKeep) {
			all = append(all, idle{token, since, clean})
		}
	}
	slices.SortFunc(all, func(a, b idle) int {
		if a.clean != b.clean {
			if a.clean {
				return -1
			}
			return 1
		}
		return a.since.Compare(b.since)
	})
	for _, i := range all {
		if st := s.open[i.token]; st.Drop() {
			if !i.clean && len(s.lost) < maxLost {
				s.lost[i.token] = st.Highest()
			}
			delete(s.open, i.token)
			return true
		}
	}
	return false
}

// adopt takes over the commands that the host has of the session's life before this one: those of streams, whose clients come back
// for the answers, and those of clients that are gone.
func (s *streams) adopt(d device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := slices.Clone(d.Kept())
	// A command that had to be sent again is behind those that came after it.
	slices.SortStableFunc(kept, func(a, b driverproxy.Kept) int { return cmp.Compare(a.Origin.Number, b.Origin.Number) })
	var nobodys []func() stream.Result
	for _, k := range kept {
		wait := s.live.awaits(d, k)
		token := stream.Token(k.Origin.Stream)
		if token == (stream.Token{}) {
			nobodys = append(nobodys, wait)
			continue
		}
		st := s.open[token]
		if st == nil {
			st = stream.New(token, 0, &streamed{s.live, token}, s.live.now)
			s.open[token] = st
		}
		st.Adopt(k.Origin.Number, wait)
	}
	if len(nobodys) == 0 {
		return
	}
	s.nobody.Go(func() {
		for _, wait := range nobodys {
			if r := wait(); r.Seq != 0 {
				d.Acknowledge(r.Seq)
			}
		}
	})
}

// close ends the streams once the session has ended: what was taken is answered, and connections are told why.
func (s *streams) close() {
	end := s.live.ended()
	e := stream.Ending{Moved: moved(end)}
	switch {
	case e.Moved:
		e.Reason = "the session moves to another orchestrator: resume the stream"
	case end == nil || end.Reason == Completed:
		e.Reason = "the session has been quit"
	default:
		e.Reason = end.Error()
	}
	s.mu.Lock()
	open := slices.Collect(maps.Values(s.open))
	s.mu.Unlock()
	for _, st := range open {
		st.End(e)
	}
	s.nobody.Wait()
}

// awaits is how the answer of a command that the host had before is waited for. It may be a batch, which has the time of a command
// and of a wait.
func (l *live) awaits(d device, k driverproxy.Kept) (wait func() stream.Result) {
	if _, ok := l.admit(); !ok {
		return func() stream.Result { return over(l.ended()) }
	}
	return func() stream.Result {
		defer l.ran()
		ctx, cancel := context.WithTimeout(context.Background(), min(l.claim.Command+batch.MaxWait, l.claim.Max))
		defer cancel()
		begin := l.now()
		a, receipt, err := d.Await(ctx, k)
		l.follow(webdriver.RouteUnknown, nil, begin, a, receipt, err)
		return l.result(a, receipt, err)
	}
}

// result is what a stream gets. What this orchestrator does not hear of any more is for the next one to tell.
func (l *live) result(a webdriver.Answer, receipt driverproxy.Receipt, err error) stream.Result {
	return stream.Result{Answer: a, Seq: receipt.Seq, Moved: err != nil && (errors.Is(err, driverproxy.ErrClosed) || moved(l.ended()))}
}

// over is the result of a command that came too late.
func over(e *EndError) stream.Result { return stream.Result{Answer: gone(e), Moved: moved(e)} }

// moved says that a session which has ended here may go on elsewhere.
func moved(e *EndError) bool { return e != nil && e.Reason == LeaseLost }

// streamed runs the commands of one stream.
type streamed struct {
	live  *live
	token stream.Token
}

var _ stream.Runner = (*streamed)(nil)

// Alone implements stream.Runner: what may end the session comes after the answers to everything before it.
func (r *streamed) Alone(c webdriver.Command) bool {
	route, _ := webdriver.Match(c.Method, c.Path)
	return route == webdriver.RouteDeleteSession || route == webdriver.RouteCloseWindow
}

// Acknowledge implements stream.Runner.
func (r *streamed) Acknowledge(seq uint64) {
	r.live.mu.Lock()
	d := r.live.device
	r.live.mu.Unlock()
	d.Acknowledge(seq)
}

// Begin implements stream.Runner. A command runs on whatever becomes of its client, and has its time from when those before it in its
// stream have been answered.
func (r *streamed) Begin(number uint64, c webdriver.Command) (wait func() stream.Result) {
	l := r.live
	route, refused := c.Endpoint()
	var limit time.Duration
	if refused == nil {
		limit, refused = l.check(route, c)
	}
	if refused != nil {
		return func() stream.Result { return stream.Result{Answer: refused.Answer()} }
	}
	d, ok := l.admit()
	if !ok {
		return func() stream.Result { return over(l.ended()) }
	}
	if route == webdriver.RouteDeleteSession {
		return func() stream.Result {
			l.ran()
			return l.quitAndWait()
		}
	}
	var begun func(context.Context) (webdriver.Answer, driverproxy.Receipt, error)
	begin := func() { begun = d.Begin(wire.Origin{Stream: r.token, Number: number}, c) }
	if route != webdriver.RouteCloseWindow {
		begin()
	}
	return func() stream.Result {
		defer l.ran()
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if route == webdriver.RouteCloseWindow { // it is alone: nothing comes between the question and the command
			if lastWindow(ctx, d) {
				return stream.Result{Answer: l.closeLast(), Moved: moved(l.ended())}
			}
			begin()
		}
		began := l.now()
		a, receipt, err := begun(ctx)
		l.follow(route, c.Body, began, a, receipt, err)
		return l.result(a, receipt, err)
	}
}

// quitAndWait is Orchestrator.Quit for a stream, whose client may be gone by then.
func (l *live) quitAndWait() stream.Result {
	l.quit()
	<-l.over
	return stream.Result{Answer: l.quitted(), Moved: moved(l.ended())}
}
