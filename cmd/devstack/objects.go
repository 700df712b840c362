package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/driftstack/fleet/recorder/s3server"
)

// objectStore is the object storage of one region: a server of its own, as R2's jurisdictions have endpoints of their own.
type objectStore struct {
	endpoint, bucket string
	data             string // where the objects of the bucket lie on disk
	config           s3server.Config
	server           *s3server.Server
	log              *os.File
}

func startObjectStore(ctx context.Context, cfg config, region, accessKey, secretKey string) (*objectStore, error) {
	binary := filepath.Join(cfg.bin, "versitygw")
	if _, err := os.Stat(binary); err != nil {
		if binary, err = s3server.Find(""); err != nil {
			return nil, err
		}
	}
	log, err := openLog(filepath.Join(cfg.dir, "logs", "versitygw-"+region+".log"))
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cfg.dir, "objects-"+region)
	bucket := "driftstack-" + region // S3 refuses names of two letters
	o := &objectStore{bucket: bucket, data: filepath.Join(dir, "objects", bucket), log: log, config: s3server.Config{
		Binary: binary, Dir: dir, AccessKey: accessKey, SecretKey: secretKey, Buckets: []string{bucket}, Output: log,
	}}
	if o.server, err = s3server.Start(ctx, o.config); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	o.endpoint = o.server.Endpoint()
	return o, nil
}

func (o *objectStore) stop(context.Context) error {
	o.server.Stop()
	return o.log.Close()
}
