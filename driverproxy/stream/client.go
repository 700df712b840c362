package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// What is known of a command without an answer; errors of [Client.Do] and [Pending.Wait] are one of the two, besides why.
var (
	ErrNotSent = errors.New("the command was not sent, and not run")
	ErrUnknown = errors.New("the command was sent, and may have been run or not")
)

// errHungUp is why commands have no answer after Close.
var errHungUp = errors.New("the stream was closed by its client")

// most is how many commands may be at the client: as many again as the server takes at once.
const most = 2 * Window

// closeLimit bounds how long Close says goodbye.
const closeLimit = 2 * time.Second

// Options are how a [Client] connects. The zero value is usable.
type Options struct {
	Header   http.Header     // of the requests
	Dial     socket.DialFunc // nil: the net package's own
	Patience time.Duration   // for how long a stream that broke is dialled again before its commands fail; 0: 60 s

	pause time.Duration // between two tries, at most; 0: 2 s
}

// Client is the client's end. Its methods may be called from many goroutines. A connection that breaks is dialled again: commands
// only take longer meanwhile.
type Client struct {
	url  string
	opts Options

	cancel context.CancelCauseFunc
	done   chan struct{} // closed when nothing runs any more
	slots  chan struct{} // holds a token for every command without an answer
	wake   chan struct{} // buffered: there may be something to write

	mu     sync.Mutex // guards what follows; never held while something is sent, or answers would not be read
	outbox outbox
	token  Token
	err    error // set once: why there will be no further answer
}

// Pending is a command on its way.
type Pending struct {
	client  *Client
	command webdriver.Command // until it is answered
	sent    bool              // it may have reached the server; guarded by Client.mu
	done    chan struct{}     // closed once what follows is set
	answer  webdriver.Answer
	err     error
}

// Dial opens the stream at url (ws:// or wss://). It is not tried again: a *[socket.StatusError] is the server's refusal.
// Close the client in the end.
func Dial(ctx context.Context, url string, o Options) (*Client, error) {
	if o.Patience == 0 {
		o.Patience = time.Minute
	}
	if o.pause == 0 {
		o.pause = 2 * time.Second
	}
	c := &Client{url: url, opts: o, done: make(chan struct{}), slots: make(chan struct{}, most), wake: make(chan struct{}, 1)}
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	life, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	c.cancel = cancel
	go c.run(life, conn)
	return c, nil
}

// Close acknowledges what has been answered and hangs up, within two seconds. Commands that were sent run on.
func (c *Client) Close() {
	c.cancel(errHungUp)
	<-c.done
}

// Do sends a command and waits for its answer. When ctx ends before the command was sent it is not sent any more
// ([ErrNotSent]); afterwards it runs on ([ErrUnknown]). Both come with the reason, as errors.Is tells.
func (c *Client) Do(ctx context.Context, cmd webdriver.Command) (webdriver.Answer, error) {
	p, err := c.Go(ctx, cmd)
	if err != nil {
		return webdriver.Answer{}, err
	}
	select {
	case <-p.done:
		return p.answer, p.err
	case <-ctx.Done():
		return c.abandon(p, context.Cause(ctx))
	}
}

// Go sends a command and does not wait for its answer, so that others can follow it. It waits for its turn while 128
// commands have no answer. Commands run in the order of the calls. An error is [ErrNotSent].
func (c *Client) Go(ctx context.Context, cmd webdriver.Command) (*Pending, error) {
	switch {
	case len(cmd.Body) > wire.MaxMessage || len(cmd.Path) > envelope/2:
		return nil, fmt.Errorf("stream: %w: it is longer than a message may be", ErrNotSent)
	case len(cmd.Body) > 0 && !json.Valid(cmd.Body):
		return nil, fmt.Errorf("stream: %w: its body is no JSON", ErrNotSent)
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("stream: %w: %w", ErrNotSent, context.Cause(ctx))
	}
	p := &Pending{client: c, command: cmd, done: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		<-c.slots
		return nil, fmt.Errorf("stream: %w: %w", ErrNotSent, c.err)
	}
	c.outbox.add(p)
	poke(c.wake)
	return p, nil
}

// Wait waits for the answer. When ctx ends first the command goes on, and may be waited for again.
func (p *Pending) Wait(ctx context.Context) (webdriver.Answer, error) {
	select {
	case <-p.done:
		return p.answer, p.err
	case <-ctx.Done():
		return webdriver.Answer{}, context.Cause(ctx)
	}
}

// settle gives a command its answer, or the reason why there is none. It is called once.
func (p *Pending) settle(a webdriver.Answer, err error) {
	p.answer, p.err = a, err
	close(p.done)
	<-p.client.slots
}

// abandon is the result of a command that nobody waits for any more. One that may have been sent keeps its place, for its
// answer will come.
func (c *Client) abandon(p *Pending, cause error) (webdriver.Answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-p.done: // it came at the same moment
	default:
		if !c.outbox.withdraw(p) {
			return webdriver.Answer{}, fmt.Errorf("stream: %w: %w", ErrUnknown, cause)
		}
		p.settle(webdriver.Answer{}, fmt.Errorf("stream: %w: %w", ErrNotSent, cause))
	}
	return p.answer, p.err
}
