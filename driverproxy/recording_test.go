package driverproxy_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/driftstack/fleet/driverproxy"
	"github.com/driftstack/fleet/driverproxy/lanes"
	"github.com/driftstack/fleet/driverproxy/wire"
)

func (s *server) lane(t *testing.T, session string, n int) *websocket.Conn {
	t.Helper()
	ws, err := s.dial(t, "127.0.0.1", fmt.Sprintf("%s?session=%s&term=1&lane=%d", wire.PathRecording, session, n))
	if err != nil {
		t.Fatal(err)
	}
	_ = ws.SetReadDeadline(time.Now().Add(limit))
	return ws
}

func put(t *testing.T, ws *websocket.Conn, b []byte) {
	t.Helper()
	if err := ws.WriteMessage(websocket.BinaryMessage, b); err != nil {
		t.Fatal(err)
	}
}

func part(offset int64, data string) []byte {
	return wire.Chunk{Offset: offset, CRC: wire.Checksum([]byte(data)), Data: []byte(data)}.Append(nil)
}

// receipt reads the next Ack or Held; anything else is returned as an error.
func receipt(ws *websocket.Conn) (any, error) {
	_, b, err := ws.ReadMessage()
	if err != nil {
		return nil, err
	}
	return wire.DecodeReceipt(b)
}

func next(t *testing.T, c *driverproxy.RecordingConn, want string) {
	t.Helper()
	v, err := c.Receive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := "end"
	if chunk, ok := v.(*wire.Chunk); ok {
		got = string(chunk.Data)
	}
	if got != want {
		t.Errorf("received %q, want %q", got, want)
	}
}

// TestLanesOfARecording: chunks come over two sockets, the wrong way round; one socket breaks and comes back.
func TestLanesOfARecording(t *testing.T) {
	s := serve(t, limit)
	session, _ := s.up(t, "b").session("s1")
	zero := s.lane(t, "s1", 0)
	conn, err := session.Recording(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	one := s.lane(t, "s1", 1)
	put(t, one, part(3, "def"))
	if v, err := receipt(one); err != nil || v != (wire.Held{Offset: 3}) {
		t.Errorf("an early chunk is answered with %+v %v", v, err)
	}
	put(t, zero, wire.End{Total: 6}.Append(nil))
	put(t, zero, part(0, "abc"))
	next(t, conn, "abc")
	next(t, conn, "def")
	next(t, conn, "end")
	if err := conn.Ack(t.Context(), 6); err != nil {
		t.Error(err)
	}
	if v, err := receipt(zero); err != nil || v != (wire.Ack{Offset: 6}) {
		t.Errorf("the lane that was heard last got %+v %v", v, err)
	}
	_ = zero.Close()
	if v, err := receipt(one); err != nil || v != (wire.Ack{Offset: 6}) {
		t.Errorf("when a lane breaks its acknowledgement goes again over another: %+v %v", v, err)
	}
	_ = one.Close()
	if v, err := receipt(s.lane(t, "s1", 0)); err != nil || v != (wire.Ack{Offset: 6}) {
		t.Errorf("a lane that comes back is told what is acknowledged: %+v %v", v, err)
	}
}

// TestHostileLanes: what cannot be one recording ends it, with a reason on every socket.
func TestHostileLanes(t *testing.T) {
	for name, frame := range map[string][]byte{
		"overlap":   part(2, "xyz"),
		"far ahead": part(1<<40, "x"),
		"garbage":   []byte("hello"),
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, limit)
			session, _ := s.up(t, "b").session("s1")
			lane := []*websocket.Conn{s.lane(t, "s1", 0), s.lane(t, "s1", 1)}
			conn, err := session.Recording(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			put(t, lane[0], part(0, "abc"))
			next(t, conn, "abc")
			put(t, lane[1], frame)
			if _, err := conn.Receive(t.Context()); !errors.Is(err, lanes.ErrRules) && !errors.Is(err, wire.ErrFrame) {
				t.Errorf("Receive: %v", err)
			}
			for _, ws := range lane {
				var closed *websocket.CloseError
				if _, err := receipt(ws); !errors.As(err, &closed) || closed.Text == "" {
					t.Errorf("the socket ended with %v", err)
				}
			}
			if _, err := receipt(s.lane(t, "s1", 2)); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
				t.Errorf("a further socket: %v", err)
			}
		})
	}
}

func TestLaneNumbers(t *testing.T) {
	s := serve(t, limit)
	s.up(t, "b").session("s1")
	for _, n := range []string{"-1", "x", fmt.Sprint(wire.MaxLanes)} {
		if _, err := s.dial(t, "127.0.0.1", wire.PathRecording+"?session=s1&term=1&lane="+n); err == nil || !strings.Contains(err.Error(), "400") {
			t.Errorf("lane %s: %v", n, err)
		}
	}
	old := s.lane(t, "s1", 4)
	put(t, old, part(3, "x"))
	if v, err := receipt(old); err != nil {
		t.Errorf("%+v %v", v, err)
	}
	s.lane(t, "s1", 4)
	var late net.Error
	if _, err := receipt(old); err == nil || (errors.As(err, &late) && late.Timeout()) {
		t.Errorf("a lane that was dialled anew keeps its former socket: %v", err)
	}
}
