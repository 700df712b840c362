package recorder

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/driftstack/fleet/orchestrator/place"
)

// mostListed bounds what Look counts in a region.
const mostListed = 100_000

// Found is what lies in a region's bucket.
type Found struct {
	Region  place.Region
	Objects int64
	Bytes   int64
	More    bool // there are more than were counted
}

// Look probes every bucket as Open does, and counts what is there of an account's recordings, or with "" of all. What was found counts even with an error, which
// says what was not, or is not where it has to be.
func (r *Recorder) Look(ctx context.Context, account string) (all []Found, err error) {
	prefix := keyPrefix
	if account != "" {
		if !nameForm.MatchString(account) {
			return nil, nil // no recording can be of that name
		}
		prefix += account + "/"
	}
	var errs []error
	for _, st := range r.stores() {
		errs = append(errs, st.prober.probe(ctx)) // what is there is listed all the same
		f, err := st.count(ctx, prefix)
		if err != nil {
			errs = append(errs, fmt.Errorf("list what is in %s: %w", st.region, err))
			continue
		}
		all = append(all, f)
	}
	return all, errors.Join(errs...)
}

func (s *store) count(ctx context.Context, prefix string) (Found, error) {
	f := Found{Region: s.region}
	pages := s3.NewListObjectsV2Paginator(s.prober.here, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: &prefix})
	for pages.HasMorePages() && !f.More {
		page, err := pageOf(ctx, s, pages.NextPage)
		if err != nil {
			return f, err
		}
		for _, o := range page.Contents {
			f.Objects++
			f.Bytes += aws.ToInt64(o.Size)
		}
		f.More = f.Objects >= mostListed && pages.HasMorePages()
	}
	return f, nil
}
