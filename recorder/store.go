package recorder

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"

	"github.com/driftstack/fleet/orchestrator/outbound"
	"github.com/driftstack/fleet/orchestrator/place"
)

const probeTimeout = 10 * time.Second

// store is one bucket, by the few requests a recording needs. Retries are the caller's.
type store struct {
	region  place.Region
	bucket  string
	sse     types.ServerSideEncryption
	timeout time.Duration
	slots   chan struct{} // one a request that carries bytes; each region has its own, or one that hangs would hold up the other
	client  *s3.Client
	idle    func()
	prober  prober
	proved  chan struct{} // closed: the probe succeeded. The client sends nothing before
	counts  *counters
}

// euStore and usStore keep the two apart for [plan].
type (
	euStore struct{ *store }
	usStore struct{ *store }
)

func newStore(t Target, at site, cfg storeConfig) (*store, error) {
	s := &store{region: at.region, bucket: t.Bucket, timeout: cfg.timeout, slots: make(chan struct{}, cfg.concurrency), proved: make(chan struct{}), counts: &counters{},
		prober: prober{site: at, bucket: t.Bucket, timeout: min(cfg.timeout, probeTimeout)}}
	if t.Encryption == EncryptionAES256 {
		s.sse = types.ServerSideEncryptionAes256
	}
	var err error
	var idle [3]func()
	if s.client, idle[0], err = pinnedClient(t, at.here, cfg, s.proved); err != nil {
		return nil, err
	}
	now := make(chan struct{})
	close(now)
	if s.prober.here, idle[1], err = pinnedClient(t, at.here, cfg, now); err != nil {
		return nil, err
	}
	idle[2] = func() {}
	if at.elsewhere != "" {
		if s.prober.elsewhere, idle[2], err = pinnedClient(t, at.elsewhere, cfg, now); err != nil {
			return nil, err
		}
	}
	s.idle = func() {
		for _, f := range idle {
			f()
		}
	}
	unproven := *s
	unproven.client = s.prober.here
	s.prober.writes = unproven.writes
	return s, nil
}

// storeConfig is what the stores of a Recorder have in common.
type storeConfig struct {
	timeout     time.Duration
	concurrency int
	refused     func(outbound.Refusal)
}

// pinTo is for requests to the host of an endpoint, which is one of R2, or on loopback.
func pinTo(endpoint string, refused func(outbound.Refusal)) (*outbound.Pin, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, fmt.Errorf("recorder: endpoint: %w", err)
	}
	pin := &outbound.Pin{Category: Category, Refused: refused}
	if u.Scheme == "http" {
		pin.Plain, pin.Networks = true, outbound.Loopback()
	}
	pin.Hosts = []string{outbound.Address(u.Scheme, u.Host)}
	return pin, nil
}

// pinnedClient is for requests to one host, once from is closed.
func pinnedClient(t Target, endpoint string, cfg storeConfig, from <-chan struct{}) (client *s3.Client, idle func(), err error) {
	pin, err := pinTo(endpoint, cfg.refused)
	if err != nil {
		return nil, nil, err
	}
	transport := pin.Transport()
	transport.ResponseHeaderTimeout = cfg.timeout
	return s3.New(s3.Options{
		Region: "auto", BaseEndpoint: aws.String(endpoint), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(t.AccessKey, t.SecretKey, ""),
		Retryer:     aws.NopRetryer{},
		HTTPClient:  pin.Client(held{from, transport}),
		// R2 has no trailing checksums: none unless an operation cannot do without.
		RequestChecksumCalculation:   aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation:   aws.ResponseChecksumValidationWhenRequired,
		ContinueHeaderThresholdBytes: -1,
	}), transport.CloseIdleConnections, nil
}

// held sends requests once from is closed, and none before.
type held struct {
	from <-chan struct{}
	next http.RoundTripper
}

func (h held) RoundTrip(r *http.Request) (*http.Response, error) {
	select {
	case <-h.from:
		return h.next.RoundTrip(r)
	default:
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, errUnproven
	}
}

func (s *store) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.timeout, fmt.Errorf("no answer from the %s storage within %v", s.region, s.timeout))
}

