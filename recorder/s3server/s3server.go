// Package s3server runs versitygw, an S3 server over a folder, as a child process: object storage for the development stack
// and for tests. [Strict] in front of it refuses what R2 refuses.
//
// Out of scope: production storage (that is R2), installing versitygw (the Makefile does).
package s3server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// Region is what requests are signed for, the same as R2's.
const Region = "auto"

const (
	program     = "versitygw"
	readyWithin = 20 * time.Second
	stopWithin  = 5 * time.Second
)

// ErrNotInstalled is returned by Find when there is no versitygw.
var ErrNotInstalled = errors.New("s3server: versitygw is not installed: `make setup` installs it into ./bin")

var errExited = errors.New("s3server: versitygw ended at once")

// Config is what to start. Zero fields take the defaults.
type Config struct {
	Binary    string    // path of versitygw; Find("") by default
	Dir       string    // where objects are kept; made when missing, survives restarts
	Addr      string    // loopback host:port; a free port by default
	AccessKey string    // "driftstack" by default
	SecretKey string    // "driftstack-secret" by default
	Buckets   []string  // made when missing; names of 3 to 63 characters, as everywhere in S3
	Output    io.Writer // what versitygw prints; dropped by default
}

// Server is a running versitygw.
type Server struct {
	cfg    Config
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // of the child, once exited is closed
	stop   sync.Once
}

// Find looks for versitygw in root/bin, then in PATH. With an empty root it looks in the bin folder of the working directory.
func Find(root string) (string, error) {
	path, err := filepath.Abs(filepath.Join(root, "bin", program))
	if err == nil {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	return "", ErrNotInstalled
}

// Start starts versitygw, waits until it answers and makes the buckets. ctx bounds the start only: Stop ends the server.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	free := cfg.Addr == ""
	for attempt := 1; ; attempt++ {
		if free {
			addr, err := freeAddr()
			if err != nil {
				return nil, fmt.Errorf("s3server: no free port: %w", err)
			}
			cfg.Addr = addr
		}
		s, err := start(ctx, cfg)
		if !free || attempt == 3 || !errors.Is(err, errExited) {
			return s, err // only a port that was taken in between is worth another one
		}
	}
}

func (c *Config) complete() error {
	if c.Binary == "" {
		path, err := Find("")
		if err != nil {
			return err
		}
		c.Binary = path
	}
	if c.Dir == "" {
		return errors.New("s3server: Dir is empty: say where objects are kept")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return err
	}
	c.Dir = dir
	if c.Addr != "" {
		host, _, err := net.SplitHostPort(c.Addr)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			return fmt.Errorf("s3server: address %q: use a loopback address and a port, such as 127.0.0.1:7070", c.Addr)
		}
	}
	if c.AccessKey == "" {
		c.AccessKey = "driftstack"
	}
	if c.SecretKey == "" {
		c.SecretKey = "driftstack-secret"
	}
	if c.Output == nil {
		c.Output = io.Discard
	}
	return nil
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func start(ctx context.Context, cfg Config) (*Server, error) {
	// The folder of attributes must not share the name of the data folder as a prefix.
	data, attributes := filepath.Join(cfg.Dir, "objects"), filepath.Join(cfg.Dir, "attributes")
	for _, dir := range []string{data, attributes} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("s3server: %w", err)
		}
	}
	s := &Server{cfg: cfg, exited: make(chan struct{})}
	s.cmd = exec.Command(cfg.Binary, "--port", cfg.Addr, "--region", Region, "--quiet", "posix", "--sidecar", attributes, data)
	s.cmd.Env = []string{"ROOT_ACCESS_KEY=" + cfg.AccessKey, "ROOT_SECRET_KEY=" + cfg.SecretKey, "PATH=" + os.Getenv("PATH"), "HOME=" + cfg.Dir}
	s.cmd.Dir = cfg.Dir
	s.cmd.Stdout, s.cmd.Stderr = cfg.Output, cfg.Output
	s.cmd.WaitDelay = time.Second
	s.cmd.SysProcAttr = childAttr()

	started := make(chan error, 1)
	go s.keep(started)
	if err := <-started; err != nil {
		<-s.exited
		return nil, fmt.Errorf("s3server: start %s: %w", cfg.Binary, err)
	}
	if err := s.ready(ctx); err != nil {
		s.Kill()
		return nil, err
	}
	return s, nil
}

// keep starts the child and waits for it, on one thread: on Linux the child is killed when the thread that started it ends.
func (s *Server) keep(started chan<- error) {
	defer close(s.exited)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	s.err = s.cmd.Start()
	started <- s.err
	if s.err != nil {
		return
	}
	s.err = s.cmd.Wait()
}

// ready waits until the server answers, by making the buckets.
func (s *Server) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	watched := make(chan struct{})
	defer func() { cancel(); <-watched }()
	go func() { // ends with ctx: whoever has the port instead of our child need not answer
		defer close(watched)
		select {
		case <-s.exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	transport := &http.Transport{DisableKeepAlives: true}
	client := s3.New(s3.Options{
		Region: Region, BaseEndpoint: aws.String(s.Endpoint()), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(s.cfg.AccessKey, s.cfg.SecretKey, ""),
		HTTPClient:  &http.Client{Transport: transport, Timeout: 5 * time.Second}, Retryer: aws.NopRetryer{},
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
	})
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := client.ListBuckets(ctx, &s3.ListBucketsInput{})
		for i := 0; err == nil && i < len(s.cfg.Buckets); i++ {
			_, err = client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &s.cfg.Buckets[i]})
			var owned *types.BucketAlreadyOwnedByYou
			var exists *types.BucketAlreadyExists
			if errors.As(err, &owned) || errors.As(err, &exists) {
				err = nil
			}
		}
		if err == nil {
			return nil
		}
		var refused smithy.APIError
		if errors.As(err, &refused) && refused.ErrorCode() != "InternalError" && refused.ErrorCode() != "ServiceUnavailable" {
			return fmt.Errorf("s3server: versitygw on %s refuses us: %w", s.cfg.Addr, err)
		}
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		select {
		case <-s.exited:
			return fmt.Errorf("%w, on %s: %v", errExited, s.cfg.Addr, s.err)
		default:
			return fmt.Errorf("s3server: versitygw on %s is not ready: %w", s.cfg.Addr, err)
		}
	}
}

// Endpoint is the server's address as a URL.
func (s *Server) Endpoint() string { return "http://" + s.cfg.Addr }

// Addr is the server's host:port: give it to the next Start to come back at the same place.
func (s *Server) Addr() string { return s.cfg.Addr }

// Keys are the root credentials.
func (s *Server) Keys() (access, secret string) { return s.cfg.AccessKey, s.cfg.SecretKey }

// Exited is closed when the process is gone, asked or not.
func (s *Server) Exited() <-chan struct{} { return s.exited }

// Stop asks the server to end and kills it when it does not. Safe to call again.
func (s *Server) Stop() {
	s.end(syscall.SIGTERM)
}

// Kill ends the server at once.
func (s *Server) Kill() {
	s.end(syscall.SIGKILL)
}

func (s *Server) end(sig syscall.Signal) {
	s.stop.Do(func() {
		group := -s.cmd.Process.Pid
		select {
		case <-s.exited:
		default:
			_ = syscall.Kill(group, sig)
		}
		select {
		case <-s.exited:
		case <-time.After(stopWithin):
			_ = syscall.Kill(group, syscall.SIGKILL)
			<-s.exited
		}
	})
	<-s.exited
}

// splitPath gives bucket and key of a path-style request.
func splitPath(path string) (bucket, key string) {
	bucket, key, _ = strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return bucket, key
}
