package stream

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"id":1,"method":"POST","path":"/url","body":{"url":"x"}}`, `{"id":1.5e3,"method":"DELETE","path":""}`, `{`, `null`, `{"id":"1","method":"GET","path":"/"}`,
		`{"ack":3}`, `{"id":18446744073709551615,"method":"GET","path":"/","ack":18446744073709551615}`, `{"id":1,"ID":2,"method":"GET"}`, `{"id":1,"method":"POST","path":"/\u0000","body":null}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			if len(err.Error()) > 120 { // a websocket's close reason has 123 bytes
				t.Errorf("error of %d bytes", len(err.Error()))
			}
			return
		}
		if m.ID == nil {
			if m.Ack == nil {
				t.Error("neither a command nor an acknowledgement")
			}
			return
		}
		var ack uint64
		if m.Ack != nil {
			ack = *m.Ack
		}
		again, err := decode(encodeCommand(*m.ID, m.command(), ack))
		if err != nil || *again.ID != *m.ID || again.Method != m.Method || again.Path != m.Path || !bytes.Equal(again.Body, m.Body) {
			t.Errorf("%s becomes %+v, %v", b, again, err)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	for _, s := range []string{`{"id":1,"status":200,"value":null}`, `{"id":1,"status":404}`, `{"id":0,"status":200}`, `{`, `{"id":1,"status":2000,"value":{}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := decodeAnswer(b); err == nil && (a.ID == 0 || !json.Valid(a.Value)) {
			t.Errorf("%s becomes %+v", b, a)
		}
		if token, h, err := decodeHello(b); err == nil && (token == (Token{}) || h.Window < 1) {
			t.Errorf("%s becomes %s, %+v", b, token, h)
		}
	})
}

// FuzzEncodeAnswer: whatever a driver answers, the client gets a message that it can read.
func FuzzEncodeAnswer(f *testing.F) {
	for _, s := range []string{`{"value":null}`, `{"value":{"a":[1,"<"]}}`, `{}`, ``, `{"value":`, `[1]`, `{"value":1,"value":2,"sessionId":"x"}`} {
		f.Add(uint64(1), 200, []byte(s))
	}
	f.Fuzz(func(t *testing.T, id uint64, status int, body []byte) {
		if id == 0 || status < 200 || status > 599 { // which no driver's answer has that a session lets through
			return
		}
		a, err := decodeAnswer(encodeAnswer(id, webdriver.Answer{Status: status, Body: body}))
		var object map[string]json.RawMessage
		if err != nil || a.ID != id || a.Status != status && json.Unmarshal(body, &object) == nil {
			t.Errorf("%s becomes %+v, %v", body, a, err)
		}
	})
}

// FuzzMessages sends a server hostile messages, one a line: nothing that it counts may go wrong, and no command may run out of
// order or twice.
func FuzzMessages(f *testing.F) {
	f.Add([]byte("{\"id\":1,\"method\":\"GET\",\"path\":\"/\"}\n{\"ack\":1}\n{\"id\":1,\"method\":\"GET\",\"path\":\"/\"}\n{\"id\":2,\"method\":\"GET\",\"path\":\"/\",\"ack\":1}"), uint8(0))
	f.Add([]byte("{\"id\":3,\"method\":\"GET\",\"path\":\"/\"}"), uint8(5))
	f.Add([]byte("{\"ack\":7}\n{\"id\":5,\"method\":\"GET\",\"path\":\"/\",\"ack\":4}"), uint8(7))
	f.Fuzz(func(t *testing.T, b []byte, answered uint8) {
		d := &driver{}
		s := New(Token{1}, 0, d, time.Now)
		for _, n := range []uint64{3, 4, 6, 7} { // 5 was lost
			s.Adopt(n, func() Result { return echo(n, webdriver.Command{}) })
		}
		defer s.End(Ending{})
		seat, err := s.Sit(uint64(answered))
		if err != nil {
			return
		}
		for line := range bytes.SplitSeq(b, []byte("\n")) {
			m, err := decode(line)
			if err != nil || seat.take(m) != nil {
				break
			}
		}
		next := uint64(answered) + 1
		for _, n := range d.executed() {
			for next == 3 || next == 4 || next == 6 || next == 7 { // ran elsewhere
				next++
			}
			if n != next {
				t.Fatalf("%v ran, of a client that had %d answers", d.executed(), answered)
			}
			next++
		}
	})
}
