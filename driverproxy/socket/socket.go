// Package socket is a websocket on which every wait is bounded: a peer that sends nothing, or takes nothing, for a stated
// time is dead. Both ends of the command stream use it.
//
// Long messages travel in fragments, so that pings get between them and so that a slow line counts as alive for as long as bytes move.
// A websocket does not say how long a message of several fragments will be. An unsolicited pong before it does, so that this
// package's other end can read it into one piece of memory; any other end pays it no heed (RFC 6455, 5.5.3).
//
// Out of scope: what a message means, and reconnecting.
package socket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/driftstack/fleet/driverproxy/bulk"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// ErrClosed is returned by Write after Close.
var ErrClosed = errors.New("socket: closed")

// MaxPing is the longest allowed time between two pings: middleboxes cut idle websockets after 60 s.
const MaxPing = 20 * time.Second

// fragment is how many bytes must move within Limits.Stuck.
const fragment = 64 << 10

// StatusError is a server's refusal to open a socket.
type StatusError struct {
	Status int
	Header http.Header
	Body   []byte // its first KiB
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("HTTP %d: %.256s", e.Status, bytes.TrimSpace(e.Body))
}

// Limits bounds a socket.
type Limits struct {
	MaxMessage int64         // a longer message breaks the socket
	Silence    time.Duration // nothing received for so long: dead
	Stuck      time.Duration // a fragment not taken for so long: dead
	PingEvery  time.Duration // 0: never
}

// Session is for the sockets of a session, on either end: the other end pings at least every MaxPing.
func Session(maxMessage int64) Limits {
	return Limits{MaxMessage: maxMessage, Silence: 2*MaxPing + 5*time.Second, Stuck: 20 * time.Second, PingEvery: 15 * time.Second}
}

// Endpoint makes sockets; they share its write buffers, so that an idle socket has none.
type Endpoint struct {
	// Refuse answers a request that Accept cannot upgrade; nil: with plain text.
	Refuse func(w http.ResponseWriter, r *http.Request, status int, reason error)

	buffers sync.Pool
}

// Asked says whether the request asks for a websocket.
func Asked(r *http.Request) bool { return websocket.IsWebSocketUpgrade(r) }

// Accept upgrades a request. A request with an Origin comes from a web page, and is refused.
func (e *Endpoint) Accept(w http.ResponseWriter, r *http.Request, l Limits) (*Conn, error) {
	u := websocket.Upgrader{
		HandshakeTimeout: 10 * time.Second,
		WriteBufferPool:  &e.buffers,
		WriteBufferSize:  fragment / 2,
		CheckOrigin:      func(r *http.Request) bool { return r.Header.Get("Origin") == "" },
		Error:            e.Refuse,
	}
	ws, err := u.Upgrade(w, r, nil)
	if err != nil {
		return nil, fmt.Errorf("socket: upgrade: %w", err)
	}
	return open(ws, l), nil
}

// DialFunc opens a connection, as net.Dialer.DialContext does.
type DialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// Dial opens a socket to url (ws://host:port/path).
func (e *Endpoint) Dial(ctx context.Context, dial DialFunc, url string, l Limits) (*Conn, error) {
	return e.DialWith(ctx, dial, url, nil, l)
}

// DialWith is Dial with request headers. A nil dial is the net package's own. A *[StatusError] when the server refused.
func (e *Endpoint) DialWith(ctx context.Context, dial DialFunc, url string, header http.Header, l Limits) (*Conn, error) {
	d := websocket.Dialer{
		NetDialContext:   dial,
		HandshakeTimeout: 10 * time.Second,
		WriteBufferPool:  &e.buffers,
		WriteBufferSize:  fragment / 2,
	}
	ws, answer, err := d.DialContext(ctx, url, header)
	if err != nil {
		if answer != nil {
			why, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<10)) // gorilla has read it already: this cannot block
			return nil, fmt.Errorf("socket: %s: %w", url, &StatusError{Status: answer.StatusCode, Header: answer.Header, Body: why})
		}
		return nil, fmt.Errorf("socket: %s: %w", url, err)
	}
	return open(ws, l), nil
}

// Conn is one end of a websocket. One goroutine at a time may Read; the other methods may be called by any.
type Conn struct {
	ws     *websocket.Conn
	limits Limits
	in     incoming
	writer chan struct{} // holds a token while someone writes
	closed chan struct{}
	once   sync.Once

	sending sync.Mutex // held while bytes are given to ws, but for a goodbye

	mu    sync.Mutex // guards what follows
	hard  time.Time  // no read waits longer than this, if set
	ping  *time.Timer
	pings sync.WaitGroup
}

