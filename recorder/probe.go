package recorder

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// ErrMisplaced says that storage answered, and is not what it was configured to be.
var ErrMisplaced = errors.New("recorder: the storage is not what was configured")

var errUnproven = errors.New("recorder: nothing is sent to a storage before its bucket was seen where it has to be")

// probePrefix is no recording's: an upload of such a name is begun and given up again.
const probePrefix = "probe/"

// prober looks at a bucket from both sides, before anything else may.
type prober struct {
	site
	bucket          string
	timeout         time.Duration
	here, elsewhere *s3.Client // elsewhere is nil where no other place is known
	writes          func(context.Context) error
}

// probe is nil once the bucket answers where it has to be, and not where it must not be; ErrMisplaced when an answer says otherwise; any other
// error when there was no answer that tells.
func (p prober) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.timeout, fmt.Errorf("the probe of the %s storage had no answer within %v", p.region, p.timeout))
	defer cancel()
	switch status, err := p.head(ctx, p.here); {
	case err == nil:
	case status == http.StatusNotFound:
		return fmt.Errorf("%w: there is no bucket %q at %s, where the %s bucket has to be: make it there, or name the right account and bucket", ErrMisplaced, p.bucket, p.site.here, p.region)
	case forbidden(status):
		return fmt.Errorf("%w: %s does not let this access key in to the %s bucket %q (or the clock here is wrong): give a key that may read and write it: %w", ErrMisplaced, p.site.here, p.region, p.bucket, err)
	default:
		return p.unclear(p.site.here, status, err)
	}
	if p.elsewhere != nil {
		switch status, err := p.head(ctx, p.elsewhere); {
		case status == http.StatusNotFound:
		case forbidden(status): // whatever is there, nothing that has this key gets at it
		case err == nil:
			return fmt.Errorf("%w: the %s bucket %q answers at %s too, where it must not be: it is not of the jurisdiction that it has to be of, or another has its name there. Make one with another name",
				ErrMisplaced, p.region, p.bucket, p.site.elsewhere)
		default:
			return p.unclear(p.site.elsewhere, status, err)
		}
	}
	return p.writes(ctx)
}

// head gives the status of the answer; 0: there was none.
func (p prober) head(ctx context.Context, at *s3.Client) (status int, err error) {
	_, err = at.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &p.bucket})
	return statusOf(err), err
}

func statusOf(err error) int {
	var answer *smithyhttp.ResponseError
	if errors.As(err, &answer) {
		return answer.HTTPStatusCode()
	}
	return 0
}

func forbidden(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden
}

// unclear is what an answer means that says nothing of the bucket.
func (p prober) unclear(where string, status int, err error) error {
	if status == 0 || status >= 500 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout {
		return fmt.Errorf("%s does not say whether the %s bucket %q is there: %w", where, p.region, p.bucket, err)
	}
	return fmt.Errorf("%w: %s answers with status %d when it is asked for the %s bucket %q: %w", ErrMisplaced, where, status, p.region, p.bucket, err)
}

// prove probes each storage before anything is sent to it. One that does not answer is no breach: it is probed again and again, and the spool keeps
// what there is meanwhile.
func (r *Recorder) prove(ctx, life context.Context) error {
	var g errgroup.Group
	for _, st := range r.stores() {
		g.Go(func() error {
			err := st.prober.probe(ctx)
			switch {
			case err == nil:
				close(st.proved)
				return nil
			case errors.Is(err, ErrMisplaced):
				return err
			}
			r.cfg.Log.Warn("storage does not answer: recordings stay in the spool until it does", zap.String("region", string(st.region)), zap.Error(err))
			r.wg.Go(func() { r.proveAgain(life, st) })
			return nil
		})
	}
	return g.Wait()
}

func (r *Recorder) proveAgain(ctx context.Context, st *store) {
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = r.cfg.RetryMax
	_, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, st.prober.probe(ctx) },
		backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, in time.Duration) {
			say := r.cfg.Log.Warn
			if errors.Is(err, ErrMisplaced) { // with sessions running it is too late to refuse to start
				say = r.cfg.Log.Error
			}
			say("nothing is uploaded to this storage; it is probed again", zap.String("region", string(st.region)), zap.Error(err), zap.Duration("in", in))
		}))
	if err == nil {
		r.cfg.Log.Info("storage answers", zap.String("region", string(st.region)))
		close(st.proved)
	}
}

// ready waits until the storage is proven.
func (s *store) ready(ctx context.Context) error {
	select {
	case <-s.proved:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
