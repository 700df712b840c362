package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/residency"
)

const (
	peerDial    = 2 * time.Second
	peerIdle    = time.Minute // below the time after which servers close an idle connection
	peerConns   = 256         // idle ones to one orchestrator
	smallBody   = 64 << 10    // is read before it is forwarded, so that it can be sent again where it was not read
	maxSuspects = 1024
	lookEvery   = 5 * time.Second
	movedGrace  = 12 * time.Second // who hands a session over answers what runs, for 10 s
	blindLimit  = 2 * time.Minute  // without the database, nobody knows who has the session
)

// PeersConfig is what forwarding needs.
type PeersConfig struct {
	ID    string         // of this process, see orchestrator.Deps
	Token string         // the service token; all orchestrators have the same
	Way   residency.InEU // to where they may be, whatever Postgres says
	Log   *zap.Logger
	Now   func() time.Time
}

// Peers forwards requests to other orchestrators. Close ends what it forwards.
type Peers struct {
	cfg       PeersConfig
	transport *http.Transport
	pinned    http.RoundTripper // transport, to where they may be
	proxy     *httputil.ReverseProxy

	running sync.WaitGroup
	closing chan struct{} // closed by Close

	mu       sync.Mutex // guards what follows; held while running grows
	closed   bool
	suspects map[string]bool // processes that did not answer: asked whether they are there before they get another request
}

// NewPeers returns Peers that know nobody: Postgres says where sessions are.
func NewPeers(cfg PeersConfig) *Peers {
	pin := *cfg.Way.Pin()
	pin.Timeout = peerDial
	transport := pin.Transport()
	transport.TLSHandshakeTimeout, transport.MaxIdleConnsPerHost, transport.IdleConnTimeout, transport.DisableCompression = peerDial, peerConns, peerIdle, true
	p := &Peers{cfg: cfg, closing: make(chan struct{}), suspects: map[string]bool{}, transport: transport, pinned: pin.RoundTripper(transport)}
	buffers := sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}
	p.proxy = &httputil.ReverseProxy{
		Transport: onceOnly{p.pinned}, BufferPool: pooled{&buffers}, ErrorLog: zap.NewStdLog(cfg.Log), Rewrite: p.rewrite,
		ModifyResponse: func(r *http.Response) error {
			if r.StatusCode == misdirected {
				return errMisdirected
			}
			if r.StatusCode != http.StatusSwitchingProtocols {
				r.Request.Context().Value(attemptKey{}).(*attempt).answering()
			}
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, r *http.Request, err error) {
			r.Context().Value(attemptKey{}).(*attempt).err = err
		},
	}
	return p
}

type pooled struct{ *sync.Pool }

func (p pooled) Get() []byte  { return *p.Pool.Get().(*[]byte) }
func (p pooled) Put(b []byte) { p.Pool.Put(&b) }

var (
	errMisdirected = errors.New("the session is not there")
	errMoved       = errors.New("the session is not any more where the request was forwarded")
	errStopping    = errors.New("the orchestrator that forwarded the request is stopping")
)

// attempt is a request on its way to one orchestrator.
type attempt struct {
	to   orchestrator.Replica
	base *url.URL
	sent atomic.Bool // there was a connection: it may have been run
	err  error

	answering func() // called before the answer is passed on
}

type attemptKey struct{}

// rewrite keeps the request as its client made it, so that URLs in answers point to where the client came in, but for its credentials.
func (p *Peers) rewrite(pr *httputil.ProxyRequest) {
	a := pr.In.Context().Value(attemptKey{}).(*attempt)
	pr.Out.URL.Scheme, pr.Out.URL.Host = a.base.Scheme, a.base.Host
	pr.Out.URL.RawQuery = pr.In.URL.RawQuery
	pr.Out.Host = pr.In.Host
	h := pr.Out.Header
	h.Del("Authorization")
	h.Del("Expect")          // we have said that we want the body
	h.Del("Idempotency-Key") // net/http takes it for leave to send a command again
	h.Del(hopHeader)
	if proto := pr.In.Header.Get("X-Forwarded-Proto"); proto != "" {
		h.Set("X-Forwarded-Proto", proto)
	} else if pr.In.TLS != nil {
		h.Set("X-Forwarded-Proto", "https")
	}
	h.Set(hopHeader, hop(p.cfg.Token, a.to.ID, pr.Out.Method, pr.Out.URL.RequestURI()))
}

