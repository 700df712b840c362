package stream

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

func TestAnswersComeInOrderAndToTheirCommands(t *testing.T) {
	d := &driver{}
	c := dial(t, serve(t, d).url, Options{})
	var group sync.WaitGroup
	for i := range 200 {
		group.Go(func() {
			path := fmt.Sprintf("/p%d", i)
			a, err := c.Do(t.Context(), post(path, `{}`))
			var got string
			if err != nil || a.Status != 200 || a.Value(&got) != nil || got != "POST"+path+"{}" {
				t.Errorf("%s: %d %s, %v", path, a.Status, a.Body, err)
			}
		})
	}
	group.Wait()
	if n := len(d.executed()); n != 200 {
		t.Fatalf("%d commands ran", n)
	}
}

// Commands do not wait for one another's answers on their way to the driver.
func TestCommandsArePipelined(t *testing.T) {
	all := make(chan struct{})
	d := &driver{}
	d.answer = func(number uint64, c webdriver.Command) Result {
		<-all
		return echo(number, c)
	}
	c := dial(t, serve(t, d).url, Options{})
	var pending []*Pending
	for range Window {
		p, err := c.Go(t.Context(), post("/x", `{}`))
		if err != nil {
			t.Fatal(err)
		}
		pending = append(pending, p)
	}
	eventually(t, "all commands are begun", func() bool { return len(d.executed()) == Window })
	close(all)
	for _, p := range pending {
		a, err := p.Wait(t.Context())
		must(t, a, err)
	}
}

// A command that must run alone is begun once those before it are answered, and those after it once it is.
func TestCommandsThatRunAlone(t *testing.T) {
	d := &driver{alone: "/alone"}
	d.answer = func(number uint64, c webdriver.Command) Result {
		if c.Path == d.alone {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.running != 1 {
				t.Errorf("%d commands run beside it", d.running-1)
			}
		}
		return echo(number, c)
	}
	c := dial(t, serve(t, d).url, Options{})
	var pending []*Pending
	for i := range 60 {
		path := "/x"
		if i%7 == 3 {
			path = d.alone
		}
		p, err := c.Go(t.Context(), post(path, `{}`))
		if err != nil {
			t.Fatal(err)
		}
		pending = append(pending, p)
	}
	for _, p := range pending {
		a, err := p.Wait(t.Context())
		must(t, a, err)
	}
	if d.most < 2 {
		t.Error("no commands ran beside one another")
	}
}

// Commands and answers that are larger than what the sockets hold must not wait for one another.
func TestManyLargeCommandsAtOnce(t *testing.T) {
	large := strings.Repeat("x", 128<<10)
	d := &driver{answer: func(uint64, webdriver.Command) Result {
		a, _ := webdriver.ValueAnswer(large)
		return Result{Answer: a}
	}}
	c := dial(t, serve(t, d).url, Options{})
	body := `"` + large + `"`
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var group sync.WaitGroup
	for range Window + 16 {
		group.Go(func() {
			if a, err := c.Do(ctx, post("/execute/sync", body)); err != nil || a.Status != 200 {
				t.Errorf("%d, %v", a.Status, err)
			}
		})
	}
	group.Wait()
}

var seedFlag = flag.Uint64("seed", 0, "seed of the random cuts; 0: another each time")

func seed(t *testing.T) uint64 {
	t.Helper()
	s := *seedFlag
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("replay with: go test ./driverproxy/stream -run '^%s$' -seed %d", t.Name(), s)
	return s
}

// A sample of TestSoakCuts.
func TestCuts(t *testing.T) { cutAtRandom(t, seed(t), 100) }

// A connection that breaks in the middle of a large answer costs that answer's time again, and nothing else.
func TestCutInALargeAnswer(t *testing.T) {
	large := strings.Repeat("x", 10<<20)
	d := &driver{answer: func(number uint64, c webdriver.Command) Result {
		if c.Path != "/large" {
			return echo(number, c)
		}
		a, _ := webdriver.ValueAnswer(large)
		return Result{Answer: a, Seq: number}
	}}
	s := serve(t, d)
	conns := 0
	cut := &cutter{budget: func() int {
		conns++
		return []int{2000, 5 << 20, 9 << 20, 1000, -1}[min(conns, 5)-1]
	}}
	c := dial(t, s.url, Options{Dial: cut.dial})
	before, err := c.Go(t.Context(), post("/before", `{}`))
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Go(t.Context(), post("/large", `{}`))
	if err != nil {
		t.Fatal(err)
	}
	after, err := c.Go(t.Context(), post("/after", `{}`))
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[*Pending]string{before: "POST/before{}", p: large, after: "POST/after{}"} {
		a, err := p.Wait(t.Context())
		if v := must(t, a, err); v != want {
			t.Errorf("an answer of %d bytes, want %d", len(v), len(want))
		}
	}
	if ran := d.executed(); !slices.Equal(ran, []uint64{1, 2, 3}) || cut.done() != 4 {
		t.Fatalf("%v ran, over %d cuts", ran, cut.done())
	}
}