func (s *store) put(ctx context.Context, key string, body io.ReadSeeker, size int64, md5sum []byte) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	_, err := s.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &s.bucket, Key: &key, Body: body, ContentLength: &size, ContentType: aws.String("video/webm"),
		ContentMD5: aws.String(base64.StdEncoding.EncodeToString(md5sum)), IfNoneMatch: aws.String("*"), ServerSideEncryption: s.sse,
	})
	return err
}

func (s *store) create(ctx context.Context, key string) (uploadID string, err error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	out, err := s.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &s.bucket, Key: &key, ContentType: aws.String("video/webm"), ServerSideEncryption: s.sse,
	})
	if err != nil {
		return "", err
	}
	if aws.ToString(out.UploadId) == "" {
		return "", errors.New("the storage gave no upload ID")
	}
	if out.ServerSideEncryption != s.sse && s.sse != "" {
		return "", errors.Join(errUnencrypted, s.abort(ctx, key, *out.UploadId))
	}
	return *out.UploadId, nil
}

var errUnencrypted = errors.New("the storage was asked to encrypt, and does not say that it does")

// writes begins an upload, to see that it may, and that the storage encrypts when it is asked to, and gives it up: nothing is stored. The name is a new
// one each time, as one object may be written once a second.
func (s *store) writes(ctx context.Context) error {
	key := probePrefix + rand.Text()
	id, err := s.create(ctx, key)
	if err == nil {
		err = s.abort(ctx, key, id)
	}
	if forbidden(statusOf(err)) {
		return fmt.Errorf("%w: this access key may read the %s bucket %q, and may not write to it: give one that may do both (R2: Object Read & Write): %w", ErrMisplaced, s.region, s.bucket, err)
	}
	if errors.Is(err, errUnencrypted) || s.sse != "" && isCode(err, "NotImplemented", "InvalidArgument", "InvalidRequest", "InvalidEncryptionAlgorithmError", "KMS.NotFoundException") {
		return fmt.Errorf("%w: the %s bucket %q does not encrypt at rest as declared (%s): %w", ErrMisplaced, s.region, s.bucket, s.sse, err)
	}
	return err
}

// part sends a part under a signature of its SHA-256: what arrives otherwise is refused. The storage computes an MD5 of it, which is its ETag; an MD5 of
// ours to compare would cost as much as all the rest.
func (s *store) part(ctx context.Context, key, uploadID string, n int32, body io.ReadSeeker, size int64, sha256 []byte) (etag string, err error) {
	ctx, cancel := s.call(v4.SetPayloadHash(ctx, hex.EncodeToString(sha256)))
	defer cancel()
	out, err := s.client.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: &s.bucket, Key: &key, UploadId: &uploadID, PartNumber: &n, Body: body, ContentLength: &size,
	})
	if err != nil {
		return "", err
	}
	return strings.Trim(aws.ToString(out.ETag), `"`), nil
}

func (s *store) complete(ctx context.Context, key, uploadID string, etags []string) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	parts := make([]types.CompletedPart, len(etags))
	for i := range etags {
		parts[i] = types.CompletedPart{ETag: aws.String(`"` + etags[i] + `"`), PartNumber: aws.Int32(int32(i + 1))}
	}
	_, err := s.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &s.bucket, Key: &key, UploadId: &uploadID, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	})
	return err
}

func (s *store) abort(ctx context.Context, key, uploadID string) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	_, err := s.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &s.bucket, Key: &key, UploadId: &uploadID})
	if isCode(err, "NoSuchUpload") {
		return nil
	}
	return err
}

// foundUpload is a multipart upload that the storage has.
type foundUpload struct {
	key, id string
	begun   time.Time // by the storage's clock
}

