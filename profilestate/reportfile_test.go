package profilestate

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

// restoredReport is a report with items of every kind, and what a capture goes by.
func restoredReport() Report {
	var r Report
	far, made := cookieOf("a.example", "/", "secretname", "secretvalue"), cookieOf("a.example", "/", "secretname", "secretvalue")
	far.Expires, made.Expires = 4e9, 1.7e9+0.125
	r.cookie(cookieOf("a.example", "/", "gone", "v"), Restored, "")
	r.alteredCookie(far, made, ReasonExpiry)
	r.cookie(cookieOf(".a.example", "/x", "bad", "v"), Dropped, ReasonIgnored)
	r.entry("https://a.example", "k\xed\xa0\x80", Restored, "")
	r.alteredEntry("https://a.example", "cut", "secrettext\xed\xb0\x80")
	r.cookie(cookieOf("a.example", "/", "", ""), Unsupported, ReasonEmptyValue)
	return r
}

// TestReportOutlivesItsProcess: who goes on with a session takes the same for deleted as who began it, and has it from nowhere else.
func TestReportOutlivesItsProcess(t *testing.T) {
	f := newStore(t)
	f.commit(t, testRef, "v")
	head, report := f.head(t, testRef), restoredReport()
	load := func(ref Ref, session string) (Report, error) { return f.LoadReport(t.Context(), ref, head, session) }
	if r, err := load(testRef, "s-1"); !errors.Is(err, ErrNoReport) {
		t.Errorf("before it is there: %v, %v", r, err)
	}
	if err := f.SaveReport(t.Context(), testRef, head, "s-1", report); err != nil {
		t.Fatal(err)
	}
	got, err := load(testRef, "s-1")
	if err != nil || !reflect.DeepEqual(got, report) {
		t.Fatalf("%#v, %v", got.items, err)
	}
	before := &Snapshot{Cookies: []Cookie{cookieOf("a.example", "/", "gone", "v")}}
	if next, n := merge(before, observed{looks: []look{{page: at("https://a.example/")}}}, got, time.Unix(1e9, 0)); len(next.Cookies) != 0 || n.Counts().Removed != 1 {
		t.Errorf("a cookie that the customer removed stays: %v", n)
	}

	path := f.path(reportFile(testRef, "s-1"))
	sealed, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, plain := range []string{"secret", "gone", "a.example", "s-1"} {
		if bytes.Contains(sealed, []byte(plain)) || bytes.Contains([]byte(path), []byte(plain)) {
			t.Errorf("%q is in the file or its name", plain)
		}
	}
	put := func(name string, b []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(f.path(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f.path(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(reportFile(testRef, "s-2"), sealed)
	other := Ref{testRef.Account, "other"}
	f.commit(t, other, "v")
	put(reportFile(other, "s-1"), sealed)
	generation, err := os.ReadFile(f.path(head.Current.File))
	if err != nil {
		t.Fatal(err)
	}
	put(reportFile(testRef, "s-3"), generation)
	put(reportFile(testRef, "s-4"), generation[headerSize:])
	put(reportFile(testRef, "s-5"), sealed[:len(sealed)-1])
	changed := bytes.Clone(sealed)
	changed[len(changed)/2] ^= 1
	put(reportFile(testRef, "s-6"), changed)
	put(reportFile(testRef, "s-7"), nil)
	for _, c := range []struct {
		ref     Ref
		session string
	}{{testRef, "s-2"}, {other, "s-1"}, {testRef, "s-3"}, {testRef, "s-4"}, {testRef, "s-5"}, {testRef, "s-6"}, {testRef, "s-7"}} {
		if r, err := load(c.ref, c.session); !errors.Is(err, ErrTampered) || len(r.items) != 0 {
			t.Errorf("%v: %v, %v", c, r, err)
		}
	}

	f.Store.region = place.US
	if r, err := load(testRef, "s-1"); !errors.Is(err, ErrTampered) || len(r.items) != 0 {
		t.Errorf("of another region: %v, %v", r, err)
	}
	f.Store.region = place.EU

	f.clock = f.clock.Add(24 * time.Hour) // a session may run as long
	if _, err := f.Sweep(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	if got, err := load(testRef, "s-1"); err != nil || len(got.items) == 0 {
		t.Errorf("the report of a session that runs was swept: %v", err)
	}
	f.RemoveReport(testRef, "s-1")
	f.RemoveReport(testRef, "s-1")
	if r, err := load(testRef, "s-1"); !errors.Is(err, ErrNoReport) {
		t.Errorf("after its session: %v, %v", r, err)
	}
	f.clock = f.clock.Add(2 * time.Hour)
	if n, err := f.Sweep(t.Context(), time.Hour); err != nil || n.Removed != 7 {
		t.Errorf("what sessions left that nobody ended: %+v, %v", n, err)
	}
	if f.value(t, testRef) != "v" {
		t.Error("the generation is gone")
	}
}

// FuzzReport: a report is read as it was written, whatever sites put into it.
func FuzzReport(f *testing.F) {
	f.Add("sid", "value", "/a", "https://a.example", 1.5, true)
	f.Add("\xed\xa0\x80", "\x00\xff", "", "", -1.0, false)
	f.Fuzz(func(t *testing.T, name, value, path, origin string, expires float64, flag bool) {
		if expires != expires { // unlike itself
			return
		}
		made := Cookie{Name: name, Value: value, Domain: origin, Path: path, Expires: expires, HTTPOnly: flag, Secure: !flag, SameSite: SameSite(value)}
		var want Report
		want.alteredCookie(made, made, Reason(value))
		want.cookie(Cookie{Name: value, Domain: name, Path: origin}, Status(path), "")
		want.alteredEntry(origin, JSString(name), JSString(value))
		want.entry(name, JSString(value), Restored, Reason(path))
		var b bytes.Buffer
		if err := want.encode(&b); err != nil {
			t.Fatal(err)
		}
		sealed := b.Bytes()
		got, err := decodeReport(bytes.NewReader(sealed))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%v\n%#v\n%#v", err, got.items, want.items)
		}
		_, _ = decodeReport(bytes.NewReader(sealed[:len(sealed)*3/4])) // which does not panic
	})
}

func TestNamed(t *testing.T) {
	list := restoredReport().Named()
	if len(list) != 6 || list[0].Status == Restored || list[3].Status == Restored || list[4].Name != "gone" || list[4].Domain != "a.example" ||
		list[5].Origin != "https://a.example" || list[5].Name != "k\xed\xa0\x80" || list[1].Domain != ".a.example" || list[1].Path != "/x" || list[1].Reason != ReasonIgnored {
		t.Errorf("%+v", list)
	}
}
