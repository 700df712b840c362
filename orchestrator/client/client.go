// Package client is the Go client of the orchestrator: dispatch a session, drive it by commands, a stream or batches, follow its log.
//
// Every error of a server that answered is a *[Problem]; everything else is the network's. Creating a session is tried again where
// that is safe, and streams and logs go on when their connection breaks. Out of scope: other retries, which only the caller knows to be safe.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/tmaxmax/go-sse"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/stream"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
)

// Client talks to one orchestrator. Its zero value is not usable.
type Client struct {
	base  *url.URL
	token string
	http  *http.Client

	operator string // may be empty
}

// Problem is an RFC 9457 answer.
type Problem struct {
	Type       string `json:"type"`
	Status     int    `json:"status"`
	Title      string `json:"title"`
	Detail     string `json:"detail"`
	RetryAfter time.Duration
	Reason     string     `json:"reason"`     // profile_held
	Holder     string     `json:"holder"`     // of a profile_held: the session that holds it
	ExpiresAt  *time.Time `json:"expires_at"` // and until when, unless it renews that
	Errors     []struct {
		Location string `json:"location"`
		Message  string `json:"message"`
	} `json:"errors"`
}

func (p *Problem) Error() string {
	s := fmt.Sprintf("%d %s", p.Status, p.Title)
	if p.Detail != "" {
		s += ": " + p.Detail
	}
	for _, e := range p.Errors {
		if e.Location != "" && !strings.Contains(s, e.Message) {
			s += "; " + e.Location + ": " + e.Message
		}
	}
	return s
}

// New returns a client for the orchestrator at base, for example http://127.0.0.1:8080.
func New(base, token string) (*Client, error) {
	u, err := url.Parse(strings.TrimSuffix(base, "/"))
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("orchestrator URL %q: use http://host:port or https://host", base)
	}
	return &Client{base: u, token: token, http: &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}}, nil
}

const (
	createTries = 4
	createPause = 100 * time.Millisecond // before the second; longer each time
	createWait  = 2 * time.Second        // a server that asks for more patience has its answer given to the caller
	createLimit = 10 * time.Second       // no try begins after that
)

// CreateSession queues a session. It is tried a few times where the connection breaks or the server is not available for a moment, under one
// Idempotency-Key: no try makes a second session.
func (c *Client) CreateSession(ctx context.Context, r api.CreateSession) (api.Session, error) {
	return c.CreateSessionOnce(ctx, r, rand.Text())
}

// CreateSessionOnce is CreateSession under an Idempotency-Key of the caller's: called again within 24 hours with the same request, as
// after an error that leaves it open whether the session was made, it gives that session.
func (c *Client) CreateSessionOnce(ctx context.Context, r api.CreateSession, key string) (s api.Session, err error) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval = createPause
	s, _ = backoff.Retry(ctx, func() (s api.Session, again error) {
		err = c.callWith(ctx, http.MethodPost, "/v1/sessions", http.Header{"Idempotency-Key": {key}}, r, &s)
		var p *Problem
		switch refused := errors.As(err, &p); {
		case err == nil || !refused:
			return s, err
		case p.Status != http.StatusServiceUnavailable && p.Status != http.StatusBadGateway || p.RetryAfter > createWait:
			return s, backoff.Permanent(err)
		case p.RetryAfter > 0:
			return s, &backoff.RetryAfterError{Duration: p.RetryAfter}
		}
		return s, err
	}, backoff.WithBackOff(wait), backoff.WithMaxTries(createTries), backoff.WithMaxElapsedTime(createLimit))
	return s, err
}

// Explain says what would become of a session that is created now, and why, with at most so many devices. Nothing is created.
func (c *Client) Explain(ctx context.Context, r api.CreateSession, devices int) (e api.Explanation, err error) {
	return e, c.call(ctx, http.MethodPost, "/v1/sessions:explain?limit="+strconv.Itoa(devices), r, &e)
}

// Session is one session as it is now.
func (c *Client) Session(ctx context.Context, id string) (s api.Session, err error) {
	return s, c.call(ctx, http.MethodGet, "/v1/sessions/"+url.PathEscape(id), nil, &s)
}

// Sessions is one page of sessions. query may have account, profile, host, state, limit and cursor.
func (c *Client) Sessions(ctx context.Context, query url.Values) (l api.SessionList, err error) {
	return l, c.call(ctx, http.MethodGet, "/v1/sessions?"+query.Encode(), nil, &l)
}

