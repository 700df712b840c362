package host

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// BenchmarkDriver is one command at the driver, with what this end costs.
func BenchmarkDriver(b *testing.B) {
	server := httptest.NewServer(drivertest.NewQuiet())
	defer server.Close()
	d := newDriver(server.Listener.Addr().String(), SlowStart)
	defer d.close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if _, _, failure := d.newSession(ctx, map[string]any{}, ""); failure != nil {
		b.Fatal(failure)
	}
	b.ReportAllocs()
	for b.Loop() {
		if a, err := d.do(ctx, webdriver.Command{Method: "GET", Path: "/url"}); err != nil || a.Status != 200 {
			b.Fatal(a.Status, err)
		}
	}
}

// driverLimit bounds every wait of these tests.
const driverLimit = 30 * time.Second

// line is a connection that a scripted driver has accepted.
type line struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

// request reads the next one, with its body; nil at the end of the connection.
func (l line) request() *http.Request {
	r, err := http.ReadRequest(l.in)
	if err != nil {
		return nil
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil
	}
	r.Body = io.NopCloser(bytes.NewReader(b))
	return r
}

func (l line) say(format string, args ...any) {
	if _, err := fmt.Fprintf(l, format, args...); err != nil {
		l.t.Error(err)
	}
}

// answered is an answer as drivers give it.
func answered(value string) string {
	b := `{"value":"` + value + `"}`
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
}

// scripted serves each connection with the script of its number, the last one again and again, and counts them.
func scripted(t *testing.T, scripts ...func(l line)) (*driver, *atomic.Int64) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var accepted atomic.Int64
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			n := int(accepted.Add(1))
			serving.Go(func() {
				defer c.Close()
				limit := time.Now().Add(driverLimit)
				_ = c.SetDeadline(limit)
				scripts[min(n, len(scripts))-1](line{t, c, bufio.NewReader(c)})
				if time.Now().After(limit) {
					t.Errorf("connection %d stayed open", n)
				}
			})
		}
	})
	d := newDriver(listener.Addr().String(), SlowStart)
	d.id = "s"
	t.Cleanup(func() {
		_ = listener.Close()
		d.close()
		serving.Wait()
	})
	return d, &accepted
}

func get(t *testing.T, d *driver) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), driverLimit)
	defer cancel()
	a, err := d.do(ctx, webdriver.Command{Method: "GET", Path: "/title"})
	if err != nil {
		return "", err
	}
	var v string
	return v, a.Value(&v)
}

func wantGet(t *testing.T, d *driver, want string) {
	t.Helper()
	if v, err := get(t, d); err != nil || v != want {
		t.Errorf("%q, %v, want %q", v, err, want)
	}
}

// untilUnusable waits until what the driver did has arrived.
func untilUnusable(t *testing.T, c *connection) {
	t.Helper()
	deadline := time.After(driverLimit)
	for c.idle() {
		select {
		case <-deadline:
			t.Fatal("the connection stays usable")
		default:
			runtime.Gosched()
		}
	}
}

// echo answers every request with its method and path.
func echo(l line) {
	for r := l.request(); r != nil; r = l.request() {
		l.say("%s", answered(r.Method+" "+r.URL.Path))
	}
}

