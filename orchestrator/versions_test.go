package orchestrator

import (
	"fmt"
	"strings"
	"testing"
)

func TestVersionRange(t *testing.T) {
	for _, c := range []struct{ in, holds, not string }{
		{"", "0 1.2.3 17", ""},
		{"17", "17 17.0.0.1 17.6.9", "16.9 18 18.0.0.1"},
		{"17.4", "17.4 17.4.0 17.4.1", "17.3.9 17.5"},
		{">=17.4 <18", "17.4 17.4.1 17.99", "17.3 18 18.0.1"},
		{"  >17.4   <=17.6 ", "17.4.1 17.4.0.1 17.6 17.6.0", "17.4 17.4.0 17.6.1"},
		{"=17.4", "17.4 17.4.0.0", "17.4.1 17.3"},
		{"<0.0.0.1", "0", "0.0.0.1"},
		{"17 <17.2", "17.1.9", "17.2"},
	} {
		r, err := ParseVersionRange(c.in)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		for want, list := range map[bool]string{true: c.holds, false: c.not} {
			for _, s := range strings.Fields(list) {
				if v, ok := ParseVersion(s); !ok || r.Holds(v) != want {
					t.Errorf("%q holds %s: %v, read %v", c.in, s, r.Holds(v), ok)
				}
			}
		}
	}
	for in, says := range map[string]string{
		">=18 <17": "no version", "<0": "no version", ">17 <17.0.0.1": "no version", "=17 =18": "no version",
		"iOS 17": "numbers", ">=17.4.": "numbers", "~17": "numbers", "=>17": "none of", ">": "numbers", "1.2.3.4.5": "at most 4", "-1": "numbers",
		"1000000": "999999", "+1": "numbers", "99999999999999999999": "999999", strings.Repeat("1 ", 40): "at most 64",
	} {
		if r, err := ParseVersionRange(in); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, %v", in, r, err)
		}
	}
	for _, s := range []string{"", "17.x", "17..1", " 17", "1.2.3.4.5"} {
		if v, ok := ParseVersion(s); ok {
			t.Errorf("%q is %v", s, v)
		}
	}
}

// FuzzVersionRange: what is read has a version in it, its bounds are in order, and writing it out reads as the same.
func FuzzVersionRange(f *testing.F) {
	for _, s := range []string{"", "17", ">=17.4 <18", "<=0.0.0.0", ">999999.999999.999999.999999", "=1.2.3.4 >1", "<\x00", "== 1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseVersionRange(s)
		if err != nil {
			if r != (VersionRange{}) {
				t.Fatalf("%q: an error and %v", s, r)
			}
			return
		}
		inside := Version{}
		if r.Least != nil {
			inside = *r.Least
		}
		if !r.Holds(inside) || r.Below != nil && r.Holds(*r.Below) {
			t.Fatalf("%q: from %v to below %v", s, r.Least, r.Below)
		}
		var text string
		for op, v := range map[string]*Version{">=": r.Least, "<": r.Below} {
			if v != nil && (*v)[0] <= maxNumber && (*v)[1] <= maxNumber && (*v)[2] <= maxNumber && (*v)[3] <= maxNumber {
				text += fmt.Sprintf(" %s%d.%d.%d.%d", op, v[0], v[1], v[2], v[3])
			} else if v != nil {
				return // its successor is one number too far to write
			}
		}
		again, err := ParseVersionRange(text)
		if err != nil || !equal(again.Least, r.Least) || !equal(again.Below, r.Below) {
			t.Fatalf("%q reads as %q, which reads as %v, %v", s, text, again, err)
		}
	})
}

func equal(a, b *Version) bool { return a == b || a != nil && b != nil && *a == *b }
