package wire

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

// viaJSON is DecodeControl without the short way.
func viaJSON(b []byte) (Control, error) {
	var c Control
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return c, err
	}
	if d.More() {
		return c, errOneOf
	}
	return c, c.check()
}

func TestHeartbeatIsWrittenAsJSON(t *testing.T) {
	for _, h := range []Heartbeat{
		{}, {Seq: 1}, {Seq: 1<<64 - 1, Epoch: "e-1", RoundTrip: time.Hour}, {Seq: 7, RoundTrip: -1}, {Epoch: `a"b`}, {Epoch: "<&>"}, {Epoch: "ä\n"},
	} {
		got, err1 := Control{Heartbeat: &h}.Encode()
		want, err2 := json.Marshal(Control{Heartbeat: &h})
		if err1 != nil || err2 != nil || !bytes.Equal(got, want) {
			t.Errorf("%+v: %s (%v), package json writes %s (%v)", h, got, err1, want, err2)
		}
		back, err := DecodeControl(got)
		if err != nil || back.Heartbeat == nil || !reflect.DeepEqual(*back.Heartbeat, mustJSON(t, want)) {
			t.Errorf("%s: read as %+v, %v", got, back.Heartbeat, err)
		}
	}
	if _, ok := readHeartbeat([]byte(`{"heartbeat":{"seq":12,"epoch":"e","round_trip_ns":5}}`)); !ok {
		t.Error("the short way is never taken")
	}
}

func mustJSON(t *testing.T, b []byte) Heartbeat {
	t.Helper()
	c, err := viaJSON(b)
	if err != nil {
		t.Fatal(err)
	}
	return *c.Heartbeat
}

// FuzzHeartbeat: what the short way takes, package json reads as the same, and writes as the same.
func FuzzHeartbeat(f *testing.F) {
	for _, s := range []string{
		`{"heartbeat":{"seq":1}}`, `{"heartbeat":{"seq":12,"epoch":"e","round_trip_ns":5}}`, `{"heartbeat":{"seq":01}}`, `{"heartbeat":{"seq":1}} `,
		`{"heartbeat":{"seq":1,"epoch":"\u0041"}}`, `{"heartbeat":{"seq":99999999999999999999}}`, `{"heartbeat":{"seq":1,"round_trip_ns":9223372036854775808}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := viaJSON(b)
		if err == nil && c.Heartbeat != nil { // written the same both ways
			short, err1 := c.Encode()
			long, err2 := json.Marshal(c)
			if err1 != nil || err2 != nil || !bytes.Equal(short, long) {
				t.Fatalf("%+v: %s (%v), package json writes %s (%v)", c.Heartbeat, short, err1, long, err2)
			}
		}
		h, ok := readHeartbeat(b)
		if !ok {
			return
		}
		if err != nil || c.Heartbeat == nil || *c.Heartbeat != h {
			t.Fatalf("%q: read as %+v, by package json as %+v, %v", b, h, c.Heartbeat, err)
		}
	})
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
