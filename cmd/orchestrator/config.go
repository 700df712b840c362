package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/driftstack/fleet/orchestrator/place"
	"github.com/driftstack/fleet/orchestrator/residency"
	"github.com/driftstack/fleet/recorder"
)

// config is every setting, as flag and as environment variable.
type config struct {
	Name           string              `default:"eu-1" help:"Name of this orchestrator, unique among its replicas."`
	DatabaseURL    string              `required:"" placeholder:"URL" help:"Postgres, for example postgres://user:password@ep-NAME.eu-central-1.aws.neon.tech/fleet?sslmode=verify-full, or host=/socket/folder dbname=fleet with --own-network local."`
	KeyDatabaseURL string              `required:"" placeholder:"URL" help:"Postgres database of the wrapped keys of profiles, likewise: one of its own, better on another server, with backups that expire."`
	HTTPAddr       string              `default:"127.0.0.1:8080" help:"Where the API and the driver routes are served. TLS ends in front of it."`
	PeerURL        string              `placeholder:"URL" help:"Where the other orchestrators of the same Postgres reach this one's --http-addr, for example http://10.0.0.5:8080: this process alone, not what spreads requests among them. Needed where others run."`
	MetricsAddr    string              `placeholder:"HOST:PORT" help:"Where /metrics is served for Prometheus, without a token: give it an address that only the monitoring reaches. Default: nowhere."`
	ServiceToken   string              `required:"" placeholder:"TOKEN" help:"What the API server authenticates with, at least 16 characters."`
	StateDir       string              `required:"" type:"path" placeholder:"DIR" help:"EU volume for sealed profiles, recording spools and keys."`
	Location       place.EULocation    `required:"" placeholder:"COUNTRY" help:"Where this orchestrator and its --state-dir are: the ISO 3166-1 code of a member state of the EU, for example DE. Declared, not verified. Elsewhere it does not start: profiles are kept and opened in the EU only."`
	OwnNetwork     []residency.Network `placeholder:"NETWORK,…" help:"Networks of ours at --location in which Postgres, the cache and other orchestrators may be, besides a provider's region in the EU: ranges of private addresses, or local for this machine. Declared, not verified. With --development local always is, and ranges of test networks may be."`

	PrivateDir string `type:"path" placeholder:"DIR" help:"Folder on this machine's own disk for its tunnel key, where --state-dir is a volume that several orchestrators share. Default: --state-dir."`

	TunnelBackend    string `default:"auto" enum:"auto,kernel,tun,netstack" help:"WireGuard backend: auto, kernel, tun or netstack; netstack needs no privilege."`
	TunnelInterface  string `default:"driftgw0" help:"Network interface of the kernel and tun backends."`
	TunnelListenPort int    `default:"51820" help:"UDP port that driver hosts send to."`
	TunnelEndpoint   string `required:"" placeholder:"HOST:PORT" help:"The same as driver hosts reach it; it goes into join tokens."`
	TunnelNumber     int    `default:"1" help:"Number of this orchestrator in the tunnel, 1 to 255: its address is 10.77.0.N."`
	TunnelFleetPort  uint16 `default:"7700" help:"TCP port for driver hosts on the tunnel address."`
	TunnelMTU        int    `default:"1280" help:"MTU of the tunnel."`

	TunnelRotate time.Duration `default:"2160h" help:"Age at which this orchestrator's tunnel key is replaced; hosts learn the next one a week before. At least 720h."`
	HostRotate   time.Duration `default:"720h" help:"Age at which a driver host is asked for a new tunnel key. At least 1h."`
	HostRest     time.Duration `default:"168h" help:"How long the tunnel address of a removed driver host is not given to another."`

	EU s3 `embed:"" prefix:"eu-s3-" envprefix:"DRIFTSTACK_EU_S3_" group:"EU object storage"`
	US s3 `embed:"" prefix:"us-s3-" envprefix:"DRIFTSTACK_US_S3_" group:"US object storage (without it, recorded sessions of accounts with replicated recordings end as recording_failed)"`

	ProfileRootKey     string `placeholder:"KEY" help:"Root key of the profiles: the text of its file, or that in base64; for the environment. Default: profile-root.key in --state-dir, which is made at the first start."`
	ProfileMaxBytes    int    `default:"16777216" help:"Most that a profile may hold, in bytes of its storageState."`
	ProfileMaxOrigins  int    `default:"50" help:"Origins whose localStorage a profile may hold."`
	ProfileGenerations int    `default:"10" help:"Saved states of a profile that are kept to go back to."`

	SpoolBeginAbove int64 `default:"2147483648" help:"Free bytes on the volume of --state-dir below which no recording is begun; sessions run without. 0: none."`
	SpoolTakeAbove  int64 `default:"536870912" help:"Free bytes there below which hosts hold what they record in their memory. At most --spool-begin-above; 0: none."`

	QueueLimit            int           `default:"10000" help:"Sessions that may be queued at once, of all accounts; one more is answered with 429."`
	QuotaConcurrent       int           `default:"100" help:"Sessions that an account may have on devices at once, unless it has a limit of its own; further ones wait in the queue."`
	QuotaQueued           int           `default:"1000" help:"Sessions that an account may have queued at once, unless it has a limit of its own; one more is answered with 429."`
	QuotaCreatesPerMinute int           `default:"600" help:"Sessions that an account may create within 60s, unless it has a limit of its own; one more is answered with 429."`
	LeaseTTL              time.Duration `default:"15s" help:"How long a session belongs to an orchestrator that says nothing; then another, or the same started anew, goes on with it. 6s to 30s."`
	LogLevel              string        `default:"info" enum:"debug,info,warn,error" help:"Least level that is logged: debug, info, warn or error."`
	Development           bool          `help:"Allow stores on this machine and in test networks (--own-network), object storage on loopback (--eu-s3-endpoint, --us-s3-endpoint), and log for people instead of machines."`
}