// The client acknowledges with its next command, alone when much has come, and when it leaves.
func TestClientAcknowledges(t *testing.T) {
	d := &driver{}
	c := dial(t, serve(t, d).url, Options{})
	ask := func(n int) {
		for range n {
			a, err := c.Do(t.Context(), post("/x", `{}`))
			must(t, a, err)
		}
	}
	ask(2)
	eventually(t, "the first answer is acknowledged with the second command", func() bool { return len(d.acknowledged()) == 1 })
	var pending []*Pending
	for range 40 {
		p, err := c.Go(t.Context(), post("/x", `{}`))
		if err != nil {
			t.Fatal(err)
		}
		pending = append(pending, p)
	}
	for _, p := range pending {
		a, err := p.Wait(t.Context())
		must(t, a, err)
	}
	eventually(t, "most of what came at once is acknowledged without another command", func() bool { return len(d.acknowledged()) > 42-ackAnswers })
	c.Close()
	eventually(t, "everything is acknowledged once the client has left", func() bool { return len(d.acknowledged()) == 42 })
	for i, seq := range d.acknowledged() {
		if seq != uint64(i)+1001 {
			t.Fatalf("acknowledged %v", d.acknowledged())
		}
	}
}

// Two connections for one stream: the newest has it, and the other is told.
func TestTheNewestConnectionHasTheStream(t *testing.T) {
	gate := make(chan struct{})
	d := &driver{}
	d.answer = func(number uint64, c webdriver.Command) Result {
		<-gate
		return echo(number, c)
	}
	s := serve(t, d)
	first := open(t, s.url, "")
	first.say(t, `{"id":1,"method":"POST","path":"/a"}`, `{"id":2,"method":"POST","path":"/b"}`)
	eventually(t, "both are begun", func() bool { return len(d.executed()) == 2 })
	second := open(t, s.url, "?resume="+first.token)
	if second.token != first.token || second.received != 2 {
		t.Fatalf("%s goes on as %s with %d", first.token, second.token, second.received)
	}
	first.closed(t, closeTaken, "another connection")
	third := open(t, s.url, "?resume="+first.token+"&answered=0")
	second.closed(t, closeTaken, "another connection")
	third.say(t, `{"id":2,"method":"POST","path":"/b"}`, `{"id":3,"method":"POST","path":"/c"}`)
	close(gate)
	for i, want := range []string{"POST/a", "POST/b", "POST/c"} {
		if got := third.hear(t); got != fmt.Sprintf(`{"id":%d,"status":200,"value":%q}`, i+1, want) {
			t.Errorf("answer %d is %s", i+1, got)
		}
	}
	if ran := d.executed(); !slices.Equal(ran, []uint64{1, 2, 3}) {
		t.Fatalf("%v ran", ran)
	}
}

// A client of ours that another one takes the stream from says so and does not fight for it.
func TestClientWhoseStreamIsTaken(t *testing.T) {
	d := &driver{}
	s := serve(t, d)
	c := dial(t, s.url, Options{})
	a, err := c.Do(t.Context(), post("/x", `{}`))
	must(t, a, err)
	open(t, s.url, "?answered=1&resume="+c.token.String())
	<-c.done
	if _, err := c.Do(t.Context(), post("/y", `{}`)); !errors.Is(err, ErrNotSent) || !strings.Contains(err.Error(), "another connection") {
		t.Fatal(err)
	}
}