// Wait waits until the session runs, or has ended, or ctx ends. state is "running" or "ended"; a session that ended
// satisfies both.
func (c *Client) Wait(ctx context.Context, id string, state api.SessionState) (s api.Session, err error) {
	for {
		err = c.call(ctx, http.MethodGet, "/v1/sessions/"+url.PathEscape(id)+"?wait="+string(state), nil, &s)
		if err != nil || s.State == api.Ended || s.State == state || state == api.Running && s.State == api.Finishing {
			return s, err
		}
	}
}

// Cancel ends a session wherever it is.
func (c *Client) Cancel(ctx context.Context, id string) (s api.Session, err error) {
	return s, c.call(ctx, http.MethodDelete, "/v1/sessions/"+url.PathEscape(id), nil, &s)
}

// Do runs one driver command over HTTP. The error is a *webdriver.Error when the driver refused it.
func (c *Client) Do(ctx context.Context, id string, cmd webdriver.Command) (webdriver.Answer, error) {
	resp, err := c.send(ctx, cmd.Method, "/session/"+url.PathEscape(id)+cmd.Path, bytes.NewReader(cmd.Body))
	if err != nil {
		return webdriver.Answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return webdriver.Answer{}, err
	}
	a := webdriver.Answer{Status: resp.StatusCode, Body: b}
	return a, a.Err()
}

// Batch runs a list of commands in one round trip. A nil error says that it was run, not that each step succeeded: see
// [batch.Response.Err].
func (c *Client) Batch(ctx context.Context, id string, r batch.Request) (v batch.Response, err error) {
	return v, c.call(ctx, http.MethodPost, "/v1/sessions/"+url.PathEscape(id)+"/batch", r, &v)
}

// Stream opens the session's websocket of commands. It resumes by itself when the connection breaks, for up to a minute.
// Close it in the end.
func (c *Client) Stream(ctx context.Context, id string) (*stream.Client, error) {
	return c.StreamWith(ctx, id, stream.Options{})
}

// StreamWith is Stream with options; their header goes beside what the orchestrator is sent anyway.
func (c *Client) StreamWith(ctx context.Context, id string, o stream.Options) (*stream.Client, error) {
	u := *c.base
	u.Scheme = strings.Replace(u.Scheme, "http", "ws", 1)
	header := c.header()
	maps.Copy(header, o.Header)
	o.Header = header
	s, err := stream.Dial(ctx, u.String()+"/v1/sessions/"+url.PathEscape(id)+"/stream", o)
	var refused *socket.StatusError
	if errors.As(err, &refused) {
		return nil, problem(&http.Response{StatusCode: refused.Status, Header: refused.Header, Body: io.NopCloser(bytes.NewReader(refused.Body))})
	}
	return s, err
}

// Events is a stretch of a session's log.
func (c *Client) Events(ctx context.Context, id string, after int64) ([]api.Event, error) {
	var l api.EventList
	err := c.call(ctx, http.MethodGet, fmt.Sprintf("/v1/sessions/%s/events?after=%d&limit=1000", url.PathEscape(id), after), nil, &l)
	return l.Events, err
}

