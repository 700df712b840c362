package orchestrator

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// bidiOpenLimit bounds the opening of a BiDi connection, as far as the driver.
const bidiOpenLimit = 20 * time.Second

// BiDi relays a client's WebDriver BiDi connection to the session's driver until either end closes it or the session ends. It
// returns nil when it has done so, and otherwise the answer that the request is owed.
func (o *Orchestrator) BiDi(w http.ResponseWriter, r *http.Request, session string) *webdriver.Answer {
	l, absent := o.reach(r.Context(), session)
	if l == nil {
		return &absent
	}
	d, refusal := l.join(r.Context())
	if refusal != nil {
		return refusal
	}
	defer l.relays.Done()
	ctx, done := l.whileOpen(r.Context())
	defer done()
	begin := l.now()
	conn, err := openBiDi(ctx, r.Context(), d)
	if err != nil {
		return l.notOpened(err)
	}
	l.emit(Event{Kind: EventBiDiOpened, Took: l.now().Sub(begin)})
	begin = l.now()
	var up, down atomic.Int64
	how, err := conn.Serve(ctx, w, r, func(n int) { up.Add(int64(n)); l.touch() }, func(n int) { down.Add(int64(n)) })
	if err != nil {
		how.Code = socket.CloseGoingAway // the request was no websocket's after all, and has been told so
	}
	l.emit(Event{Kind: EventBiDiClosed, Status: how.Code, Took: l.now().Sub(begin), BytesIn: up.Load(), BytesOut: down.Load()})
	return nil
}

// join counts one more relay, whose end the session waits for, as soon as commands are taken. A join that is not refused is
// followed by relays.Done.
func (l *live) join(ctx context.Context) (device, *webdriver.Answer) {
	if !l.started(ctx) {
		a := (&webdriver.Error{Code: webdriver.Timeout, Message: "the session has not started yet; try again"}).Answer()
		return nil, &a
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end != nil || l.device == nil {
		a := gone(l.end)
		return nil, &a
	}
	l.relays.Add(1)
	l.idleAt = l.now()
	return l.device, nil
}

// touch says that the client is not idle.
func (l *live) touch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idleAt = l.now()
}

// whileOpen is a context that outlives the request's connection, and ends when the session takes no more commands, with the
// words that a client is to hear then as its cause.
func (l *live) whileOpen(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-l.closed:
			cancel(l.farewell())
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-watched
	}
}

func (l *live) farewell() *socket.Close {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.end.left:
		return &socket.Close{Code: socket.CloseAgain, Reason: "another orchestrator goes on with the session: connect again"}
	case l.end.Reason == Completed:
		return &socket.Close{Code: socket.CloseNormal, Reason: "the session has ended: completed"}
	}
	return &socket.Close{Code: socket.CloseGoingAway, Reason: "the session has ended: " + string(l.end.Reason)}
}

// openBiDi opens a connection while the client waits for it.
func openBiDi(ctx, client context.Context, d device) (*driverproxy.BiDi, error) {
	ctx, cancel := context.WithTimeout(ctx, bidiOpenLimit)
	defer cancel()
	defer context.AfterFunc(client, cancel)()
	return d.OpenBiDi(ctx)
}

// notOpened is the answer for a connection that could not be opened.
func (l *live) notOpened(err error) *webdriver.Answer {
	l.mu.Lock()
	end := l.end
	l.mu.Unlock()
	a := gone(end)
	plain := func(status int, code webdriver.Code, message string) {
		a = (&webdriver.Error{Code: code, Message: message}).Answer()
		a.Status = status
	}
	switch {
	case end != nil:
	case errors.Is(err, driverproxy.ErrNoBiDi):
		plain(http.StatusBadRequest, webdriver.InvalidArgument, strings.TrimPrefix(err.Error(), "driverproxy: "))
	case errors.Is(err, driverproxy.ErrBiDiFull):
		plain(http.StatusTooManyRequests, webdriver.UnknownError, strings.TrimPrefix(err.Error(), "driverproxy: "))
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		plain(http.StatusGatewayTimeout, webdriver.Timeout, "the device did not open the connection in time; try again")
	default:
		plain(http.StatusBadGateway, webdriver.UnknownError, "the device's host cannot be reached; try again")
	}
	return &a
}