// uploads lists what was begun and neither completed nor aborted.
func (s *store) uploads(ctx context.Context, prefix string) (all []foundUpload, err error) {
	pages := s3.NewListMultipartUploadsPaginator(s.client, &s3.ListMultipartUploadsInput{Bucket: &s.bucket, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pageOf(ctx, s, pages.NextPage)
		if err != nil {
			return nil, fmt.Errorf("list uploads: %w", err)
		}
		for _, u := range page.Uploads {
			all = append(all, foundUpload{aws.ToString(u.Key), aws.ToString(u.UploadId), aws.ToTime(u.Initiated)})
		}
	}
	return all, nil
}

// pageOf asks for one page of a list, in the time that a request has.
func pageOf[P any](ctx context.Context, s *store, next func(context.Context, ...func(*s3.Options)) (P, error)) (P, error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	return next(ctx)
}

// uploadsOf lists those of one key.
func (s *store) uploadsOf(ctx context.Context, key string) ([]foundUpload, error) {
	all, err := s.uploads(ctx, key)
	return slices.DeleteFunc(all, func(u foundUpload) bool { return u.key != key }), err
}

// newestUpload is of one key; the zero value: there is none.
func (s *store) newestUpload(ctx context.Context, key string) (newest foundUpload, err error) {
	all, err := s.uploadsOf(ctx, key)
	for _, u := range all {
		if !u.begun.Before(newest.begun) {
			newest = u
		}
	}
	return newest, err
}

// foundPart is a part of an upload that the storage has.
type foundPart struct {
	size int64
	etag string
}

func (s *store) parts(ctx context.Context, key, uploadID string) (map[int32]foundPart, error) {
	all := map[int32]foundPart{}
	pages := s3.NewListPartsPaginator(s.client, &s3.ListPartsInput{Bucket: &s.bucket, Key: &key, UploadId: &uploadID})
	for pages.HasMorePages() {
		page, err := pageOf(ctx, s, pages.NextPage)
		if err != nil {
			return nil, fmt.Errorf("list the parts of an upload: %w", err)
		}
		for _, p := range page.Parts {
			all[aws.ToInt32(p.PartNumber)] = foundPart{aws.ToInt64(p.Size), strings.Trim(aws.ToString(p.ETag), `"`)}
		}
	}
	return all, nil
}

// read gives an object to f, in pieces of step bytes and a shorter last one; f must not keep them. It is one object from start to end: with
// another one at the key half-way it fails.
func (s *store) read(ctx context.Context, key, etag string, size, step int64, f func(piece []byte) error) error {
	buf := make([]byte, min(step, size))
	for at := int64(0); at < size; at += step {
		piece := buf[:min(step, size-at)]
		if err := s.readRange(ctx, key, etag, at, piece); err != nil {
			return fmt.Errorf("read %s in %s at byte %d: %w", key, s.region, at, err)
		}
		if err := f(piece); err != nil {
			return err
		}
	}
	return nil
}

func (s *store) readRange(ctx context.Context, key, etag string, at int64, piece []byte) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	out, err := s.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: &key, IfMatch: aws.String(`"` + etag + `"`),
		Range: aws.String(fmt.Sprintf("bytes=%d-%d", at, at+int64(len(piece))-1))})
	if err != nil {
		return err
	}
	defer out.Body.Close()
	_, err = io.ReadFull(out.Body, piece)
	return err
}

// remove deletes one object; that there is none is fine.
func (s *store) remove(ctx context.Context, key string) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: &key})
	if isCode(err, "NoSuchKey", "NotFound") {
		return nil
	}
	return err
}

// head gives size and ETag of an object; found is false when there is none.
func (s *store) head(ctx context.Context, key string) (size int64, etag string, found bool, err error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.bucket, Key: &key})
	var missing *types.NotFound
	if errors.As(err, &missing) || isCode(err, "NoSuchKey", "NotFound") {
		return 0, "", false, nil
	}
	if err != nil {
		return 0, "", false, err
	}
	return aws.ToInt64(out.ContentLength), strings.Trim(aws.ToString(out.ETag), `"`), true, nil
}

func (s *store) url(ctx context.Context, key string, ttl time.Duration) (string, error) {
	r, err := s3.NewPresignClient(s.client).PresignGetObject(ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: &key}, s3.WithPresignExpires(ttl))
	if err != nil {
		return "", fmt.Errorf("recorder: sign a URL: %w", err)
	}
	return r.URL, nil
}

func isCode(err error, codes ...string) bool {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return false
	}
	for _, c := range codes {
		if api.ErrorCode() == c {
			return true
		}
	}
	return false
}
