package recorder

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator/place"
)

// Defaults and limits.
const (
	DefaultPartSize    = 8 << 20
	DefaultConcurrency = 8
	DefaultCallTimeout = 2 * time.Minute
	DefaultRetryMax    = 30 * time.Second
	DefaultScanEvery   = 15 * time.Second
	MaxURLLifetime     = time.Hour

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

	Log *zap.Logger      // zap.NewNop() when nil
	Now func() time.Time // time.Now when nil

	PartSize    int64         // of a multipart upload, DefaultPartSize when 0
	Concurrency int           // uploads in flight to each target over all recordings, DefaultConcurrency when 0
	CallTimeout time.Duration // of one request to storage, DefaultCallTimeout when 0
	ScanEvery   time.Duration // for spools that other processes left, DefaultScanEvery when 0
	RetryMax    time.Duration // longest pause between two attempts, DefaultRetryMax when 0
}

// EUTarget is a bucket in the EU: in production of R2's eu jurisdiction.
type EUTarget struct{ Target }

// USTarget is a bucket in the US. It is a type of its own so that the EU copy can never be handed one.
type USTarget struct{ Target }

// Target is where a bucket is and how to get in.
type Target struct {
	Endpoint  string // https://host, or http://host:port on loopback
	Bucket    string
	Region    string // "auto" when empty
	AccessKey string
	SecretKey string

	// SSE declares that this storage wants a server-side encryption header ("AES256"). R2 must not get one: its
	// objects are always encrypted at rest and the header is refused.
	SSE string
}

// String leaves out the credentials.
func (t Target) String() string { return t.Endpoint + "/" + t.Bucket }

// GoString leaves out the credentials.
func (t Target) GoString() string { return fmt.Sprintf("Target(%q)", t.String()) }

// Spec is a recording to begin.
type Spec struct {
	ID        string // unique for ever; letters, digits, - and _
	Session   string
	Account   string
	Term      int64
	Placement place.Placement
	Started   time.Time
}

// Key is the recording's name in every bucket.
func (s Spec) Key() string {
	return "recordings/" + s.Account + "/" + s.Session + "/" + s.ID + ".webm"
}

var (
	nameForm   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$`)
	bucketForm = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
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
	if c.RetryMax <= 0 {
		c.RetryMax = DefaultRetryMax
	}
	switch {
	case c.Dir == "":
		return errors.New("recorder: Dir is empty: say where the spool is")
	case c.Journal == nil:
		return errors.New("recorder: no Journal")
	case c.PartSize < minPartSize || c.PartSize > maxPartSize:
		return fmt.Errorf("recorder: part size %d: use %d to %d bytes", c.PartSize, minPartSize, maxPartSize)
	}
	if err := c.EU.validate(place.EU); err != nil {
		return err
	}
	if c.US == nil {
		return nil
	}
	if err := c.US.validate(place.US); err != nil {
		return err
	}
	if c.US.Endpoint == c.EU.Endpoint && c.US.Bucket == c.EU.Bucket {
		return fmt.Errorf("recorder: the EU and the US target are both %v: a copy needs a bucket of its own", c.EU)
	}
	return nil
}

func (t Target) validate(region place.Region) error {
	u, err := url.Parse(t.Endpoint)
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return fmt.Errorf("recorder: %s endpoint %q: use https://host", region, t.Endpoint)
	}
	local := net.ParseIP(u.Hostname()).IsLoopback() || u.Hostname() == "localhost"
	if u.Scheme != "https" && (u.Scheme != "http" || !local) {
		return fmt.Errorf("recorder: %s endpoint %q: use https (http only on loopback)", region, t.Endpoint)
	}
	// R2 keeps EU-jurisdiction buckets behind endpoints of their own, and nothing else there.
	if host := u.Hostname(); strings.HasSuffix(host, ".r2.cloudflarestorage.com") {
		if eu := strings.HasSuffix(host, ".eu.r2.cloudflarestorage.com"); eu != (region == place.EU) {
			return fmt.Errorf("recorder: %s endpoint %q is not of that jurisdiction: EU buckets are behind <account>.eu.r2.cloudflarestorage.com, US ones behind <account>.r2.cloudflarestorage.com", region, t.Endpoint)
		}
	}
	switch {
	case !bucketForm.MatchString(t.Bucket):
		return fmt.Errorf("recorder: %s bucket %q: use 3 to 63 of a-z, 0-9, dash and dot", region, t.Bucket)
	case t.AccessKey == "" || t.SecretKey == "":
		return fmt.Errorf("recorder: %s target %v has no access key or no secret key", region, t)
	case t.SSE != "" && t.SSE != "AES256":
		return fmt.Errorf("recorder: %s target %v: server-side encryption %q: leave it empty or use AES256", region, t, t.SSE)
	}
	return nil
}
