// Package stream is the clients' websocket of driver commands: both ends of /v1/sessions/{id}/stream.
//
// A client sends one JSON text message a command and gets one a command back, in the same order. It may send commands
// without waiting for answers.
//
//	→ {"id": 1, "method": "POST", "path": "/url", "body": {"url": "https://example.com/"}}
//	← {"id": 1, "status": 200, "value": null}
//	→ {"id": 2, "method": "POST", "path": "/element", "body": {"using": "css selector", "value": "#none"}}
//	← {"id": 2, "status": 404, "value": {"error": "no such element", "message": "…", "stacktrace": ""}}
//
// path is what follows /session/{session id} in W3C WebDriver; DELETE of the empty path quits the session, after which the
// server closes the socket. id is the client's, and comes back unchanged.
//
// Out of scope: what runs the commands, and resuming after a broken socket.
package stream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// pipeline is how many commands may wait at the server; a client that sends more is not read until one is done.
const pipeline = 64

type request struct {
	ID     json.Number     `json:"id"`
	Method string          `json:"method"`
	Path   string          `json:"path"`
	Body   json.RawMessage `json:"body,omitempty"`
}

type response struct {
	ID     json.Number     `json:"id"`
	Status int             `json:"status"`
	Value  json.RawMessage `json:"value"`
}

func limits() socket.Limits {
	return socket.Limits{MaxMessage: wire.MaxMessage, Silence: 60 * time.Second, Stuck: 30 * time.Second, PingEvery: socket.MaxPing}
}

// Serve upgrades the request and runs each command with do, one after the other, until the client leaves, sends
// something that is no command, or has quit the session. A client that leaves does not undo what it sent.
func Serve(w http.ResponseWriter, r *http.Request, do func(webdriver.Command) webdriver.Answer) {
	conn, err := new(socket.Endpoint).Accept(w, r, limits())
	if err != nil {
		return // Accept has answered
	}
	requests := make(chan request, pipeline)
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(conn, requests, do)
	}()
	defer func() {
		close(requests)
		<-done
		conn.Close()
	}()
	for {
		b, err := conn.ReadText()
		if err != nil {
			return
		}
		q, err := decode(b)
		if err != nil {
			conn.Bye(err.Error())
			return
		}
		select {
		case requests <- q:
		case <-done:
			return
		}
	}
}

// run answers requests until there are none, the client takes no answers, or it has quit.
func run(conn *socket.Conn, requests <-chan request, do func(webdriver.Command) webdriver.Answer) {
	for q := range requests {
		a := do(webdriver.Command{Method: q.Method, Path: q.Path, Body: q.Body})
		b, err := json.Marshal(respond(q.ID, a))
		if err != nil {
			b, _ = json.Marshal(respond(q.ID, (&webdriver.Error{Code: webdriver.UnknownError, Message: "the driver's answer is no JSON"}).Answer()))
		}
		ctx, cancel := context.WithTimeout(context.Background(), limits().Silence)
		err = conn.WriteText(ctx, b)
		cancel()
		if err != nil {
			conn.Close()
			break
		}
		if q.Method == http.MethodDelete && q.Path == "" && a.Status < 400 {
			conn.Bye("the session has been quit")
			conn.Expire(5 * time.Second) // for the client to say goodbye
			break
		}
	}
	for range requests { // let the reader go
	}
}

func respond(id json.Number, a webdriver.Answer) response {
	var envelope struct {
		Value json.RawMessage `json:"value"`
	}
	if err := json.Unmarshal(a.Body, &envelope); err != nil {
		return response{ID: id, Status: a.Status, Value: json.RawMessage(`null`)}
	}
	return response{ID: id, Status: a.Status, Value: envelope.Value}
}

// decode parses a client's message. Errors are short: they go into a websocket's close reason.
func decode(b []byte) (request, error) {
	var q request
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		return q, errors.New(`not a command: {"id", "method", "path", "body"}`)
	}
	switch {
	case d.More():
		return q, errors.New("data after the command")
	case q.ID == "":
		return q, errors.New("a command needs a number as id")
	case q.Method != http.MethodGet && q.Method != http.MethodPost && q.Method != http.MethodDelete:
		return q, errors.New("method is GET, POST or DELETE")
	case q.Path != "" && !strings.HasPrefix(q.Path, "/"):
		return q, errors.New("path begins with / and follows /session/{session id}")
	}
	return q, nil
}

// Client is the client's end. Its methods may be called from many goroutines.
type Client struct {
	conn *socket.Conn
	turn chan struct{} // holds a token while someone sends: a message and its number are one step
	next uint64        // guarded by turn

	mu      sync.Mutex // guards what follows; never held while something is sent, or answers would not be read
	waiting map[string]chan response
	err     error // set once, when the reader has stopped
	done    chan struct{}
}

// Dial opens the stream at url (ws:// or wss://), with the headers of the request. Close it in the end.
func Dial(ctx context.Context, url string, header http.Header) (*Client, error) {
	conn, err := new(socket.Endpoint).DialWith(ctx, nil, url, header, limits())
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn, turn: make(chan struct{}, 1), waiting: map[string]chan response{}, done: make(chan struct{})}
	go c.read()
	return c, nil
}

// Close hangs up. Commands that were sent run on.
func (c *Client) Close() {
	c.conn.Close()
	<-c.done
}

// Do sends a command and waits for its answer.
func (c *Client) Do(ctx context.Context, cmd webdriver.Command) (webdriver.Answer, error) {
	wait, err := c.send(ctx, cmd)
	if err != nil {
		return webdriver.Answer{}, err
	}
	select {
	case r := <-wait:
		b, err := json.Marshal(map[string]json.RawMessage{"value": r.Value})
		return webdriver.Answer{Status: r.Status, Body: b}, err
	case <-c.done:
		return webdriver.Answer{}, c.err
	case <-ctx.Done():
		return webdriver.Answer{}, ctx.Err()
	}
}

func (c *Client) send(ctx context.Context, cmd webdriver.Command) (<-chan response, error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-c.done:
		return nil, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c.next++
	id := json.Number(fmt.Sprint(c.next))
	b, err := json.Marshal(request{ID: id, Method: cmd.Method, Path: cmd.Path, Body: cmd.Body})
	if err != nil {
		return nil, fmt.Errorf("stream: command: %w", err)
	}
	wait := make(chan response, 1)
	c.mu.Lock()
	c.waiting[id.String()] = wait
	c.mu.Unlock()
	if err := c.conn.WriteText(ctx, b); err != nil {
		return nil, fmt.Errorf("stream: %w", err)
	}
	return wait, nil
}

func (c *Client) read() {
	defer close(c.done)
	for {
		var r response
		b, err := c.conn.ReadText()
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		c.mu.Lock()
		if err != nil {
			c.err = fmt.Errorf("stream: %w", err)
			c.mu.Unlock()
			return
		}
		wait := c.waiting[r.ID.String()]
		delete(c.waiting, r.ID.String())
		c.mu.Unlock()
		if wait != nil {
			wait <- r
		}
	}
}
