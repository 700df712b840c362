package profilestate

import (
	"context"
	"strings"
	"time"

	"github.com/driftstack/fleet/driverproxy/inert"
)

// driverCookie is a cookie as drivers show and take it.
type driverCookie struct {
	Name     string   `json:"name"`
	Value    string   `json:"value"`
	Path     string   `json:"path"`
	Domain   string   `json:"domain,omitempty"`
	Secure   bool     `json:"secure"`
	HTTPOnly bool     `json:"httpOnly"`
	Expiry   *float64 `json:"expiry,omitempty"`
	SameSite SameSite `json:"sameSite"`
}

// maxExpiry is the last second that WebKitGTK carries both ways: beyond it Get All Cookies answers the value wrapped to
// 32 bits, which can look like a date long ago. Far beyond (2^53-1) the cookie silently becomes a session cookie.
const maxExpiry = 1<<31 - 1

// shownCookies lists what the current page shows.
func shownCookies(ctx context.Context, b *inert.Browser, now time.Time) ([]Cookie, error) {
	var list []driverCookie
	if err := b.Do(ctx, "GET", "/cookie", nil, &list); err != nil {
		return nil, err
	}
	out := make([]Cookie, 0, len(list))
	for _, c := range list {
		v := Cookie{Name: c.Name, Value: c.Value, Domain: strings.ToLower(c.Domain), Path: c.Path, Expires: SessionCookie,
			HTTPOnly: c.HTTPOnly, Secure: c.Secure, SameSite: c.SameSite}
		if v.Path == "" {
			v.Path = "/"
		}
		if v.SameSite == "" {
			v.SameSite = None
		}
		if c.Expiry != nil {
			// A cookie that is shown has not expired, whatever its date seems to say.
			if v.Expires = *c.Expiry; v.Expires < float64(now.Unix()) || v.Expires > maxExpiry {
				v.Expires = maxExpiry
			}
		}
		out = append(out, v)
	}
	return out, nil
}

// addCookie sets a cookie through the driver.
func addCookie(ctx context.Context, b *inert.Browser, c Cookie) error {
	a := c.add()
	return b.Do(ctx, a.Method, a.Path, a.Body, nil)
}

// add is the command that sets the cookie. Without a domain the cookie belongs to the current host alone; naming the
// domain would give it a leading dot and with it to all subdomains.
func (c Cookie) add() inert.Command {
	v := driverCookie{Name: c.Name, Value: c.Value, Path: c.Path, Secure: c.Secure, HTTPOnly: c.HTTPOnly, SameSite: c.SameSite}
	if !c.hostOnly() {
		v.Domain = c.host()
	}
	if c.Expires != SessionCookie {
		e := float64(int64(min(c.Expires, maxExpiry)))
		v.Expiry = &e
	}
	return inert.Command{Method: "POST", Path: "/cookie", Body: map[string]driverCookie{"cookie": v}}
}

// needsScript says whether only document.cookie can set the cookie.
func (c Cookie) needsScript() bool { return c.Name == "" || c.Value == "" }

// assignment is the cookie in document.cookie's syntax.
func (c Cookie) assignment() string {
	var s strings.Builder
	if c.Name != "" {
		s.WriteString(c.Name + "=")
	}
	s.WriteString(c.Value + "; Path=" + c.Path + "; SameSite=" + string(c.SameSite))
	if !c.hostOnly() {
		s.WriteString("; Domain=" + c.host())
	}
	if c.Secure {
		s.WriteString("; Secure")
	}
	if c.Expires != SessionCookie {
		s.WriteString("; Expires=" + time.Unix(int64(min(c.Expires, maxExpiry)), 0).UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"))
	}
	return s.String()
}
