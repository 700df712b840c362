package profilestate

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/driftstack/fleet/driverproxy/inert"
)

// Snapshot is the state of one profile. Its JSON form is Playwright's storageState.
type Snapshot struct {
	Cookies []Cookie `json:"cookies"`
	Origins []Origin `json:"origins"`
}

// SameSite is a cookie's SameSite attribute. WebKit reports an absent one as None.
type SameSite string

// Values of SameSite.
const (
	Strict SameSite = "Strict"
	Lax    SameSite = "Lax"
	None   SameSite = "None"
)

// SessionCookie is the Expires of a cookie without an expiry.
const SessionCookie = -1

// Cookie is one cookie. A Domain with a leading dot makes a domain cookie, one without a host-only cookie.
type Cookie struct {
	Name     string   `json:"name"`
	Value    string   `json:"value"`
	Domain   string   `json:"domain"`
	Path     string   `json:"path"`
	Expires  float64  `json:"expires"` // seconds since 1970, or SessionCookie
	HTTPOnly bool     `json:"httpOnly"`
	Secure   bool     `json:"secure"`
	SameSite SameSite `json:"sameSite"`
}

// Origin is the localStorage of one origin. One without entries is kept only as a place from which the cookies of its
// host can be set: cookies name no port.
type Origin struct {
	Origin       string  `json:"origin"`
	LocalStorage []Entry `json:"localStorage"`
}

// Entry is one localStorage item.
type Entry struct {
	Name  JSString `json:"name"`
	Value JSString `json:"value"`
}

// String says how much there is, never what: a snapshot that reaches a log line must not take a login with it.
func (s Snapshot) String() string {
	n := 0
	for _, o := range s.Origins {
		n += len(o.LocalStorage)
	}
	return fmt.Sprintf("snapshot of %d cookies and %d localStorage items on %d origins", len(s.Cookies), n, len(s.Origins))
}

// GoString is String.
func (s Snapshot) GoString() string { return s.String() }

// String names the cookie's host only.
func (c Cookie) String() string { return "cookie of " + c.host() }

// GoString is String.
func (c Cookie) GoString() string { return c.String() }

// Limits bound a snapshot.
type Limits struct {
	Bytes   int // of the encoded form
	Origins int
}

// DefaultLimits are the limits of a profile that has no others.
func DefaultLimits() Limits { return Limits{Bytes: 16 << 20, Origins: 50} }

func (l Limits) orDefault() Limits {
	d := DefaultLimits()
	if l.Bytes <= 0 {
		l.Bytes = d.Bytes
	}
	if l.Origins <= 0 {
		l.Origins = d.Origins
	}
	return l
}

// LimitError says that a snapshot is larger than its profile may be.
type LimitError struct {
	What      string // "bytes" or "origins"
	Have, Max int
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("the profile has %d %s and may have %d: remove state it does not need", e.Have, e.What, e.Max)
}

// FormatError says what in an imported snapshot cannot be used, by position and never by content.
type FormatError struct {
	Where   string // such as "cookies[3]"
	Problem string
}

func (e *FormatError) Error() string {
	if e.Where == "" {
		return "storageState: " + e.Problem
	}
	return "storageState: " + e.Where + ": " + e.Problem
}

// sort puts the snapshot in canonical order.
func (s *Snapshot) sort() {
	slices.SortFunc(s.Cookies, func(a, b Cookie) int { return a.key().compare(b.key()) })
	slices.SortFunc(s.Origins, func(a, b Origin) int { return strings.Compare(a.Origin, b.Origin) })
	for _, o := range s.Origins {
		slices.SortFunc(o.LocalStorage, func(a, b Entry) int { return strings.Compare(string(a.Name), string(b.Name)) })
	}
}

func (s *Snapshot) clone() *Snapshot {
	if s == nil {
		return &Snapshot{}
	}
	c := &Snapshot{Cookies: slices.Clone(s.Cookies)}
	for _, o := range s.Origins {
		c.Origins = append(c.Origins, Origin{Origin: o.Origin, LocalStorage: slices.Clone(o.LocalStorage)})
	}
	return c
}

// check finds what could not be kept or restored as it is. The snapshot is sorted.
func (s *Snapshot) check(l Limits) error {
	if len(s.Origins) > l.Origins {
		return &LimitError{What: "origins", Have: len(s.Origins), Max: l.Origins}
	}
	for i, c := range s.Cookies {
		where := fmt.Sprintf("cookies[%d]", i)
		if err := c.check(); err != nil {
			return &FormatError{where, err.Error()}
		}
		if i > 0 && s.Cookies[i-1].key() == c.key() {
			return &FormatError{where, "another cookie has the same name, domain and path"}
		}
	}
	for i, o := range s.Origins {
		where := fmt.Sprintf("origins[%d]", i)
		if canonical, err := inert.Origin(o.Origin); err != nil {
			return &FormatError{where, err.Error()}
		} else if canonical != o.Origin {
			return &FormatError{where, "the origin is not in canonical form: lower-case scheme and host, the port only if it is not the scheme's own"}
		}
		if i > 0 && s.Origins[i-1].Origin == o.Origin {
			return &FormatError{where, "the origin is there twice"}
		}
		for j, e := range o.LocalStorage {
			if j > 0 && o.LocalStorage[j-1].Name == e.Name {
				return &FormatError{where, "two localStorage items have the same name"}
			}
		}
	}
	return nil
}

func (c Cookie) check() error {
	if c.Name == "" && c.Value == "" {
		return errors.New("the cookie has neither name nor value")
	}
	if strings.ContainsFunc(c.Name, func(r rune) bool { return control(r) || r == ';' || r == '=' || r == 0xFFFD }) {
		return errors.New("the cookie's name has a character that no cookie can carry")
	}
	if strings.ContainsFunc(c.Value, func(r rune) bool { return control(r) || r == ';' || r == 0xFFFD }) {
		return errors.New("the cookie's value has a character that no cookie can carry")
	}
	if !inert.ValidHost(c.host()) {
		return errors.New("the cookie's domain is not a lower-case host name")
	}
	if !strings.HasPrefix(c.Path, "/") || strings.ContainsFunc(c.Path, func(r rune) bool { return control(r) || r == ';' || r == 0xFFFD }) {
		return errors.New("the cookie's path must begin with a slash")
	}
	if c.SameSite != Strict && c.SameSite != Lax && c.SameSite != None {
		return errors.New("sameSite must be Strict, Lax or None")
	}
	if math.IsNaN(c.Expires) || math.IsInf(c.Expires, 0) || c.Expires < 0 && c.Expires != SessionCookie {
		return errors.New("expires must be seconds since 1970, or -1 for a session cookie")
	}
	return nil
}

func control(r rune) bool { return r < 0x20 || r == 0x7F }
