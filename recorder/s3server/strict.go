package s3server

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Strict is a handler in front of an S3 server that refuses what R2 refuses and more permissive servers take:
//
//	501 NotImplemented  server-side encryption, tagging, ACL, object lock and website headers and requests
//	501 NotImplemented  aws-chunked bodies and trailing checksums
//	400 InvalidPart     Complete with parts of unequal size (but the last), or under 5 MiB
//	400 ExpiredRequest  a presigned URL after its time
//	403 AccessDenied    writes to a bucket that the key may only read (ReadOnly)
//	404 NoSuchBucket    a bucket of another jurisdiction (Jurisdiction)
//	429 TooManyRequests a second write of an object (PutObject, Complete) within a second
//
// As another provider it encrypts at rest when it is asked to (Encrypts). It counts what passes, and can be cut off, as a region that is down. Requests are forwarded as they are, so
// that signatures hold.
type Strict struct {
	proxy *httputil.ReverseProxy
	now   func() time.Time

	mu    sync.Mutex // guards what follows
	sizes map[string]map[int]int64
	calls map[string]int
	down  map[string]bool
	lose  map[string]int
	wrote map[string]time.Time // by path, within the last writeEvery
	seals bool                 // Encrypts
	fixed map[string]bool      // ReadOnly
}

const sseHeader = "X-Amz-Server-Side-Encryption"

// writeEvery is how often an object may be written.
const writeEvery = time.Second

// NewStrict is in front of the server at endpoint.
func NewStrict(endpoint string) (*Strict, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, fmt.Errorf("s3server: strict: %w", err)
	}
	s := &Strict{sizes: map[string]map[int]int64{}, calls: map[string]int{}, down: map[string]bool{}, lose: map[string]int{}, fixed: map[string]bool{}, wrote: map[string]time.Time{}, now: time.Now}
	s.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(u)
			r.Out.Host = r.In.Host // it is signed
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 32, DisableCompression: true},
		ModifyResponse: func(resp *http.Response) error {
			if asked := resp.Request.Header.Get(sseHeader); asked != "" {
				resp.Header.Set(sseHeader, asked)
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			refuse(w, http.StatusBadGateway, "ServiceUnavailable", err.Error())
		},
	}
	return s, nil
}

// Cut takes a bucket off line, or brings it back.
func (s *Strict) Cut(bucket string, down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down[bucket] = down
}

// Jurisdiction is the handler of an endpoint behind which are these buckets and no others. It counts and fails together with the rest; with one of
// its buckets cut off, all of it is.
func (s *Strict) Jurisdiction(buckets ...string) http.Handler {
	only := append([]string{}, buckets...) // nil would be all
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, only) })
}

// Encrypts has it demand x-amz-server-side-encryption of each new object, and say so in its answers, where R2 refuses it.
func (s *Strict) Encrypts() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seals = true
}

// ReadOnly has writes to a bucket refused, as R2 does with a key that may read only.
func (s *Strict) ReadOnly(bucket string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fixed[bucket] = true
}

// Lose has the next n requests of an operation executed and their answers lost.
func (s *Strict) Lose(operation string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lose[operation] = n
}

// Calls counts the requests of an operation on a bucket: "PutObject", "UploadPart", "Complete", "Create", "Abort", "other".
func (s *Strict) Calls(bucket, operation string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[bucket+" "+operation]
}

func operation(r *http.Request) string {
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodPut && q.Has("partNumber"):
		return "UploadPart"
	case r.Method == http.MethodPut:
		return "PutObject"
	case r.Method == http.MethodPost && q.Has("uploads"):
		return "Create"
	case r.Method == http.MethodPost && q.Has("uploadId"):
		return "Complete"
	case r.Method == http.MethodDelete && q.Has("uploadId"):
		return "Abort"
	case r.Method == http.MethodDelete:
		return "DeleteObject"
	}
	return "other"
}

// ServeHTTP implements http.Handler, for every bucket there is.
func (s *Strict) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.serve(w, r, nil) }

