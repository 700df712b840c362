package wire

import (
	"reflect"
	"strings"
	"testing"
	"unicode"
)

// unfit finds text that a database refuses or a terminal obeys, wherever it is.
func unfit(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.String:
		return strings.ContainsFunc(v.String(), func(r rune) bool { return !unicode.IsPrint(r) })
	case reflect.Pointer:
		return !v.IsNil() && unfit(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if unfit(v.Field(i)) {
				return true
			}
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			if unfit(k) || unfit(v.MapIndex(k)) {
				return true
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			if unfit(v.Index(i)) {
				return true
			}
		}
	}
	return false
}

// TestWordsOfHostsAreText: a host's words end up in statements for all hosts, and on the terminal of who looks.
func TestWordsOfHostsAreText(t *testing.T) {
	const bad = "a\x00\x1b[2J\u202eb"
	f := &Failure{Code: bad, Message: bad}
	d := Device{Name: bad, Kind: bad, Model: bad, PlatformName: bad, PlatformVersion: bad, Labels: map[string]string{bad: bad}, State: bad, Reason: bad}
	for _, c := range []Control{
		{Hello: &Hello{Host: "h", Agent: bad, Boot: bad, Devices: []Device{d}}}, {Device: &d},
		{Assigned: &Assigned{Failure: f}}, {Released: &Released{Failure: f}}, {Ended: &Ended{Failure: *f}},
		{Probed: &Probed{Devices: []ProbedDevice{{Name: bad, State: bad, Reason: bad}}}},
	} {
		if !unfit(reflect.ValueOf(c)) {
			t.Fatalf("%+v: nothing in it is unfit", c)
		}
		b, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeControl(b); err != nil || unfit(reflect.ValueOf(got)) {
			t.Errorf("%s: read as %+v, %v", b, got, err)
		}
	}
	if got := Text("é ok\n\x00x"); got != "é ok  x" {
		t.Errorf("%q", got)
	}
}
