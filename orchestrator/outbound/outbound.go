// Package outbound is the one way in which the orchestrator opens connections: through a [Pin], which connects to what it was made for and to nothing else.
//
//	what is asked for      the host and port of the pin, or refused
//	where it leads         addresses of the pin's networks, or, where it has none, public ones; looked at when the socket is made, so that no name that
//	                       resolves anew, and none that lies, gets around it
//	on the way             no proxy, whatever the environment says; no redirect is followed; certificates are checked against the host's name
//
// What is refused is told to whoever has to remember it.
//
// Out of scope: which hosts may be pinned to (package residency), tunnels to driver hosts (package tunnel).
package outbound

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"
)

// ErrRefused is in the chain of every error of a connection that was not made because it would have gone elsewhere.
var ErrRefused = errors.New("refused")

// Refusal is a connection that was not made. It holds no part of a request but the host.
type Refusal struct {
	Category string // the pin's
	To       string // host or address, with its port
	Why      string
}

func (r Refusal) Error() string {
	return fmt.Sprintf("outbound: refused to connect to %s for %s: %s", r.To, r.Category, r.Why)
}

// Is says that it is ErrRefused.
func (Refusal) Is(target error) bool { return target == ErrRefused }

// Pin is where connections of one purpose go. Its fields are not changed after its first use, which makes it safe for concurrent use.
type Pin struct {
	Category string         // row of the register that it is for
	Hosts    []string       // HOST:PORT, or paths of unix sockets; empty: any that is in Networks
	Networks []netip.Prefix // where they have to lead; empty: to public addresses
	Plain    bool           // HTTP without TLS may be spoken: in networks of ours
	Timeout  time.Duration  // of a connection; 0: 10 s
	Refused  func(Refusal)  // is told of each refusal, and does not block; may be nil
}

const (
	dialTimeout = 10 * time.Second
	tlsTimeout  = 10 * time.Second
)

func (p *Pin) refuse(to, format string, args ...any) error {
	r := Refusal{Category: p.Category, To: to, Why: fmt.Sprintf(format, args...)}
	if p.Refused != nil {
		p.Refused(r)
	}
	return r
}

// DialContext is net.Dialer's, for addresses of the pin. Others are ErrRefused errors.
func (p *Pin) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if len(p.Hosts) > 0 && !slices.Contains(p.Hosts, addr) || len(p.Hosts) == 0 && (len(p.Networks) == 0 || strings.HasPrefix(network, "unix")) {
		return nil, p.refuse(addr, "it is pinned to %s", p)
	}
	timeout := p.Timeout
	if timeout == 0 {
		timeout = dialTimeout
	}
	d := net.Dialer{Timeout: timeout, ControlContext: func(_ context.Context, network, to string, _ syscall.RawConn) error {
		return p.leads(addr, network, to)
	}}
	return d.DialContext(ctx, network, addr)
}

// DialTLSContext is DialContext with TLS on top, for what does not do that by itself: the certificate has to have the host's name.
func (p *Pin) DialTLSContext(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, p.refuse(addr, "it is not HOST:PORT")
	}
	conn, err := p.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, tlsTimeout)
	defer cancel()
	secure := tls.Client(conn, &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host})
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return secure, nil
}

// leads says whether a connection to host may have the address that it would have.
func (p *Pin) leads(host, network, to string) error {
	if strings.HasPrefix(network, "unix") {
		return nil // it is among the hosts, and on this machine
	}
	at, err := netip.ParseAddrPort(to)
	if err != nil {
		return p.refuse(host, "its address %s is none that can be looked at", to)
	}
	switch {
	case within(p.Networks, at.Addr()):
	case len(p.Networks) > 0:
		return p.refuse(host, "it leads to %s, outside %s", at.Addr(), prefixes(p.Networks))
	case !Public(at.Addr()):
		return p.refuse(host, "it leads to %s, which is no public address", at.Addr())
	}
	return nil
}

// String says where it leads.
func (p *Pin) String() string {
	if len(p.Hosts) > 0 {
		return strings.Join(p.Hosts, ", ")
	}
	return prefixes(p.Networks)
}

// Transport is one that sends through the pin. Fields that have nothing to do with where may be changed before it is used.
func (p *Pin) Transport() *http.Transport {
	return &http.Transport{
		Proxy: nil, DialContext: p.DialContext, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, TLSHandshakeTimeout: tlsTimeout,
		MaxIdleConnsPerHost: 32, IdleConnTimeout: 90 * time.Second,
	}
}

// RoundTripper is t behind a look at each request: its scheme, its URL's host, and the Host that it carries.
func (p *Pin) RoundTripper(t http.RoundTripper) http.RoundTripper { return pinned{p, t} }

// Client sends requests through t, which is [Pin.Transport] or something in front of it, and follows no redirect: the answer that asks for one is the answer,
// and it is told of as refused.
func (p *Pin) Client(t http.RoundTripper) *http.Client {
	return &http.Client{Transport: p.RoundTripper(t), CheckRedirect: func(to *http.Request, _ []*http.Request) error {
		_ = p.refuse(Address(to.URL.Scheme, to.URL.Host), "a redirect leads there, and none is followed")
		return http.ErrUseLastResponse
	}}
}

type pinned struct {
	*Pin
	next http.RoundTripper
}

func (p pinned) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := p.check(r); err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // as every RoundTripper has to
		}
		return nil, err
	}
	return p.next.RoundTrip(r)
}

func (p *Pin) check(r *http.Request) error {
	to := Address(r.URL.Scheme, r.URL.Host)
	switch {
	case r.URL.Scheme != "https" && (r.URL.Scheme != "http" || !p.Plain):
		return p.refuse(to, "requests go over https, not %s", r.URL.Scheme)
	case len(p.Hosts) == 0: // the address decides
	case !slices.Contains(p.Hosts, to):
		return p.refuse(to, "it is pinned to %s", p)
	case r.Host != "" && Address(r.URL.Scheme, r.Host) != to:
		return p.refuse(Address(r.URL.Scheme, r.Host), "a request to %s says that it is for another host", to)
	}
	return nil
}

// Address is HOST:PORT of the host of a URL.
func Address(scheme, host string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), map[string]string{"http": "80", "https": "443"}[scheme])
}
