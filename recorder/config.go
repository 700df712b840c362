package recorder

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator/outbound"
	"github.com/driftstack/fleet/orchestrator/place"
)

// Defaults and limits.
const (
	DefaultPartSize    = 8 << 20
	DefaultConcurrency = 8
	DefaultCallTimeout = 2 * time.Minute
	DefaultRetryMax    = 30 * time.Second
	DefaultScanEvery   = 15 * time.Second
	DefaultRoomEvery   = time.Second
	DefaultSweepEvery  = 10 * time.Minute
	DefaultCheckEvery  = 24 * time.Hour
	// DefaultAbandonedAfter is before R2 drops an upload by itself, after seven days.
	DefaultAbandonedAfter = 5 * 24 * time.Hour
	MaxURLLifetime        = time.Hour

	minPartSize = 5 << 20 // R2 and S3
	maxPartSize = 1 << 30
	maxParts    = 10_000
)

// Config is what a Recorder needs. Dir, EU and Journal are required.
type Config struct {
	Dir     string    // spool volume, in the EU
	EU      EUTarget  // every recording goes here
	US      *USTarget // nil: recordings of placement replicated are refused
	Journal Journal

	Removals Removals // of copies in the US; nil: none are ever removed
	Sweeps   Sweeps   // nil: nobody looks after what lies in storage

	Refused func(outbound.Refusal) // is told of connections that were not made because they would have gone elsewhere; may be nil

	Log *zap.Logger      // zap.NewNop() when nil
	Now func() time.Time // time.Now when nil

	PartSize    int64         // of a multipart upload, DefaultPartSize when 0
	Concurrency int           // uploads in flight to each target over all recordings, DefaultConcurrency when 0
	CallTimeout time.Duration // of one request to storage, DefaultCallTimeout when 0
	ScanEvery   time.Duration // for spools that other processes left, DefaultScanEvery when 0
	SweepEvery  time.Duration // for abandoned uploads and copies that are due, DefaultSweepEvery when 0
	CheckEvery  time.Duration // each copy, DefaultCheckEvery when 0
	RetryMax    time.Duration // longest pause between two attempts, DefaultRetryMax when 0

	// Marks of the free bytes of Dir's volume, 0: none. Below BeginAbove no recording is begun; below TakeAbove nothing is taken from hosts, which hold it
	// in their memory. The latter is not above the former.
	BeginAbove int64
	TakeAbove  int64
	Free       func(dir string) (int64, error) // asks the volume when nil
	RoomEvery  time.Duration                   // between two looks at it, DefaultRoomEvery when 0

	// AbandonedAfter is how long what nobody seems to work on is left to whoever has its spool, DefaultAbandonedAfter when 0.
	AbandonedAfter time.Duration
}

func (c *Config) stores() storeConfig {
	return storeConfig{c.CallTimeout, c.Concurrency, c.Refused}
}

// Category is the row of recordings in the register of what may be where.
const Category = "recordings"

// EUTarget is a bucket of R2's eu jurisdiction.
type EUTarget struct{ Target }

// USTarget is a bucket on R2's default endpoint, made with a location hint in the US: R2 has no jurisdiction there. It is a type of its own so
// that the EU copy can never be handed one.
type USTarget struct{ Target }

// Target is a bucket, and how to get in. Its host is never given: it follows from the account and from which of the two types holds it.
type Target struct {
	Account    string // of R2: 32 of 0-9 and a-f
	Endpoint   string // instead of Account, for development: http://IP:PORT on loopback
	Bucket     string
	AccessKey  string
	SecretKey  string
	Encryption Encryption // at rest
}

// Encryption is how a storage encrypts what lies in it, as is known of it or declared; the zero value is EncryptionAlways with an
// account of R2, and EncryptionNone with an endpoint.
type Encryption string

// Encryptions.
const (
	EncryptionAlways Encryption = "always" // every object, without being asked to. R2: it refuses the header
	EncryptionAES256 Encryption = "AES256" // each object that asks for it (x-amz-server-side-encryption), and its answers say so
	EncryptionNone   Encryption = "none"   // not at all; nothing but an endpoint may be so
)

// String leaves out the credentials.
func (t Target) String() string {
	if t.Account != "" {
		return "R2 account " + t.Account + "/" + t.Bucket
	}
	return t.Endpoint + "/" + t.Bucket
}

// GoString leaves out the credentials.
func (t Target) GoString() string { return fmt.Sprintf("Target(%q)", t.String()) }

// site is where a target's bucket is, as a URL, and where it must not be: buckets of R2's eu jurisdiction are behind an endpoint of their own, where
// nothing else is.
type site struct {
	region          place.Region
	here, elsewhere string // elsewhere is "" where nobody knows of another place
}

// Host is where the bucket is: HOST:PORT.
func (t EUTarget) Host() string { return hostOf(t.site(nil)) }

// Host likewise.
func (t USTarget) Host() string { return hostOf(t.site(EUTarget{})) }

func hostOf(s site) string {
	u, err := url.Parse(s.here)
	if err != nil {
		return "" // Validate says so
	}
	return outbound.Address(u.Scheme, u.Host)
}

func (t EUTarget) site(us *USTarget) site {
	if t.Account != "" {
		return site{place.EU, "https://" + t.Account + place.R2EU, "https://" + t.Account + place.R2US}
	}
	s := site{region: place.EU, here: t.Endpoint}
	if us != nil {
		s.elsewhere = us.Endpoint
	}
	return s
}

func (t USTarget) site(eu EUTarget) site {
	if t.Account != "" {
		return site{place.US, "https://" + t.Account + place.R2US, "https://" + t.Account + place.R2EU}
	}
	return site{place.US, t.Endpoint, eu.Endpoint}
}