func open(ws *websocket.Conn, l Limits) *Conn {
	c := &Conn{ws: ws, limits: l, writer: make(chan struct{}, 1), closed: make(chan struct{})}
	c.in.conn = c
	ws.SetReadLimit(l.MaxMessage)
	ws.SetPingHandler(func(data string) error {
		c.extend()
		_, err := c.sign(websocket.PongMessage, []byte(data))
		return err
	})
	ws.SetPongHandler(func(data string) error {
		c.extend()
		c.in.announced(data)
		return nil
	})
	c.extend()
	if l.PingEvery > 0 {
		c.schedulePing(l.PingEvery)
	}
	return c
}

// SetSilence changes Limits.Silence from the next read on.
func (c *Conn) SetSilence(d time.Duration) {
	c.mu.Lock()
	c.limits.Silence = d
	c.mu.Unlock()
	c.extend()
}

// Expire lets reads go on for d and no longer. A later call can only shorten that.
func (c *Conn) Expire(d time.Duration) {
	c.mu.Lock()
	if t := time.Now().Add(d); c.hard.IsZero() || t.Before(c.hard) {
		c.hard = t
	}
	c.mu.Unlock()
	c.extend()
}

func (c *Conn) extend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := time.Now().Add(c.limits.Silence)
	if !c.hard.IsZero() && t.After(c.hard) {
		t = c.hard
	}
	_ = c.ws.SetReadDeadline(t) // fails on a closed socket only, and then the read does too
}

func (c *Conn) schedulePing(in time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.closed:
		return
	default:
	}
	c.pings.Add(1)
	c.ping = time.AfterFunc(in, func() {
		defer c.pings.Done()
		next := c.limits.PingEvery
		if sent, _ := c.sign(websocket.PingMessage, nil); !sent { // a failed ping is not an end in itself: the reader's deadline is, or the next write
			next = min(next, time.Second)
		}
		c.schedulePing(next)
	})
}

// sign sends a ping or a pong, unless something else is being sent. Those bytes are as good a sign of life; and where they have
// to wait, for a peer that is slow to take them, a ping would come to wait as well, and break the socket when its time is up.
func (c *Conn) sign(kind int, data []byte) (sent bool, err error) {
	if !c.sending.TryLock() {
		return false, nil
	}
	defer c.sending.Unlock()
	err = c.ws.WriteControl(kind, data, time.Now().Add(c.limits.Stuck))
	if errors.Is(err, websocket.ErrCloseSent) {
		err = nil
	}
	return true, err
}

// ReadBinary returns the next message, which the caller owns. A text message breaks the socket.
func (c *Conn) ReadBinary() ([]byte, error) { return c.read(websocket.BinaryMessage) }

// ReadText is ReadBinary for text messages.
func (c *Conn) ReadText() ([]byte, error) { return c.read(websocket.TextMessage) }

func (c *Conn) read(want int) ([]byte, error) {
	c.extend()
	kind, r, err := c.ws.NextReader()
	if err != nil {
		return nil, legible(err)
	}
	if kind != want {
		return nil, fmt.Errorf("socket: message of type %d, want %d", kind, want)
	}
	b, err := bulk.Read(c.in.of(r), c.in.size, c.limits.MaxMessage)
	c.in.size = 0
	if err != nil {
		return nil, legible(err)
	}
	return b, nil
}

// announcement begins the pong that says how long the next message is.
const announcement = "next message: "

// incoming is the message that is read: a socket has one reader at a time, so that its fields need no lock.
type incoming struct {
	conn *Conn
	r    io.Reader
	size int64 // as announced, or 0
	n    int   // bytes since the silence was last put off
}

// announced takes the length of the next message out of a pong that tells it.
func (in *incoming) announced(pong string) {
	if n, ok := strings.CutPrefix(pong, announcement); ok {
		in.size, _ = strconv.ParseInt(n, 10, 64) // 0 if it is no number: then the message is read without it
	}
}

func (in *incoming) of(r io.Reader) *incoming {
	in.r, in.n = r, 0
	return in
}

// Read puts off the silence for as long as bytes move.
func (in *incoming) Read(p []byte) (int, error) {
	n, err := in.r.Read(p)
	if in.n += n; in.n >= fragment {
		in.n = 0
		in.conn.extend()
	}
	return n, err
}

