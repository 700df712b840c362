package residency

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/driftstack/fleet/orchestrator/outbound"
	"github.com/driftstack/fleet/orchestrator/place"
)

// Site is what an operator declares of where a process stands. Nobody can find that out by himself: it is printed as declared.
type Site struct {
	Location    place.EULocation
	Own         []Network    // where stores of ours may be besides a provider's
	Development bool         // this machine and networks of tests are ours as well
	Tunnel      netip.Prefix // leads to driver hosts, and is never ours
	Refused     func(outbound.Refusal)
}

// Network is one of ours at the site's location: a range of private addresses, or this machine itself, which is written "local".
type Network struct {
	prefix netip.Prefix
	local  bool
}

// UnmarshalText reads a range like 10.0.0.0/24, or local.
func (n *Network) UnmarshalText(text []byte) error {
	if string(text) == "local" {
		*n = Network{local: true}
		return nil
	}
	p, err := netip.ParsePrefix(string(text))
	if err != nil || p != p.Masked() {
		return fmt.Errorf("%q is no network: use one like 10.0.0.0/24, or local for this machine", text)
	}
	*n = Network{prefix: p}
	return nil
}

// InEU is the way to something that stands in the EU, as far as that is known. Only the checks of this package make one, so that what may be in the EU alone cannot
// be given a way to somewhere else; the zero value leads nowhere. Storage of recordings has types of its own for the two regions, see package recorder.
type InEU struct{ pin *outbound.Pin }

// Pin connects to it.
func (e InEU) Pin() *outbound.Pin {
	if e.pin == nil {
		return &outbound.Pin{Category: "nothing"}
	}
	return e.pin
}

// Standing is where something that is configured stands, and how that is known.
type Standing struct {
	Category Name
	Setting  string
	Host     string // HOST:PORT, a socket or a folder; no credentials
	Region   place.Region
	Country  string // of the member state; empty where only the region is known
	Known    Known
}

// Known is how it is known where something stands.
type Known string

// Ways of knowing.
const (
	ByName       Known = "by the provider's host name, which the certificate has to have"
	ByRegion     Known = "by the provider's host of the region, and a probe at start"
	DeclaredOnly Known = "declared, not verified"
)

// BreachError is a setting that would have something of a category where nothing of it may be.
type BreachError struct {
	Category         Name
	Setting, Problem string
	Mend             string
}

func (e *BreachError) Error() string {
	return fmt.Sprintf("%s: %s. Row %q of the register may be in %s. %s", e.Setting, e.Problem, e.Category, allowed(e.Category), e.Mend)
}

// allowed says where a category may be.
func allowed(c Name) string {
	row, _ := Row(c)
	var all []string
	for _, a := range row.Places {
		s := strings.ToUpper(string(a.Region))
		if a.For != Everyone {
			s += " (" + string(a.For) + ")"
		}
		all = append(all, s)
	}
	return strings.Join(all, ", ")
}

// Row is a row of the register.
func Row(name Name) (Category, bool) {
	i := slices.IndexFunc(Register(), func(c Category) bool { return c.Name == name })
	if i < 0 {
		return Category{}, false
	}
	return Register()[i], true
}

const mendOwn = "One in a network of ours is declared with --own-network NETWORK, and with --own-network local on this machine."

// Validate says what is wrong with what is declared.
func (s Site) Validate() error {
	mine := outbound.Private()
	use := "private addresses: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10, fc00::/7"
	if s.Development {
		mine, use = append(mine, outbound.Test()...), use+", and with --development networks of tests: 192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24, 198.18.0.0/15, 2001:db8::/32"
	}
	for _, n := range s.Own {
		switch {
		case n.local:
		case n.prefix.Overlaps(s.Tunnel):
			return fmt.Errorf("--own-network %s: it has addresses of the tunnel's %s, which leads to driver hosts in the US: name a smaller one", n.prefix, s.Tunnel)
		case !slices.ContainsFunc(mine, func(m netip.Prefix) bool { return m.Bits() <= n.prefix.Bits() && m.Contains(n.prefix.Addr()) }):
			return fmt.Errorf("--own-network %s: nobody can say that all of it is ours and in %s: use a range of %s", n.prefix, s.Location.Country(), use)
		}
	}
	return nil
}

// local says whether this machine is a place for stores.
func (s Site) local() bool {
	return s.Development || slices.ContainsFunc(s.Own, func(n Network) bool { return n.local })
}

