package stream

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// envelope is what a message has around a body that came, or goes on, in a frame of another protocol.
const envelope = 1 << 10

func limits() socket.Limits {
	return socket.Limits{MaxMessage: wire.MaxMessage + envelope, Silence: 60 * time.Second, Stuck: 30 * time.Second, PingEvery: 15 * time.Second}
}

// message is what a client sends: a command, an acknowledgement, or both.
type message struct {
	ID           *uint64
	Method, Path string
	Body         json.RawMessage
	Ack          *uint64
}

// set reads one member of a message.
func (m *message) set(name string, value json.RawMessage) error {
	switch name {
	case "id":
		return json.Unmarshal(value, &m.ID)
	case "method":
		return json.Unmarshal(value, &m.Method)
	case "path":
		return json.Unmarshal(value, &m.Path)
	case "body":
		m.Body = value
		return nil
	case "ack":
		return json.Unmarshal(value, &m.Ack)
	}
	return errors.New("unknown member")
}

func (m message) command() webdriver.Command {
	return webdriver.Command{Method: m.Method, Path: m.Path, Body: m.Body}
}

// hello is the server's first message.
type hello struct {
	Stream   string `json:"stream"`
	Received uint64 `json:"received"`
	Window   int    `json:"window"`
	Bytes    int    `json:"bytes"`
}

// answer is every other message of the server.
type answer struct {
	ID     uint64          `json:"id"`
	Status int             `json:"status"`
	Value  json.RawMessage `json:"value"`
}

// decode parses a client's message. Errors are short: they go into a websocket's close reason.
func decode(b []byte) (message, error) {
	var m message
	var members map[string]json.RawMessage // by their very names, which encoding/json takes in any case for a struct
	d := json.NewDecoder(bytes.NewReader(b))
	err := d.Decode(&members)
	for name, value := range members {
		err = errors.Join(err, m.set(name, value))
	}
	if err != nil {
		return m, errors.New(`not a command: {"id", "method", "path", "body", "ack"}`)
	}
	_, end := d.Token() // unlike More it sees a stray bracket
	switch command := m.Method != "" || m.Path != "" || m.Body != nil; {
	case end != io.EOF:
		return m, errors.New("data after the command")
	case m.ID == nil && !command && m.Ack != nil:
		return m, nil
	case m.ID == nil || *m.ID == 0:
		return m, errors.New("a command needs a number as id, counted from 1")
	case m.Method != http.MethodGet && m.Method != http.MethodPost && m.Method != http.MethodDelete:
		return m, errors.New("method is GET, POST or DELETE")
	case m.Path != "" && !strings.HasPrefix(m.Path, "/"):
		return m, errors.New("path begins with / and follows /session/{session id}")
	}
	return m, nil
}

// encodeCommand renders a command whose body is known to be JSON, or empty; ack is left out when 0.
func encodeCommand(id uint64, c webdriver.Command, ack uint64) []byte {
	b := make([]byte, 0, len(c.Path)+len(c.Body)+128)
	b = strconv.AppendUint(append(b, `{"id":`...), id, 10)
	b = append(append(b, `,"method":`...), quote(c.Method)...)
	b = append(append(b, `,"path":`...), quote(c.Path)...)
	if len(c.Body) > 0 {
		b = append(append(b, `,"body":`...), c.Body...)
	}
	if ack > 0 {
		b = strconv.AppendUint(append(b, `,"ack":`...), ack, 10)
	}
	return append(b, '}')
}

func encodeAck(ack uint64) []byte { return append(strconv.AppendUint([]byte(`{"ack":`), ack, 10), '}') }

func quote(s string) []byte {
	b, _ := json.Marshal(s) // of a string it cannot fail
	return b
}

// encodeAnswer renders a driver's answer. The value is copied as it came, whatever its size, and looked at once.
func encodeAnswer(id uint64, a webdriver.Answer) []byte {
	var body struct {
		Value json.RawMessage `json:"value"`
	}
	if err := json.Unmarshal(a.Body, &body); err != nil {
		a = (&webdriver.Error{Code: webdriver.UnknownError, Message: "the driver's answer is no JSON"}).Answer()
		_ = json.Unmarshal(a.Body, &body) // our own
	}
	if body.Value == nil {
		body.Value = json.RawMessage("null")
	}
	b := make([]byte, 0, len(body.Value)+64)
	b = strconv.AppendUint(append(b, `{"id":`...), id, 10)
	b = strconv.AppendInt(append(b, `,"status":`...), int64(a.Status), 10)
	b = append(append(b, `,"value":`...), body.Value...)
	return append(b, '}')
}

// decodeAnswer parses what the server sends after its hello.
func decodeAnswer(b []byte) (answer, error) {
	var a answer
	if err := json.Unmarshal(b, &a); err != nil || a.ID == 0 || a.Status < 100 || a.Status > 999 {
		return a, errors.New("stream: the server sent something that is no answer")
	}
	if a.Value == nil {
		a.Value = json.RawMessage("null")
	}
	return a, nil
}

func decodeHello(b []byte) (Token, hello, error) {
	var h hello
	if err := json.Unmarshal(b, &h); err != nil || h.Window < 1 || h.Bytes < 1 {
		return Token{}, h, errors.New("stream: the server does not begin with its stream, received, window and bytes")
	}
	t, err := parseToken(h.Stream)
	if err != nil {
		return t, h, fmt.Errorf("stream: the server's %w", err)
	}
	return t, h, nil
}