func TestDriverIsAskedOverOneConnection(t *testing.T) {
	kinds := []string{
		answered("plain"),
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{\"value\"\r\n9;x=y\r\n:\"plain\"}\r\n0\r\nTrailer: x\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + answered("plain"),
	}
	d, accepted := scripted(t, func(l line) {
		for i := 0; l.request() != nil; i++ {
			l.say("%s", kinds[i%len(kinds)])
		}
	})
	for range 30 {
		wantGet(t, d, "plain")
	}
	if n := accepted.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestRequestIsWhole(t *testing.T) {
	got := make(chan *http.Request, 1)
	d, _ := scripted(t, func(l line) {
		for r := l.request(); r != nil; r = l.request() {
			got <- r
			l.say("%s", answered(""))
		}
	})
	for _, c := range []webdriver.Command{
		{Method: "GET", Path: "/element/a%2Db/text", Body: []byte("not sent")}, {Method: "DELETE"},
		{Method: "POST", Path: "/url", Body: []byte(`{"url":"x"}`)}, {Method: "POST", Path: "/file", Body: bytes.Repeat([]byte("y"), 1<<20)},
	} {
		if _, err := d.do(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		r := <-got
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		want := c.Body
		if c.Method != "POST" {
			want = nil
		}
		if r.Method != c.Method || r.RequestURI != "/session/s"+c.Path || r.Host != d.addr || !bytes.Equal(b, want) ||
			(c.Method == "POST") != (r.Header.Get("Content-Type") == "application/json; charset=utf-8") {
			t.Errorf("%s %s became %s %s of %s with %v and %d bytes", c.Method, c.Path, r.Method, r.RequestURI, r.Host, r.Header, len(b))
		}
	}
}

// A driver may close a connection that nobody uses: the next command is then sent on another, once, and is not lost.
func TestConnectionClosedWhileIdle(t *testing.T) {
	once := func(l line) {
		if r := l.request(); r != nil {
			l.say("%s", answered(r.Method))
		}
	}
	d, accepted := scripted(t, once)
	for i := range 20 {
		wantGet(t, d, "GET")
		untilUnusable(t, d.kept)
		if n := accepted.Load(); n != int64(i+1) {
			t.Fatalf("%d connections for %d commands", n, i+1)
		}
	}
}

// What a driver sends unasked is not the answer to the next command, whether it comes with the answer before or later.
func TestUnaskedAnswerIsNotTaken(t *testing.T) {
	later := make(chan struct{})
	together := func(l line) {
		l.request()
		l.say("%s", answered("first")+answered("unasked"))
		l.request()
	}
	apart := func(l line) {
		l.request()
		l.say("%s", answered("second"))
		<-later
		l.say("%s", answered("unasked"))
		l.request()
	}
	d, _ := scripted(t, together, apart, echo)
	wantGet(t, d, "first")
	wantGet(t, d, "second")
	close(later)
	untilUnusable(t, d.kept)
	wantGet(t, d, "GET /session/s/title")
}

// A connection that breaks under a command says nothing of the command, which is never sent again.
func TestConnectionBrokenUnderACommand(t *testing.T) {
	for name, part := range map[string]string{"no answer": "", "part of a head": "HTTP/1.1 200 OK\r\nContent-", "part of a body": answered("whole")[:80], "no HTTP": "hello\r\n"} {
		t.Run(name, func(t *testing.T) {
			var seen atomic.Int64
			d, _ := scripted(t, func(l line) {
				l.request()
				l.say("%s", answered("first"))
				if l.request() != nil {
					seen.Add(1)
				}
				l.say("%s", part)
			}, func(l line) {
				if l.request() != nil {
					seen.Add(1)
				}
			})
			wantGet(t, d, "first")
			if v, err := get(t, d); err == nil || neverReached(err) {
				t.Errorf("%q, %v: whether the driver has run it is not known", v, err)
			}
			if n := seen.Load(); n != 1 {
				t.Errorf("the command was sent %d times", n)
			}
		})
	}
}

func TestDriverThatIsGoneWasNeverReached(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := newDriver(listener.Addr().String(), SlowStart)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := listener.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		l := line{t, c, bufio.NewReader(c)}
		l.request()
		l.say("%s", answered("first"))
		_ = c.Close()
		_ = listener.Close()
	}()
	wantGet(t, d, "first")
	<-done
	untilUnusable(t, d.kept)
	if v, err := get(t, d); !neverReached(err) {
		t.Errorf("%q, %v: nobody listens", v, err)
	}
}

// Who gives up on a command closes its connection, which ends it at drivers that look.
func TestGivenUpCommandClosesItsConnection(t *testing.T) {
	for name, part := range map[string]string{"no answer": "", "part of a body": answered("whole")[:80]} {
		t.Run(name, func(t *testing.T) {
			reached, ended := make(chan struct{}), make(chan struct{})
			d, _ := scripted(t, func(l line) {
				defer close(ended)
				l.request()
				l.say("%s", part)
				close(reached)
				if l.request() != nil {
					t.Error("the connection was used again")
				}
			}, echo)
			ctx, cancel := context.WithCancelCause(t.Context())
			why := errors.New("the session has ended")
			go func() { <-reached; cancel(why) }()
			if _, err := d.do(ctx, webdriver.Command{Method: "GET", Path: "/title"}); !errors.Is(err, why) {
				t.Errorf("%v, want the cause", err)
			}
			<-ended
			wantGet(t, d, "GET /session/s/title")
		})
	}
}

// A driver that does not keep its connection open is asked over another.
func TestConnectionThatIsNotKept(t *testing.T) {
	body := `{"value":"last"}`
	for name, last := range map[string]string{
		"Connection: close": "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 16\r\n\r\n" + body,
		"HTTP/1.0":          "HTTP/1.0 200 OK\r\nContent-Length: 16\r\n\r\n" + body,
		"until the end":     "HTTP/1.1 200 OK\r\n\r\n" + body,
	} {
		t.Run(name, func(t *testing.T) {
			d, accepted := scripted(t, func(l line) {
				l.request()
				l.say("%s", last)
			}, echo)
			wantGet(t, d, "last")
			if d.kept != nil {
				t.Error("the connection is kept")
			}
			wantGet(t, d, "GET /session/s/title")
			if n := accepted.Load(); n != 2 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

// A driver may answer before it has read a long command; the answer counts, and the rest is not sent.
func TestAnswerBeforeTheCommandIsRead(t *testing.T) {
	d, accepted := scripted(t, func(l line) {
		if _, err := l.in.ReadString('\n'); err != nil {
			t.Error(err)
		}
		l.say("%s", answered("too much"))
		<-t.Context().Done() // reads nothing
	}, echo)
	ctx, cancel := context.WithTimeout(t.Context(), driverLimit)
	defer cancel()
	a, err := d.do(ctx, webdriver.Command{Method: "POST", Path: "/file", Body: make([]byte, 64<<20)})
	var v string
	if err != nil || a.Value(&v) != nil || v != "too much" || ctx.Err() != nil {
		t.Errorf("%q, %v %v", v, err, ctx.Err())
	}
	wantGet(t, d, "GET /session/s/title")
	if n := accepted.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

func TestBoundsOfAnAnswer(t *testing.T) {
	for name, c := range map[string]struct{ answer, says string }{
		"announced too long":  {"HTTP/1.1 200 OK\r\nContent-Length: 200000000\r\n\r\n", "longer than the stream"},
		"headers without end": {"HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 2000), "headers are longer"},
		"1xx without end":     {strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100), "informational"},
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := scripted(t, func(l line) {
				l.request()
				_, _ = io.WriteString(l, c.answer) // the reader may hang up before
				l.request()
			})
			a, err := d.do(t.Context(), webdriver.Command{Method: "GET", Path: "/screenshot"})
			if err == nil {
				err = a.Err()
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want one that says %q", err, c.says)
			}
			if d.kept != nil {
				t.Error("the connection is kept")
			}
		})
	}
}

// A request that runs when the driver is closed leaves no connection behind.
func TestClosedDriverKeepsNothing(t *testing.T) {
	reached, finish, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	d, _ := scripted(t, func(l line) {
		defer close(ended)
		l.request()
		close(reached)
		<-finish
		l.say("%s", answered("late"))
		l.request() // until the connection is closed
	})
	go func() { <-reached; d.close(); close(finish) }()
	wantGet(t, d, "late")
	<-ended
}
