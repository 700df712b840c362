package main

import (
	"context"
	"errors"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alecthomas/kong"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator/outbound"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/orchestrator/residency"
)

const neon = "postgres://u:verysecret@ep-calm-sea-a2b3c4.eu-central-1.aws.neon.tech/fleet?sslmode=verify-full"

// production is a configuration that starts, apart from what a test changes.
func production(t *testing.T, args ...string) (config, error) {
	t.Helper()
	var cfg config
	parser, err := kong.New(&cfg, kong.Name("orchestrator"), kong.DefaultEnvars("DRIFTSTACK"))
	must(t, err)
	all := append([]string{"--location", "DE", "--service-token", "0123456789abcdef", "--state-dir", t.TempDir(), "--tunnel-endpoint", "a.example:1"}, euBucket...)
	for _, flag := range []string{"--database-url", "--key-database-url"} {
		if !slices.Contains(args, flag) {
			all = append(all, flag, neon)
		}
	}
	_, err = parser.Parse(append(all, args...))
	return cfg, err
}

// TestPlaces is every endpoint that one can write and that is wrong: each is refused before anything is connected to, with the row, the setting, what may be and what to do.
func TestPlaces(t *testing.T) {
	database := func(url string) []string { return []string{"--database-url", url} }
	host := func(name string) []string {
		return database("postgres://u:verysecret@" + name + "/fleet?sslmode=verify-full")
	}
	wrong := func(setting, category string, mend ...string) []string {
		return append([]string{setting, `Row "` + category + `"`, " may be in EU"}, mend...)
	}
	sessions := func(more ...string) []string {
		return append(wrong("--database-url", "sessions", "--own-network", "ep-NAME-ID.eu-central-1.aws.neon.tech"), more...)
	}
	for name, tt := range map[string]struct {
		args []string
		env  string   // NAME=VALUE
		says []string // nothing: it is accepted
	}{
		"Neon in the EU":                        {},
		"Neon, pooled":                          {args: host("ep-calm-sea-a2b3c4-pooler.eu-central-1.aws.neon.tech")},
		"Neon, in a cell":                       {args: host("ep-calm-sea-a2b3c4.c-2.eu-central-1.aws.neon.tech:5432")},
		"Neon in the US":                        {args: host("ep-calm-sea-a2b3c4.us-east-2.aws.neon.tech"), says: sessions("us-east-2")},
		"Neon in London":                        {args: host("ep-calm-sea-a2b3c4.eu-west-2.aws.neon.tech"), says: sessions("London")},
		"keys in the US":                        {args: []string{"--key-database-url", "postgres://ep-a-b.us-west-2.aws.neon.tech/keys?sslmode=verify-full"}, says: wrong("--key-database-url", "profile_state", "us-west-2", "--own-network")},
		"a Postgres elsewhere":                  {args: host("db.example"), says: sessions()},
		"an address elsewhere":                  {args: host("3.5.140.2"), says: sessions()},
		"an address of IPv6 elsewhere":          {args: host("[2600:1f00::1]"), says: sessions()},
		"a number for an address":               {args: host("2130706433"), says: sessions()},
		"this machine, not declared":            {args: host("127.0.0.1"), says: sessions()},
		"this machine by name, not declared":    {args: host("localhost"), says: sessions()},
		"a socket, not declared":                {args: database("host=/run/postgresql dbname=fleet"), says: wrong("--database-url", "sessions", "--own-network local")},
		"an abstract socket, not declared":      {args: database("host=@postgres dbname=fleet"), says: wrong("--database-url", "sessions")},
		"a private address, not declared":       {args: host("10.0.0.5"), says: sessions()},
		"a look-alike that goes on":             {args: host("ep-a-b.eu-central-1.aws.neon.tech.evil.com"), says: sessions()},
		"a look-alike before":                   {args: host("evil-eu-central-1.aws.neon.tech"), says: sessions()},
		"a look-alike with a dash":              {args: host("ep-a-b.eu-central-1-aws.neon.tech"), says: sessions()},
		"a region in the name of one in the US": {args: host("ep-eu-central-1.us-east-2.aws.neon.tech"), says: sessions("us-east-2")},
		"a region below another":                {args: host("ep-a-b.eu-central-1.aws.us-east-2.aws.neon.tech"), says: sessions()},
		"a dot at the end":                      {args: host("ep-a-b.eu-central-1.aws.neon.tech."), says: sessions("without a dot at its end")},
		"upper case":                            {args: host("EP-A-B.EU-CENTRAL-1.AWS.NEON.TECH"), says: sessions("lower case")},
		"letters that look the same":            {args: host("ep-a-b.eu-central-1.aws.nеon.tech"), says: sessions()}, // a Cyrillic е
		"a full stop that is another":           {args: host("ep-a-b.eu-central-1.aws。neon.tech"), says: sessions()},
		"punycode":                              {args: host("xn--ep-a-b-1fd.eu-central-1.aws.neon.tech"), says: sessions()},
		"the right host as the user":            {args: database("postgres://ep-a-b.eu-central-1.aws.neon.tech@evil.com/fleet?sslmode=verify-full"), says: sessions()},
		"the right host as user and password":   {args: database("postgres://ep-a-b.eu-central-1.aws.neon.tech:5432@evil.com/fleet?sslmode=verify-full"), says: sessions()},
		"the right host in the fragment":        {args: database("postgres://evil.com/fleet?sslmode=verify-full#ep-a-b.eu-central-1.aws.neon.tech"), says: wrong("--database-url", "sessions")},
		"another host in the query":             {args: database("postgres://ep-a-b.eu-central-1.aws.neon.tech/fleet?sslmode=verify-full&host=evil.com"), says: sessions()},
		"a second host":                         {args: host("ep-a-b.eu-central-1.aws.neon.tech,evil.com"), says: sessions()},
		"a second host in the US":               {args: host("ep-a-b.eu-central-1.aws.neon.tech,ep-a-b.us-east-2.aws.neon.tech"), says: sessions("us-east-2")},
		"a host of the environment":             {args: database("dbname=fleet sslmode=verify-full"), env: "PGHOST=evil.com", says: sessions()},
		"without a look at the certificate":     {args: database("postgres://ep-a-b.eu-central-1.aws.neon.tech/fleet?sslmode=require"), says: wrong("--database-url", "sessions", "sslmode=verify-full")},
		"without a name in the certificate":     {args: database("postgres://ep-a-b.eu-central-1.aws.neon.tech/fleet?sslmode=verify-ca"), says: wrong("--database-url", "sessions", "sslmode=verify-full")},
		"with TLS where it is to be had":        {args: database("postgres://ep-a-b.eu-central-1.aws.neon.tech/fleet"), says: wrong("--database-url", "sessions", "sslmode=verify-full")},
		"without TLS":                           {args: database("postgres://ep-a-b.eu-central-1.aws.neon.tech/fleet?sslmode=disable"), says: wrong("--database-url", "sessions", "sslmode=verify-full")},
		"TLS of the environment":                {args: database("postgres://ep-a-b.eu-central-1.aws.neon.tech/fleet"), env: "PGSSLMODE=disable", says: wrong("--database-url", "sessions", "sslmode=verify-full")},
		"no URL":                                {args: database("postgres://a b:verysecret@"), says: wrong("--database-url", "sessions")},

		"this machine":                  {args: append(host("127.0.0.1"), "--own-network", "local")},
		"a socket":                      {args: append(database("host=/run/postgresql dbname=fleet"), "--own-network", "local")},
		"a private network":             {args: append(host("10.0.0.5"), "--own-network", "10.0.0.0/24")},
		"a name in a private network":   {args: append(host("db.internal"), "--own-network", "10.0.0.0/24")},
		"beside the private network":    {args: append(host("10.0.1.5"), "--own-network", "10.0.0.0/24"), says: sessions()},
		"a socket, and a network":       {args: append(database("host=/run/postgresql dbname=fleet"), "--own-network", "10.0.0.0/24"), says: wrong("--database-url", "sessions", "--own-network local")},
		"a provider's, as one of ours":  {args: append(host("ep-a-b.us-east-2.aws.neon.tech"), "--own-network", "10.0.0.0/24"), says: sessions()},
		"a provider's and ours":         {args: append(host("ep-a-b.eu-central-1.aws.neon.tech,10.0.0.5"), "--own-network", "10.0.0.0/24"), says: wrong("--database-url", "sessions", "one kind")},
		"everything as ours":            {args: []string{"--own-network", "0.0.0.0/0"}, says: []string{"--own-network 0.0.0.0/0", "name a smaller one"}},
		"the Internet as ours":          {args: []string{"--own-network", "3.0.0.0/8"}, says: []string{"--own-network 3.0.0.0/8", "private addresses"}},
		"the Internet of IPv6 as ours":  {args: []string{"--own-network", "2000::/3"}, says: []string{"--own-network 2000::/3", "fc00::/7"}},
		"more than is private":          {args: []string{"--own-network", "192.168.0.0/15"}, says: []string{"--own-network 192.168.0.0/15", "192.168.0.0/16"}},
		"the tunnel as ours":            {args: []string{"--own-network", "10.0.0.0/8"}, says: []string{"--own-network 10.0.0.0/8", "10.76.0.0/15", "US"}},
		"a test network in production":  {args: []string{"--own-network", "198.51.100.0/24"}, says: []string{"--own-network 198.51.100.0/24"}},
		"a test network":                {args: append(host("198.51.100.7"), "--own-network", "198.51.100.0/24", "--development")},
		"development":                   {args: append(database("host=/run/postgresql dbname=fleet"), "--development")},
		"elsewhere, in development":     {args: append(host("3.5.140.2"), "--development"), says: sessions()},
		"the US, in development":        {args: append(host("ep-a-b.us-east-2.aws.neon.tech"), "--development"), says: sessions()},
		"no network":                    {args: []string{"--own-network", "10.0.0.5"}, says: []string{"--own-network", "10.0.0.0/24"}},
		"a network with bits of a host": {args: []string{"--own-network", "10.0.0.5/24"}, says: []string{"--own-network", "10.0.0.0/24"}},

		"another orchestrator elsewhere": {args: []string{"--peer-url", "http://3.5.140.2:8080"}, says: []string{"--peer-url", `Row "execution"`, "--own-network"}},
		"another orchestrator":           {args: []string{"--peer-url", "http://10.0.0.5:8080", "--own-network", "10.0.0.0/24"}},

		"R2's default endpoint for the EU bucket": {args: []string{"--eu-s3-endpoint", "https://" + r2Account + ".r2.cloudflarestorage.com"}, says: []string{"--eu-s3-endpoint", "--development"}},
		"R2's default endpoint, in development":   {args: []string{"--eu-s3-account", "", "--eu-s3-endpoint", "https://" + r2Account + ".r2.cloudflarestorage.com", "--development"}, says: []string{"--eu-s3-endpoint", "loopback"}},
		"another jurisdiction in the account":     {args: []string{"--eu-s3-account", r2Account + ".fedramp"}, says: []string{"--eu-s3-account", "32 of 0-9 and a-f"}},
		"a proxy":                                 {env: "HTTP_PROXY=http://proxy.example:3128", says: []string{"HTTP_PROXY", "Unset it"}},
		"a proxy for TLS, in lower case":          {env: "https_proxy=http://proxy.example:3128", says: []string{"https_proxy", "Unset it"}},
		"a proxy for all":                         {env: "ALL_PROXY=socks5://proxy.example", says: []string{"ALL_PROXY", "Unset it"}},
	} {
		t.Run(name, func(t *testing.T) {
			if name, value, ok := strings.Cut(tt.env, "="); ok {
				t.Setenv(name, value)
			}
			_, err := production(t, tt.args...)
			if (err != nil) != (tt.says != nil) {
				t.Fatalf("%v", err)
			}
			for _, s := range tt.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("the error does not say %q: %v", s, err)
				}
			}
			if err != nil && strings.Contains(err.Error(), "verysecret") {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
}

// All that is wrong is said at once.
func TestAllBreachesAreSaid(t *testing.T) {
	_, err := production(t, "--database-url", "postgres://db.example/fleet", "--key-database-url", "postgres://db.example/keys", "--peer-url", "http://3.5.140.2:8080")
	for _, s := range []string{"--database-url: ", "--key-database-url: ", "--peer-url: "} {
		if err == nil || !strings.Contains(err.Error(), s) {
			t.Errorf("%s is not in %v", s, err)
		}
	}
}

// TestStanding: what is accepted is printed with how it is known.
func TestStanding(t *testing.T) {
	cfg, err := production(t, "--key-database-url", "host=/run/postgresql dbname=keys", "--own-network", "local")
	must(t, err)
	p, err := cfg.places(cfg.site(nil))
	must(t, err)
	var got []string
	for _, s := range p.standing {
		if s.Setting != "--state-dir" { // its name is another each time
			got = append(got, strings.Join([]string{s.Setting, string(s.Category), s.Host, string(s.Region), s.Country, string(s.Known)}, " | "))
		}
	}
	want := []string{
		"--database-url | sessions | ep-calm-sea-a2b3c4.eu-central-1.aws.neon.tech:5432 | eu | DE | by the provider's host name, which the certificate has to have",
		"--key-database-url | profile_state | /run/postgresql | eu | DE | declared, not verified",
		"--eu-s3-account | recordings | " + r2Account + ".eu.r2.cloudflarestorage.com:443 | eu |  | by the provider's host of the region, and a probe at start",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s", strings.Join(got, "\n"))
	}
}

// TestNamesThatResolveElsewhere: a name that may be ours, and one that is a provider's, whose address is neither, do not connect.
func TestNamesThatResolveElsewhere(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer server.Close()
	go func() { // ends with the listener
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			t.Error("somebody connected")
			conn.Close()
		}
	}()
	var told []outbound.Refusal
	cfg, err := production(t, "--database-url", "postgres://u:p@localhost:"+port(server)+"/fleet?connect_timeout=5", "--own-network", "10.0.0.0/24")
	must(t, err)
	p, err := cfg.places(cfg.site(func(r outbound.Refusal) { told = append(told, r) }))
	must(t, err)
	_, err = pgstore.OpenAt(t.Context(), p.database, "eu-1", zap.NewNop())
	if !errors.Is(err, outbound.ErrRefused) || !strings.Contains(err.Error(), "10.0.0.0/24") {
		t.Errorf("%v", err)
	}
	if len(told) == 0 || told[0].Category != "sessions" {
		t.Errorf("told of %v", told)
	}
}

func port(l net.Listener) string {
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// TestSettings: every flag that takes text is in the register, and the register has no flag that there is not.
func TestSettings(t *testing.T) {
	parser, err := kong.New(&config{}, kong.Name("orchestrator"))
	must(t, err)
	lines := map[string]bool{}
	for _, s := range residency.Settings() {
		lines[s.Flag] = false
	}
	for _, f := range parser.Model.Flags {
		if !leads(f) {
			continue
		}
		if _, ok := lines[f.Name]; !ok {
			t.Errorf("--%s is not in residency.Settings: say which category it leads to, or why to none", f.Name)
		}
		lines[f.Name] = true
	}
	for flag, seen := range lines {
		if !seen {
			t.Errorf("residency.Settings has --%s, which is no flag that takes text", flag)
		}
	}
}

// leads says whether a flag can name a place: all can but switches, numbers, times and choices from a list.
func leads(f *kong.Flag) bool {
	if f.Enum != "" || f.Name == "help" {
		return false
	}
	switch k := f.Target.Kind(); k {
	case reflect.Bool, reflect.Int, reflect.Int64, reflect.Uint16:
		return false
	default:
		return true
	}
}

// TestRefusalsAreAudited: once for each host within ten minutes, however often it was tried, and again after that.
func TestRefusalsAreAudited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		r := newRefusals(zap.NewNop())
		var written []outbound.Refusal
		done := make(chan struct{})
		go func() { // ends with ctx
			defer close(done)
			r.run(ctx, func(_ context.Context, v outbound.Refusal) error {
				written = append(written, v)
				return errors.New("the database is away") // it goes on
			})
		}()
		for range 100 {
			r.add(outbound.Refusal{Category: "recordings", To: "a.example:443"})
		}
		r.add(outbound.Refusal{Category: "recordings", To: "b.example:443"})
		r.add(outbound.Refusal{Category: "sessions", To: "a.example:443"})
		synctest.Wait()
		if len(written) != 3 {
			t.Errorf("%d lines", len(written))
		}
		time.Sleep(refusedEvery)
		r.add(outbound.Refusal{Category: "recordings", To: "a.example:443"})
		synctest.Wait()
		if len(written) != 4 {
			t.Errorf("%d lines after a while", len(written))
		}
		cancel()
		<-done
	})
}
