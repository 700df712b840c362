package profilestate

import (
	"errors"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// JSString is a JavaScript string: UTF-16 code units that need not pair up. Sites keep binary data in such strings, and
// encoding/json would replace each unpaired surrogate with U+FFFD. It holds WTF-8: UTF-8 in which an unpaired surrogate
// is three bytes of its own, so it compares and sorts as bytes.
type JSString string

var errNotWTF8 = errors.New("the string holds bytes that are not WTF-8")

// MarshalJSON writes unpaired surrogates as \udXXX, as JavaScript's JSON.stringify does.
func (s JSString) MarshalJSON() ([]byte, error) {
	return s.append(make([]byte, 0, len(s)+2))
}

// append writes what MarshalJSON does after b.
func (s JSString) append(b []byte) ([]byte, error) {
	b = append(b, '"')
	for i := 0; i < len(s); {
		n := i
		for n < len(s) && s[n] < utf8.RuneSelf && s[n] >= ' ' && s[n] != '"' && s[n] != '\\' {
			n++
		}
		if b = append(b, s[i:n]...); n > i {
			i = n
			continue
		}
		if c := s[i]; c < utf8.RuneSelf {
			b = appendASCII(b, c)
			i++
			continue
		}
		rest := string(s[i:min(i+utf8.UTFMax, len(s))])
		if u, ok := surrogate(rest); ok {
			b = fmt.Appendf(b, `\u%04x`, u)
			i += 3
			continue
		}
		r, n := utf8.DecodeRuneInString(rest)
		if r == utf8.RuneError && n <= 1 {
			return nil, errNotWTF8
		}
		b = append(b, rest[:n]...)
		i += n
	}
	return append(b, '"'), nil
}

func appendASCII(b []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(b, '\\', c)
	case '\n':
		return append(b, `\n`...)
	case '\r':
		return append(b, `\r`...)
	case '\t':
		return append(b, `\t`...)
	}
	if c < 0x20 {
		return fmt.Appendf(b, `\u%04x`, c)
	}
	return append(b, c)
}

// UnmarshalJSON keeps unpaired surrogates. Source bytes that are not UTF-8 are refused.
func (s *JSString) UnmarshalJSON(b []byte) error {
	if len(b) < 2 || b[0] != '"' {
		return fmt.Errorf("want a string, have %s", kindOf(b))
	}
	if !utf8.Valid(b) {
		return errors.New("the string is not UTF-8")
	}
	b = b[1 : len(b)-1]
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); {
		if b[i] != '\\' {
			out = append(out, b[i])
			i++
			continue
		}
		if i+1 >= len(b) {
			return errors.New("the string ends in a backslash")
		}
		if b[i+1] != 'u' {
			c, ok := simpleEscape(b[i+1])
			if !ok {
				return errors.New("the string has an unknown escape")
			}
			out = append(out, c)
			i += 2
			continue
		}
		u, ok := unit(b[i:])
		if !ok {
			return errors.New("the string has a broken \\u escape")
		}
		i += 6
		if !utf16.IsSurrogate(u) {
			out = utf8.AppendRune(out, u)
			continue
		}
		if low, ok := unit(b[i:]); ok {
			if r := utf16.DecodeRune(u, low); r != utf8.RuneError {
				out = utf8.AppendRune(out, r)
				i += 6
				continue
			}
		}
		out = append(out, 0xE0|byte(u>>12), 0x80|byte(u>>6)&0x3F, 0x80|byte(u)&0x3F)
	}
	*s = JSString(out)
	return nil
}

// Valid says whether the string is well-formed Unicode, that is, free of unpaired surrogates.
func (s JSString) Valid() bool { return utf8.ValidString(string(s)) }

// surrogate reads one unpaired surrogate in WTF-8.
func surrogate(s string) (rune, bool) {
	if len(s) < 3 || s[0] != 0xED || s[1] < 0xA0 || s[1] > 0xBF || s[2] < 0x80 || s[2] > 0xBF {
		return 0, false
	}
	return 0xD000 | rune(s[1]&0x3F)<<6 | rune(s[2]&0x3F), true
}

func unit(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	return rune(n), err == nil
}

func simpleEscape(c byte) (byte, bool) {
	switch c {
	case '"', '\\', '/':
		return c, true
	case 'b':
		return '\b', true
	case 'f':
		return '\f', true
	case 'n':
		return '\n', true
	case 'r':
		return '\r', true
	case 't':
		return '\t', true
	}
	return 0, false
}

// kindOf names a JSON value without quoting it: it may be a customer's secret.
func kindOf(b []byte) string {
	if len(b) == 0 {
		return "nothing"
	}
	switch b[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case 'n':
		return "null"
	case 't', 'f':
		return "a boolean"
	case '"':
		return "a string"
	}
	return "a number"
}