// Follow calls each with every event after a seq, old and new, until the session has ended, each fails or ctx ends. A
// connection that breaks is dialled again and goes on where it was, for up to a minute; one that cannot be made at first is an
// error.
func (c *Client) Follow(ctx context.Context, id string, after int64, each func(api.Event) error) error {
	var broken error // why there is no connection now
	for began, retry := time.Now(), false; ; retry = true {
		ended, err := c.follow(ctx, id, &after, func(e api.Event) error {
			broken = nil
			return each(e)
		}, &broken)
		if ended || err != nil {
			return err
		}
		if broken == nil {
			began = time.Now()
		} else if !retry || time.Since(began) > time.Minute {
			return broken
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (c *Client) follow(ctx context.Context, id string, after *int64, each func(api.Event) error, broken *error) (ended bool, err error) {
	req, err := c.request(ctx, http.MethodGet, "/v1/sessions/"+url.PathEscape(id)+"/events?follow=true", nil)
	if err != nil {
		return false, err
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Last-Event-ID", strconv.FormatInt(*after, 10))
	resp, err := c.http.Do(req)
	if err != nil {
		*broken = err
		return false, ctx.Err() // dialled again, unless the caller is done
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNoContent:
		return true, nil // it has ended, and there is nothing after
	case resp.StatusCode != http.StatusOK:
		p := problem(resp)
		if p.Status >= 500 || p.Status == http.StatusTooManyRequests {
			*broken = p
			return false, nil
		}
		return false, p
	}
	*broken = nil
	for m, err := range sse.Read(resp.Body, nil) {
		if err != nil {
			return false, ctx.Err()
		}
		var e api.Event
		if err := json.Unmarshal([]byte(m.Data), &e); err != nil {
			return false, fmt.Errorf("event: %w", err)
		}
		if err := each(e); err != nil {
			return false, err
		}
		*after = e.Seq
		if e.Kind == "ended" {
			return true, nil
		}
	}
	return false, ctx.Err()
}

// Recording says where a session's recording is, with presigned URLs of its verified copies.
func (c *Client) Recording(ctx context.Context, session string) (r api.Recording, err error) {
	return r, c.call(ctx, http.MethodGet, "/v1/sessions/"+url.PathEscape(session)+"/recording", nil, &r)
}

// Recordings is one page of recordings. query may have account, session, state, since, before, limit and cursor.
func (c *Client) Recordings(ctx context.Context, query url.Values) (l api.RecordingList, err error) {
	return l, c.call(ctx, http.MethodGet, "/v1/recordings?"+query.Encode(), nil, &l)
}

// RecordingByID is one recording, without URLs.
func (c *Client) RecordingByID(ctx context.Context, id string) (r api.Recording, err error) {
	return r, c.call(ctx, http.MethodGet, "/v1/recordings/"+url.PathEscape(id), nil, &r)
}

// RecordingURL is a presigned URL of a recording's copy in a region, valid for up to an hour.
func (c *Client) RecordingURL(ctx context.Context, id, region string, expires time.Duration) (u api.RecordingURL, err error) {
	q := url.Values{"region": {region}, "expires_in": {strconv.Itoa(int(expires / time.Second))}}
	return u, c.call(ctx, http.MethodGet, "/v1/recordings/"+url.PathEscape(id)+"/url?"+q.Encode(), nil, &u)
}

// Account is one account.
func (c *Client) Account(ctx context.Context, id string) (v api.Account, err error) {
	return v, c.call(ctx, http.MethodGet, "/v1/accounts/"+url.PathEscape(id), nil, &v)
}

// PutAccount creates or changes an account.
func (c *Client) PutAccount(ctx context.Context, id string, a api.PutAccount) (v api.Account, err error) {
	return v, c.call(ctx, http.MethodPut, "/v1/accounts/"+url.PathEscape(id), a, &v)
}

// InviteHost makes a join token for a host.
func (c *Client) InviteHost(ctx context.Context, name string) (t api.JoinToken, err error) {
	return t, c.call(ctx, http.MethodPost, "/v1/hosts", api.CreateHost{Name: name}, &t)
}

// RemoveHost removes a host.
func (c *Client) RemoveHost(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/v1/hosts/"+url.PathEscape(name), nil, nil)
}

// Hosts lists the hosts.
func (c *Client) Hosts(ctx context.Context) ([]api.Host, error) {
	var l api.HostList
	err := c.call(ctx, http.MethodGet, "/v1/hosts", nil, &l)
	return l.Hosts, err
}

// Host returns all that is known of a host.
func (c *Client) Host(ctx context.Context, name string) (h api.HostDetail, err error) {
	return h, c.call(ctx, http.MethodGet, "/v1/hosts/"+url.PathEscape(name), nil, &h)
}

// Devices lists the devices.
func (c *Client) Devices(ctx context.Context) ([]api.Device, error) {
	var l api.DeviceList
	err := c.call(ctx, http.MethodGet, "/v1/devices", nil, &l)
	return l.Devices, err
}

func (c *Client) header() http.Header {
	h := http.Header{"Authorization": {"Bearer " + c.token}}
	if c.operator != "" {
		h.Set("Driftstack-Operator", c.operator)
	}
	return h
}

func (c *Client) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base.String()+path, body)
	if err != nil {
		return nil, err
	}
	req.Header = c.header()
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, nil
}

func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := c.request(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	return c.http.Do(req)
}

// call sends in as JSON and decodes the answer into out; either may be nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	return c.callWith(ctx, method, path, nil, in, out)
}

// callWith is call with header beside what is sent anyway.
func (c *Client) callWith(ctx context.Context, method, path string, header http.Header, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	maps.Copy(req.Header, header)
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return decode(resp, method, path, out)
}

// decode reads an answer into out, which may be nil.
func decode(resp *http.Response, method, path string, out any) error {
	if resp.StatusCode/100 != 2 {
		return problem(resp)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("%s %s: answer: %w", method, path, err)
	}
	return nil
}

func problem(resp *http.Response) *Problem {
	p := &Problem{Status: resp.StatusCode, Title: http.StatusText(resp.StatusCode)}
	_ = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(p) // an answer of another kind is told by its status
	p.Status = resp.StatusCode
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
		p.RetryAfter = time.Duration(n) * time.Second
	}
	return p
}