// onceOnly sends a request once: net/http sends a GET without a body again when its connection breaks, and a driver's GET is a command.
type onceOnly struct{ http.RoundTripper }

func (t onceOnly) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil && r.Method == http.MethodGet {
		r = r.WithContext(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(nil)) // which it cannot know to be empty, nor read again
	}
	return t.RoundTripper.RoundTrip(r)
}

// enter counts a request, unless the Peers are closed; leave follows.
func (p *Peers) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.running.Add(1)
	}
	return !p.closed
}

// suspect notes whether a process is there.
func (p *Peers) suspect(id string, is bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !is:
		delete(p.suspects, id)
	case len(p.suspects) < maxSuspects:
		p.suspects[id] = true
	}
}

// answers says whether a process is there, as far as that is in doubt.
func (p *Peers) answers(ctx context.Context, r orchestrator.Replica) bool {
	p.mu.Lock()
	doubt := p.suspects[r.ID]
	p.mu.Unlock()
	if !doubt {
		return true
	}
	there := p.Probe(ctx, r) == nil
	if there {
		p.suspect(r.ID, false)
	}
	return there
}

// Close ends what is forwarded, websockets too, and waits for it.
func (p *Peers) Close(ctx context.Context) error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.closing)
	}
	p.mu.Unlock()
	over := make(chan struct{})
	go func() { // ends with the last request, each of which has been told
		p.running.Wait()
		close(over)
	}()
	defer p.transport.CloseIdleConnections()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("httpapi: requests are still forwarded: %w", ctx.Err())
	}
}

// parcel is a request's body on its way. One that was not read can be sent elsewhere.
type parcel struct {
	io.Reader
	read  atomic.Bool
	ended func()
}

func (b *parcel) Read(p []byte) (int, error) {
	b.read.Store(true)
	n, err := b.Reader.Read(p)
	if err != nil {
		b.ended()
	}
	return n, err
}

// Close leaves the body to the server, which closes it in the end.
func (*parcel) Close() error { return nil }

// forward has the request served by the orchestrator to, or where the session is by then. err says that nobody has it.
func (s *server) forward(w http.ResponseWriter, r *http.Request, next http.Handler, session string, to orchestrator.Replica, err error) {
	if !s.Peers.enter() {
		s.notForwarded(w, r, orchestrator.NotRun("the orchestrator is stopping; send it again"), orchestrator.ErrElsewhere)
		return
	}
	defer s.Peers.running.Done()
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(bodyLimit)) // not every server has one
	arrived := func() { _ = c.SetReadDeadline(time.Time{}) }
	defer arrived()
	answering := func() { _ = c.SetWriteDeadline(time.Now().Add(bodyLimit)) }
	defer func() { _ = c.SetWriteDeadline(time.Time{}) }()
	if isLive(r) {
		w = rolling{w, c}
	}
	var small []byte
	whole := r.ContentLength >= 0 && r.ContentLength <= smallBody
	if whole {
		var broken error
		if small, broken = io.ReadAll(io.LimitReader(r.Body, smallBody)); broken != nil {
			s.notForwarded(w, r, (&webdriver.Error{Code: webdriver.InvalidArgument, Message: "the request's body cannot be read: " + broken.Error()}).Answer(), broken)
			return
		}
		arrived()
	}
	until, cancel := context.WithTimeout(r.Context(), s.Orchestrator.AdoptedWithin())
	defer cancel()
	for {
		switch {
		case errors.Is(err, orchestrator.ErrUnavailable):
			s.notForwarded(w, r, orchestrator.NotRun("the session cannot be looked up right now; send it again"), err)
			return
		case err != nil:
			s.notForwarded(w, r, orchestrator.NotRun("the session is being handed over to another orchestrator; send it again"), err)
			return
		case to == (orchestrator.Replica{}):
			if whole {
				r.Body = io.NopCloser(bytes.NewReader(small))
			}
			next.ServeHTTP(w, r)
			return
		}
		if !s.Peers.answers(until, to) {
			to, err = s.Orchestrator.Locate(until, session, to.ID)
			continue
		}
		out := r.Clone(r.Context())
		stream := &parcel{Reader: r.Body, ended: arrived}
		out.Body = stream
		if whole {
			out.Body = io.NopCloser(bytes.NewReader(small))
		}
		a := s.once(w, out, session, &attempt{to: to, answering: answering})
		switch {
		case a.err == nil, r.Context().Err() != nil:
			return
		case errors.Is(a.err, errMisdirected):
		case !a.sent.Load(), isReport(r): // the report can be asked for again
			s.Peers.suspect(to.ID, true)
		default:
			s.Peers.suspect(to.ID, true)
			s.Log.Warn("request forwarded, and not answered", zap.String("session", session), zap.String("orchestrator", to.Name), zap.Error(a.err))
			s.notForwarded(w, r, orchestrator.Unknown("the orchestrator that had the session did not answer"), orchestrator.ErrElsewhere)
			return
		}
		if !whole && stream.read.Load() {
			s.notForwarded(w, r, orchestrator.NotRun("the session moved while it was sent; send it again"), orchestrator.ErrElsewhere)
			return
		}
		s.Log.Info("session is not where it was", zap.String("session", session), zap.String("orchestrator", to.Name), zap.Error(a.err))
		to, err = s.Orchestrator.Locate(until, session, to.ID)
	}
}