// Spec is a recording to begin.
type Spec struct {
	ID        string // unique for ever; letters, digits, - and _
	Session   string
	Account   string
	Term      int64
	Placement place.Placement
	Started   time.Time
}

const keyPrefix = "recordings/"

// Key is the recording's name in every bucket.
func (s Spec) Key() string {
	return keyPrefix + s.Account + "/" + s.Session + "/" + s.ID + ".webm"
}

var (
	nameForm   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$`)
	bucketForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$`)
	// Nothing else may get into the name of a host.
	accountForm = regexp.MustCompile(`^[0-9a-f]{32}$`)
)

func (s Spec) validate() error {
	for what, v := range map[string]string{"ID": s.ID, "session": s.Session, "account": s.Account} {
		if !nameForm.MatchString(v) {
			return fmt.Errorf("recorder: %s %q of a recording: use 1 to 128 letters, digits, - and _", what, v)
		}
	}
	_, err := place.ParsePlacement(string(s.Placement))
	return err
}

func (c *Config) complete() error {
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.PartSize == 0 {
		c.PartSize = DefaultPartSize
	}
	if c.Concurrency <= 0 {
		c.Concurrency = DefaultConcurrency
	}
	if c.CallTimeout <= 0 {
		c.CallTimeout = DefaultCallTimeout
	}
	if c.ScanEvery <= 0 {
		c.ScanEvery = DefaultScanEvery
	}
	if c.RoomEvery <= 0 {
		c.RoomEvery = DefaultRoomEvery
	}
	if c.Free == nil {
		c.Free = freeBytes
	}
	if c.SweepEvery <= 0 {
		c.SweepEvery = DefaultSweepEvery
	}
	if c.CheckEvery <= 0 {
		c.CheckEvery = DefaultCheckEvery
	}
	if c.AbandonedAfter <= 0 {
		c.AbandonedAfter = DefaultAbandonedAfter
	}
	if c.RetryMax <= 0 {
		c.RetryMax = DefaultRetryMax
	}
	switch {
	case c.Dir == "":
		return errors.New("recorder: Dir is empty: say where the spool is")
	case c.Journal == nil:
		return errors.New("recorder: no Journal")
	case c.TakeAbove < 0 || c.TakeAbove > c.BeginAbove:
		return fmt.Errorf("recorder: TakeAbove %d: use 0 to BeginAbove, which is %d", c.TakeAbove, c.BeginAbove)
	case c.PartSize < minPartSize || c.PartSize > maxPartSize:
		return fmt.Errorf("recorder: part size %d: use %d to %d bytes", c.PartSize, minPartSize, maxPartSize)
	}
	if err := c.EU.complete("recorder: EU "); err != nil {
		return err
	}
	if c.US == nil {
		return nil
	}
	us := *c.US // the caller's stays as it is
	c.US = &us
	if err := c.US.complete("recorder: US "); err != nil {
		return err
	}
	if c.US.Endpoint != "" && c.US.Endpoint == c.EU.Endpoint {
		return fmt.Errorf("recorder: the EU and the US endpoint are both %s: the two regions need endpoints that do not see one another's buckets", c.US.Endpoint)
	}
	return nil
}

// complete is Validate, and fills in what follows from the rest.
func (t *Target) complete(setting string) error {
	if t.Encryption == "" {
		t.Encryption = EncryptionNone
		if t.Account != "" {
			t.Encryption = EncryptionAlways
		}
	}
	return t.Validate(setting)
}

// Validate says which setting is wrong, why, and what is allowed. The names of the settings (account, endpoint, bucket, access-key,
// secret-key, encryption) come after setting, as in --eu-s3-account.
func (t Target) Validate(setting string) error {
	switch {
	case t.Account == "" && t.Endpoint == "":
		return fmt.Errorf("%saccount is missing: give the id of the R2 account, 32 of 0-9 and a-f", setting)
	case t.Account != "" && t.Endpoint != "":
		return fmt.Errorf("%saccount and %[1]sendpoint exclude each other: with the account of R2 the endpoint follows from it", setting)
	case t.Account != "" && !accountForm.MatchString(t.Account):
		return fmt.Errorf("%saccount %q is no id of an R2 account: use the one of its dashboard, 32 of 0-9 and a-f; the host is made of it", setting, t.Account)
	case t.Endpoint != "" && !onLoopback(t.Endpoint):
		return fmt.Errorf("%sendpoint %q is not on loopback: use http://127.0.0.1:PORT or http://[::1]:PORT, for development, or %[1]saccount for R2", setting, t.Endpoint)
	case !bucketForm.MatchString(t.Bucket):
		return fmt.Errorf("%sbucket %q: use 3 to 63 of a-z, 0-9 and dash, none at either end", setting, t.Bucket)
	case t.AccessKey == "":
		return fmt.Errorf("%saccess-key is missing: give the access key id of %v", setting, t)
	case t.SecretKey == "":
		return fmt.Errorf("%ssecret-key is missing: give the secret access key of %v", setting, t)
	}
	switch e := t.Encryption; {
	case e == "":
	case t.Account != "" && e != EncryptionAlways:
		return fmt.Errorf("%sencryption %q: R2 encrypts everything and refuses to be asked: leave it out, or use %q", setting, e, EncryptionAlways)
	case t.Endpoint != "" && e != EncryptionAES256 && e != EncryptionNone:
		return fmt.Errorf("%sencryption %q: use %q (asked for with each object) or %q", setting, e, EncryptionAES256, EncryptionNone)
	}
	return nil
}

func onLoopback(endpoint string) bool {
	u, err := url.Parse(endpoint)
	return err == nil && u.Scheme == "http" && net.ParseIP(u.Hostname()).IsLoopback() && *u == url.URL{Scheme: "http", Host: u.Host}
}
