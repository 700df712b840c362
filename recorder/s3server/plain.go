package s3server

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"
)

// Plain stores a file as plainly as the SDK can: parts of equal size, several at a time, each read from the file where it is sent. It is what
// our own uploads are compared with.
func (s *Server) Plain(ctx context.Context, bucket, key string, f *os.File, part int64, parallel int) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("s3server: plain: %w", err)
	}
	client := s3.New(s3.Options{
		Region: Region, BaseEndpoint: aws.String(s.Endpoint()), UsePathStyle: true,
		Credentials:                credentials.NewStaticCredentialsProvider(s.cfg.AccessKey, s.cfg.SecretKey, ""),
		Retryer:                    aws.NopRetryer{},
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
	})
	upload, err := client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return fmt.Errorf("s3server: plain: %w", err)
	}
	parts := make([]types.CompletedPart, (info.Size()+part-1)/part)
	g, ctx2 := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i := range parts {
		g.Go(func() error {
			at, n := int64(i)*part, aws.Int32(int32(i+1))
			size := min(part, info.Size()-at)
			out, err := client.UploadPart(ctx2, &s3.UploadPartInput{
				Bucket: &bucket, Key: &key, UploadId: upload.UploadId, PartNumber: n, Body: io.NewSectionReader(f, at, size), ContentLength: &size,
			})
			if err == nil {
				parts[i] = types.CompletedPart{ETag: out.ETag, PartNumber: n}
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("s3server: plain: %w", err)
	}
	_, err = client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &bucket, Key: &key, UploadId: upload.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	})
	if err != nil {
		return fmt.Errorf("s3server: plain: %w", err)
	}
	return nil
}
