package recorder

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

// TestProbeRefuses: storage that answers, and is not what it was configured to be, keeps the recorder from starting, and gets nothing.
func TestProbeRefuses(t *testing.T) {
	b := newBench(t)
	b.close()
	valid := b.cfg
	for name, tt := range map[string]struct {
		change func(*Config)
		says   string
	}{
		"EU bucket of no jurisdiction": {func(c *Config) { c.EU.Bucket = "recordings-none" }, `no bucket "recordings-none"`},
		"EU bucket on the default endpoint": {func(c *Config) {
			c.EU.Endpoint, c.US.Endpoint = b.storage.jurisdiction(), b.storage.jurisdiction("recordings-eu", "recordings-us")
		}, `no bucket "recordings-eu"`},
		"EU bucket behind both": {func(c *Config) { c.US.Endpoint = b.storage.jurisdiction("recordings-eu", "recordings-us") }, `the eu bucket "recordings-eu" answers at`},
		"US bucket in the EU": {func(c *Config) {
			c.EU.Endpoint, c.US.Endpoint = b.storage.jurisdiction("recordings-eu", "recordings-us"), b.storage.jurisdiction("other")
		}, `no bucket "recordings-us"`},
		"US bucket behind both":   {func(c *Config) { c.EU.Endpoint = b.storage.jurisdiction("recordings-eu", "recordings-us") }, `the us bucket "recordings-us" answers at`},
		"one bucket for both":     {func(c *Config) { c.US.Bucket = c.EU.Bucket }, `no bucket "recordings-eu"`},
		"the wrong key":           {func(c *Config) { c.EU.SecretKey = "wrong" }, "access key"},
		"R2's refusal to encrypt": {func(c *Config) { c.EU.Encryption = EncryptionAES256 }, "does not encrypt"},
		"one that ignores it": {func(c *Config) {
			c.EU.Endpoint, c.EU.Encryption, c.US = b.storage.server.Endpoint(), EncryptionAES256, nil
		}, "does not encrypt"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := valid
			us := *valid.US
			cfg.US, cfg.Dir = &us, t.TempDir()
			tt.change(&cfg)
			rec, err := Open(t.Context(), cfg)
			if err == nil {
				_ = rec.Close(t.Context())
			}
			if !errors.Is(err, ErrMisplaced) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want %q", err, tt.says)
			}
		})
	}
	for _, bucket := range []string{"recordings-eu", "recordings-us"} {
		if n := b.storage.front.Calls(bucket, "PutObject"); n != 0 {
			t.Errorf("%d objects were put into %s", n, bucket)
		}
	}
	b.storage.front.ReadOnly("recordings-eu")
	cfg := valid
	cfg.US = nil
	if _, err := Open(t.Context(), cfg); !errors.Is(err, ErrMisplaced) || !strings.Contains(err.Error(), "may not write") {
		t.Errorf("a key that may read only: %v", err)
	}
	redirect := httptest.NewServer(http.RedirectHandler("http://127.0.0.1:9/", http.StatusTemporaryRedirect))
	defer redirect.Close()
	cfg = valid
	cfg.EU.Endpoint, cfg.US = redirect.URL, nil
	if _, err := Open(t.Context(), cfg); !errors.Is(err, ErrMisplaced) || !strings.Contains(err.Error(), "307") {
		t.Errorf("sent elsewhere: %v", err)
	}
}

// TestKeyThatIsOfNoUseElsewhere: a key for one bucket alone is refused at the other endpoint, whatever is there, and gets nothing there.
func TestKeyThatIsOfNoUseElsewhere(t *testing.T) {
	b := newBench(t)
	b.close()
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/recordings-eu" {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	t.Cleanup(other.Close)
	b.cfg.US.Endpoint = other.URL
	b.open()
}

// TestProbeLeavesNothing: what shows that a bucket can be written to is gone, on both sides, and storage is asked for nothing more than that.
func TestProbeLeavesNothing(t *testing.T) {
	b := newBench(t)
	for _, region := range []place.Region{place.EU, place.US} {
		bucket := b.at(region).bucket
		if left := b.uploads(region); left != nil {
			t.Errorf("uploads %v are left in %s", left, bucket)
		}
		for op, want := range map[string]int{"Create": 1, "Abort": 1, "PutObject": 0, "DeleteObject": 0} {
			if n := b.storage.front.Calls(bucket, op); n != want {
				t.Errorf("%d times %s in %s, want %d", n, op, bucket, want)
			}
		}
	}
}

// TestStorageThatEncryptsWhenAsked: the header goes with every object, and its probe leaves nothing behind.
func TestStorageThatEncryptsWhenAsked(t *testing.T) {
	b := newBench(t)
	b.close()
	b.storage.front.Encrypts()
	b.cfg.EU.Encryption, b.cfg.US = EncryptionAES256, nil
	b.open()
	if c, a := b.storage.front.Calls("recordings-eu", "Create"), b.storage.front.Calls("recordings-eu", "Abort"); c != 2 || a != 2 {
		t.Errorf("the probe began %d uploads and gave up %d", c, a)
	}
	r := b.begin("sealed", place.EUOnly)
	if err := r.Ingest(t.Context(), play(film(t, 3, 1))); err != nil {
		t.Fatal(err)
	}
	sealed := b.seal(r)
	b.wantObject(place.EU, b.ledger.awaitState("sealed", StateAvailable).Key, sealed, 30)
}

// TestStorageThatIsDownAtStart: a recorder starts and records without it, sends nothing before the probe succeeded, and everything after.
func TestStorageThatIsDownAtStart(t *testing.T) {
	for _, misplaced := range []bool{false, true} {
		t.Run(fmt.Sprintf("misplaced=%v", misplaced), func(t *testing.T) {
			b := newBench(t)
			b.close()
			b.storage.front.Cut("recordings-eu", true)
			b.cfg.RetryMax = 50 * time.Millisecond
			if misplaced { // which shows only once it answers
				b.cfg.US.Endpoint = b.storage.jurisdiction("recordings-eu", "recordings-us")
			}
			b.open()
			r := b.begin("later", place.EUOnly)
			if err := r.Ingest(t.Context(), play(film(t, 3, 1))); err != nil {
				t.Fatal(err)
			}
			sealed := b.seal(r)
			if err := b.rec.eu.put(t.Context(), "k", strings.NewReader("x"), 1, md5Of("x")); !errors.Is(err, errUnproven) {
				t.Errorf("put before the probe: %v", err)
			}
			before := b.storage.front.Calls("recordings-eu", "other")
			b.storage.front.Cut("recordings-eu", false)
			if !misplaced {
				b.wantObject(place.EU, b.ledger.awaitState("later", StateAvailable).Key, sealed, 30)
				return
			}
			b.waitFor("probes", func() bool { return b.storage.front.Calls("recordings-eu", "other") > before+6 })
			if n := b.storage.front.Calls("recordings-eu", "PutObject"); n != 0 {
				t.Errorf("%d objects were put into a bucket that is not where it has to be", n)
			}
			if u, _ := b.ledger.last("later"); u.State != StateSealed {
				t.Errorf("state %s", u.State)
			}
		})
	}
}
