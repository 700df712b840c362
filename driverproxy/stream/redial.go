package stream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// ErrEnded says that the server ended the stream with its session.
var ErrEnded = errors.New("the session has ended")

// errServer is wrapped by errors about a server that does not keep to the protocol.
var errServer = errors.New("the server does not keep to the protocol of streams")

const (
	helloLimit = 15 * time.Second // for the server's first message
	steady     = 5 * time.Second  // a connection that held so long was a good one
)

// again says when a stream that broke is dialled.
type again struct {
	pause    *backoff.ExponentialBackOff
	patience time.Duration
	since    time.Time // when it broke; zero: it works
}

func newAgain(o Options) *again {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = min(50*time.Millisecond, o.pause), o.pause
	return &again{pause: pause, patience: o.Patience}
}

// good says that the stream works.
func (a *again) good() {
	a.since = time.Time{}
	a.pause.Reset()
}

// wait is how long to wait before the next try: nothing before the first. false: it has been tried for long enough.
func (a *again) wait() (time.Duration, bool) {
	if a.since.IsZero() {
		a.since = time.Now()
		return 0, true
	}
	d := a.pause.NextBackOff()
	return d, time.Since(a.since)+d <= a.patience
}

// run carries the stream until it is closed, cannot be resumed, or has been broken for too long.
func (c *Client) run(ctx context.Context, conn *socket.Conn) {
	defer close(c.done)
	a := newAgain(c.opts)
	var done uint64
	for {
		begin := time.Now()
		err := c.talk(ctx, conn)
		if now := c.progress(); now > done || time.Since(begin) > steady {
			done = now
			a.good()
		}
		if ctx.Err() == nil && !final(err) {
			conn, err = c.redial(ctx, a, err)
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			if conn != nil {
				conn.Close()
			}
			c.fail(err)
			return
		}
	}
}

// progress rises whenever a connection was good for something.
func (c *Client) progress() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.outbox.received + c.outbox.answered
}

// redial dials until there is a connection. err is why there is none.
func (c *Client) redial(ctx context.Context, a *again, err error) (*socket.Conn, error) {
	for {
		d, ok := a.wait()
		if !ok {
			return nil, fmt.Errorf("no connection for %s: %w", a.patience, err)
		}
		t := time.NewTimer(d)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, context.Cause(ctx)
		}
		try, cancel := context.WithDeadline(ctx, a.since.Add(a.patience))
		conn, failed := c.connect(try)
		cancel()
		if failed == nil || final(failed) {
			return conn, failed
		}
		err = failed
	}
}

// connect makes one connection, on which the stream begins or goes on.
func (c *Client) connect(ctx context.Context) (*socket.Conn, error) {
	c.mu.Lock()
	resume := Resume{Token: c.token, Answered: c.outbox.answered}
	c.mu.Unlock()
	conn, err := new(socket.Endpoint).DialWith(ctx, c.opts.Dial, c.url+resume.query(), c.opts.Header, limits())
	if err != nil {
		return nil, fmt.Errorf("stream: %w", err)
	}
	if err := c.greet(ctx, conn, resume); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (c *Client) greet(ctx context.Context, conn *socket.Conn, resume Resume) error {
	stop := context.AfterFunc(ctx, conn.Close)
	defer stop()
	conn.SetSilence(helloLimit)
	b, err := conn.ReadText()
	if err != nil {
		return explain(err)
	}
	conn.SetSilence(limits().Silence)
	token, h, err := decodeHello(b)
	if err == nil && resume.Token != (Token{}) && token != resume.Token {
		err = errors.New("it goes on with another stream")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		err = c.outbox.connected(h)
	}
	if err != nil {
		return fmt.Errorf("stream: %w: %w", errServer, err)
	}
	c.token = token
	return nil
}

// talk carries one connection to its end.
func (c *Client) talk(ctx context.Context, conn *socket.Conn) error {
	ended, written := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(written)
		c.write(ctx, conn, ended)
	}()
	leave := context.AfterFunc(ctx, func() { conn.Expire(closeLimit) })
	defer leave()
	err := c.read(conn)
	close(ended)
	conn.Close()
	<-written
	return err
}

func (c *Client) read(conn *socket.Conn) error {
	for {
		b, err := conn.ReadText()
		if err != nil {
			return explain(err)
		}
		if err := c.received(b); err != nil {
			return err
		}
	}
}

// write sends what there is to send until the connection has ended, or the client is closed.
func (c *Client) write(ctx context.Context, conn *socket.Conn, ended <-chan struct{}) {
	for {
		if ctx.Err() != nil {
			c.goodbye(conn)
			return
		}
		c.mu.Lock()
		message := c.outbox.next()
		c.mu.Unlock()
		if message != nil {
			if conn.WriteText(context.Background(), message) != nil {
				conn.Close()
				return
			}
			continue
		}
		select {
		case <-c.wake:
		case <-ended:
			return
		case <-ctx.Done():
		}
	}
}

// goodbye acknowledges what is left to acknowledge, so that nobody keeps it.
func (c *Client) goodbye(conn *socket.Conn) {
	c.mu.Lock()
	last := c.outbox.last()
	c.mu.Unlock()
	if last != nil && conn.WriteText(context.Background(), last) != nil {
		conn.Close()
		return
	}
	conn.Bye("")
}

// received takes an answer.
func (c *Client) received(b []byte) error {
	a, err := decodeAnswer(b)
	if err != nil {
		return fmt.Errorf("stream: %w: %w", errServer, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := c.outbox.answer(a)
	if err != nil {
		return fmt.Errorf("stream: %w: %w", errServer, err)
	}
	body := make([]byte, 0, len(a.Value)+len(`{"value":}`))
	body = append(append(append(body, `{"value":`...), a.Value...), '}')
	p.settle(webdriver.Answer{Status: a.Status, Body: body}, nil)
	if c.outbox.ready() {
		poke(c.wake)
	}
	return nil
}

// fail settles every command that has no answer.
func (c *Client) fail(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = cause
	for _, p := range c.outbox.rest() {
		what := ErrNotSent
		if p.sent {
			what = ErrUnknown
		}
		p.settle(webdriver.Answer{}, fmt.Errorf("stream: %w: %w", what, cause))
	}
}

// explain says what the end of a connection means.
func explain(err error) error {
	switch code, reason, closed := socket.Closed(err); {
	case closed && code == socket.CloseNormal:
		return fmt.Errorf("%w: %s", ErrEnded, reason)
	case closed && reason != "":
		return fmt.Errorf("closed by the server: %s: %w", reason, err)
	}
	return err
}

// final says that a stream cannot be resumed after an error.
func final(err error) bool {
	var refused *socket.StatusError
	if errors.As(err, &refused) {
		return refused.Status < 500 && refused.Status != http.StatusTooManyRequests && refused.Status != http.StatusRequestTimeout
	}
	if errors.Is(err, ErrEnded) || errors.Is(err, errServer) {
		return true
	}
	switch code, _, _ := socket.Closed(err); code {
	case 0, socket.CloseGoingAway, 1005, 1011, 1012, 1013: // broken, or the server is, or is about to be started anew
		return false
	}
	return true
}
