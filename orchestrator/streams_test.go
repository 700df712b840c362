package orchestrator

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/stream"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// pipes is a listener in memory, which the clock of a bubble goes with.
type pipes struct{ conns chan net.Conn }

func (p pipes) Accept() (net.Conn, error) {
	if c, open := <-p.conns; open {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p pipes) dial(context.Context, string, string) (net.Conn, error) {
	a, b := net.Pipe()
	p.conns <- a
	return b, nil
}

// streaming runs f with a client's stream of a session that is served, inside a synctest bubble, and returns how the session ended and
// its log. f may leave it running.
func streaming(t *testing.T, d *scripted, f func(ctx context.Context, l *live, c *stream.Client)) (end *EndError, events []Event) {
	t.Helper()
	return served(t, d, func(ctx context.Context, l *live) {
		p := pipes{make(chan net.Conn)}
		h := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { l.sit(w, r) })}
		var group sync.WaitGroup
		group.Go(func() { _ = h.Serve(p) }) // it ends with its listener
		group.Go(func() {
			<-l.closed
			synctest.Wait() // what is taken by then may be answered
			close(l.over)
			l.streams.close()
		})
		c, err := stream.Dial(ctx, "ws://in.memory", stream.Options{Dial: p.dial, Patience: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		f(ctx, l, c)
		<-l.over
		c.Close()
		close(p.conns)
		_ = h.Close()
		group.Wait()
	})
}

// sit is what the HTTP handler does.
func (l *live) sit(w http.ResponseWriter, r *http.Request) {
	resume, err := stream.ParseResume(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	seat, err := l.streams.sit(resume)
	if err != nil {
		status := http.StatusConflict
		if errors.Is(err, ErrElsewhere) {
			status = http.StatusServiceUnavailable
		}
		http.Error(w, err.Error(), status)
		return
	}
	seat.Serve(w, r)
}

func begin(ctx context.Context, t *testing.T, c *stream.Client, cmd webdriver.Command) *stream.Pending {
	t.Helper()
	p, err := c.Go(ctx, cmd)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A stream's commands are in the log and in the profile's pages as others are; and a client that is connected and sends nothing
// is idle.
func TestStreamIsOfItsSession(t *testing.T) {
	var l *live
	var idleSince time.Time
	end, events := streaming(t, takes(time.Second), func(ctx context.Context, at *live, c *stream.Client) {
		l = at
		pending := []*stream.Pending{
			begin(ctx, t, c, post("/url", `{"url":"https://a.example/x?secret"}`)), begin(ctx, t, c, post("/nonsense", `{}`)),
			begin(ctx, t, c, webdriver.Command{Method: "DELETE", Path: "/url"}), begin(ctx, t, c, post("/refresh", `{}`)),
		}
		for i, want := range []int{200, 404, 405, 200} {
			if a, err := pending[i].Wait(ctx); err != nil || a.Status != want {
				t.Errorf("command %d: %d %s, %v", i, a.Status, a.Body, err)
			}
		}
		idleSince = time.Now()
		<-l.closed
		if idle := time.Since(idleSince); idle != l.claim.Idle {
			t.Errorf("ended %s after the last answer", idle)
		}
		<-l.over
		within(t, "a command after the end", func() bool { // the stream's own end comes behind the session's
			a, err := c.Do(ctx, post("/refresh", `{}`))
			if err == nil && a.Status != 404 {
				t.Errorf("a command after the end: %d %s", a.Status, a.Body)
			}
			return errors.Is(err, stream.ErrEnded) && strings.Contains(err.Error(), "idle_seconds")
		})
	})
	if end.Reason != Idle {
		t.Errorf("ended with %s", end.Reason)
	}
	if got := l.pages(); !slices.Equal(got, []string{"https://a.example/x"}) {
		t.Errorf("pages %q", got)
	}
	if len(events) != 2 || events[0].Route != webdriver.RouteNavigateTo || events[1].Route != webdriver.RouteRefresh || events[1].Took != time.Second {
		t.Errorf("log: %+v", events)
	}
}

// A command has its time from when those before it are answered: many that are sent at once do not use up one another's.
func TestPipelinedCommandsHaveTheirOwnTime(t *testing.T) {
	end, events := streaming(t, takes(9*time.Second), func(ctx context.Context, l *live, c *stream.Client) {
		var pending []*stream.Pending
		for range 5 {
			pending = append(pending, begin(ctx, t, c, post("/refresh", `{}`)))
		}
		for _, p := range pending {
			if a, err := p.Wait(ctx); err != nil || a.Status != 200 {
				t.Errorf("%d, %v", a.Status, err)
			}
		}
	})
	if end.Reason != Idle || len(events) != 5 || events[4].Took != 9*time.Second {
		t.Fatalf("ended with %s, log %+v", end.Reason, events)
	}
}

func TestStreamedCommandDeadline(t *testing.T) {
	end, _ := streaming(t, takes(time.Hour), func(ctx context.Context, l *live, c *stream.Client) {
		first, second := begin(ctx, t, c, post("/refresh", `{}`)), begin(ctx, t, c, post("/refresh", `{}`))
		a, err := first.Wait(ctx)
		if err != nil || a.Status < 400 {
			t.Errorf("%d %s, %v", a.Status, a.Body, err)
		}
		if a, err := second.Wait(ctx); err != nil || a.Status < 400 {
			t.Errorf("%d %s, %v", a.Status, a.Body, err)
		}
	})
	if end.Reason != CommandDeadline {
		t.Fatalf("ended with %s", end.Reason)
	}
}

// Quitting comes after the answers to what was sent before, and what was sent behind it is refused.
func TestQuitOverAStream(t *testing.T) {
	for name, quit := range map[string]webdriver.Command{"quit": {Method: "DELETE"}, "close the last window": {Method: "DELETE", Path: "/window"}} {
		d := takes(time.Second)
		slow := d.answer
		d.answer = func(ctx context.Context, c webdriver.Command) (webdriver.Answer, error) {
			switch a, err := slow(ctx, c); {
			case err != nil:
				return a, err
			case c.Path == "/window":
				return webdriver.ValueAnswer("w")
			case c.Path == "/window/handles":
				return webdriver.ValueAnswer([]string{"w"})
			default:
				return a, err
			}
		}
		end, _ := streaming(t, d, func(ctx context.Context, l *live, c *stream.Client) {
			before, at, after := begin(ctx, t, c, post("/refresh", `{}`)), begin(ctx, t, c, quit), begin(ctx, t, c, post("/refresh", `{}`))
			if a, err := before.Wait(ctx); err != nil || a.Status != 200 {
				t.Errorf("%s: before: %d, %v", name, a.Status, err)
			}
			if a, err := at.Wait(ctx); err != nil || a.Status != 200 {
				t.Errorf("%s: %d %s, %v", name, a.Status, a.Body, err)
			}
			if a, err := after.Wait(ctx); err != nil || a.Status != 404 {
				t.Errorf("%s: after: %d %s, %v", name, a.Status, a.Body, err)
			}
		})
		if end.Reason != Completed {
			t.Errorf("%s: ended with %s", name, end.Reason)
		}
	}
}

// keeps returns a device whose host has these commands of before, all of them answered.
func keeps(kept ...driverproxy.Kept) *scripted {
	d := takes(0)
	d.done = make(chan struct{})
	d.kept = kept
	return d
}

func origin(stream byte, number uint64) wire.Origin {
	return wire.Origin{Stream: [16]byte{stream}, Number: number}
}

// apart is a session that nothing runs, with a clock of its own.
func apart(t *testing.T, d *scripted, now func() time.Time) *live {
	t.Helper()
	j := newJournal(&memory{}, zap.NewNop())
	go j.run(context.Background())
	l := newLive(Claim{Session: "s", Term: 1, Idle: time.Hour, Max: time.Hour, Command: time.Minute}, j, now)
	l.device = d
	l.streams.adopt(d)
	t.Cleanup(func() {
		l.stop(endWith(Completed, nil))
		close(l.over)
		l.streams.close()
		j.close()
	})
	return l
}

func TestStreamsAreBounded(t *testing.T) {
	var at clock
	l := apart(t, keeps(), at.now)
	var seats []*stream.Seat
	for range maxStreams {
		s, err := l.streams.sit(stream.Resume{})
		if err != nil {
			t.Fatal(err)
		}
		seats = append(seats, s)
	}
	var full *TooManyStreamsError
	if _, err := l.streams.sit(stream.Resume{}); !errors.As(err, &full) {
		t.Fatalf("a stream too many: %v", err)
	}
	for _, i := range []int{5, 2} {
		at.advance(time.Second)
		seats[i].Leave()
	}
	fifth := stream.Resume{Token: tokenOf(t, l, at.now().Add(-time.Second))}
	second := stream.Resume{Token: tokenOf(t, l, at.now())}
	if _, err := l.streams.sit(stream.Resume{}); err != nil {
		t.Fatalf("two streams have nothing left to tell, and do not make room: %v", err)
	}
	if l.streams.open[second.Token] == nil || l.streams.open[fifth.Token] != nil {
		t.Error("the one that was left first is not the one forgotten")
	}
	if _, err := l.streams.sit(second); err != nil {
		t.Errorf("one that was not forgotten: %v", err)
	}
	if _, err := l.streams.sit(fifth); !errors.As(err, &full) {
		t.Errorf("one that was forgotten is let in without a place: %v", err)
	}
}

// clock is a test's.
type clock struct{ ns atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.ns.Load()) }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

// tokenOf finds the only stream that was left at that time.
func tokenOf(t *testing.T, l *live, at time.Time) stream.Token {
	t.Helper()
	for token, s := range l.streams.open {
		if since, _, connected := s.Idle(); !connected && since.Equal(at) {
			return token
		}
	}
	t.Fatal("no such stream")
	return stream.Token{}
}

// Answers that nobody has acknowledged keep their place for ten minutes.
func TestStreamsWithAnswersAreKept(t *testing.T) {
	var kept []driverproxy.Kept
	for i := range maxStreams {
		kept = append(kept, driverproxy.Kept{Seq: uint64(i) + 1, Origin: origin(byte(i)+1, 4)})
	}
	d := keeps(kept...)
	var at clock
	l := apart(t, d, at.now)
	var full *TooManyStreamsError
	for range 2 {
		if _, err := l.streams.sit(stream.Resume{}); !errors.As(err, &full) {
			t.Fatalf("a stream too many: %v", err)
		}
		at.advance(streamKeep)
	}
	at.advance(time.Second)
	within(t, "an answer that nobody came for makes room", func() bool {
		_, err := l.streams.sit(stream.Resume{})
		return err == nil
	})
	acked := d.acknowledged()
	if len(acked) != 1 {
		t.Fatalf("acknowledged %v", acked)
	}
	// The client of that one comes after all: its commands would run again.
	late := stream.Token(origin(byte(acked[0]), 4).Stream)
	var conflict *ConflictError
	if _, err := l.streams.sit(stream.Resume{Token: late, Answered: 3}); !errors.As(err, &conflict) {
		t.Errorf("a stream that gave its place away is resumed: %v", err)
	}
}

// After an adoption the commands of clients that are gone are waited for and acknowledged; those of streams wait for their client.
func TestAdoptedCommands(t *testing.T) {
	d := keeps(driverproxy.Kept{Seq: 11}, driverproxy.Kept{Seq: 12, Origin: origin(1, 7)}, driverproxy.Kept{Seq: 13, Origin: origin(2, 1)}, driverproxy.Kept{Seq: 14},
		driverproxy.Kept{Seq: 15, Origin: origin(1, 9)}, driverproxy.Kept{Seq: 16, Origin: origin(1, 8)})
	l := apart(t, d, time.Now)
	s := httptest.NewServer(http.HandlerFunc(l.sit))
	defer s.Close()
	within(t, "commands of nobody are acknowledged", func() bool { return slices.Equal(d.acknowledged(), []uint64{11, 14}) })

	ws, _, err := websocket.DefaultDialer.DialContext(t.Context(), "ws"+strings.TrimPrefix(s.URL, "http")+"?answered=7&resume=01000000000000000000000000000000", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	for _, want := range []string{`{"stream":"01000000000000000000000000000000","received":9,"window":64,"bytes":16777216}`,
		`{"id":8,"status":200,"value":"kept 16"}`, `{"id":9,"status":200,"value":"kept 15"}`} {
		if _, b, err := ws.ReadMessage(); err != nil || string(b) != want {
			t.Fatalf("%s, %v, want %s", b, err, want)
		}
	}
	within(t, "what the client had is acknowledged", func() bool { return slices.Equal(d.acknowledged(), []uint64{11, 14, 12}) })
	if err := ws.WriteMessage(websocket.TextMessage, []byte(`{"ack":9}`)); err != nil {
		t.Fatal(err)
	}
	within(t, "the rest is, once the client says so", func() bool { return slices.Equal(d.acknowledged(), []uint64{11, 14, 12, 16, 15}) })
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inflight != 0 {
		t.Errorf("%d commands count as running", l.inflight)
	}
}

// A command that has been adopted and still runs keeps the session from being idle, and does not run for ever.
func TestAdoptedCommandThatHangs(t *testing.T) {
	var begin time.Time
	d := takes(time.Hour)
	d.kept = []driverproxy.Kept{{Seq: 1, Origin: origin(1, 1)}}
	end, _ := served(t, d, func(ctx context.Context, l *live) {
		begin = time.Now()
		go func() {
			<-l.closed
			if took := time.Since(begin); took <= l.claim.Idle {
				t.Errorf("ended after %s", took)
			}
			close(l.over)
		}()
		<-l.over
		l.streams.close()
	})
	if end.Reason != CommandDeadline && end.Reason != Deadline {
		t.Fatalf("ended with %s", end.Reason)
	}
}

// within polls: what it waits for is another goroutine's.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not in time: %s", what)
		}
	}
}
