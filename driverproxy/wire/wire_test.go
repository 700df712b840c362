package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

// every is a control message of each kind.
func every() []Control {
	failure := &Failure{Code: FailureDriver, Message: "m"}
	device := Device{Name: "d", Kind: "fake", Browser: "chrome", BiDi: true, Model: "m", PlatformName: "iOS", PlatformVersion: "1", Labels: map[string]string{"a": "b"}, State: DeviceReady, Reason: "r"}
	return []Control{
		{Hello: &Hello{Protocol: Version, Host: "h", Agent: "a", Boot: "b", Devices: []Device{device},
			Sessions: []Hosted{{Session: "s", Term: 1, Epoch: "e"}}, Ended: []Ended{{Session: "t", Term: 1, Failure: *failure}}}},
		{Welcome: &Welcome{Protocol: Version, Orchestrator: "o", Epoch: "e", HeartbeatEvery: time.Second, HeartbeatLimit: time.Minute}},
		{Heartbeat: &Heartbeat{Seq: 1, Epoch: "e"}},
		{Assign: &Assign{Session: "s", Term: 1, Device: "d", Capabilities: json.RawMessage(`{"a":1}`), Record: true}},
		{Adopt: &Adopt{Session: "s", Term: 2}},
		{Assigned: &Assigned{Session: "s", Term: 1, Capabilities: json.RawMessage(`{}`), Failure: failure}},
		{StopRecording: &StopRecording{Session: "s", Term: 1}},
		{Release: &Release{Session: "s", Term: 1}},
		{Released: &Released{Session: "s", Term: 1, Failure: failure}},
		{Ended: &Ended{Session: "s", Term: 1, Failure: *failure}},
		{Device: &device},
		{OpenBiDi: &OpenBiDi{Session: "s", Term: 1, ID: 1<<64 - 1}},
		{Probe: &Probe{Seq: 1}},
		{Probed: &Probed{Seq: 1, Devices: []ProbedDevice{{Name: "d", State: DeviceQuarantined, Reason: "r", Took: time.Millisecond}}}},
	}
}

func TestControl(t *testing.T) {
	if n := reflect.TypeFor[Control]().NumField(); len(every()) != n {
		t.Errorf("%d kinds are tested, there are %d", len(every()), n)
	}
	for _, c := range every() {
		b, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeControl(b); err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("%s came back as %+v, %v", b, got, err)
		}
	}
	for _, bad := range []string{"", "null", "{}", "[]", `{"heartbeat":{"seq":-1}}`, `{"heartbeat":{"seq":1},"release":{}}`, `{"heartbeat":{"seq":1}} {}`,
		`{"heartbeat":{"seq":1}}}`, `{"heartbeat":{"seq":1}} ]`,
		`{"heartbeat":{"seq":1,"x":1}}`, `{"x":{}}`, `{"heartbeat":{"seq":1}`} {
		if c, err := DecodeControl([]byte(bad)); err == nil {
			t.Errorf("%s was taken as %+v", bad, c)
		}
	}
	if _, err := (Control{}).Encode(); err == nil {
		t.Error("an empty message was encoded")
	}
}

