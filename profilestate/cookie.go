package profilestate

import (
	"cmp"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/publicsuffix"

	"github.com/driftstack/fleet/driverproxy/inert"
)

// cookieKey is what makes a cookie one cookie. The leading dot of a domain counts: a host-only cookie and a domain
// cookie of the same name live side by side.
type cookieKey struct{ domain, path, name string }

func (c Cookie) key() cookieKey { return cookieKey{c.Domain, c.Path, c.Name} }

func (k cookieKey) compare(o cookieKey) int {
	return cmp.Or(strings.Compare(k.domain, o.domain), strings.Compare(k.path, o.path), strings.Compare(k.name, o.name))
}

func (c Cookie) host() string { return strings.TrimPrefix(c.Domain, ".") }

func (c Cookie) hostOnly() bool { return !strings.HasPrefix(c.Domain, ".") }

// public says whether the cookie would reach the sites of strangers: its domain is a public suffix, such as co.uk or github.io. Browsers
// refuse it from a site; Add Cookie need not. The list changes, so this is asked of what comes in, not of what is stored.
func (c Cookie) public() bool {
	if c.hostOnly() {
		return false
	}
	if _, err := netip.ParseAddr(c.host()); err == nil {
		return true // an address has no subdomains
	}
	suffix, _ := publicsuffix.PublicSuffix(c.host())
	return suffix == c.host()
}

func (c Cookie) expired(now time.Time) bool {
	return c.Expires != SessionCookie && c.Expires <= float64(now.Unix())
}

// sentTo says whether a browser on this page shows the cookie: RFC 6265, sections 5.1.3, 5.1.4 and 5.4. Of a Secure
// cookie it is sure only on https.
func (c Cookie) sentTo(page *url.URL) bool {
	return c.onHost(page) && inert.PathMatch(page.EscapedPath(), c.Path)
}

// onHost is sentTo without regard to the path.
func (c Cookie) onHost(page *url.URL) bool {
	if c.Secure && page.Scheme != "https" {
		return false
	}
	host := strings.ToLower(page.Hostname())
	if host == c.host() {
		return true
	}
	if _, err := netip.ParseAddr(host); err == nil || c.hostOnly() {
		return false
	}
	return strings.HasSuffix(host, c.Domain)
}
