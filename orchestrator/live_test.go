package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// scripted is a device whose answers a test decides.
type scripted struct {
	answer func(ctx context.Context, c webdriver.Command) (webdriver.Answer, error)
	done   chan struct{}
	err    error
	kept   []driverproxy.Kept // of before, each answered as a command with its Seq as path

	mu    sync.Mutex
	acked []uint64 // guarded by mu
}

func (d *scripted) Do(ctx context.Context, c webdriver.Command) (webdriver.Answer, driverproxy.Receipt, error) {
	a, err := d.answer(ctx, c)
	return a, driverproxy.Receipt{Seq: 1}, err
}

func (d *scripted) Begin(_ wire.Origin, c webdriver.Command) func(context.Context) (webdriver.Answer, driverproxy.Receipt, error) {
	return func(ctx context.Context) (webdriver.Answer, driverproxy.Receipt, error) { return d.Do(ctx, c) }
}

func (d *scripted) Kept() []driverproxy.Kept { return d.kept }

func (d *scripted) Await(ctx context.Context, k driverproxy.Kept) (webdriver.Answer, driverproxy.Receipt, error) {
	a, err := d.answer(ctx, webdriver.Command{})
	if err == nil {
		a, err = webdriver.ValueAnswer(fmt.Sprintf("kept %d", k.Seq))
	}
	return a, driverproxy.Receipt{Seq: k.Seq}, err
}

func (d *scripted) Acknowledge(seq uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.acked = append(d.acked, seq)
}

func (d *scripted) acknowledged() []uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.acked)
}

func (d *scripted) OpenBiDi(context.Context) (*driverproxy.BiDi, error) {
	return nil, driverproxy.ErrNoBiDi
}
func (d *scripted) Done() <-chan struct{} { return d.done }
func (d *scripted) Err() error            { return d.err }

func null() webdriver.Answer {
	a, _ := webdriver.ValueAnswer(nil)
	return a
}

// takes returns a device that needs so long for each command, or as long as the caller waits.
func takes(d time.Duration) *scripted {
	return &scripted{answer: func(ctx context.Context, _ webdriver.Command) (webdriver.Answer, error) {
		select {
		case <-time.After(d):
			return null(), nil
		case <-ctx.Done():
			return (&webdriver.Error{Code: webdriver.UnknownError}).Answer(), ctx.Err()
		}
	}}
}

// memory keeps the journal's events.
type memory struct {
	SessionStore
	events []Event
	fail   int // so many calls fail first
}

func (m *memory) AppendEvents(_ context.Context, e []Event) error {
	if m.fail > 0 {
		m.fail--
		return errors.New("the database is away")
	}
	m.events = append(m.events, e...)
	return nil
}

// served runs f while a session is served, inside a synctest bubble, and returns how the session ended and its log.
func served(t *testing.T, d *scripted, f func(ctx context.Context, l *live)) (end *EndError, events []Event) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d.done = make(chan struct{}) // a channel from outside the bubble would keep its clock from advancing
		m := &memory{fail: 2}
		j := newJournal(m, zap.NewNop())
		go j.run(context.Background())
		l := newLive(Claim{Session: "s", Term: 3, Idle: 10 * time.Second, Max: time.Minute, Command: 25 * time.Second, LastEvent: 2}, j, time.Now)
		over := make(chan struct{})
		go func() {
			defer close(over)
			end = l.serve(context.Background(), d, nil)
		}()
		f(t.Context(), l)
		<-over
		j.flush(t.Context())
		j.close()
		events = m.events
	})
	return end, events
}

func post(path, body string) webdriver.Command {
	return webdriver.Command{Method: "POST", Path: path, Body: []byte(body)}
}

func TestIdleSessionEnds(t *testing.T) {
	var begin time.Time
	end, _ := served(t, takes(0), func(context.Context, *live) { begin = time.Now() })
	if end.Reason != Idle {
		t.Fatalf("ended with %s after %s", end.Reason, time.Since(begin))
	}
}

func TestRunningCommandIsNotIdleness(t *testing.T) {
	end, events := served(t, takes(20*time.Second), func(ctx context.Context, l *live) {
		if a := l.do(ctx, post("/url", `{"url":"http://127.0.0.1/"}`)); a.Status != 200 {
			t.Errorf("a command longer than the idle time: %d %s", a.Status, a.Body)
		}
	})
	if end.Reason != Idle {
		t.Fatalf("ended with %s", end.Reason)
	}
	if len(events) != 1 || events[0].Kind != EventCommand || events[0].Seq != 3 || events[0].Took != 20*time.Second || events[0].Route != webdriver.RouteNavigateTo {
		t.Fatalf("log: %+v", events)
	}
}

