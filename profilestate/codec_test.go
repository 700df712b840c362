package profilestate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf16"
)

func TestJSStringKeepsEveryUnit(t *testing.T) {
	for in, want := range map[string]JSString{
		`"\ud800"`:                "\xed\xa0\x80",
		`"\udfff\ud800"`:          "\xed\xbf\xbf\xed\xa0\x80",
		`"\ud83d\ude00"`:          "😀",
		`"\ud83d\ud83d\ude00"`:    "\xed\xa0\xbd😀",
		`"\ud83d\n\ude00"`:        "\xed\xa0\xbd\n\xed\xb8\x80",
		`"\u0000\/\b\f\r\t\"\\é"`: "\x00/\b\f\r\t\"\\é",
		`""`:                      "",
	} {
		var s JSString
		if err := json.Unmarshal([]byte(in), &s); err != nil || s != want {
			t.Errorf("%s: %q, %v; want %q", in, s, err, want)
		}
		out, err := json.Marshal(s)
		var again JSString
		if err != nil || json.Unmarshal(out, &again) != nil || again != want {
			t.Errorf("%s came back as %s", in, out)
		}
	}
	var s JSString
	for _, bad := range []string{`5`, `null`, `{}`, "\"\xed\xa0\x80\"", "\"\xff\""} {
		if err := s.UnmarshalJSON([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if _, err := JSString("\xff").MarshalJSON(); err == nil {
		t.Error("bytes that are no text were written")
	}
}

// FuzzJSString compares with UTF-16, which is what a JavaScript string is.
func FuzzJSString(f *testing.F) {
	f.Add([]byte{0xD8, 0x00, 0xDF, 0xFF, 0x00, 0x41})
	f.Add([]byte{0xDC, 0x00, 0xD8, 0x00})
	f.Fuzz(func(t *testing.T, b []byte) {
		var units []uint16
		text := `"`
		for i := 0; i+1 < len(b); i += 2 {
			u := uint16(b[i])<<8 | uint16(b[i+1])
			units = append(units, u)
			text += fmt.Sprintf(`\u%04x`, u)
		}
		var s JSString
		if err := json.Unmarshal([]byte(text+`"`), &s); err != nil {
			t.Fatal(err)
		}
		out, err := s.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var again JSString
		if err := json.Unmarshal(out, &again); err != nil || again != s {
			t.Fatalf("%q came back as %q (%v)", s, again, err)
		}
		if s.Valid() && string(s) != string(utf16.Decode(units)) {
			t.Fatalf("%q, want %q", s, string(utf16.Decode(units)))
		}
	})
}

// playwright is what Playwright 1.5x writes, surrogates included.
const playwright = `{"cookies":[
 {"name":"sid","value":"a=b","domain":"example.com","path":"/","expires":-1,"httpOnly":true,"secure":true,"sameSite":"Lax"},
 {"name":"id","value":"","domain":".example.com","path":"/","expires":1798761600.123456,"httpOnly":false,"secure":true,"sameSite":"None"}],
 "origins":[{"origin":"https://example.com","localStorage":[{"name":"k<","value":"\ud800&"}]}]}`

func TestCodec(t *testing.T) {
	s, err := Decode([]byte(playwright), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if c, ok := s.find(".example.com", "id"); !ok || c.Expires != 1798761600.123456 || c.hostOnly() {
		t.Errorf("domain cookie: %v", ok)
	}
	want := `{"cookies":[` +
		`{"name":"id","value":"","domain":".example.com","path":"/","expires":1798761600.123456,"httpOnly":false,"secure":true,"sameSite":"None"},` +
		`{"name":"sid","value":"a=b","domain":"example.com","path":"/","expires":-1,"httpOnly":true,"secure":true,"sameSite":"Lax"}],` +
		`"origins":[{"origin":"https://example.com","localStorage":[{"name":"k<","value":"\ud800&"}]}]}`
	out, err := s.Encode(Limits{})
	if err != nil || string(out) != want {
		t.Errorf("encoded (%v):\n%s\nwant\n%s", err, out, want)
	}
	if out, err := (&Snapshot{}).Encode(Limits{}); err != nil || string(out) != `{"cookies":[],"origins":[]}` {
		t.Errorf("empty: %s, %v", out, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	cookie := func(field, value string) string {
		c := map[string]string{"name": `"n"`, "value": `"v"`, "domain": `"h"`, "path": `"/"`, "sameSite": `"Lax"`, "expires": "-1"}
		c[field] = value
		var fields []string
		for k, v := range c {
			if v != "" {
				fields = append(fields, fmt.Sprintf("%q:%s", k, v))
			}
		}
		return `{"cookies":[{` + strings.Join(fields, ",") + `}]}`
	}
	origin := func(o string) string { return `{"origins":[{"origin":"` + o + `","localStorage":[]}]}` }
	secret := "s3cret"
	for name, in := range map[string]string{
		"nothing":             ``,
		"not JSON":            `{"cookies":[`,
		"something after":     `{} {}`,
		"an array":            `[]`,
		"unknown field":       `{"cookies":[],"tabs":[]}`,
		"partitioned cookie":  cookie("partitionKey", `"https://x.example"`),
		"indexedDB":           `{"origins":[{"origin":"https://a","localStorage":[],"indexedDB":[]}]}`,
		"no name":             cookie("name", ""),
		"no domain":           cookie("domain", ""),
		"value is a number":   cookie("value", "5"),
		"name and value void": `{"cookies":[{"name":"","value":"","domain":"h","path":"/"}]}`,
		"value with newline":  cookie("value", `"`+secret+`\n"`),
		"value with ;":        cookie("value", `"`+secret+`;x"`),
		"lone surrogate":      cookie("value", `"\ud800`+secret+`"`),
		"domain with path":    cookie("domain", `"h/`+secret+`"`),
		"domain in capitals":  cookie("domain", `"H"`),
		"two dots":            cookie("domain", `"..h"`),
		"domain with port":    cookie("domain", `"h:80"`),
		"relative path":       cookie("path", `"x"`),
		"sameSite":            cookie("sameSite", `"lax"`),
		"expires":             cookie("expires", `-2`),
		"same cookie twice":   `{"cookies":[` + strings.Repeat(`{"name":"n","value":"v","domain":"h","path":"/"},`, 2)[:2*len(`{"name":"n","value":"v","domain":"h","path":"/"},`)-1] + `]}`,
		"opaque origin":       origin("null"),
		"file origin":         origin("file:///etc/passwd"),
		"origin with path":    origin("https://a/b"),
		"origin with default": origin("https://a:443"),
		"origin twice":        `{"origins":[{"origin":"https://a","localStorage":[]},{"origin":"https://a","localStorage":[]}]}`,
		"item twice":          `{"origins":[{"origin":"https://a","localStorage":[{"name":"k","value":"1"},{"name":"k","value":"2"}]}]}`,
		"item without value":  `{"origins":[{"origin":"https://a","localStorage":[{"name":"k"}]}]}`,
		"not UTF-8":           "{\"origins\":[{\"origin\":\"https://a\",\"localStorage\":[{\"name\":\"k\",\"value\":\"\xed\xa0\x80\"}]}]}",
	} {
		s, err := Decode([]byte(in), Limits{})
		var format *FormatError
		if !errors.As(err, &format) {
			t.Errorf("%s: %v, %v; want a FormatError", name, s, err)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error quotes the profile: %v", name, err)
		}
	}
}

func TestLimits(t *testing.T) {
	var limit *LimitError
	if _, err := Decode([]byte(playwright), Limits{Bytes: 10}); !errors.As(err, &limit) || limit.What != "bytes" {
		t.Errorf("decode beyond bytes: %v", err)
	}
	s := &Snapshot{}
	for i := range 51 {
		s.Origins = append(s.Origins, Origin{Origin: fmt.Sprintf("https://h%d.example", i)})
	}
	if _, err := s.Encode(Limits{}); !errors.As(err, &limit) || limit.What != "origins" || limit.Have != 51 || limit.Max != 50 {
		t.Errorf("51 origins: %v", err)
	}
	s.Origins = s.Origins[:50]
	s.Origins[0].LocalStorage = []Entry{{"k", JSString(strings.Repeat("x", 16<<20))}}
	if _, err := s.Encode(Limits{}); !errors.As(err, &limit) || limit.What != "bytes" {
		t.Errorf("over 16 MiB: %v", err)
	}
}

// FuzzDecode: what is accepted has one canonical form, which is accepted too and gives itself back.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(playwright))
	f.Add([]byte(`{"cookies":null,"origins":[{"origin":"http://[::1]:8080","localStorage":null}]}`))
	f.Add([]byte(`{"cookies":[{"name":"","value":"v","domain":"127.0.0.1","path":"/a%20b?","expires":1e20}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Decode(data, Limits{})
		if err != nil {
			return
		}
		one, err := s.Encode(Limits{})
		var limit *LimitError
		if errors.As(err, &limit) {
			return // escapes may make the canonical form longer
		}
		if err != nil {
			t.Fatalf("accepted but not encodable: %v", err)
		}
		again, err := Decode(one, Limits{})
		if err != nil {
			t.Fatalf("canonical form refused: %v", err)
		}
		two, err := again.Encode(Limits{})
		if err != nil || !bytes.Equal(one, two) {
			t.Fatalf("not canonical (%v):\n%s\n%s", err, one, two)
		}
		plan(s) // and can be planned, whatever is in it
	})
}

// FuzzEncode: the encoder of our own writes what encoding/json does.
func FuzzEncode(f *testing.F) {
	f.Add("name", "value", "https://a.example")
	f.Add("\x00<&>\"\\", "\xed\xa0\x80 漢\u2028", "http://[::1]:1")
	f.Fuzz(func(t *testing.T, name, value, origin string) {
		s := &Snapshot{
			Cookies: []Cookie{{Name: name, Value: value, Domain: "a.example", Path: "/", Expires: SessionCookie, SameSite: Lax}},
			Origins: []Origin{{origin, []Entry{{JSString(name), JSString(value)}, {JSString(value), ""}}}, {"https://z.example", []Entry{}}},
		}
		got, err := s.append(nil)
		var want bytes.Buffer
		e := json.NewEncoder(&want)
		e.SetEscapeHTML(false)
		if errJSON := e.Encode(s); (err == nil) != (errJSON == nil) {
			t.Fatalf("%v, and encoding/json: %v", err, errJSON)
		}
		if err == nil && string(got)+"\n" != want.String() {
			t.Fatalf("got\n%s\nwant\n%s", got, want.Bytes())
		}
	})
}

// TestEncodeIsWhatEncodingJSONWrites: the encoder of our own leaves nothing out and escapes what must be.
func TestEncodeIsWhatEncodingJSONWrites(t *testing.T) {
	ascii := make([]byte, 128)
	for i := range ascii {
		ascii[i] = byte(i)
	}
	cookie := Cookie{Name: "<n>", Value: "a&\"\\b", Domain: "a.example", Path: "/<", Expires: 1e9, HTTPOnly: true, SameSite: Lax}
	for _, s := range []*Snapshot{
		{Cookies: []Cookie{}, Origins: []Origin{}},
		{Cookies: []Cookie{cookie}, Origins: []Origin{{"https://a.example", []Entry{}}, {"https://b.example", []Entry{
			{"", JSString(ascii)}, {JSString(ascii), ""}, {"k", "\xed\xa0\x80 漢\u2028<&"}}}}},
	} {
		got, err := s.Encode(Limits{})
		if err != nil {
			t.Fatal(err)
		}
		var want bytes.Buffer
		e := json.NewEncoder(&want)
		e.SetEscapeHTML(false)
		if err := e.Encode(s); err != nil {
			t.Fatal(err)
		}
		if string(got)+"\n" != want.String() {
			t.Errorf("got\n%s\nwant\n%s", got, want.Bytes())
		}
	}
	if _, err := (&Snapshot{Origins: []Origin{{"https://a.example", []Entry{{"k", "\xff"}}}}}).Encode(Limits{}); err == nil {
		t.Error("bytes that are no text were encoded")
	}
}
