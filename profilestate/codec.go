package profilestate

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"strings"
)

// The imported form: fields that may be absent are pointers, text is checked for surrogates before it becomes a string.
type (
	snapshotJSON struct {
		Cookies []cookieJSON `json:"cookies"`
		Origins []originJSON `json:"origins"`
	}
	cookieJSON struct {
		Name     *JSString `json:"name"`
		Value    *JSString `json:"value"`
		Domain   *JSString `json:"domain"`
		Path     *JSString `json:"path"`
		Expires  *float64  `json:"expires"`
		HTTPOnly bool      `json:"httpOnly"`
		Secure   bool      `json:"secure"`
		SameSite *JSString `json:"sameSite"`
	}
	originJSON struct {
		Origin       *JSString   `json:"origin"`
		LocalStorage []entryJSON `json:"localStorage"`
	}
	entryJSON struct {
		Name  *JSString `json:"name"`
		Value *JSString `json:"value"`
	}
)

// Decode reads a storageState. It refuses what it could not give back unchanged: fields it does not know (such as
// indexedDB or partitionKey), duplicates, and values no browser would accept. Errors: *LimitError, *FormatError.
func Decode(data []byte, l Limits) (*Snapshot, error) {
	l = l.orDefault()
	if len(data) > l.Bytes {
		return nil, &LimitError{What: "bytes", Have: len(data), Max: l.Bytes}
	}
	var in snapshotJSON
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return nil, formatError(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, &FormatError{"", "there is more after the end of the document"}
	}
	s := &Snapshot{}
	for _, c := range in.Cookies {
		v, err := c.cookie()
		if err != nil {
			return nil, &FormatError{"cookies", err.Error()}
		}
		s.Cookies = append(s.Cookies, v)
	}
	for _, o := range in.Origins {
		if o.Origin == nil {
			return nil, &FormatError{"origins", "an origin has no name"}
		}
		v := Origin{Origin: string(*o.Origin)}
		for _, e := range o.LocalStorage {
			if e.Name == nil || e.Value == nil {
				return nil, &FormatError{"origins", "a localStorage item needs a name and a value"}
			}
			v.LocalStorage = append(v.LocalStorage, Entry{*e.Name, *e.Value})
		}
		s.Origins = append(s.Origins, v)
	}
	s.sort()
	if err := s.check(l); err != nil {
		return nil, err
	}
	return s, nil
}

func (c cookieJSON) cookie() (Cookie, error) {
	for _, s := range []*JSString{c.Name, c.Value, c.Domain, c.Path} {
		if s == nil {
			return Cookie{}, errors.New("a cookie needs name, value, domain and path")
		}
		if !s.Valid() {
			return Cookie{}, errors.New("a cookie has an unpaired surrogate, which no cookie can carry")
		}
	}
	v := Cookie{
		Name: string(*c.Name), Value: string(*c.Value), Domain: string(*c.Domain), Path: string(*c.Path),
		Expires: SessionCookie, HTTPOnly: c.HTTPOnly, Secure: c.Secure, SameSite: Lax,
	}
	if c.Expires != nil {
		v.Expires = *c.Expires
	}
	if c.SameSite != nil {
		v.SameSite = SameSite(*c.SameSite)
	}
	return v, nil
}

// formatError keeps the reason and drops what encoding/json quotes from the input, except names of fields.
func formatError(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &kind):
		return &FormatError{kind.Field, "want " + kind.Type.String()}
	case errors.As(err, &syntax), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &FormatError{"", "not a JSON document"}
	case strings.HasPrefix(err.Error(), "json: unknown field "):
		return &FormatError{"", strings.TrimPrefix(err.Error(), "json: ") + ": it could not be restored, so it is not taken"}
	}
	return &FormatError{"", err.Error()}
}

// Export is the canonical form of a snapshot that was stored, whatever limits are in force now.
func (s *Snapshot) Export() ([]byte, error) {
	return s.Encode(Limits{Bytes: math.MaxInt, Origins: math.MaxInt})
}

// Encode writes the canonical form: sorted, without insignificant space, equal for equal state.
// Errors: *LimitError, *FormatError.
func (s *Snapshot) Encode(l Limits) ([]byte, error) {
	l = l.orDefault()
	c := s.clone()
	c.sort()
	if err := c.check(l); err != nil {
		return nil, err
	}
	out, err := c.append(nil)
	if err != nil {
		return nil, &FormatError{"", err.Error()}
	}
	if len(out) > l.Bytes {
		return nil, &LimitError{What: "bytes", Have: len(out), Max: l.Bytes}
	}
	return out, nil
}

// append writes the snapshot after b. It does what encoding/json would do of it, which reads what a MarshalJSON returned once more, and
// moves it twice: storage is most of a profile, and its session waits for it to be committed.
func (s *Snapshot) append(b []byte) ([]byte, error) {
	cookies, err := marshalPlain(append([]Cookie{}, s.Cookies...))
	if err != nil {
		return nil, err
	}
	b = append(append(b, `{"cookies":`...), cookies...)
	b = append(b, `,"origins":[`...)
	for i, o := range s.Origins {
		name, err := marshalPlain(o.Origin)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, `{"origin":`...), name...), `,"localStorage":[`...)
		for j, e := range o.LocalStorage {
			if j > 0 {
				b = append(b, ',')
			}
			if b, err = e.Name.append(append(b, `{"name":`...)); err != nil {
				return nil, err
			}
			if b, err = e.Value.append(append(b, `,"value":`...)); err != nil {
				return nil, err
			}
			b = append(b, '}')
		}
		b = append(b, `]}`...)
	}
	return append(b, `]}`...), nil
}

// marshalPlain leaves <, > and & as they are.
func marshalPlain(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}
