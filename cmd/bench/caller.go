package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// caller makes requests, mostly one GET again and again, over a connection of its own. It is as cheap as a client can be, so that on a
// machine of two cores it is the servers that are measured: net/http's client takes as much of them as the orchestrator.
type caller struct {
	conn    net.Conn
	answers *bufio.Reader
	request []byte
	want    int // status
}

func openCaller(ctx context.Context, address string, want int) (*caller, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n", u.EscapedPath(), u.Host, benchToken)
	return &caller{conn: conn, answers: bufio.NewReader(conn), request: []byte(request), want: want}, nil
}

// openCallers opens one for each address; u closes them.
func openCallers(ctx context.Context, u *undo, want int, addresses ...string) ([]*caller, error) {
	var all []*caller
	for _, a := range addresses {
		c, err := openCaller(ctx, a, want)
		if err != nil {
			return nil, err
		}
		u.add(c.conn.Close)
		all = append(all, c)
	}
	return all, nil
}

// call makes the request once and says how long it took.
func (c *caller) call() (time.Duration, error) {
	begin := time.Now()
	_, err := c.exchange(c.request, c.want)
	return time.Since(begin), err
}

// exchange sends a request and gives the body of the answer.
func (c *caller) exchange(request []byte, want int) ([]byte, error) {
	if _, err := c.conn.Write(request); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	if resp.StatusCode != want {
		return nil, fmt.Errorf("%s: status %d, not %d: %s", request, resp.StatusCode, want, body)
	}
	return body, nil
}