// s3 is one bucket. The struct tags of kong give each field its flag. Its host is not among them: it follows from the account and the region.
type s3 struct {
	Account    string              `env:"ACCOUNT" placeholder:"ID" help:"Id of the R2 account, 32 of 0-9 and a-f. The host follows from it: ID.eu.r2.cloudflarestorage.com for the EU, ID.r2.cloudflarestorage.com for the US."`
	Bucket     string              `env:"BUCKET" placeholder:"NAME" help:"Bucket of the recordings, made there: in the EU with the jurisdiction eu, in the US with the location hint enam or wnam. Probed at start."`
	AccessKey  string              `env:"ACCESS_KEY" placeholder:"KEY" help:"Access key id."`
	SecretKey  string              `env:"SECRET_KEY" placeholder:"KEY" help:"Secret access key."`
	Endpoint   string              `env:"ENDPOINT" placeholder:"URL" help:"For --development, instead of the account: http://127.0.0.1:PORT of an S3 server on this machine."`
	Encryption recorder.Encryption `env:"ENCRYPTION" placeholder:"HOW" help:"Encryption at rest, checked at start: always (R2; nothing else is possible there); AES256 (asked for with each object) or none with an endpoint. Default: always, or none."`
}

// Validate is called by kong once everything is parsed.
func (c *config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.ServiceToken) < 16 {
		bad("--service-token: at least 16 characters; `openssl rand -hex 24` makes one")
	}
	if _, _, err := net.SplitHostPort(c.HTTPAddr); err != nil {
		bad("--http-addr: %w", err)
	}
	if _, _, err := net.SplitHostPort(c.MetricsAddr); err != nil && c.MetricsAddr != "" {
		bad("--metrics-addr: %w", err)
	}
	if u, err := url.Parse(c.PeerURL); c.PeerURL != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "") {
		bad("--peer-url %q: use http://HOST:PORT, as the other orchestrators reach this one", c.PeerURL)
	}
	if host, port, err := net.SplitHostPort(c.TunnelEndpoint); err != nil || host == "" {
		bad("--tunnel-endpoint %q: use HOST:PORT, as driver hosts reach it", c.TunnelEndpoint)
	} else if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		bad("--tunnel-endpoint %q: the port is 1 to 65535", c.TunnelEndpoint)
	}
	if c.TunnelRotate < 720*time.Hour {
		bad("--tunnel-rotate: at least 720h, hosts learn the next key a week before")
	}
	if c.HostRotate < time.Hour {
		bad("--host-rotate: at least 1h")
	}
	if c.HostRest < 0 {
		bad("--host-rest: not negative")
	}
	if c.ProfileMaxBytes < 1<<20 || c.ProfileMaxBytes > 64<<20 {
		bad("--profile-max-bytes: 1048576 to 67108864")
	}
	if c.ProfileMaxOrigins < 1 || c.ProfileMaxOrigins > 1000 {
		bad("--profile-max-origins: 1 to 1000")
	}
	if c.ProfileGenerations < 2 {
		bad("--profile-generations: at least 2, the current one and one to go back to")
	}
	if c.SpoolTakeAbove < 0 || c.SpoolTakeAbove > c.SpoolBeginAbove {
		bad("--spool-take-above: 0 to --spool-begin-above, which is %d", c.SpoolBeginAbove)
	}
	if c.QueueLimit < 1 {
		bad("--queue-limit: at least 1")
	}
	if c.QuotaConcurrent < 1 || c.QuotaQueued < 1 || c.QuotaCreatesPerMinute < 1 {
		bad("--quota-concurrent, --quota-queued and --quota-creates-per-minute: at least 1")
	}
	if c.LeaseTTL < 6*time.Second || c.LeaseTTL > 30*time.Second {
		bad("--lease-ttl: 6s to 30s; hosts keep a session that nobody comes for 90s")
	}
	errs = append(errs, c.EU.validate("--eu-s3-", c.Development))
	if c.US != (s3{}) {
		errs = append(errs, c.US.validate("--us-s3-", c.Development))
	}
	_, err := c.places(c.site(nil))
	return errors.Join(append(errs, err)...)
}

func (s s3) validate(setting string, development bool) error {
	if s.Endpoint != "" && !development {
		return fmt.Errorf("%sendpoint %q: only with --development, and on loopback; for R2 give %[1]saccount", setting, s.Endpoint)
	}
	return s.target().Validate(setting)
}

func (s s3) target() recorder.Target {
	return recorder.Target{Account: s.Account, Endpoint: s.Endpoint, Bucket: s.Bucket, AccessKey: s.AccessKey, SecretKey: s.SecretKey, Encryption: s.Encryption}
}

func (c *config) us() *recorder.USTarget {
	if c.US == (s3{}) {
		return nil
	}
	return &recorder.USTarget{Target: c.US.target()}
}

func (c *config) logger() (*zap.Logger, error) {
	z := zap.NewProductionConfig()
	z.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	if c.Development {
		z = zap.NewDevelopmentConfig()
		z.DisableStacktrace = true
	}
	level, err := zapcore.ParseLevel(c.LogLevel)
	if err != nil {
		return nil, err
	}
	z.Level = zap.NewAtomicLevelAt(level)
	return z.Build()
}
