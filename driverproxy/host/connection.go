package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"github.com/driftstack/fleet/driverproxy/bulk"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

const (
	dialLimit  = 5 * time.Second
	headLimit  = 1 << 20  // bytes of an answer's status line and headers
	informal   = 5        // 1xx answers before the answer
	oneWrite   = 16 << 10 // a request up to this length is written at once
	answerRoom = 64       // of a frame's head, in wire.MaxMessage
)

// connection is an HTTP/1.1 connection to a driver, which answers one request before it gets the next.
//
// It does what net/http's Transport does for a driver, less the two goroutines and their channels through which a Transport
// hands every request and answer, which cost more than the rest of a command on its host. A request is written at most once: what becomes
// of it when the connection breaks is its caller's to say.
type connection struct {
	net.Conn
	host string // of the requests
	raw  syscall.RawConn
	src  *bounded
	in   *bufio.Reader
	head []byte // of the last request, for its memory

	look  func(fd uintptr) bool // looks whether anything has come; made once
	quiet bool                  // what it saw
}

// bounded reads no more than so many bytes.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("the headers are longer than 1 MiB")
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

func dialDriver(ctx context.Context, addr string) (*connection, error) {
	dialer := net.Dialer{Timeout: dialLimit}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	raw, err := conn.(*net.TCPConn).SyscallConn() // what "tcp" dials
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	src := &bounded{r: conn}
	c := &connection{Conn: conn, host: addr, raw: raw, src: src, in: bufio.NewReader(src)}
	c.look = func(fd uintptr) bool {
		var b [1]byte
		_, err := syscall.Read(int(fd), b[:])
		c.quiet = errors.Is(err, syscall.EAGAIN)
		return true
	}
	return c, nil
}

// idle says whether another request may be sent: not if the driver has closed the connection meanwhile, which it may do
// at any time, nor if it has sent what nobody asked for, which would be taken for the next answer.
func (c *connection) idle() bool {
	c.quiet = false
	return c.in.Buffered() == 0 && c.raw.Read(c.look) == nil && c.quiet
}

// exchange sends a request and reads its answer; keep says whether the connection may take another. When ctx ends first, so
// does the exchange.
func (c *connection) exchange(ctx context.Context, method, path string, content []byte) (a webdriver.Answer, keep bool, err error) {
	broken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(broken)
		_ = c.SetDeadline(time.Unix(1, 0)) // fails on a closed connection only
	})
	defer func() {
		if stop() {
			return
		}
		<-broken
		keep = false
		if err != nil {
			err = context.Cause(ctx)
		}
	}()
	written, err := c.write(method, path, content)
	if err != nil {
		return a, false, err
	}
	a, keep, err = c.read()
	if written == nil {
		return a, keep, err
	}
	select {
	case errWrite := <-written:
		return a, keep && errWrite == nil, err
	default: // it answered before it had read everything, as HTTP lets it
	}
	_ = c.Close() // ends the writer
	<-written
	return a, false, err
}

// write sends a request. A long one is sent in the background, because a driver may answer before it has read it: its error
// is then on the channel.
func (c *connection) write(method, path string, content []byte) (<-chan error, error) {
	b := append(c.head[:0], method...)
	b = append(b, ' ')
	b = append(b, path...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, c.host...)
	b = append(b, "\r\nUser-Agent: driverhost\r\n"...)
	if method != http.MethodPost {
		content = nil
	} else {
		b = append(b, "Content-Type: application/json; charset=utf-8\r\nContent-Length: "...)
		b = strconv.AppendInt(b, int64(len(content)), 10)
		b = append(b, "\r\n"...)
	}
	b = append(b, "\r\n"...)
	if len(b)+len(content) <= oneWrite {
		b = append(b, content...)
		c.head = b
		_, err := c.Write(b)
		return nil, err
	}
	written := make(chan error, 1)
	go func() { // exchange waits for it
		_, err := (&net.Buffers{b, content}).WriteTo(c.Conn)
		written <- err
	}()
	return written, nil
}

// read reads an answer; keep says whether the driver leaves the connection open.
func (c *connection) read() (a webdriver.Answer, keep bool, err error) {
	r, err := c.readHead()
	if err != nil {
		return a, false, err
	}
	c.src.left = math.MaxInt64
	a.Status = r.StatusCode
	const most = wire.MaxMessage - answerRoom
	switch {
	case r.ContentLength == 0:
	case r.ContentLength > most:
		err = bulk.ErrTooLong
	default:
		a.Body, err = bulk.Read(r.Body, r.ContentLength, most)
	}
	if errors.Is(err, bulk.ErrTooLong) {
		e := webdriver.Error{Code: webdriver.UnknownError, Message: "the driver's answer is longer than the stream carries"}
		return e.Answer(), false, nil
	}
	return a, !r.Close && r.StatusCode != http.StatusSwitchingProtocols, err
}

func (c *connection) readHead() (*http.Response, error) {
	for range informal + 1 {
		c.src.left = headLimit
		r, err := http.ReadResponse(c.in, nil)
		if err != nil {
			return nil, err
		}
		if r.StatusCode >= 200 || r.StatusCode == http.StatusSwitchingProtocols {
			return r, nil
		}
	}
	return nil, fmt.Errorf("more than %d informational answers", informal)
}
