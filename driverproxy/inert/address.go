package inert

import (
	"errors"
	"net/netip"
	"net/url"
	"strings"
)

// ValidHost says whether a host is a lower-case host name. It is strict because URLs are built from it.
func ValidHost(h string) bool {
	if h == "" || len(h) > 253 {
		return false
	}
	for label := range strings.SplitSeq(h, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, r := range label {
			if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' {
				return false
			}
		}
	}
	return true
}

// Origin is the canonical form of a URL's origin; only http and https have one that can be visited.
func Origin(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return "", errors.New("not an origin: want scheme://host")
	}
	scheme, host, port := strings.ToLower(u.Scheme), strings.ToLower(u.Hostname()), u.Port()
	if scheme != "http" && scheme != "https" {
		return "", errors.New("only http and https origins can be kept")
	}
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() && a.Zone() == "" {
		host = "[" + a.String() + "]"
	} else if !ValidHost(host) {
		return "", errors.New("the origin's host is not a host name")
	}
	if port != "" && port != map[string]string{"http": "80", "https": "443"}[scheme] {
		host += ":" + port
	}
	return scheme + "://" + host, nil
}

// PathMatch says whether a cookie with the path is sent to the page: RFC 6265, section 5.1.4.
func PathMatch(page, cookie string) bool {
	if page == "" {
		page = "/"
	}
	if page == cookie {
		return true
	}
	return strings.HasPrefix(page, cookie) && (strings.HasSuffix(cookie, "/") || page[len(cookie)] == '/')
}