// once forwards the request to one orchestrator. It waits for as long as the session is there.
func (s *server) once(w http.ResponseWriter, r *http.Request, session string, a *attempt) *attempt {
	if a.base, a.err = url.Parse(a.to.URL); a.err != nil {
		return a
	}
	ctx, cancel := context.WithCancelCause(context.WithValue(r.Context(), attemptKey{}, a))
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		s.watchHolder(ctx, session, a.to, cancel)
	}()
	defer func() {
		cancel(nil)
		<-watched
	}()
	r = r.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { a.sent.Store(true) }}))
	s.Peers.proxy.ServeHTTP(w, r)
	return a
}

// watchHolder cancels with the reason once nobody can answer any more at the holder: the session is elsewhere, and the former holder
// does not answer, or has had its time.
func (s *server) watchHolder(ctx context.Context, session string, holder orchestrator.Replica, cancel context.CancelCauseFunc) {
	news, stop := s.Orchestrator.Watch(session)
	defer stop()
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	known := s.Peers.cfg.Now()
	var late *time.Timer
	var over <-chan time.Time
	for {
		select {
		case <-news:
		case <-t.C:
		case <-over:
			cancel(errMoved)
			return
		case <-s.Peers.closing:
			cancel(errStopping)
			return
		case <-ctx.Done():
			return
		}
		at, err := s.Orchestrator.Whereabouts(ctx, session)
		switch {
		case err == nil && at.Holder.ID == holder.ID:
			known = s.Peers.cfg.Now()
		case errors.Is(err, orchestrator.ErrUnavailable) && s.Peers.cfg.Now().Sub(known) < blindLimit:
		case late == nil && s.Peers.Probe(ctx, holder) != nil: // it did not hand the session over: it is gone, or asleep
			cancel(errMoved)
			return
		case late == nil:
			late = time.NewTimer(movedGrace)
			defer late.Stop()
			over = late.C
		}
	}
}

// notForwarded answers a request that no other orchestrator has answered, in the words of its route.
func (s *server) notForwarded(w http.ResponseWriter, r *http.Request, a webdriver.Answer, err error) {
	w.Header().Set("Connection", "close") // the body may not have been read
	if isDriverPath(r.URL.Path) {
		writeAnswer(w, a)
		return
	}
	if after := retryAfter(err); after > 0 {
		w.Header().Set("Retry-After", seconds(after))
	}
	if r.Method == http.MethodPost {
		writeProblem(w, batchProblem(a.Err()))
		return
	}
	writeProblem(w, problemOf(err, s.Log))
}
