package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
	"github.com/driftstack/fleet/recorder/s3server"
)

// Of two accounts, one that keeps recordings in the EU and one in both regions, nothing of the first comes to the US endpoint: whatever is sent there is looked at,
// to the last byte.
func TestNothingOfTheEUGoesToTheUS(t *testing.T) {
	t.Parallel()
	twoAccounts(t, 4, 2)
}

// seen is a request, whole.
type seen struct {
	line string // method, path, query and headers
	body []byte
}

// endpoint is a storage's, which keeps what it is sent.
type endpoint struct {
	url string

	mu   sync.Mutex // guards what follows
	sent []seen
}

func newEndpoint(t *testing.T, h http.Handler) *endpoint {
	e := &endpoint{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var head bytes.Buffer
		fmt.Fprintf(&head, "%s %s\n", r.Method, r.RequestURI)
		_ = r.Header.Write(&head) // into memory
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // its sender is gone
		}
		e.mu.Lock()
		e.sent = append(e.sent, seen{head.String(), body})
		e.mu.Unlock()
		r.Body = io.NopCloser(bytes.NewReader(body))
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	e.url = server.URL
	return e
}

// has says in how many requests a text is.
func (e *endpoint) has(text string) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.sent {
		if strings.Contains(s.line, text) || bytes.Contains(s.body, []byte(text)) {
			n++
		}
	}
	return n
}

// twoAccounts runs sessions of both accounts by turns, so many at once.
func twoAccounts(t *testing.T, sessions, devices int) {
	binary, err := s3server.Find("../..")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	server, err := s3server.Start(t.Context(), s3server.Config{Binary: binary, Dir: t.TempDir(), Buckets: []string{"recordings-eu", "recordings-us"}})
	must(t, err)
	t.Cleanup(server.Stop)
	front, err := s3server.StartFront(server.Endpoint())
	must(t, err)
	t.Cleanup(front.Close)
	eu, us := newEndpoint(t, front.Jurisdiction("recordings-eu")), newEndpoint(t, front.Jurisdiction("recordings-us"))
	access, secret := server.Keys()
	var settings []string
	for region, at := range map[string]*endpoint{"eu": eu, "us": us} {
		settings = append(settings, "--"+region+"-s3-endpoint", at.url, "--"+region+"-s3-bucket", "recordings-"+region, "--"+region+"-s3-access-key", access, "--"+region+"-s3-secret-key", secret)
	}
	f := newFleetWith(t, 1, 1, devices, true, settings)
	fleet := f.replicas[0].client
	const here, both = "stays-here", "goes-abroad"
	for account, recordings := range map[string]string{here: "eu", both: "replicated"} {
		_, err := fleet.PutAccount(t.Context(), account, api.PutAccount{Recordings: recordings})
		must(t, err)
	}
	begun := time.Now()
	recordings := make([]api.Recording, sessions)
	var g errgroup.Group
	g.SetLimit(devices)
	for i := range recordings {
		g.Go(func() (err error) {
			recordings[i], err = f.recorded(fleet, []string{here, both}[i%2])
			return err
		})
	}
	must(t, g.Wait())
	t.Logf("MEASURED %d sessions in %s, %d requests to the EU, %d to the US", sessions, time.Since(begun).Round(time.Second), len(eu.sent), len(us.sent))

	for _, r := range recordings {
		film := fetch(t, fleet, r.ID)
		title := regexp.MustCompile(marker + "[A-Z2-7]{26}").FindString(string(film))
		if title == "" {
			t.Fatalf("the recording %s has no title: nothing would be found of it", r.ID)
		}
		for what, text := range map[string]string{"its bytes": title, "its session": r.Session, "itself": r.ID} {
			abroad, home := us.has(text), eu.has(text)
			if home == 0 || (abroad > 0) != (r.Account == both) {
				t.Errorf("%s of %s's recording is in %d requests to the EU and %d to the US", what, r.Account, home, abroad)
			}
		}
	}
	if n := us.has(here); n != 0 {
		t.Errorf("%d requests to the US name the account that stays in the EU", n)
	}
	// What the system says of itself is the same.
	for account, abroad := range map[string]int64{here: 0, both: int64(sessions / 2)} {
		v, err := fleet.Residency(t.Context(), account, true)
		must(t, err)
		if got := listed(v, "us"); got != abroad || listed(v, "eu") != int64(sessions/2) || len(v.Problems) != 0 {
			t.Errorf("%s has %d objects in the EU and %d in the US: %v", account, listed(v, "eu"), got, v.Problems)
		}
	}
	if n := us.has(here); n != 1 {
		t.Errorf("the account is in %d requests to the US, with the one that lists what it has there", n)
	}
}

