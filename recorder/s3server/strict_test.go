package s3server

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

func strictClient(t *testing.T) (*Front, *s3.Client) {
	t.Helper()
	s, err := Start(t.Context(), Config{Binary: binary(t), Dir: t.TempDir(), Buckets: []string{"recordings"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	f, err := StartFront(s.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	access, secret := s.Keys()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return f, s3.New(s3.Options{
		Region: Region, BaseEndpoint: aws.String(f.Endpoint()), UsePathStyle: true, Retryer: aws.NopRetryer{},
		Credentials: credentials.NewStaticCredentialsProvider(access, secret, ""), HTTPClient: &http.Client{Transport: transport, Timeout: 30 * time.Second},
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired, ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
	})
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	var api smithy.APIError
	if !errors.As(err, &api) || api.ErrorCode() != code {
		t.Errorf("error %v, want %s", err, code)
	}
}

func TestStrictRefusesWhatR2DoesNotHave(t *testing.T) {
	front, client := strictClient(t)
	put := func(change func(*s3.PutObjectInput)) error {
		in := &s3.PutObjectInput{Bucket: aws.String("recordings"), Key: aws.String("k"), Body: strings.NewReader("x")}
		change(in)
		_, err := client.PutObject(t.Context(), in)
		return err
	}
	if err := put(func(*s3.PutObjectInput) {}); err != nil {
		t.Errorf("a plain put: %v", err)
	}
	wantCode(t, put(func(in *s3.PutObjectInput) { in.ServerSideEncryption = types.ServerSideEncryptionAes256 }), "NotImplemented")
	wantCode(t, put(func(in *s3.PutObjectInput) { in.Tagging = aws.String("a=b") }), "NotImplemented")
	wantCode(t, put(func(in *s3.PutObjectInput) { in.ACL = types.ObjectCannedACLPublicRead }), "NotImplemented")

	trailer, _ := http.NewRequest(http.MethodPut, "http://x/recordings/k", nil)
	trailer.Header.Set("X-Amz-Content-Sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")
	if unimplemented(trailer, false) == "" {
		t.Error("an aws-chunked body passes")
	}
	front.Encrypts()
	wantCode(t, put(func(*s3.PutObjectInput) {}), "AccessDenied")
	out, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("recordings"), Key: aws.String("sealed"), Body: strings.NewReader("x"), ServerSideEncryption: types.ServerSideEncryptionAes256})
	if err != nil || out.ServerSideEncryption != types.ServerSideEncryptionAes256 {
		t.Errorf("where it encrypts: %+v, %v", out, err)
	}
}

func TestStrictChecksPartSizesAtComplete(t *testing.T) {
	front, client := strictClient(t)
	for name, tt := range map[string]struct {
		sizes []int
		ok    bool
	}{
		"equal":              {[]int{5 << 20, 5 << 20, 100}, true},
		"one":                {[]int{100}, true},
		"second is smaller":  {[]int{6 << 20, 5 << 20, 100}, false},
		"last is the larger": {[]int{5 << 20, 6 << 20}, false},
		"too small":          {[]int{1 << 20, 1 << 20, 100}, false},
	} {
		t.Run(name, func(t *testing.T) {
			bucket, key := aws.String("recordings"), aws.String(strings.ReplaceAll(name, " ", "-"))
			up, err := client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: bucket, Key: key})
			if err != nil {
				t.Fatal(err)
			}
			var parts []types.CompletedPart
			for i, size := range tt.sizes {
				n := aws.Int32(int32(i + 1))
				out, err := client.UploadPart(t.Context(), &s3.UploadPartInput{Bucket: bucket, Key: key, UploadId: up.UploadId, PartNumber: n, Body: bytes.NewReader(make([]byte, size))})
				if err != nil {
					t.Fatal(err)
				}
				parts = append(parts, types.CompletedPart{PartNumber: n, ETag: out.ETag})
			}
			_, err = client.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{Bucket: bucket, Key: key, UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}})
			if tt.ok && err != nil {
				t.Errorf("refused: %v", err)
			}
			if !tt.ok {
				wantCode(t, err, "InvalidPart")
			}
		})
	}
	if n := front.Calls("recordings", "Complete"); n != 5 {
		t.Errorf("%d completes counted", n)
	}
}

