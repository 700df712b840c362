package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
)

func recordings() []api.Recording {
	copies := func(states ...string) (list []api.RecordingCopy) {
		for i, s := range states {
			list = append(list, api.RecordingCopy{Region: []string{"eu", "us"}[i], State: s})
		}
		return list
	}
	return []api.Recording{
		{ID: "5d0c", Session: "714f", Account: "acme", Placement: "replicated", State: "replicated", Bytes: 81 << 20, DurationMS: 65_432, StartedAt: *before(3 * time.Minute), Copies: copies("verified", "verified")},
		{ID: "9a1b", Session: "8e22", Account: "acme", Placement: "eu", State: "available", Partial: true, Cause: "source_lost", Bytes: 4711, DurationMS: 900, StartedAt: *before(5 * time.Hour), Copies: copies("verified", "removing")},
		{ID: "77c3", Session: "0b4e", Account: "umbrella", Placement: "eu", State: "recording", StartedAt: *before(20 * time.Second), Copies: copies("uploading")},
		{ID: "12ef", Session: "c0de", Account: "umbrella", Placement: "eu", State: "quarantined", Cause: "corrupt", StartedAt: *before(50 * time.Hour)},
	}
}

func TestRecordingsForPeople(t *testing.T) {
	var b bytes.Buffer
	p := printer{out: &b, now: func() time.Time { return now }}
	if err := list(p, nil, recordingColumns(), recordings(), p.recordingRow); err != nil {
		t.Fatal(err)
	}
	golden(t, "recordings-ls.txt", b.String())
}

// shop is an API with one recording, and the storage that has it.
type shop struct {
	*httptest.Server
	film []byte

	mu     sync.Mutex // guards what follows
	asked  []string   // of the API
	ranges []string   // of the storage
	serve  func(w http.ResponseWriter, r *http.Request) (done bool)
}

func newShop(t *testing.T) *shop {
	s := &shop{film: make([]byte, 300_000)}
	random := rand.NewChaCha8([32]byte{})
	_, _ = random.Read(s.film)
	sum := sha256.Sum256(s.film)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if r.URL.Path == "/film" {
			s.ranges = append(s.ranges, r.Header.Get("Range"))
			if s.serve == nil || !s.serve(w, r) {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.film))
			}
			return
		}
		s.asked = append(s.asked, r.Method+" "+r.URL.String())
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Path == "/v1/recordings" && (r.FormValue("session") == "714f" || r.FormValue("session") == ""):
			_ = json.NewEncoder(w).Encode(api.RecordingList{Recordings: recordings()[:1], Next: "more"})
		case r.URL.Path == "/v1/recordings":
			_ = json.NewEncoder(w).Encode(api.RecordingList{})
		case r.URL.Path == "/v1/recordings/5d0c":
			_ = json.NewEncoder(w).Encode(recordings()[0])
		case r.URL.Path == "/v1/recordings/5d0c/url":
			_ = json.NewEncoder(w).Encode(api.RecordingURL{URL: s.URL + "/film", Bytes: int64(len(s.film)), SHA256: hex.EncodeToString(sum[:])})
		default:
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"title":"Not Found","detail":"not found"}`))
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *shop) saw() (asked, ranges []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked, ranges = s.asked, s.ranges
	s.asked, s.ranges = nil, nil
	return asked, ranges
}

func TestRecordingsOverHTTP(t *testing.T) {
	s := newShop(t)
	out, err := runAt(t, s.URL, "recordings", "ls", "--account", "acme", "--state", "available", "--limit", "7")
	asked, _ := s.saw()
	if err != nil || !strings.Contains(out, "714f") || !strings.HasSuffix(out, "\nolder: --cursor more\n") || asked[0] != "GET /v1/recordings?account=acme&limit=7&state=available" {
		t.Errorf("%v %q\n%s", err, asked, out)
	}
	for _, id := range []string{"714f", "5d0c"} { // a session, and a recording
		if out, err = runAt(t, s.URL, "recordings", "open", id, "--region", "us", "--print"); err != nil || out != s.URL+"/film\n" {
			t.Errorf("%v\n%s", err, out)
		}
		if asked, _ = s.saw(); asked[len(asked)-1] != "GET /v1/recordings/5d0c/url?expires_in=3600&region=us" {
			t.Errorf("asked %q", asked)
		}
	}
	if _, err := runAt(t, s.URL, "recordings", "show", "none"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("%v", err)
	}
}

func TestRecordingDownload(t *testing.T) {
	s := newShop(t)
	dir := t.TempDir()
	name := filepath.Join(dir, "film.webm")
	get := func() error {
		t.Helper()
		_, err := runAt(t, s.URL, "recordings", "get", "714f", "-o", name)
		return err
	}
	// The connection breaks twice; what came before is not sent again.
	breaks := 2
	s.serve = func(w http.ResponseWriter, r *http.Request) bool {
		if breaks--; breaks < 0 {
			return false
		}
		http.ServeContent(&leaky{ResponseWriter: w, left: 100_000}, r, "", time.Time{}, bytes.NewReader(s.film))
		return true
	}
	if err := get(); err != nil {
		t.Fatal(err)
	}
	if _, ranges := s.saw(); !slices.Equal(ranges, []string{"", "bytes=100000-", "bytes=200000-"}) {
		t.Errorf("ranges %q", ranges)
	}
	got, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(got, s.film) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if err := get(); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("over a file: %v", err)
	}
	part := func(b []byte) {
		t.Helper()
		if err := errors.Join(os.RemoveAll(name), os.WriteFile(name+".part", b, 0o600)); err != nil {
			t.Fatal(err)
		}
		s.saw()
	}
	// What an earlier run left is gone on with.
	part(s.film[:123_456])
	if err := get(); err != nil {
		t.Fatal(err)
	}
	if _, ranges := s.saw(); !slices.Equal(ranges, []string{"bytes=123456-"}) {
		t.Errorf("ranges %q", ranges)
	}
	// All of it is there: nothing is sent. More than all of it: it is of something else.
	for want, b := range map[string][]byte{"": s.film, "anew": append(slices.Clone(s.film), 1)} {
		part(b)
		if err := get(); err != nil {
			t.Fatal(err)
		}
		if _, ranges := s.saw(); len(ranges) != len(want)/4 {
			t.Errorf("%q: ranges %q", want, ranges)
		}
	}
	// A storage without ranges sends all of it.
	part(s.film[:1000])
	s.serve = func(w http.ResponseWriter, _ *http.Request) bool { _, _ = w.Write(s.film); return true }
	if err := get(); err != nil {
		t.Fatal(err)
	}
	// What is not the recording is not given its name.
	wrong := slices.Clone(s.film[:1000])
	wrong[7] ^= 1
	part(wrong)
	s.serve = nil
	if err := get(); err == nil || !strings.Contains(err.Error(), "not the recording") {
		t.Errorf("a flipped bit: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
	s.serve = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusNotFound); return true }
	if err := get(); err == nil || !strings.Contains(err.Error(), "no such object") || !strings.Contains(err.Error(), "run it again") {
		t.Errorf("gone: %v", err)
	}
}

// leaky breaks the connection after so many bytes.
type leaky struct {
	http.ResponseWriter
	left int
}

func (l *leaky) Write(b []byte) (int, error) {
	if len(b) < l.left {
		l.left -= len(b)
		return l.ResponseWriter.Write(b)
	}
	_, _ = l.ResponseWriter.Write(b[:l.left])
	_ = http.NewResponseController(l.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}
