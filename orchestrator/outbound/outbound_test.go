package outbound_test

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/driftstack/fleet/orchestrator/outbound"
)

// pinned is a Pin, and what it has told of.
func pinned(p outbound.Pin) (*outbound.Pin, *[]outbound.Refusal) {
	told := &[]outbound.Refusal{}
	p.Category, p.Refused = "things", func(r outbound.Refusal) { *told = append(*told, r) }
	return &p, told
}

func hostOf(s *httptest.Server) string { return s.Listener.Addr().String() }

func refused(t *testing.T, what string, err error, told *[]outbound.Refusal) {
	t.Helper()
	if !errors.Is(err, outbound.ErrRefused) {
		t.Errorf("%s: %v", what, err)
	}
	if len(*told) != 1 || (*told)[0].Category != "things" || (*told)[0].To == "" {
		t.Errorf("%s: told of %v", what, *told)
	}
	*told = nil
}

// A Pin connects to its hosts by the names they are written with, and to no other name, port or kind of socket.
func TestDialsItsHostsOnly(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	socket := filepath.Join(t.TempDir(), "s")
	unix, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	host := hostOf(server)
	_, port, _ := net.SplitHostPort(host)
	pin, told := pinned(outbound.Pin{Hosts: []string{host, socket}, Networks: outbound.Loopback()})
	for network, addr := range map[string]string{"tcp": host, "unix": socket} {
		conn, err := pin.DialContext(t.Context(), network, addr)
		if err != nil {
			t.Fatalf("%s: %v", addr, err)
		}
		conn.Close()
	}
	for _, to := range []string{"localhost:" + port, "127.0.0.1:1", "127.0.0.2:" + port, "127.0.0.1.evil.example:" + port, "[::ffff:127.0.0.1]:" + port, "2130706433:" + port} {
		_, err := pin.DialContext(t.Context(), "tcp", to)
		refused(t, to, err, told)
	}
	_, err = pin.DialContext(t.Context(), "unix", socket+"2")
	refused(t, "another socket", err, told)
	nowhere, told := pinned(outbound.Pin{})
	_, err = nowhere.DialContext(t.Context(), "tcp", host)
	refused(t, "a pin to nothing", err, told)
	network, told := pinned(outbound.Pin{Networks: outbound.Loopback()})
	_, err = network.DialContext(t.Context(), "unix", socket)
	refused(t, "a socket, of a pin to networks", err, told)
}

// A name that is right and leads elsewhere does not connect: the address counts that the connection would have, whatever it was when it was looked at before.
func TestNamesThatLeadElsewhere(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	_, port, _ := net.SplitHostPort(hostOf(server))
	name := "localhost:" + port
	public, told := pinned(outbound.Pin{Hosts: []string{name}})
	_, err := public.DialContext(t.Context(), "tcp4", name)
	refused(t, "a public host at loopback", err, told)
	if !strings.Contains(err.Error(), "no public address") {
		t.Error(err)
	}
	ours, told := pinned(outbound.Pin{Hosts: []string{name}, Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}})
	_, err = ours.DialContext(t.Context(), "tcp4", name)
	refused(t, "a host of ours elsewhere", err, told)
	if !strings.Contains(err.Error(), "10.0.0.0/16") {
		t.Error(err)
	}
	ours.Networks = outbound.Loopback()
	conn, err := ours.DialContext(t.Context(), "tcp4", name)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestPublic(t *testing.T) {
	for _, a := range []string{"127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255", "198.51.100.7",
		"::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "2001:db8::1", "ff02::1"} {
		if outbound.Public(netip.MustParseAddr(a)) {
			t.Errorf("%s is said to be public", a)
		}
	}
	for _, a := range []string{"1.1.1.1", "104.16.0.1", "172.32.0.1", "100.128.0.1", "2606:4700::1", "2a01:4f8::1", "::ffff:1.1.1.1"} {
		if !outbound.Public(netip.MustParseAddr(a)) {
			t.Errorf("%s is said not to be public", a)
		}
	}
	if outbound.Public(netip.Addr{}) {
		t.Error("no address is said to be public")
	}
}

// Requests go to the pin's hosts, over https unless they stay in networks of ours.
func TestRequests(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	host := hostOf(server)
	pin, told := pinned(outbound.Pin{Hosts: []string{host, "a.example:443"}, Networks: outbound.Loopback(), Plain: true})
	client := pin.Client(pin.Transport())
	defer client.CloseIdleConnections()
	res, err := client.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	for _, to := range []string{"http://a.example/", "https://a.example:8443/", "https://a.example.evil/", "https://a.example./", "https://A.example/", "https://evil.example/a.example",
		"https://a.example@evil.example/", "https://evil.example:443/", "ftp://a.example/", "http://127.0.0.1:1/"} {
		_, err := client.Get(to)
		refused(t, to, err, told)
	}
	r, _ := http.NewRequest(http.MethodGet, server.URL, nil)
	r.Host = "b.example"
	_, err = client.Do(r)
	refused(t, "a request that says that it is for another host", err, told)
	strict, told := pinned(outbound.Pin{Hosts: []string{host}, Networks: outbound.Loopback()})
	_, err = strict.Client(strict.Transport()).Get(server.URL)
	refused(t, "a request without TLS", err, told)
}

// No redirect is followed, to wherever.
func TestRedirectsAreNotFollowed(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request arrived elsewhere") }))
	defer elsewhere.Close()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL+"/?secret", http.StatusTemporaryRedirect)
	}))
	defer server.Close()
	pin, told := pinned(outbound.Pin{Hosts: []string{hostOf(server)}, Networks: outbound.Loopback(), Plain: true})
	client := pin.Client(pin.Transport())
	defer client.CloseIdleConnections()
	res, err := client.Get(server.URL + "/?secret")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusTemporaryRedirect {
		t.Errorf("status %d", res.StatusCode)
	}
	if len(*told) != 1 || (*told)[0].To != hostOf(elsewhere) {
		t.Errorf("told of %v", *told)
	}
}

// A proxy in the environment gets nothing; net/http reads it once a process, so that the transport is asked instead.
func TestNoProxy(t *testing.T) {
	pin, _ := pinned(outbound.Pin{Hosts: []string{"a.example:443"}})
	if pin.Transport().Proxy != nil {
		t.Error("requests may go through a proxy")
	}
}

// Whoever has the address of a host without its certificate is not talked to.
func TestCertificatesAreChecked(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request arrived") }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	pin, _ := pinned(outbound.Pin{Hosts: []string{hostOf(server)}, Networks: outbound.Loopback()})
	client := pin.Client(pin.Transport())
	if _, err := client.Get(server.URL); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate of nobody's: %v", err)
	}
	if _, err := pin.DialTLSContext(t.Context(), "tcp", hostOf(server)); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate of nobody's: %v", err)
	}
	if _, err := pin.DialTLSContext(t.Context(), "tcp", "127.0.0.1:1"); !errors.Is(err, outbound.ErrRefused) {
		t.Error(err)
	}
	trusting := pin.Transport()
	trusting.TLSClientConfig.RootCAs = server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	trusting.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return pin.DialContext(ctx, network, hostOf(server))
	}
	named, _ := pinned(outbound.Pin{Hosts: []string{"eu.example:443"}})
	if _, err := named.Client(trusting).Get("https://eu.example/"); err == nil || !strings.Contains(err.Error(), "not eu.example") {
		t.Errorf("a certificate for another name: %v", err)
	}
}