// networks are those of ours.
func (s Site) networks() (all []netip.Prefix) {
	if s.local() {
		all = outbound.Loopback()
	}
	for _, n := range s.Own {
		if !n.local {
			all = append(all, n.prefix)
		}
	}
	return all
}

// ours is for a host of ours: an address in our networks, or a name, which has to lead there when it is connected to.
func (s Site) ours(category Name, setting, host string, port uint16) (Standing, error) {
	at := Standing{category, setting, net.JoinHostPort(host, strconv.Itoa(int(port))), place.EU, s.Location.Country(), DeclaredOnly}
	a, err := netip.ParseAddr(host)
	switch {
	case err == nil && a.Zone() == "" && slices.ContainsFunc(s.networks(), func(n netip.Prefix) bool { return n.Contains(a.Unmap()) }):
		return at, nil
	case err == nil:
		return at, &BreachError{category, setting, fmt.Sprintf("%s is in no network that is declared to be ours", host), mendOwn}
	case len(s.networks()) == 0 || !plainName(host):
		return at, &BreachError{category, setting, fmt.Sprintf("%q is no host that is known to be in the EU", host), mendOwn}
	}
	return at, nil
}

// plainName is a name in the one spelling that is taken: lower case, ASCII, no dot at its end. What ends in the name of a provider of the register is that
// provider's, and not ours.
func plainName(host string) bool {
	for _, label := range strings.Split(host, ".") {
		if label == "" || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	for _, of := range []string{"neon.tech", "upstash.io", "sentry.io", "cloudflarestorage.com"} {
		if host == of || strings.HasSuffix(host, "."+of) {
			return false
		}
	}
	return true
}

// Server is a server of Postgres that a setting names.
type Server struct {
	Host     string // a name, an address, or the folder of a unix socket
	Port     uint16
	Address  string // as it is dialled
	Verified string // the name that its certificate has to have; empty: it is not looked at
}

// CheckPostgres says where a database stands, and how it is connected to. Several servers, as after a comma or where TLS is tried first, are all
// checked. Errors are *BreachError.
func (s Site) CheckPostgres(category Name, setting string, servers []Server) (Standing, InEU, error) {
	if len(servers) == 0 {
		return Standing{}, InEU{}, &BreachError{category, setting, "it names no server", "Give it a host."}
	}
	var first Standing
	pin := s.pin(category)
	for i, v := range servers {
		at, err := s.server(category, setting, v)
		if err != nil {
			return at, InEU{}, err
		}
		if i > 0 && at.Known != first.Known {
			return at, InEU{}, &BreachError{category, setting, fmt.Sprintf("%s and %s are not both a provider's or both ours", first.Host, at.Host), "Give it servers of one kind."}
		}
		if i == 0 {
			first = at
		}
		pin.Hosts = append(pin.Hosts, v.Address)
	}
	if first.Known == DeclaredOnly {
		pin.Networks = s.networks()
	}
	return first, InEU{pin}, nil
}

func (s Site) pin(category Name) *outbound.Pin {
	return &outbound.Pin{Category: string(category), Refused: s.Refused}
}

func (s Site) server(category Name, setting string, v Server) (Standing, error) {
	if strings.HasPrefix(v.Host, "/") || strings.HasPrefix(v.Host, "@") {
		at := Standing{category, setting, v.Host, place.EU, s.Location.Country(), DeclaredOnly}
		if !s.local() {
			return at, &BreachError{category, setting, v.Host + " is a socket of this machine, where it is not declared to be", mendOwn}
		}
		return at, nil
	}
	country, unknown := place.NeonHost(v.Host)
	if unknown != nil {
		at, err := s.ours(category, setting, v.Host, v.Port)
		var breach *BreachError
		if errors.As(err, &breach) {
			breach.Mend = fmt.Sprintf("Of a provider: %s. %s", unknown, breach.Mend)
		}
		return at, err
	}
	at := Standing{category, setting, net.JoinHostPort(v.Host, strconv.Itoa(int(v.Port))), place.EU, country.Country(), ByName}
	if v.Verified != v.Host {
		return at, &BreachError{category, setting, v.Host + " is taken for what it says without a look at its certificate", "Add sslmode=verify-full to it."}
	}
	return at, nil
}

// CheckRedis says where a cache stands, by its URL (rediss://:PASSWORD@HOST:PORT/0, or unix:///SOCKET), and how it is connected to. A provider's is reached by
// [outbound.Pin.DialTLSContext]. Errors are *BreachError.
func (s Site) CheckRedis(setting, raw string) (Standing, InEU, error) {
	breach := func(problem, mend string) (Standing, InEU, error) {
		return Standing{}, InEU{}, &BreachError{Cache, setting, problem, mend}
	}
	const form = "Use rediss://:PASSWORD@eu1-NAME.upstash.io:6379. " + mendOwn
	u, err := url.Parse(raw)
	if err != nil {
		return breach("it is no URL", form) // the error would tell the password
	}
	pin := s.pin(Cache)
	if u.Scheme == "unix" && u.Host == "" && u.Path != "" {
		at, err := s.server(Cache, setting, Server{Host: u.Path})
		if err != nil {
			return at, InEU{}, err
		}
		pin.Hosts = []string{u.Path}
		return at, InEU{pin}, nil
	}
	port, err := strconv.ParseUint(cmp.Or(u.Port(), "6379"), 10, 16)
	if u.Scheme != "rediss" && u.Scheme != "redis" || u.Hostname() == "" || err != nil || port == 0 {
		return breach("it is no URL of a Redis", form)
	}
	pin.Hosts = []string{net.JoinHostPort(u.Hostname(), strconv.Itoa(int(port)))}
	country, unknown := place.UpstashHost(u.Hostname())
	if unknown == nil {
		if u.Scheme != "rediss" {
			return breach(u.Hostname()+" is spoken to without TLS", form)
		}
		return Standing{Cache, setting, pin.Hosts[0], place.EU, country.Country(), ByName}, InEU{pin}, nil
	}
	at, err := s.ours(Cache, setting, u.Hostname(), uint16(port))
	if err != nil {
		return at, InEU{}, &BreachError{Cache, setting, unknown.Error(), form}
	}
	pin.Networks = s.networks()
	return at, InEU{pin}, nil
}

// CheckSentry says where error events go, by the DSN, and how: there is nothing in networks of ours, and nothing in development either. Errors are *BreachError.
func (s Site) CheckSentry(setting, dsn string) (Standing, InEU, error) {
	const form = "Use https://KEY@oNUMBER.ingest.de.sentry.io/PROJECT, or leave it out."
	u, err := url.Parse(dsn)
	switch {
	case err != nil:
		return Standing{}, InEU{}, &BreachError{Errors, setting, "it is no URL", form}
	case u.Scheme != "https" || u.Port() != "" && u.Port() != "443":
		return Standing{}, InEU{}, &BreachError{Errors, setting, "it is no DSN that goes over https to port 443", form}
	}
	country, err := place.SentryHost(u.Hostname())
	if err != nil {
		return Standing{}, InEU{}, &BreachError{Errors, setting, err.Error(), form}
	}
	pin := s.pin(Errors)
	pin.Hosts = []string{net.JoinHostPort(u.Hostname(), "443")}
	return Standing{Errors, setting, pin.Hosts[0], place.EU, country.Country(), ByName}, InEU{pin}, nil
}

// CheckPeer says where other orchestrators reach this one; they are all in networks of ours. Errors are *BreachError.
func (s Site) CheckPeer(setting, raw string) (Standing, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" {
		return Standing{}, &BreachError{Execution, setting, "it is no URL", "Use http://HOST:PORT."}
	}
	port, err := strconv.ParseUint(cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme]), 10, 16)
	if err != nil {
		return Standing{}, &BreachError{Execution, setting, "it is no URL", "Use http://HOST:PORT."}
	}
	return s.ours(Execution, setting, u.Hostname(), uint16(port))
}

// Peers is how other orchestrators are reached, which Postgres names: in networks of ours, whatever it says.
func (s Site) Peers() InEU {
	pin := s.pin(Execution)
	pin.Networks, pin.Plain = s.networks(), true
	return InEU{pin}
}

// CheckEnvironment refuses proxies: nothing here uses one, and whoever sets one expects that it is used.
func (s Site) CheckEnvironment(environ []string) error {
	for _, v := range environ {
		name, value, _ := strings.Cut(v, "=")
		switch strings.ToUpper(name) {
		case "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY":
			if value != "" && !s.Development {
				return &BreachError{Execution, name, "a proxy would be one more place that data goes through, and no connection of the orchestrator takes one", "Unset it for the orchestrator."}
			}
		}
	}
	return nil
}