func TestBusySessionEndsAtItsDeadline(t *testing.T) {
	end, _ := served(t, takes(9*time.Second), func(ctx context.Context, l *live) {
		for range 7 {
			l.do(ctx, post("/refresh", `{}`))
		}
	})
	if end.Reason != Deadline {
		t.Fatalf("ended with %s", end.Reason)
	}
}

func TestCommandDeadline(t *testing.T) {
	end, _ := served(t, takes(time.Hour), func(ctx context.Context, l *live) {
		if a := l.do(ctx, post("/url", `{}`)); a.Status < 400 {
			t.Errorf("answer %d", a.Status)
		}
	})
	if end.Reason != CommandDeadline {
		t.Fatalf("ended with %s", end.Reason)
	}
}

func TestClientThatLeavesDoesNotEndItsCommand(t *testing.T) {
	ran := false
	d := &scripted{answer: func(ctx context.Context, _ webdriver.Command) (webdriver.Answer, error) {
		<-time.After(5 * time.Second)
		ran = ctx.Err() == nil
		return null(), nil
	}}
	served(t, d, func(ctx context.Context, l *live) {
		ctx, cancel := context.WithCancel(ctx)
		time.AfterFunc(time.Second, cancel)
		l.do(ctx, post("/url", `{}`))
	})
	if !ran {
		t.Fatal("the command's context ended with its client")
	}
}

func TestDeadDriverEndsTheSession(t *testing.T) {
	for want, err := range map[Reason]error{
		DriverFailed: &wire.Failure{Code: wire.FailureDriver, Message: "the browser exited"},
		HostLost:     driverproxy.ErrHostLost,
	} {
		d := takes(0)
		d.err = err
		end, _ := served(t, d, func(_ context.Context, l *live) {
			<-l.serving
			close(d.done)
		})
		if end.Reason != want {
			t.Errorf("%v ended it with %s", err, end.Reason)
		}
	}
}

func TestCommandAfterTheEnd(t *testing.T) {
	served(t, takes(0), func(ctx context.Context, l *live) {
		l.stop(endWith(Completed, nil))
		l.stop(endWith(Cancelled, nil)) // the first reason stays
		a := l.do(ctx, post("/url", `{}`))
		var w *webdriver.Error
		if !errors.As(a.Err(), &w) || w.Code != webdriver.InvalidSessionID || w.Data["reason"] != "completed" {
			t.Errorf("answer %s", a.Body)
		}
	})
}

// DELETE of a session is answered by how it ended: one that ended by itself meanwhile was not there to be deleted, and one that goes on
// elsewhere has not been.
func TestQuitIsAnsweredByTheEnd(t *testing.T) {
	for what, c := range map[string]struct {
		first  *EndError // what ends the session while the quit is on its way
		status int
		code   webdriver.Code
		says   string
	}{
		"quit":                {nil, 200, "", ""},
		"its driver died":     {endWith(DriverFailed, nil), 404, webdriver.InvalidSessionID, `"reason":"driver_failed"`},
		"it was idle":         {endWith(Idle, nil), 404, webdriver.InvalidSessionID, `"reason":"idle"`},
		"it is handed over":   {leave(nil), 500, webdriver.UnknownError, `"outcome":"not_run"`},
		"it lost its lease":   {endWith(LeaseLost, nil), 404, webdriver.InvalidSessionID, `"reason":"lease_lost"`},
		"it was quit already": {endWith(Completed, nil), 200, "", ""},
	} {
		o := New(Deps{Log: zap.NewNop()})
		l := newLive(Claim{Session: "s"}, o.journal, time.Now)
		o.enter(l)
		if c.first != nil {
			l.stop(c.first)
		}
		close(l.over) // as leave does once the end is stored
		a := o.Quit(t.Context(), "s")
		var w *webdriver.Error
		errors.As(a.Err(), &w)
		if a.Status != c.status || (w == nil) != (c.code == "") || w != nil && w.Code != c.code || !strings.Contains(string(a.Body), c.says) {
			t.Errorf("%s: DELETE is answered %d %s", what, a.Status, a.Body)
		}
	}
}

func TestUnknownCommandsDoNotReachTheDriver(t *testing.T) {
	d := &scripted{answer: func(context.Context, webdriver.Command) (webdriver.Answer, error) {
		t.Error("the driver was asked")
		return null(), nil
	}}
	served(t, d, func(ctx context.Context, l *live) {
		for c, want := range map[webdriver.Code]webdriver.Command{
			webdriver.UnknownCommand: post("/nonsense", `{}`),
			webdriver.UnknownMethod:  {Method: "DELETE", Path: "/url"},
		} {
			var w *webdriver.Error
			if a := l.do(ctx, want); !errors.As(a.Err(), &w) || w.Code != c {
				t.Errorf("%s %s: %s", want.Method, want.Path, a.Body)
			}
		}
	})
}

