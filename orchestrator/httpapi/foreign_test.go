package httpapi_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
)

// foreign is a websocket client that is not ours.
type foreign struct {
	t *testing.T
	*websocket.Conn
}

func (r *rig) foreign(t *testing.T, session string) foreign {
	t.Helper()
	url := "ws" + strings.TrimPrefix(r.url, "http") + "/v1/sessions/" + session + "/stream"
	ws, _, err := websocket.DefaultDialer.DialContext(t.Context(), url, http.Header{"Authorization": {"Bearer " + token}})
	must(t, err)
	t.Cleanup(func() { _ = ws.Close() })
	must(t, ws.SetReadDeadline(time.Now().Add(time.Minute)))
	return foreign{t, ws}
}

type answer struct {
	ID     int             `json:"id"`
	Status int             `json:"status"`
	Value  json.RawMessage `json:"value"`
}

// answer reads the next answer.
func (f foreign) answer() answer {
	f.t.Helper()
	for {
		_, b, err := f.ReadMessage()
		must(f.t, err)
		if a := decode[answer](f.t, b); a.ID > 0 { // what has no id is no answer
			return a
		}
	}
}

// Messages of several MiB pass on a stream both ways, also when their sender cuts them into frames with pings between.
func TestLongMessagesOnAStream(t *testing.T) {
	r := newRig(t, 1, 10)
	s := r.running(t, api.CreateSession{})
	driver := <-r.drivers
	f := r.foreign(t, s.ID)
	body := `{"file":"` + strings.Repeat("UEsDBA==", 3<<17) + `"}`
	w, err := f.NextWriter(websocket.TextMessage)
	must(t, err)
	message := `{"id":1,"method":"POST","path":"/se/file","body":` + body + `}`
	for len(message) > 0 {
		n := min(len(message), 300_000)
		_, err := w.Write([]byte(message[:n]))
		must(t, err)
		must(t, f.WriteControl(websocket.PingMessage, []byte("between"), time.Now().Add(time.Minute)))
		message = message[n:]
	}
	must(t, w.Close())
	if a := f.answer(); a.ID != 1 || a.Status != 200 {
		t.Fatalf("%+v", a)
	}
	if e := driver.Executed(); len(e) != 1 || e[0].Bytes != int64(len(body)) || e[0].CRC != crc32.ChecksumIEEE([]byte(body)) {
		t.Errorf("the driver got %d commands", len(e))
	}
	for i, size := range []int{1 << 20, 5<<20 + 1} {
		driver.Inject(drivertest.Fault{Route: webdriver.RouteTakeScreenshot, Effect: drivertest.Flood, Bytes: size})
		must(t, f.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, `{"id":%d,"method":"GET","path":"/screenshot"}`, i+2)))
		if a := f.answer(); a.ID != i+2 || a.Status != 200 || len(a.Value) != size+2 {
			t.Errorf("answer %d with %d bytes, want %d", a.ID, len(a.Value), size+2)
		}
	}
}

// A client's close frame is answered with one, and ends nothing but the stream; the end of a session closes its streams.
func TestCloseFramesOnAStream(t *testing.T) {
	r := newRig(t, 1, 10)
	s := r.running(t, api.CreateSession{})
	for _, code := range []int{websocket.CloseNormalClosure, websocket.CloseGoingAway, 4321} {
		f := r.foreign(t, s.ID)
		must(t, f.WriteMessage(websocket.TextMessage, []byte(`{"id":1,"method":"GET","path":"/url"}`)))
		if a := f.answer(); a.Status != 200 {
			t.Fatalf("%+v", a)
		}
		must(t, f.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, "enough"), time.Now().Add(time.Minute)))
		_, _, err := f.ReadMessage()
		var closed *websocket.CloseError
		if !errors.As(err, &closed) || closed.Code != code {
			t.Errorf("closed with %d, and answered with %v", code, err)
		}
	}
	f := r.foreign(t, s.ID)
	must(t, f.WriteMessage(websocket.TextMessage, []byte(`{"id":1,"method":"DELETE","path":""}`)))
	if a := f.answer(); a.Status != 200 || string(a.Value) != "null" {
		t.Fatalf("%+v", a)
	}
	_, _, err := f.ReadMessage()
	var closed *websocket.CloseError
	if !errors.As(err, &closed) || closed.Code != websocket.CloseNormalClosure || closed.Text == "" {
		t.Errorf("the session has ended, and its stream %v", err)
	}
	if v, err := r.client.Wait(t.Context(), s.ID, api.Ended); err != nil || v.Reason != "completed" {
		t.Errorf("%+v, %v", v, err)
	}
}