func TestFrames(t *testing.T) {
	c := Command{Seq: 1, Ack: 1<<64 - 1, Origin: Origin{Stream: [16]byte{1, 15: 2}, Number: 3}, Method: "POST", Path: "/url", Body: []byte(`{}`)}
	b, err := c.Append([]byte("before"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeCommand(b[len("before"):]); err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("%+v %v", got, err)
	}
	for _, long := range []Command{{Method: strings.Repeat("x", 256)}, {Path: strings.Repeat("x", 65536)}} {
		if _, err := long.Append(nil); err == nil {
			t.Error("a field that does not fit was encoded")
		}
	}
	a := Answer{Seq: 7, Outcome: OutcomeNotRun, Status: 500, Took: time.Hour, Body: []byte("x")}
	if got, err := DecodeAnswer(a.Append(nil)); err != nil || !reflect.DeepEqual(got, a) {
		t.Errorf("%+v %v", got, err)
	}
	m := Resume{Received: 9, Kept: []Kept{{Seq: 6}, {Seq: 9, Origin: c.Origin}}}
	if got, err := DecodeResume(m.Append(nil)); err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := DecodeResumed(Resumed{Answered: 3}.Append(nil)); err != nil || got.Answered != 3 {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := DecodeOrder(b[len("before"):]); err != nil || !reflect.DeepEqual(got, &c) {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := DecodeOrder(Forget{Seqs: []uint64{3, 1}}.Append(nil)); err != nil || !reflect.DeepEqual(got, &Forget{Seqs: []uint64{3, 1}}) {
		t.Errorf("%+v %v", got, err)
	}
	k := &Chunk{Offset: 1 << 40, CRC: Checksum([]byte("data")), Data: []byte("data")}
	if got, err := DecodeRecording(k.Append(nil)); err != nil || !reflect.DeepEqual(got, k) {
		t.Errorf("%+v %v", got, err)
	}
	e := &End{Total: 9, Reason: EndOverflow}
	if got, err := DecodeRecording(e.Append(nil)); err != nil || !reflect.DeepEqual(got, e) {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := DecodeAck(Ack{Offset: 5}.Append(nil)); err != nil || got.Offset != 5 {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := DecodeReceipt(Ack{Offset: 5}.Append(nil)); err != nil || got != (Ack{Offset: 5}) {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := DecodeReceipt(Held{Offset: 6}.Append(nil)); err != nil || got != (Held{Offset: 6}) {
		t.Errorf("%+v %v", got, err)
	}
}

// TestBadFrames cuts and damages good frames.
func TestBadFrames(t *testing.T) {
	command, _ := Command{Method: "GET", Path: "/url"}.Append(nil)
	good := map[string][]byte{
		"command": command, "answer": Answer{}.Append(nil), "chunk": Chunk{CRC: Checksum([]byte("x")), Data: []byte("x")}.Append(nil),
		"end": End{}.Append(nil), "ack": Ack{}.Append(nil), "held": Held{}.Append(nil),
		"resume": Resume{}.Append(nil), "resumed": Resumed{}.Append(nil),
	}
	decode := map[string]func([]byte) error{
		"command": func(b []byte) error { _, err := DecodeCommand(b); return err },
		"answer":  func(b []byte) error { _, err := DecodeAnswer(b); return err },
		"chunk":   func(b []byte) error { _, err := DecodeRecording(b); return err },
		"end":     func(b []byte) error { _, err := DecodeRecording(b); return err },
		"ack":     func(b []byte) error { _, err := DecodeAck(b); return err },
		"held":    func(b []byte) error { _, err := DecodeReceipt(b); return err },
		"resume":  func(b []byte) error { _, err := DecodeResume(b); return err },
		"resumed": func(b []byte) error { _, err := DecodeResumed(b); return err },
	}
	for name, frame := range good {
		if err := decode[name](frame); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for n := range len(frame) {
			if err := decode[name](frame[:n]); !errors.Is(err, ErrFrame) {
				t.Errorf("%s cut to %d bytes: %v", name, n, err)
			}
		}
		wrong := append([]byte{0x7f}, frame[1:]...)
		if err := decode[name](wrong); !errors.Is(err, ErrFrame) {
			t.Errorf("%s of another kind: %v", name, err)
		}
	}
	negative := End{Total: -1}.Append(nil)
	for name, b := range map[string][]byte{
		"negative total": negative, "end and more": append(good["end"], 0), "unknown reason": {4, 0, 0, 0, 0, 0, 0, 0, 0, 3},
		"flipped bit": append(good["chunk"][:len(good["chunk"])-1:len(good["chunk"])-1], 'y'), "empty chunk": Chunk{}.Append(nil),
		"long chunk": Chunk{Data: make([]byte, MaxChunkData+1)}.Append(nil),
	} {
		if v, err := DecodeRecording(b); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %+v %v", name, v, err)
		}
	}
	if _, err := DecodeAck(append(good["ack"], 0)); !errors.Is(err, ErrFrame) {
		t.Errorf("ack and more: %v", err)
	}
	for _, what := range []string{"ack", "held"} {
		if _, err := DecodeReceipt(append(good[what], 0)); !errors.Is(err, ErrFrame) {
			t.Errorf("%s and more: %v", what, err)
		}
	}
	for name, m := range map[string]Resume{
		"kept before it was received": {Received: 1, Kept: []Kept{{Seq: 2}}}, "kept twice": {Received: 3, Kept: []Kept{{Seq: 2}, {Seq: 2}}},
		"command 0": {Received: 3, Kept: []Kept{{}}}, "too many": {Received: 5000, Kept: make([]Kept, MaxOutstanding+1)},
	} {
		if got, err := DecodeResume(m.Append(nil)); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %+v %v", name, got, err)
		}
	}
	for name, b := range map[string][]byte{"half a number": append(Forget{}.Append(nil), 1), "too many": Forget{Seqs: make([]uint64, MaxOutstanding+1)}.Append(nil)} {
		if got, err := DecodeOrder(b); !errors.Is(err, ErrFrame) {
			t.Errorf("%s to forget: %+v %v", name, got, err)
		}
	}
	outcome := Answer{Outcome: OutcomeNotRun + 1}.Append(nil)
	if _, err := DecodeAnswer(outcome); !errors.Is(err, ErrFrame) {
		t.Errorf("unknown outcome: %v", err)
	}
}

// TestEveryFieldCounts: a field that check does not know could be sent beside another.
func TestEveryFieldCounts(t *testing.T) {
	for i := range reflect.TypeFor[Control]().NumField() {
		var c Control
		v := reflect.ValueOf(&c).Elem().Field(i)
		v.Set(reflect.New(v.Type().Elem()))
		if err := c.check(); err != nil {
			t.Errorf("%s alone: %v", reflect.TypeFor[Control]().Field(i).Name, err)
		}
	}
}

func FuzzDecodeControl(f *testing.F) {
	for _, c := range every() {
		b, err := c.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeControl(b)
		if err != nil {
			return
		}
		out, err := c.Encode()
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		if _, err := DecodeControl(out); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
	})
}

// FuzzFrames decodes b as everything; what is taken must encode to b again.
func FuzzFrames(f *testing.F) {
	command, _ := Command{Seq: 1, Method: "GET", Path: "/url", Body: []byte("x")}.Append(nil)
	for _, b := range [][]byte{
		command, Answer{Seq: 1, Status: 200}.Append(nil), Chunk{CRC: Checksum([]byte("x")), Data: []byte("x")}.Append(nil), End{Total: 3}.Append(nil), Ack{Offset: 1}.Append(nil), Held{Offset: 1}.Append(nil),
		Resume{Received: 7, Kept: []Kept{{Seq: 6}, {Seq: 7, Origin: Origin{Stream: [16]byte{1}, Number: 2}}}}.Append(nil), Resumed{Answered: 5}.Append(nil), Forget{Seqs: []uint64{3, 9}}.Append(nil),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(what string, out []byte) {
			if !bytes.Equal(out, b) {
				t.Fatalf("%s: %x came back as %x", what, b, out)
			}
		}
		if c, err := DecodeCommand(b); err == nil {
			out, err := c.Append(nil)
			if err != nil {
				t.Fatal(err)
			}
			same("command", out)
		}
		if a, err := DecodeAnswer(b); err == nil {
			same("answer", a.Append(nil))
		}
		if a, err := DecodeAck(b); err == nil {
			same("ack", a.Append(nil))
		}
		if m, err := DecodeResume(b); err == nil {
			same("resume", m.Append(nil))
		}
		if m, err := DecodeResumed(b); err == nil {
			same("resumed", m.Append(nil))
		}
		if m, err := DecodeOrder(b); err == nil {
			if m, ok := m.(*Forget); ok {
				same("forget", m.Append(nil))
			}
		}
		switch v, err := DecodeReceipt(b); v := v.(type) {
		case Ack:
			if err == nil {
				same("receipt", v.Append(nil))
			}
		case Held:
			if err == nil {
				same("held", v.Append(nil))
			}
		}
		switch v, err := DecodeRecording(b); v := v.(type) {
		case *Chunk:
			if err == nil {
				same("chunk", v.Append(nil))
			}
		case *End:
			if err == nil {
				same("end", v.Append(nil))
			}
		}
	})
}
