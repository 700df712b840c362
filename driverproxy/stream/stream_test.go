package stream

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs Serve with do and returns its URL.
func serve(t *testing.T, do func(webdriver.Command) webdriver.Answer) string {
	t.Helper()
	var open sync.WaitGroup
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		open.Add(1)
		defer open.Done()
		Serve(w, r, do)
	}))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
		open.Wait()
	})
	return "ws" + strings.TrimPrefix(s.URL, "http")
}

func echo(c webdriver.Command) webdriver.Answer {
	a, _ := webdriver.ValueAnswer(c.Method + c.Path + string(c.Body))
	return a
}

func dial(t *testing.T, url string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), url, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestAnswersComeInOrderAndToTheirCommands(t *testing.T) {
	var mu sync.Mutex
	var ran []string
	c := dial(t, serve(t, func(c webdriver.Command) webdriver.Answer {
		mu.Lock()
		ran = append(ran, c.Path)
		mu.Unlock()
		return echo(c)
	}))
	var group sync.WaitGroup
	for i := range 200 {
		group.Go(func() {
			path := fmt.Sprintf("/p%d", i)
			a, err := c.Do(t.Context(), webdriver.Command{Method: "POST", Path: path, Body: []byte(`{}`)})
			var got string
			if err != nil || a.Status != 200 || a.Value(&got) != nil || got != "POST"+path+"{}" {
				t.Errorf("%s: %d %s, %v", path, a.Status, a.Body, err)
			}
		})
	}
	group.Wait()
	if len(ran) != 200 {
		t.Fatalf("%d commands ran", len(ran))
	}
}

// Commands and answers that are larger than what the sockets hold must not wait for one another.
func TestManyLargeCommandsAtOnce(t *testing.T) {
	large := strings.Repeat("x", 1<<20)
	c := dial(t, serve(t, func(webdriver.Command) webdriver.Answer {
		a, _ := webdriver.ValueAnswer(large)
		return a
	}))
	body := []byte(`"` + large[:128<<10] + `"`)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var group sync.WaitGroup
	for range pipeline + 16 {
		group.Go(func() {
			if a, err := c.Do(ctx, webdriver.Command{Method: "POST", Path: "/execute/sync", Body: body}); err != nil || a.Status != 200 {
				t.Errorf("%d, %v", a.Status, err)
			}
		})
	}
	group.Wait()
}

func TestQuitClosesTheSocket(t *testing.T) {
	c := dial(t, serve(t, echo))
	if _, err := c.Do(t.Context(), webdriver.Command{Method: "DELETE"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := c.Do(ctx, webdriver.Command{Method: "GET", Path: "/url"}); err == nil || ctx.Err() != nil {
		t.Fatalf("a command after quit: %v", err)
	}
}

func TestWhatIsNoCommandIsRefusedWithWords(t *testing.T) {
	url := serve(t, echo)
	for sent, says := range map[string]string{
		`{`: "not a command", `[]`: "not a command", `{"id":1,"method":"GET","path":"/url","color":1}`: "not a command",
		`{"method":"GET","path":"/url"}`: "id", `{"id":1,"method":"PATCH","path":"/url"}`: "method",
		`{"id":1,"method":"GET","path":"url"}`: "path", `{"id":1,"method":"GET","path":"/url"} {}`: "after",
	} {
		ws, _, err := websocket.DefaultDialer.DialContext(t.Context(), url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := ws.WriteMessage(websocket.TextMessage, []byte(sent)); err != nil {
			t.Fatal(err)
		}
		_, _, err = ws.ReadMessage()
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v does not say %q", sent, err, says)
		}
		ws.Close()
	}
}

func TestClientThatLeavesEndsNothing(t *testing.T) {
	started, finish, ran := make(chan struct{}), make(chan struct{}), make(chan struct{})
	c := dial(t, serve(t, func(c webdriver.Command) webdriver.Answer {
		close(started)
		<-finish
		close(ran)
		return echo(c)
	}))
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	if _, err := c.Do(ctx, webdriver.Command{Method: "POST", Path: "/url", Body: []byte(`{}`)}); err == nil {
		t.Error("answered")
	}
	c.Close()
	close(finish)
	<-ran
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"id":1,"method":"POST","path":"/url","body":{"url":"x"}}`, `{"id":1.5e3,"method":"DELETE","path":""}`, `{`, `null`, `{"id":"1","method":"GET","path":"/"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := decode(b)
		if err != nil {
			if len(err.Error()) > 120 { // a websocket's close reason has 123 bytes
				t.Errorf("error of %d bytes", len(err.Error()))
			}
			return
		}
		if q.Path != "" && q.Path[0] != '/' {
			t.Errorf("path %q", q.Path)
		}
		if out, err := json.Marshal(q); err != nil {
			t.Errorf("%s cannot be sent on: %v", out, err)
		}
	})
}