// serve answers for an endpoint with some buckets; nil: with all.
func (s *Strict) serve(w http.ResponseWriter, r *http.Request, buckets []string) {
	bucket, _ := splitPath(r.URL.Path)
	op := operation(r)
	seen := buckets == nil || slices.Contains(buckets, bucket)
	s.mu.Lock()
	down := buckets == nil && s.down[bucket] || slices.ContainsFunc(buckets, func(b string) bool { return s.down[b] })
	seals, fixed := s.seals, s.fixed[bucket]
	s.calls[bucket+" "+op]++
	lose := s.lose[op] > 0 && !down && seen
	if lose {
		s.lose[op]--
	}
	s.mu.Unlock()
	if down {
		panic(http.ErrAbortHandler)
	}
	if !seen {
		refuse(w, http.StatusNotFound, "NoSuchBucket", "there is no bucket "+bucket+" in this jurisdiction")
		return
	}
	if expired(r, s.now()) {
		refuse(w, http.StatusBadRequest, "ExpiredRequest", "the URL has expired")
		return
	}
	if why := unimplemented(r, seals); why != "" {
		refuse(w, http.StatusNotImplemented, "NotImplemented", why+" is not implemented")
		return
	}
	if seals && (op == "PutObject" || op == "Create") && r.Header.Get(sseHeader) == "" {
		refuse(w, http.StatusForbidden, "AccessDenied", "objects are to be encrypted at rest")
		return
	}
	if fixed && op != "other" {
		refuse(w, http.StatusForbidden, "AccessDenied", "this key may read only")
		return
	}
	upload := r.URL.Query().Get("uploadId")
	switch op {
	case "UploadPart":
		n, _ := strconv.Atoi(r.URL.Query().Get("partNumber"))
		s.mu.Lock()
		if s.sizes[upload] == nil {
			s.sizes[upload] = map[int]int64{}
		}
		s.sizes[upload][n] = r.ContentLength
		s.mu.Unlock()
	case "Complete":
		body, err := io.ReadAll(io.LimitReader(r.Body, 4<<20))
		if err != nil {
			refuse(w, http.StatusBadRequest, "IncompleteBody", err.Error())
			return
		}
		if why := s.unequal(upload, body); why != "" {
			refuse(w, http.StatusBadRequest, "InvalidPart", why)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	if (op == "PutObject" || op == "Complete") && s.tooSoon(r.URL.Path) {
		refuse(w, http.StatusTooManyRequests, "TooManyRequests", "an object may be written once a second")
		return
	}
	if lose {
		s.proxy.ServeHTTP(&void{header: http.Header{}}, r)
		panic(http.ErrAbortHandler)
	}
	s.proxy.ServeHTTP(w, r)
}

// void drops an answer.
type void struct{ header http.Header }

func (v *void) Header() http.Header         { return v.header }
func (v *void) Write(b []byte) (int, error) { return len(b), nil }
func (v *void) WriteHeader(int)             {}

// expired says whether a presigned URL is past its time; a request that is signed in its header never is.
func expired(r *http.Request, now time.Time) bool {
	q := r.URL.Query()
	if !q.Has("X-Amz-Expires") {
		return false
	}
	signed, err := time.Parse("20060102T150405Z", q.Get("X-Amz-Date"))
	if err != nil {
		return false // the server behind says what is wrong with it
	}
	seconds, err := strconv.Atoi(q.Get("X-Amz-Expires"))
	return err == nil && now.After(signed.Add(time.Duration(seconds)*time.Second))
}

// tooSoon counts a write of an object, unless there was one just now.
func (s *Strict) tooSoon(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for p, at := range s.wrote {
		if now.Sub(at) >= writeEvery {
			delete(s.wrote, p)
		}
	}
	if _, ok := s.wrote[path]; ok {
		return true
	}
	s.wrote[path] = now
	return false
}

func unimplemented(r *http.Request, seals bool) string {
	for name := range r.Header {
		l := strings.ToLower(name)
		if seals && name == sseHeader {
			continue
		}
		for _, p := range []string{"x-amz-server-side-encryption", "x-amz-tagging", "x-amz-acl", "x-amz-grant", "x-amz-object-lock", "x-amz-website", "x-amz-trailer"} {
			if strings.HasPrefix(l, p) {
				return "header " + l
			}
		}
	}
	if strings.Contains(r.Header.Get("Content-Encoding"), "aws-chunked") || strings.HasPrefix(r.Header.Get("X-Amz-Content-Sha256"), "STREAMING-") {
		return "an aws-chunked body"
	}
	for _, q := range []string{"tagging", "acl", "object-lock", "retention", "legal-hold", "replication"} {
		if r.URL.Query().Has(q) {
			return q
		}
	}
	return ""
}

func (s *Strict) unequal(upload string, body []byte) string {
	var list struct {
		Part []struct {
			PartNumber int
		}
	}
	if err := xml.Unmarshal(body, &list); err != nil {
		return "the list of parts cannot be read"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sizes, known := s.sizes[upload]
	if !known || len(list.Part) == 0 {
		return ""
	}
	first := sizes[list.Part[0].PartNumber]
	for i, p := range list.Part {
		size, last := sizes[p.PartNumber], i == len(list.Part)-1
		if !last && (size != first || size < 5<<20) || size > first {
			return fmt.Sprintf("part %d has %d bytes, the first one %d: all parts but the last must be equal", p.PartNumber, size, first)
		}
	}
	return ""
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>%s</Code><Message>", code)
	_ = xml.EscapeText(w, []byte(message))
	fmt.Fprint(w, "</Message></Error>")
}

// Front is a Strict that listens on a free loopback port, and on one more for each jurisdiction.
type Front struct {
	*Strict
	endpoint string

	serving sync.WaitGroup // of the servers
	mu      sync.Mutex     // guards what follows
	servers []*http.Server
}

const closeWithin = 2 * time.Second

// StartFront listens until Close.
func StartFront(endpoint string) (*Front, error) {
	strict, err := NewStrict(endpoint)
	if err != nil {
		return nil, err
	}
	f := &Front{Strict: strict}
	f.endpoint, err = f.listen(strict)
	return f, err
}

// listen gives the address of a handler as a URL.
func (f *Front) listen(h http.Handler) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("s3server: strict: %w", err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	f.mu.Lock()
	f.servers = append(f.servers, server)
	f.mu.Unlock()
	f.serving.Go(func() { _ = server.Serve(l) }) // ends with Close
	return "http://" + l.Addr().String(), nil
}

// Endpoint is the address of all buckets, as a URL.
func (f *Front) Endpoint() string { return f.endpoint }

// ListenJurisdiction gives the address of a Jurisdiction.
func (f *Front) ListenJurisdiction(buckets ...string) (endpoint string, err error) {
	return f.listen(f.Jurisdiction(buckets...))
}

// Close ends it and every connection.
func (f *Front) Close() {
	// A connection whose request was refused before its end lingers for half a second: wait for it, so that nothing is
	// left running, but not for one that hangs.
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
	defer cancel()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.servers {
		_ = s.Shutdown(ctx)
		_ = s.Close()
	}
	f.serving.Wait()
	f.proxy.Transport.(*http.Transport).CloseIdleConnections()
}