// legible makes what the peer gave as its reason fit to be stored and shown.
func legible(err error) error {
	var c *websocket.CloseError
	if !errors.As(err, &c) {
		return err
	}
	return &websocket.CloseError{Code: c.Code, Text: wire.Text(c.Text)} // a copy: some of gorilla's are shared by all sockets
}

// WriteBinary sends parts as one message. When ctx ends before it is this message's turn, nothing is sent and the error
// is ctx's; any other error means that the socket is broken and that the peer may or may not have the message.
func (c *Conn) WriteBinary(ctx context.Context, parts ...[]byte) error {
	return c.write(ctx, websocket.BinaryMessage, parts)
}

// WriteText is WriteBinary for a text message.
func (c *Conn) WriteText(ctx context.Context, b []byte) error {
	return c.write(ctx, websocket.TextMessage, [][]byte{b})
}

func (c *Conn) write(ctx context.Context, kind int, parts [][]byte) error {
	select {
	case <-c.closed:
		return ErrClosed
	default:
	}
	select {
	case c.writer <- struct{}{}:
		defer func() { <-c.writer }()
	case <-ctx.Done():
		return ctx.Err()
	case <-c.closed:
		return ErrClosed
	}
	total := 0
	for _, p := range parts {
		total += len(p)
	}
	if int64(total) > c.limits.MaxMessage {
		return fmt.Errorf("socket: a message of %d bytes is longer than %d", total, c.limits.MaxMessage)
	}
	if len(parts) == 1 && total <= fragment {
		return c.send(func() error { return c.ws.WriteMessage(kind, parts[0]) })
	}
	if total > fragment {
		size := strconv.AppendInt([]byte(announcement), int64(total), 10)
		if err := c.send(func() error { return c.ws.WriteControl(websocket.PongMessage, size, time.Now().Add(c.limits.Stuck)) }); err != nil {
			return err
		}
	}
	w, err := c.ws.NextWriter(kind)
	if err != nil {
		return err
	}
	for _, p := range parts {
		for len(p) > 0 {
			n := min(len(p), fragment)
			if err := c.send(func() error { _, err := w.Write(p[:n]); return err }); err != nil {
				return err
			}
			p = p[n:]
		}
	}
	return c.send(w.Close)
}

// send runs a step of a message, for which the peer has Limits.Stuck.
func (c *Conn) send(step func() error) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	_ = c.ws.SetWriteDeadline(time.Now().Add(c.limits.Stuck))
	return step()
}

// Goodbye says whether a read failed because the peer said goodbye, and what reason it gave.
func Goodbye(err error) (reason string, bye bool) {
	var c *websocket.CloseError
	if errors.As(err, &c) && c.Code == websocket.CloseNormalClosure {
		return c.Text, true
	}
	return "", false
}

// Closed says whether a read failed because the peer closed the socket with a code, and the reason that it gave.
func Closed(err error) (code int, reason string, closed bool) {
	var c *websocket.CloseError
	if errors.As(err, &c) && c.Code != websocket.CloseAbnormalClosure { // which is that it did not
		return c.Code, c.Text, true
	}
	return 0, "", false
}

// Bye tells the peer why this end is about to close; it is up to the peer to close, or to this end to Close after a while.
// Closing at once instead may make the peer lose what it has not read yet.
func (c *Conn) Bye(reason string) { c.Leave(Close{CloseNormal, reason}) }

// Leave is Bye with a code.
func (c *Conn) Leave(how Close) {
	reason := strings.ToValidUTF8(how.Reason[:min(len(how.Reason), 123)], "") // what a close frame holds
	message := websocket.FormatCloseMessage(how.Code, reason)
	_ = c.ws.WriteControl(websocket.CloseMessage, message, time.Now().Add(time.Second)) // a broken socket needs no goodbye
}

// SaidBye says whether a read failed because the peer has said goodbye.
func SaidBye(err error) bool { return websocket.IsCloseError(err, websocket.CloseNormalClosure) }

// Close closes the socket at once and waits for what the socket runs. Calling it again is harmless.
func (c *Conn) Close() {
	c.once.Do(func() {
		c.mu.Lock()
		close(c.closed)
		if c.ping != nil && c.ping.Stop() {
			c.pings.Done()
		}
		c.mu.Unlock()
		_ = c.ws.Close()
	})
	c.pings.Wait()
}