func TestStrictCutsAndLoses(t *testing.T) {
	front, client := strictClient(t)
	put := func() error {
		_, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("recordings"), Key: aws.String("k"), Body: strings.NewReader("x")})
		return err
	}
	front.Cut("recordings", true)
	if put() == nil {
		t.Error("a request passes the cut")
	}
	front.Cut("recordings", false)
	front.Lose("PutObject", 1)
	if put() == nil {
		t.Error("the answer was not lost")
	}
	out, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("recordings"), Key: aws.String("k")})
	if err != nil {
		t.Fatalf("the request whose answer was lost was not executed: %v", err)
	}
	defer out.Body.Close()
	if b, _ := io.ReadAll(out.Body); string(b) != "x" {
		t.Errorf("stored %q", b)
	}
}

func TestStrictTakesOneWriteOfAnObjectASecond(t *testing.T) {
	front, client := strictClient(t)
	now := time.Now()
	front.now = func() time.Time { return now }
	put := func(key string) error {
		_, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("recordings"), Key: &key, Body: strings.NewReader("x")})
		return err
	}
	if err := errors.Join(put("a"), put("b")); err != nil {
		t.Fatal(err)
	}
	now = now.Add(writeEvery - 1)
	wantCode(t, put("a"), "TooManyRequests")
	now = now.Add(1)
	if err := put("a"); err != nil {
		t.Errorf("after a second: %v", err)
	}
	wantCode(t, put("a"), "TooManyRequests")
}

func TestStrictRefusesAnExpiredURL(t *testing.T) {
	front, client := strictClient(t)
	if _, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("recordings"), Key: aws.String("k"), Body: strings.NewReader("x")}); err != nil {
		t.Fatal(err)
	}
	signed, err := s3.NewPresignClient(client).PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("recordings"), Key: aws.String("k")}, s3.WithPresignExpires(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	get := func() (int, string) {
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
		resp, err := c.Get(signed.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	if code, body := get(); code != http.StatusOK || body != "x" {
		t.Errorf("in time: %d %s", code, body)
	}
	front.now = func() time.Time { return time.Now().Add(2 * time.Minute) }
	if code, body := get(); code != http.StatusBadRequest || !strings.Contains(body, "<Code>ExpiredRequest</Code>") {
		t.Errorf("too late: %d %s", code, body)
	}
}

func TestStrictJurisdictionsDoNotSeeOneAnother(t *testing.T) {
	front, client := strictClient(t)
	at := func(buckets ...string) func(*s3.Options) {
		t.Helper()
		endpoint, err := front.ListenJurisdiction(buckets...)
		if err != nil {
			t.Fatal(err)
		}
		return func(o *s3.Options) { o.BaseEndpoint = &endpoint }
	}
	its, another := at("recordings"), at("other")
	head := func(where func(*s3.Options)) error {
		_, err := client.HeadBucket(t.Context(), &s3.HeadBucketInput{Bucket: aws.String("recordings")}, where)
		return err
	}
	if err := head(its); err != nil {
		t.Errorf("its own bucket: %v", err)
	}
	wantCode(t, head(another), "NotFound")
	_, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("recordings"), Key: aws.String("k"), Body: strings.NewReader("x")}, another)
	wantCode(t, err, "NoSuchBucket")
	front.Cut("recordings", true)
	if head(its) == nil {
		t.Error("a jurisdiction that is cut off answers")
	}
	wantCode(t, head(another), "NotFound") // the other one is not
	front.Cut("recordings", false)
	front.Cut("other", true)
	var api smithy.APIError
	if err := head(another); err == nil || errors.As(err, &api) {
		t.Errorf("a jurisdiction that is cut off answers: %v", err)
	}
}
