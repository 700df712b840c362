package stream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// driver runs commands in the order in which they are begun, and counts.
type driver struct {
	answer func(number uint64, c webdriver.Command) Result // nil: echo
	alone  string                                          // the path of commands that run alone

	mu      sync.Mutex // guards what follows
	ran     []uint64
	acked   []uint64
	running int
	most    int
}

func (d *driver) Alone(c webdriver.Command) bool { return d.alone != "" && c.Path == d.alone }

func (d *driver) Begin(number uint64, c webdriver.Command) func() Result {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ran = append(d.ran, number)
	d.running++
	d.most = max(d.most, d.running)
	return func() Result {
		answer := d.answer
		if answer == nil {
			answer = echo
		}
		r := answer(number, c)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.running--
		return r
	}
}

func (d *driver) Acknowledge(seq uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.acked = append(d.acked, seq)
}

func (d *driver) executed() []uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.ran)
}

func (d *driver) acknowledged() []uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.acked)
}

func echo(number uint64, c webdriver.Command) Result {
	a, _ := webdriver.ValueAnswer(c.Method + c.Path + string(c.Body))
	return Result{Answer: a, Seq: number + 1000}
}

// server is what package orchestrator and its HTTP handler are to this package.
type server struct {
	url    string
	driver *driver

	mu      sync.Mutex // guards what follows
	streams map[Token]*Stream
	open    sync.WaitGroup
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.open.Add(1)
	defer s.open.Done()
	resume, err := ParseResume(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	seat, err := s.sit(resume)
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	seat.Serve(w, r)
}

func (s *server) sit(r Resume) (*Seat, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[r.Token]
	if st == nil {
		if r.Token == (Token{}) {
			r.Token = NewToken()
		}
		st = New(r.Token, r.Answered, s.driver, time.Now)
		s.streams[r.Token] = st
	}
	return st.Sit(r.Answered)
}

// all are the streams that there are.
func (s *server) all() (all []*Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.streams {
		all = append(all, st)
	}
	return all
}

// end ends all streams, and forgets them.
func (s *server) end(e Ending) {
	for _, st := range s.all() {
		st.End(e)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.streams)
}

func serve(t *testing.T, d *driver) *server {
	t.Helper()
	s := &server{driver: d, streams: map[Token]*Stream{}}
	h := httptest.NewServer(s)
	t.Cleanup(func() {
		h.CloseClientConnections()
		h.Close()
		s.end(Ending{Reason: "the test is over"})
		s.open.Wait()
	})
	s.url = "ws" + strings.TrimPrefix(h.URL, "http")
	return s
}

func dial(t *testing.T, url string, o Options) *Client {
	t.Helper()
	c, err := Dial(t.Context(), url, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func post(path, body string) webdriver.Command {
	return webdriver.Command{Method: "POST", Path: path, Body: []byte(body)}
}

// must returns the answer's value.
func must(t *testing.T, a webdriver.Answer, err error) string {
	t.Helper()
	var v string
	if err == nil {
		err = errors.Join(a.Err(), a.Value(&v))
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// eventually polls: what it waits for is another goroutine's.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not in time: %s", what)
		}
	}
}

var errCut = errors.New("cut")

// cutter dials connections that break after so many bytes, counted both ways.
type cutter struct {
	mu     sync.Mutex // guards what follows
	budget func() int // of the next connection; below 0: it does not break
	cuts   int
}

func (c *cutter) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	n, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return &cutConn{Conn: n, cutter: c, left: c.budget()}, nil
}

func (c *cutter) done() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cuts
}

type cutConn struct {
	net.Conn
	cutter *cutter
	left   int // guarded by cutter.mu
}

// spend takes up to n bytes off what is left, and says how many it could.
func (c *cutConn) spend(n int) (int, error) {
	c.cutter.mu.Lock()
	defer c.cutter.mu.Unlock()
	switch {
	case c.left < 0:
		return n, nil
	case n < c.left:
		c.left -= n
		return n, nil
	case c.left > 0:
		c.cutter.cuts++
	}
	n, c.left = c.left, 0
	return n, errCut
}

func (c *cutConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		return n, err
	}
	n, err = c.spend(n)
	if err != nil {
		c.Conn.Close()
	}
	return n, err
}

func (c *cutConn) Write(b []byte) (int, error) {
	n, cut := c.spend(len(b))
	wrote, err := c.Conn.Write(b[:n])
	if cut != nil {
		c.Conn.Close()
		err = errors.Join(err, cut)
	}
	return wrote, err
}

// sizes of connections: some break in the handshake, some in the first messages, some in an answer far on.
func somewhere(r *rand.Rand) int {
	switch r.IntN(8) {
	case 0:
		return 1 + r.IntN(700)
	case 1, 2, 3:
		return 600 + r.IntN(2000)
	case 4, 5, 6:
		return 600 + r.IntN(30_000)
	}
	return 600 + r.IntN(400_000)
}

// cutAtRandom runs commands through connections that break, until that many have; every command must run once and in
// order, and get its own answer.
func cutAtRandom(t *testing.T, seed uint64, cuts int) {
	random := rand.New(rand.NewPCG(seed, 1))
	d := &driver{answer: func(number uint64, c webdriver.Command) Result {
		r := rand.New(rand.NewPCG(number, seed))
		a, _ := webdriver.ValueAnswer(c.Path + strings.Repeat("y", size(r)))
		return Result{Answer: a, Seq: number}
	}}
	s := serve(t, d)
	breaks := rand.New(rand.NewPCG(seed, 2))
	cut := &cutter{budget: func() int { return somewhere(breaks) }}
	first := true
	cut.budget = func() int {
		if first { // Dial does not try again
			first = false
			return 2000
		}
		return somewhere(breaks)
	}
	c := dial(t, s.url, Options{Dial: cut.dial, Patience: 5 * time.Minute, pause: 10 * time.Millisecond})
	pending := make(chan *Pending, most)
	var sent int
	go func() {
		defer close(pending)
		for ; cut.done() < cuts; sent++ {
			p, err := c.Go(t.Context(), post(fmt.Sprintf("/c%d/", sent), `"`+strings.Repeat("x", size(random))+`"`))
			if err != nil {
				t.Errorf("command %d: %v", sent, err)
				return
			}
			pending <- p
		}
	}()
	got := 0
	for p := range pending {
		a, err := p.Wait(t.Context())
		var v string
		if err == nil {
			err = a.Value(&v)
		}
		if err != nil || !strings.HasPrefix(v, fmt.Sprintf("/c%d/", got)) {
			t.Fatalf("seed %d: command %d is answered %.40q, %v", seed, got, v, err)
		}
		got++
	}
	c.Close()
	ran := d.executed()
	for i, n := range ran {
		if n != uint64(i)+1 {
			t.Fatalf("seed %d: after command %d the driver ran %d", seed, i, n)
		}
	}
	if got != sent || len(ran) != sent {
		t.Fatalf("seed %d: %d commands were sent, %d ran, %d were answered", seed, sent, len(ran), got)
	}
	t.Logf("%d cuts, %d commands", cut.done(), sent)
}

// size is mostly small.
func size(r *rand.Rand) int {
	switch r.IntN(40) {
	case 0:
		return r.IntN(60_000)
	case 1, 2, 3:
		return r.IntN(10_000)
	}
	return r.IntN(200)
}