func TestResumeWithNumbersThatDoNotFit(t *testing.T) {
	d := &driver{}
	s := serve(t, d)
	c := open(t, s.url, "")
	c.say(t, `{"id":1,"method":"GET","path":"/a"}`, `{"id":2,"method":"GET","path":"/b"}`, `{"id":3,"method":"GET","path":"/c"}`)
	for range 3 {
		c.hear(t)
	}
	c.say(t, `{"ack":2}`)
	eventually(t, "two are acknowledged", func() bool { return len(d.acknowledged()) == 2 })
	c.ws.Close()
	for query, says := range map[string]string{
		"answered=1":                                "goes with resume",
		"resume=":                                   "32 hex digits",
		"resume=" + strings.Repeat("0", 32):         "32 hex digits",
		"resume=" + c.token[1:]:                     "32 hex digits",
		"resume=" + c.token + "00":                  "32 hex digits",
		"resume=" + c.token + "&answered=":          "not the id",
		"resume=" + c.token + "&answered=-1":        "not the id",
		"resume=" + c.token + "&answered=1.5":       "not the id",
		"resume=" + c.token + "&answered=1" + zeros: "not the id",
		"resume=" + c.token:                         "are gone",
		"resume=" + c.token + "&answered=1":         "are gone",
		"resume=" + c.token + "&answered=4":         "was not given",
		"resume=" + c.token + "&answered=4000000":   "was not given",
	} {
		_, err := Dial(t.Context(), s.url+"?"+query, Options{})
		var refused *socket.StatusError
		if !errors.As(err, &refused) || refused.Status != http.StatusBadRequest && refused.Status != http.StatusConflict || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v does not say %q", query, err, says)
		}
	}
	// None of that has cost anything.
	again := open(t, s.url, "?answered=2&resume="+c.token)
	if got := again.hear(t); again.received != 3 || got != `{"id":3,"status":200,"value":"GET/c"}` {
		t.Fatalf("received %d, then %s", again.received, got)
	}
	// A token that nobody knows goes on where its client is.
	other := open(t, s.url, "?answered=7&resume="+strings.Repeat("ab", 16))
	other.say(t, `{"id":8,"method":"GET","path":"/h"}`)
	if got := other.hear(t); other.received != 7 || got != `{"id":8,"status":200,"value":"GET/h"}` {
		t.Fatalf("received %d, then %s", other.received, got)
	}
}

const zeros = "0000000000000000000000"