func TestClosingTheLastWindowCompletesTheSession(t *testing.T) {
	windows, current := []string{"w1", "w2"}, "w1"
	closed := 0
	d := &scripted{answer: func(_ context.Context, c webdriver.Command) (webdriver.Answer, error) {
		gone := (&webdriver.Error{Code: webdriver.NoSuchWindow}).Answer()
		switch i := slices.Index(windows, current); {
		case c.Path == "/window/handles":
			return webdriver.ValueAnswer(windows)
		case c.Method == "POST":
			current = "w2"
			return null(), nil
		case i < 0:
			return gone, nil
		case c.Method == "GET":
			return webdriver.ValueAnswer(current)
		default:
			closed++
			windows = slices.Delete(windows, i, i+1)
			return webdriver.ValueAnswer(windows)
		}
	}}
	end, _ := served(t, d, func(ctx context.Context, l *live) {
		l.do(ctx, webdriver.Command{Method: "DELETE", Path: "/window"})
		if len(windows) != 1 {
			t.Error("the first window was not closed")
		}
		// Closing what is closed already is an error of the client's, and ends nothing.
		if a := l.do(ctx, webdriver.Command{Method: "DELETE", Path: "/window"}); a.Status != 404 {
			t.Errorf("answer %d %s", a.Status, a.Body)
		}
		l.do(ctx, post("/window", `{"handle":"w2"}`))
		if a := l.do(ctx, webdriver.Command{Method: "DELETE", Path: "/window"}); string(a.Body) != `{"value":[]}` {
			t.Errorf("answer %s", a.Body)
		}
	})
	if end.Reason != Completed || len(windows) != 1 || closed != 1 {
		t.Fatalf("ended with %s, %d windows: the last one is needed to capture the profile", end.Reason, len(windows))
	}
}

// A window that does not answer is asked within the command's time, not for ever.
func TestClosingAWindowIsBounded(t *testing.T) {
	end, _ := served(t, takes(time.Hour), func(ctx context.Context, l *live) {
		l.do(ctx, webdriver.Command{Method: "DELETE", Path: "/window"})
	})
	if end.Reason != CommandDeadline {
		t.Fatalf("ended with %s", end.Reason)
	}
}

// A database that does not take events must not keep a session from ending.
func TestFullJournalDoesNotHoldTheEnd(t *testing.T) {
	j := newJournal(&memory{}, zap.NewNop()) // nobody runs it
	l := newLive(Claim{Session: "s"}, j, time.Now)
	writing := make(chan struct{})
	go func() {
		close(writing)
		for range cap(j.in) + 1 {
			l.emit(Event{Kind: EventCommand})
		}
	}()
	<-writing
	stopped := make(chan struct{})
	go func() {
		l.stop(endWith(Cancelled, nil))
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(10 * time.Second):
		t.Fatal("stop waits for the journal")
	}
	<-l.closed
	close(j.done) // lets the writer go
}

func TestVisitedPages(t *testing.T) {
	var l *live
	served(t, takes(0), func(ctx context.Context, at *live) {
		l = at
		for _, u := range []string{"https://a.example/x?y", "https://a.example/z", "http://b.example:8080/", "about:blank", "file:///etc/passwd", "javascript:1", "::"} {
			l.do(ctx, post("/url", `{"url":"`+u+`"}`))
		}
	})
	if got := l.pages(); !slices.Equal(got, []string{"https://a.example/x", "https://a.example/z", "http://b.example:8080/"}) {
		t.Fatalf("pages %q", got)
	}
}

// A session that was queued again may run again in this process before its first life has left.
func TestLeavingDoesNotHideTheNextLife(t *testing.T) {
	o := New(Deps{Log: zap.NewNop()})
	first := newLive(Claim{Session: "s", Term: 1}, o.journal, time.Now)
	next := newLive(Claim{Session: "s", Term: 2}, o.journal, time.Now)
	o.enter(first)
	o.enter(next)
	o.leave(first)
	if o.find("s") != next {
		t.Fatal("commands do not reach the session any more")
	}
	o.leave(next)
	if o.find("s") != nil {
		t.Fatal("a session that has left is still found")
	}
}

// Every reason has its row, and a row never claims success.
func TestEndings(t *testing.T) {
	reasons := []Reason{Completed, Cancelled, Idle, Deadline, CommandDeadline, DeviceUnavailable, HostLost, DriverFailed, LeaseLost,
		ProfileHeld, ProfileConflict, RecordingFailed, Quota, Drained, Internal, StreamOverflow, ForceReleased}
	table := Endings()
	if len(table) != len(reasons) {
		t.Errorf("%d rows for %d reasons", len(table), len(reasons))
	}
	for _, r := range reasons {
		if row := table[r]; row.HTTP < 400 || row.Text == "" || !slices.Contains(webdriver.Codes(), row.W3C) {
			t.Errorf("%s: %+v", r, row)
		}
	}
}
