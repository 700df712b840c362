package httpapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
	"github.com/driftstack/fleet/orchestrator/pgstore/pgcluster"
)

const ownDatabase = "fleet"

// ownPostgres is a cluster of the test's own, which can be stopped, started and starved. Its DSN stays the same.
type ownPostgres struct {
	t   *testing.T
	dir string
	*pgcluster.Cluster
}

// newOwnPostgres starts it in a folder; prepare is given the folder before.
func newOwnPostgres(t *testing.T, prepare func(dir string)) *ownPostgres {
	t.Helper()
	dir, err := os.MkdirTemp("", "pg") // short enough for a socket in it
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	prepare(dir)
	p := &ownPostgres{t: t, dir: filepath.Join(dir, "c")}
	p.start()
	t.Cleanup(func() { p.stop() })
	must(t, p.CreateDatabase(t.Context(), ownDatabase))
	return p
}

func (p *ownPostgres) start() {
	p.t.Helper()
	c, err := pgcluster.Start(p.t.Context(), pgcluster.Config{Dir: p.dir})
	must(p.t, err)
	p.Cluster = c
}

func (p *ownPostgres) stop() {
	p.t.Helper()
	must(p.t, p.Stop(context.Background()))
}

// instead gives a rig this database.
func (p *ownPostgres) instead(*testing.T, string) string { return p.DSN(ownDatabase) }

// pressure sends commands of one session and creates others, all the time, and sees what is answered.
type pressure struct {
	over sync.WaitGroup
	stop chan struct{}

	mu       sync.Mutex // guards what follows
	commands int
	notRun   int     // commands that are to be sent again
	broken   []error // of commands
	created  int
	refused  int
	odd      []error // refusals that do not say when to come back
}

func press(r *rig, session string) *pressure {
	p := &pressure{stop: make(chan struct{})}
	loop := func(f func(context.Context)) {
		p.over.Go(func() {
			for {
				select {
				case <-p.stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
				f(ctx)
				cancel()
			}
		})
	}
	loop(func(ctx context.Context) {
		_, err := r.client.Do(ctx, session, webdriver.Command{Method: http.MethodPost, Path: "/execute/sync", Body: []byte(`{"script":"","args":[1]}`)})
		p.mu.Lock()
		defer p.mu.Unlock()
		var w *webdriver.Error
		switch {
		case err == nil:
			p.commands++
		case errors.As(err, &w) && w.Data["outcome"] == "not_run": // its lease could not be renewed in time
			p.notRun++
		default:
			p.broken = append(p.broken, err)
		}
	})
	loop(func(ctx context.Context) {
		// It waits for the device in vain. Cancelling it would wait for the database.
		_, err := r.client.CreateSession(ctx, unrecorded(api.CreateSession{Name: strings.Repeat("n", 200), Timeouts: api.Timeouts{QueueSeconds: 1}}))
		p.mu.Lock()
		defer p.mu.Unlock()
		var problem *client.Problem
		switch {
		case err == nil:
			p.created++
		case errors.As(err, &problem) && problem.Status == http.StatusServiceUnavailable && problem.RetryAfter > 0:
			p.refused++
		default:
			p.odd = append(p.odd, err)
		}
	})
	return p
}

func (p *pressure) counts() (created, refused, commands int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.created, p.refused, p.commands
}

// recovers waits until sessions are created and commands answered again, ends the pressure, and shows that nothing was broken.
func (p *pressure) recovers(t *testing.T, r *rig, session string) {
	t.Helper()
	was, _, ran := p.counts()
	eventually(t, "sessions are created and commands answered again", func() bool {
		created, _, commands := p.counts()
		return created > was+3 && commands > ran+3
	})
	close(p.stop)
	p.over.Wait()
	t.Logf("%d sessions created, %d refused, %d commands answered, %d to be sent again", p.created, p.refused, p.commands, p.notRun)
	if len(p.broken) > 0 || len(p.odd) > 0 {
		t.Errorf("%d commands failed: %v; %d answers without a time to come back: %v", len(p.broken), errors.Join(p.broken...), len(p.odd), errors.Join(p.odd...))
	}
	eventually(t, "nobody waits for the device", func() bool {
		q, err := r.client.Sessions(t.Context(), url.Values{"state": {"queued"}})
		return err == nil && len(q.Sessions) == 0
	})
	if resp, b := r.call(t, "DELETE", "/session/"+session, ""); resp.StatusCode != 200 {
		t.Errorf("quit: %d %s", resp.StatusCode, b)
	}
	next := r.running(t, api.CreateSession{})
	if resp, b := r.call(t, "DELETE", "/session/"+next.ID, ""); resp.StatusCode != 200 {
		t.Errorf("quit: %d %s", resp.StatusCode, b)
	}
}

// Postgres is stopped and started again under load: what needs it is refused with a time to come back, what does not goes on, and
// nothing has to be restarted.
func TestPostgresRestartsUnderLoad(t *testing.T) {
	t.Parallel()
	pg := newOwnPostgres(t, func(string) {})
	r := newRig(t, 1, 100000, pg.instead)
	s := r.running(t, api.CreateSession{})
	p := press(r, s.ID)
	eventually(t, "there is load", func() bool { created, _, commands := p.counts(); return created > 3 && commands > 10 })
	pg.stop()
	_, had, _ := p.counts()
	eventually(t, "requests are refused", func() bool { _, refused, _ := p.counts(); return refused > had })
	pg.start()
	p.recovers(t, r, s.ID)
}

// Connections that are cut under load cost nobody more than a retry.
func TestPostgresConnectionsAreCut(t *testing.T) {
	t.Parallel()
	pg := newOwnPostgres(t, func(string) {})
	r := newRig(t, 1, 100000, pg.instead)
	s := r.running(t, api.CreateSession{})
	p := press(r, s.ID)
	for round := range 8 {
		created, _, commands := p.counts()
		eventually(t, fmt.Sprintf("there is load in round %d", round), func() bool { c, _, n := p.counts(); return c > created && n > commands })
		_, err := pg.Run(t.Context(), ownDatabase, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'driftstack'`)
		must(t, err)
	}
	p.recovers(t, r, s.ID)
}

// A database whose disk is full refuses what it would have to write, and takes it again as soon as there is room.
func TestPostgresOnAFullDisk(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("not root: a disk of its own, to be filled, needs a mount")
	}
	var mounted string
	pg := newOwnPostgres(t, func(dir string) {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=192m"); err != nil {
			t.Skipf("no tmpfs here: %v", err)
		}
		mounted = dir
		t.Cleanup(func() { must(t, syscall.Unmount(dir, 0)) })
	})
	r := newRig(t, 1, 100000, pg.instead)
	s := r.running(t, api.CreateSession{})
	p := press(r, s.ID)
	eventually(t, "there is load", func() bool { created, _, commands := p.counts(); return created > 3 && commands > 10 })
	ballast, err := os.Create(filepath.Join(mounted, "ballast"))
	must(t, err)
	if _, err := io.Copy(ballast, zeros{}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	must(t, ballast.Close())
	eventually(t, "requests are refused", func() bool { _, refused, _ := p.counts(); return refused > 0 }) // after a few tries of the client
	must(t, os.Remove(ballast.Name()))
	select {
	case <-pg.Done(): // it gives up where it cannot even write its log, and has to be started again; we do not
		pg.stop()
		pg.start()
	default:
	}
	p.recovers(t, r, s.ID)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