func TestWhatIsNoCommandIsRefusedWithWords(t *testing.T) {
	s := serve(t, &driver{})
	for sent, says := range map[string]string{
		`{`: "not a command", `[]`: "not a command", `null`: "id", `{}`: "id", `{"id":1,"method":"GET","path":"/url","color":1}`: "not a command",
		`{"method":"GET","path":"/url"}`: "id", `{"id":0,"method":"GET","path":"/url"}`: "id", `{"id":-1,"method":"GET","path":"/url"}`: "not a command",
		`{"id":1.5,"method":"GET","path":"/url"}`: "not a command", `{"id":1,"method":"PATCH","path":"/url"}`: "method",
		`{"id":1,"method":"GET","path":"url"}`: "path", `{"id":1,"method":"GET","path":"/url"} {}`: "after",
		`{"id":1,"method":"GET","path":"/url"}}`: "after", `{"id":1,"method":"GET","path":"/url"} ]`: "after",
		`{"id":2,"method":"GET","path":"/url"}`: "1 is the next", `{"id":18446744073709551615,"method":"GET","path":"/url"}`: "1 is the next",
		`{"ack":1}`: "was not given", `{"id":1,"method":"GET","path":"/url","ack":1}`: "was not given", `{"ack":18446744073709551615}`: "was not given",
		`{"ack":0,"path":"/url"}`: "id", `{"ID":1,"method":"GET","path":"/url"}`: "not a command", `{"id":1,"Method":"GET","path":"/url"}`: "not a command",
		`{"id":1,"method":"GET","path":"/url","Path":"/title"}`: "not a command", `{"id":1,"method":"POST","path":"/url","BODY":{}}`: "not a command", `{"Ack":0}`: "not a command",
		`{"id":"1","method":"GET","path":"/url"}`: "not a command", `{"id":1,"method":7,"path":"/url"}`: "not a command", `{"id":1,"method":"GET","path":[]}`: "not a command",
	} {
		c := open(t, s.url, "")
		c.say(t, sent)
		c.closed(t, websocket.ClosePolicyViolation, says)
	}
	if ran := s.driver.executed(); len(ran) > 0 {
		t.Fatalf("%v ran", ran)
	}
	c := open(t, s.url, "")
	if err := c.ws.WriteMessage(websocket.BinaryMessage, []byte(`{"id":1,"method":"GET","path":"/url"}`)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.ws.ReadMessage(); err == nil {
		t.Fatal("a binary message was taken")
	}
}

// What a client sends twice runs once, also while the first is still on its way.
func TestSentTwiceRunsOnce(t *testing.T) {
	d := &driver{}
	s := serve(t, d)
	c := open(t, s.url, "")
	one := `{"id":1,"method":"POST","path":"/a"}`
	c.say(t, one, one, `{"id":2,"method":"POST","path":"/b"}`, one, `{"ack":0}`)
	c.hear(t)
	c.hear(t)
	c.say(t, `{"ack":2}`, one, `{"id":3,"method":"POST","path":"/c","ack":1}`)
	if got := c.hear(t); got != `{"id":3,"status":200,"value":"POST/c"}` {
		t.Fatal(got)
	}
	if ran := d.executed(); !slices.Equal(ran, []uint64{1, 2, 3}) {
		t.Fatalf("%v ran", ran)
	}
}

func TestClientThatLeavesEndsNothing(t *testing.T) {
	started, finish, ran := make(chan struct{}), make(chan struct{}), make(chan struct{})
	d := &driver{}
	d.answer = func(number uint64, c webdriver.Command) Result {
		close(started)
		<-finish
		close(ran)
		return echo(number, c)
	}
	c := dial(t, serve(t, d).url, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	if _, err := c.Do(ctx, post("/url", `{}`)); !errors.Is(err, ErrUnknown) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.Close()
	close(finish)
	<-ran
}

// The end of a session reaches the client behind its answers, and is final.
func TestEndedStream(t *testing.T) {
	release := make(chan struct{})
	d := &driver{}
	d.answer = func(number uint64, c webdriver.Command) Result {
		<-release
		return echo(number, c)
	}
	s := serve(t, d)
	c := dial(t, s.url, Options{})
	p, err := c.Go(t.Context(), post("/last", `{}`))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it runs", func() bool { return len(d.executed()) == 1 })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.end(Ending{Reason: "idle: no command came"})
	}()
	close(release)
	<-ended
	a, err := p.Wait(t.Context())
	must(t, a, err)
	<-c.done
	if _, err := c.Do(t.Context(), post("/x", `{}`)); !errors.Is(err, ErrEnded) || !errors.Is(err, ErrNotSent) || !strings.Contains(err.Error(), "idle: no command came") {
		t.Fatal(err)
	}
}

// A session that moves takes its streams along: what the first orchestrator began, the second answers.
func TestMovedStream(t *testing.T) {
	moved := make(chan struct{})
	d := &driver{}
	d.answer = func(number uint64, c webdriver.Command) Result {
		if number == 2 {
			<-moved
			return Result{Moved: true}
		}
		return echo(number, c)
	}
	s := serve(t, d)
	c := dial(t, s.url, Options{})
	a, err := c.Do(t.Context(), post("/one", `{}`))
	must(t, a, err)
	var pending []*Pending
	for range 3 {
		p, err := c.Go(t.Context(), post("/x", `{}`))
		if err != nil {
			t.Fatal(err)
		}
		pending = append(pending, p)
	}
	eventually(t, "all are begun", func() bool { return len(d.executed()) == 4 })
	// The other one has what the host kept: 2 and 4 ran, 3 never reached it.
	next := &driver{}
	after := New(c.token, 0, next, time.Now)
	for _, n := range []uint64{1, 2, 4} {
		after.Adopt(n, func() Result { return echo(n, post("/kept", "")) })
	}
	s.mu.Lock()
	before := s.streams[c.token]
	s.streams[c.token], s.driver = after, next
	s.mu.Unlock()
	close(moved)
	before.End(Ending{Moved: true, Reason: "it moves"})
	for i, want := range []string{"POST/kept", "POST/x{}", "POST/kept"} {
		a, err := pending[i].Wait(t.Context())
		if v := must(t, a, err); v != want {
			t.Errorf("%q, want %q", v, want)
		}
	}
	if ran := next.executed(); !slices.Equal(ran, []uint64{3}) {
		t.Errorf("%v ran after the move", ran)
	}
	a, err = c.Do(t.Context(), post("/y", `{}`))
	must(t, a, err)
	c.Close()
	eventually(t, "everything kept is acknowledged", func() bool {
		acked := next.acknowledged()
		slices.Sort(acked)
		return slices.Equal(acked, []uint64{1001, 1002, 1003, 1004, 1005})
	})
}

// raw is a client that does what a test says.
type raw struct {
	ws       *websocket.Conn
	token    string
	received uint64
}

func open(t *testing.T, url, query string) *raw {
	t.Helper()
	ws, _, err := websocket.DefaultDialer.DialContext(t.Context(), url+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	return greeted(t, ws)
}

func greeted(t *testing.T, ws *websocket.Conn) *raw {
	t.Helper()
	_ = ws.SetReadDeadline(time.Now().Add(10 * time.Minute))
	c := &raw{ws: ws}
	token, h, err := decodeHello([]byte(c.hear(t)))
	if err != nil || h.Window != Window {
		t.Fatalf("%+v, %v", h, err)
	}
	c.token, c.received = token.String(), h.Received
	return c
}

func (c *raw) say(t *testing.T, messages ...string) {
	t.Helper()
	for _, m := range messages {
		if err := c.ws.WriteMessage(websocket.TextMessage, []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
}

func (c *raw) hear(t *testing.T) string {
	t.Helper()
	_, b, err := c.ws.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// closed reads until the server closes, which must be with that code and words.
func (c *raw) closed(t *testing.T, code int, says string) {
	t.Helper()
	_ = c.ws.SetReadDeadline(time.Now().Add(30 * time.Second)) // or one that is left open would hold the test
	for {
		_, _, err := c.ws.ReadMessage()
		if err == nil {
			continue
		}
		var e *websocket.CloseError
		if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Text, says) {
			t.Fatalf("%v, want %d %q", err, code, says)
		}
		return
	}
}