func listed(v api.Residency, region string) (n int64) {
	for _, c := range v.Categories {
		for _, p := range c.Places {
			for _, h := range p.Holds {
				if c.Name == "recordings" && p.Region == region && h.What == "objects listed" {
					n += h.Count
				}
			}
		}
	}
	return n
}

// recorded drives a session to its end and waits until its recording is wherever it has to be.
func (f *fleet) recorded(fleet *client.Client, account string) (r api.Recording, err error) {
	ctx, cancel := context.WithTimeout(f.t.Context(), 2*time.Minute)
	defer cancel()
	s, err := fleet.CreateSession(ctx, api.CreateSession{Account: account})
	if err != nil {
		return r, err
	}
	if s, err = fleet.Wait(ctx, s.ID, "running"); err != nil {
		return r, err
	}
	if _, err = fleet.Do(ctx, s.ID, webdriver.Command{Method: http.MethodPost, Path: "/url", Body: []byte(`{"url":"http://site.test/"}`)}); err != nil {
		return r, err
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for quit := false; ; {
		if r, err = fleet.Recording(ctx, s.ID); err != nil && !quit {
			return r, err
		}
		switch {
		case !quit && f.filmed(r.ID):
			if _, err := fleet.Do(ctx, s.ID, webdriver.Command{Method: http.MethodDelete}); err != nil {
				return r, err
			}
			quit = true
		case r.State == "replicated", r.State == "available" && r.Placement == "eu":
			return r, nil
		case r.State == "empty", r.State == "quarantined":
			return r, fmt.Errorf("recording of session %s: %s", s.ID, r.State)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return r, fmt.Errorf("recording of session %s: %s, %w", s.ID, r.State, ctx.Err())
		}
	}
}

// filmed says whether something of a recording that is being made has arrived: without, it would end as empty.
func (f *fleet) filmed(id string) bool {
	info, err := os.Stat(filepath.Join(f.dir, "volume", "spool", id, "body.webm"))
	return err == nil && info.Size() > 16<<10
}

// fetch downloads a recording from the EU.
func fetch(t *testing.T, fleet *client.Client, id string) []byte {
	t.Helper()
	u, err := fleet.RecordingURL(t.Context(), id, "eu", time.Minute)
	must(t, err)
	resp, err := http.Get(u.URL)
	must(t, err)
	defer resp.Body.Close()
	film, err := io.ReadAll(resp.Body)
	must(t, err)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", resp.Status, film)
	}
	return film
}

// TestWhatTheDatabaseSaysIsNotBelieved: an orchestrator that the database names, in no network of ours, is not connected to, and the audit log says so.
func TestWhatTheDatabaseSaysIsNotBelieved(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1, 0, 0, true)
	r := f.replicas[0]
	must(t, r.signal(syscall.SIGTERM, true))
	_, err := f.store.AnnounceReplica(t.Context(), orchestrator.Replica{ID: "elsewhere/1", Name: "elsewhere", URL: "http://3.5.140.2:8080"})
	must(t, err)
	must(t, r.start())
	r.ready(t)
	f.eventually("it is in the audit log", 20*time.Second, func() bool {
		l, err := r.client.Audit(t.Context(), "", 10, 0)
		must(t, err)
		return len(l.Entries) == 1 && l.Entries[0].Action == "outbound_refused" && strings.HasPrefix(l.Entries[0].Detail, "execution to 3.5.140.2:8080: ")
	})
	if !strings.Contains(string(r.tail()), "connection refused by the register") {
		t.Error("the log does not say so")
	}
}
